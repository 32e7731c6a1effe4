//! An archive of files that the kernel unpacks into memory and starts `/init` of.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};
use cpio::newc::{self, ModeFileType};

/// What stands at one path.
#[derive(Debug)]
enum Entry {
    Directory,
    Text(String),
    /// A copy of this file.
    Copy(PathBuf),
}

/// The archive's content. Its paths are relative to the root.
#[derive(Debug, Default)]
pub(super) struct Initramfs {
    entries: BTreeMap<PathBuf, Entry>,
    /// Directories of libraries, absolute.
    libraries: BTreeSet<PathBuf>,
}

impl Initramfs {
    /// Puts in a directory, and those that it is in.
    pub(super) fn directory(&mut self, path: &Path) {
        let above = path.ancestors().filter(|path| !path.as_os_str().is_empty());
        self.entries.extend(above.map(|path| (path.to_owned(), Entry::Directory)));
    }

    /// Puts in an executable file with this text.
    pub(super) fn text(&mut self, path: &Path, text: String) {
        self.put(path, Entry::Text(text));
    }

    /// Puts in a copy of a file.
    pub(super) fn file(&mut self, from: &Path, to: &Path) {
        self.put(to, Entry::Copy(from.to_owned()));
    }

    /// Puts in a program and its shared libraries. These stand where they do on this machine.
    ///
    /// # Errors
    /// When a library is missing.
    pub(super) fn program(&mut self, from: &Path, to: &Path) -> anyhow::Result<()> {
        self.file(from, to);
        for library in libraries(from)? {
            self.libraries.extend(library.parent().map(Path::to_owned));
            let to = library.strip_prefix("/").context("ldd names a relative path")?.to_owned();
            self.file(&library, &to);
        }
        Ok(())
    }

    /// Where the libraries are, for `LD_LIBRARY_PATH`.
    pub(super) fn library_path(&self) -> String {
        self.libraries.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(":")
    }

    /// Writes the archive. It is not compressed: the virtual machine would be slow to undo that.
    ///
    /// # Errors
    /// When one of the files cannot be read, or the archive not be written.
    pub(super) fn write(&self, archive: &mut File) -> anyhow::Result<()> {
        let mut archive = BufWriter::new(archive);
        for (number, (path, entry)) in (1..).zip(&self.entries) {
            archive = append(archive, number, path, entry)
                .with_context(|| format!("cannot pack {} ({entry:?})", path.display()))?;
        }
        newc::trailer(archive).and_then(|mut archive| archive.flush()).context("cannot end the archive")
    }

    fn put(&mut self, path: &Path, entry: Entry) {
        if let Some(directory) = path.parent() {
            self.directory(directory);
        }
        self.entries.insert(path.to_owned(), entry);
    }
}

fn append<W: Write>(archive: W, number: u32, path: &Path, entry: &Entry) -> io::Result<W> {
    let kind = match entry {
        Entry::Directory => ModeFileType::Directory,
        Entry::Text(_) | Entry::Copy(_) => ModeFileType::Regular,
    };
    let name = path.to_str().ok_or(io::ErrorKind::InvalidFilename)?;
    let header = newc::Builder::new(name).ino(number).mode(0o755).set_mode_file_type(kind);
    let size = |size: u64| u32::try_from(size).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge));
    match entry {
        Entry::Directory => header.write(archive, 0).finish(),
        Entry::Text(text) => {
            let mut file = header.write(archive, size(text.len() as u64)?);
            file.write_all(text.as_bytes())?;
            file.finish()
        }
        Entry::Copy(from) => {
            let content = fs::read(from)?;
            let mut file = header.write(archive, size(content.len() as u64)?);
            file.write_all(&content)?;
            file.finish()
        }
    }
}

/// The shared libraries of a program, and the loader of these.
fn libraries(program: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut ldd = Command::new("ldd");
    let output = ldd.arg(program).env("LC_ALL", "C").stdin(Stdio::null()).output();
    let output = output.context("cannot start ldd")?;
    let (text, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    if !output.status.success() && !error.contains("not a dynamic executable") {
        bail!("ldd {}: {}", program.display(), error.trim_end());
    }
    parse_ldd(&text).with_context(|| format!("ldd {}", program.display()))
}

fn parse_ldd(text: &str) -> anyhow::Result<Vec<PathBuf>> {
    let mut libraries = Vec::new();
    for line in text.lines() {
        if line.contains("=> not found") {
            bail!("a library is missing: {}", line.trim());
        }
        // `NAME => /PATH (0x…)`, `/PATH (0x…)` for the loader, and others for what is in no file.
        let path = line.split_once("=> ").map_or(line, |(_, path)| path).trim();
        libraries.extend(
            path.strip_prefix('/')
                .and_then(|path| path.split_once(" ("))
                .map(|(path, _)| Path::new("/").join(path)),
        );
    }
    Ok(libraries)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _};

    use super::*;

    #[test]
    fn libraries_are_read_off_ldd() {
        let text = "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\
                    \t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n";
        let expected = ["/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"];
        assert_eq!(parse_ldd(text).unwrap(), expected.map(PathBuf::from));
        assert_eq!(parse_ldd("\tstatically linked\n").unwrap(), [] as [PathBuf; 0]);
        assert!(parse_ldd("\tlibx.so.1 => not found\n").is_err());
    }

    #[test]
    fn what_is_packed_comes_out_with_its_directories_first() {
        let me = std::env::current_exe().unwrap();
        let mut initramfs = Initramfs::default();
        initramfs.program(&me, Path::new("usr/bin/me")).unwrap();
        initramfs.text(Path::new("init"), "#!/bin/sh\n".to_owned());
        let mut archive = tempfile::tempfile().unwrap();
        initramfs.write(&mut archive).unwrap();
        archive.rewind().unwrap();

        let mut found = Vec::new();
        loop {
            let mut reader = newc::Reader::new(archive).unwrap();
            if reader.entry().is_trailer() {
                break;
            }
            let mut content = Vec::new();
            reader.read_to_end(&mut content).unwrap();
            found.push((reader.entry().name().to_owned(), reader.entry().mode(), content));
            archive = reader.finish().unwrap();
        }
        let place = |name: &str| found.iter().position(|(found, ..)| found == name).unwrap();
        assert!(place("usr") < place("usr/bin") && place("usr/bin") < place("usr/bin/me"));
        assert_eq!(found[place("usr")].1, 0o040_755);
        assert_eq!(found[place("usr/bin/me")].1, 0o100_755);
        assert_eq!(found[place("init")].2, b"#!/bin/sh\n");
        assert!(found[place("usr/bin/me")].2 == fs::read(me).unwrap(), "not the same program");
        assert!(found.iter().any(|(name, ..)| name.contains("libc.so")), "{}", initramfs.library_path());
    }
}
