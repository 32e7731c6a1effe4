//! What strace tells of a process that writes files.

use std::collections::HashMap;

use anyhow::{Context as _, Result, bail};

/// Something that happened to the files of a directory, or to stdout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes were written to a file.
    Write {
        /// The file's name.
        file: String,
        /// Where in it.
        offset: u64,
        /// The bytes.
        bytes: Vec<u8>,
    },
    /// A file was cut off, or made longer.
    Truncate {
        /// The file's name.
        file: String,
        /// Its new length.
        length: u64,
    },
    /// A file's content is on disk.
    Sync {
        /// The file's name.
        file: String,
    },
    /// A file was removed.
    Remove {
        /// The file's name.
        file: String,
    },
    /// A file got another name.
    Rename {
        /// The old one.
        from: String,
        /// The new one.
        to: String,
    },
    /// A line was written to stdout.
    Said(String),
}

/// Reads what `strace -f -xx` has written of the files in `directory`, an absolute path.
///
/// # Errors
/// When a line cannot be understood, or tells of a call that failed or that nobody has thought of.
pub fn read_trace(trace: &str, directory: &str) -> Result<Vec<Event>> {
    let mut files = HashMap::<i32, String>::new();
    let mut events = Vec::new();
    for line in trace.lines() {
        let call = line
            .split_once(' ')
            .map_or(line, |(pid, rest)| if pid.parse::<u32>().is_ok() { rest } else { line });
        let call = call.trim_start();
        let Some((name, rest)) = call.split_once('(') else { continue };
        let Some((arguments, result)) = rest.rsplit_once(" = ") else { continue };
        let result: i64 = result.split_whitespace().next().unwrap_or_default().parse().unwrap_or(-1);
        if result < 0 {
            continue;
        }
        let event = event(name, arguments.trim_end().trim_end_matches(')'), result, directory, &mut files);
        events.extend(event.with_context(|| format!("strace: {line:.200}"))?);
    }
    Ok(events)
}

fn event(
    name: &str,
    arguments: &str,
    result: i64,
    directory: &str,
    files: &mut HashMap<i32, String>,
) -> Result<Option<Event>> {
    let in_directory = |quoted: &str| {
        let path = String::from_utf8(bytes(quoted)?)?;
        anyhow::Ok(path.strip_prefix(directory).map(|name| name.trim_start_matches('/').to_owned()))
    };
    let parts: Vec<&str> = arguments.split(", ").collect();
    if name == "rename" {
        let [from, to] = parts[..] else { bail!("not two paths") };
        let renamed = in_directory(from)?.zip(in_directory(to)?);
        return Ok(renamed.map(|(from, to)| Event::Rename { from, to }));
    }
    if name == "openat" || name == "unlink" {
        let path = *parts.get(usize::from(name == "openat")).context("no path")?;
        let Some(file) = in_directory(path)? else { return Ok(None) };
        if name == "unlink" {
            return Ok(Some(Event::Remove { file }));
        }
        files.insert(i32::try_from(result)?, file);
        return Ok(None);
    }
    let descriptor: i32 = parts[0].parse()?;
    if name == "write" && descriptor == 1 {
        let said = String::from_utf8(bytes(parts.get(1).context("no bytes")?)?)?;
        return Ok(Some(Event::Said(said.trim_end().to_owned())));
    }
    if name == "close" {
        files.remove(&descriptor);
        return Ok(None);
    }
    let Some(file) = files.get(&descriptor).cloned() else { return Ok(None) };
    Ok(Some(match name {
        "pwrite64" => {
            let bytes = bytes(parts.get(1).context("no bytes")?)?;
            if i64::try_from(bytes.len())? != result {
                bail!("a part was written: {result} of {}", bytes.len());
            }
            Event::Write { file, offset: parts.last().context("no offset")?.parse()?, bytes }
        }
        "ftruncate" => Event::Truncate { file, length: parts.get(1).context("no length")?.parse()? },
        "fsync" | "fdatasync" => Event::Sync { file },
        other => bail!("the call {other} on {file}"),
    }))
}

/// The bytes of `"\x01\x02"`.
fn bytes(quoted: &str) -> Result<Vec<u8>> {
    let inner = quoted.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).context("not in quotes")?;
    inner.split("\\x").skip(1).map(|hex| Ok(u8::from_str_radix(hex, 16)?)).collect()
}
