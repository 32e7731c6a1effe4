//! Debian's kernels: fetched once, without being installed, and kept in the user's cache for every clone.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{self, Command, Stdio};

use anyhow::{Context as _, bail};

use crate::apt;
use crate::shell::{Step, cache_dir, say};

/// What the tests take from outside of the kernel proper, in the order of loading: each needs those before it.
const MODULES: [&str; 13] = [
    // A switch and cables.
    "net/llc/llc.ko",
    "net/802/stp.ko",
    "net/bridge/bridge.ko",
    "drivers/net/veth.ko",
    // SCTP.
    "crypto/crc32c_generic.ko",
    "lib/libcrc32c.ko",
    "net/ipv4/udp_tunnel.ko",
    "net/ipv6/ip6_udp_tunnel.ko",
    "net/sctp/sctp.ko",
    // IPsec.
    "net/xfrm/xfrm_algo.ko",
    "net/xfrm/xfrm_user.ko",
    "net/ipv4/esp4.ko",
    "crypto/authenc.ko",
];

/// A kernel and its modules.
#[derive(Debug)]
pub(super) struct Image {
    /// Debian's package.
    pub(super) name: String,
    /// The kernel.
    pub(super) vmlinuz: PathBuf,
    /// The modules, in the order of loading.
    pub(super) modules: Vec<PathBuf>,
}

impl Image {
    /// What of a package is needed, relative to where it is unpacked.
    fn members(name: &str) -> (String, [String; MODULES.len()]) {
        let release = name.trim_start_matches(PREFIX);
        let modules = MODULES.map(|module| format!("lib/modules/{release}/kernel/{module}"));
        (format!("boot/vmlinuz-{release}"), modules)
    }

    /// The image that is unpacked under `cache`, if it is there whole.
    fn open(cache: &Path, name: &str) -> Option<Self> {
        let (vmlinuz, modules) = Self::members(name);
        let at = |member: &String| Some(cache.join(name).join(member)).filter(|path| path.is_file());
        let modules = modules.iter().map(at).collect::<Option<_>>()?;
        Some(Self { name: name.to_owned(), vmlinuz: at(&vmlinuz)?, modules })
    }
}

/// What the names of the packages begin with.
const PREFIX: &str = "linux-image-";

/// The newest kernel of a series that this system's package sources have; if that cannot be fetched, one that was
/// fetched before. None where there is none at all.
///
/// # Errors
/// When a kernel is not there and cannot be fetched.
pub(super) fn find(series: &str) -> anyhow::Result<Option<Image>> {
    let cache = cache_dir()?;
    let mut newest = packaged(series)?;
    let kept = kept(&cache, series).and_then(|name| Image::open(&cache, &name));
    if newest.is_none() && kept.is_none() {
        apt::update()?;
        newest = packaged(series)?;
    }
    let Some(name) = newest else { return Ok(kept) };
    if let Some(image) = Image::open(&cache, &name) {
        return Ok(Some(image));
    }
    match (fetch(&cache, &name), kept) {
        (Ok(image), kept) => {
            // One is enough.
            if let Some(old) = kept {
                remove(&cache.join(old.name))?;
            }
            Ok(Some(image))
        }
        (Err(error), Some(kept)) => {
            say(format_args!("{name} cannot be fetched, taking {}: {error:#}", kept.name));
            Ok(Some(kept))
        }
        (Err(error), None) => Err(error),
    }
}

/// The newest package that apt knows.
fn packaged(series: &str) -> anyhow::Result<Option<String>> {
    let pattern = format!(r"^{PREFIX}{}\.0-[0-9]+-amd64$", series.replace('.', r"\."));
    let mut command = Command::new("apt-cache");
    command.args(["search", "--names-only", &pattern]).env("LC_ALL", "C.UTF-8");
    let output = command.stdin(Stdio::null()).output().context("cannot start apt-cache")?;
    let text = String::from_utf8_lossy(&output.stdout);
    Ok(newest(text.lines().filter_map(|line| line.split(' ').next()), series).map(str::to_owned))
}

/// The newest image in the cache.
fn kept(cache: &Path, series: &str) -> Option<String> {
    let entries = fs::read_dir(cache).ok()?;
    let names: Vec<_> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    newest(names.iter().map(String::as_str), series).map(str::to_owned)
}

/// The package with the highest number.
fn newest<'a>(names: impl Iterator<Item = &'a str>, series: &str) -> Option<&'a str> {
    let prefix = format!("{PREFIX}{series}.0-");
    let number = |name: &str| name.strip_prefix(&prefix)?.strip_suffix("-amd64")?.parse::<u32>().ok();
    names.filter_map(|name| Some((number(name)?, name))).max().map(|(_, name)| name)
}

/// Fetches a package and puts what is needed of it into the cache.
fn fetch(cache: &Path, name: &str) -> anyhow::Result<Image> {
    let work = cache.join(format!("fetching-{}", process::id()));
    fs::create_dir_all(&work).with_context(|| format!("cannot make {}", work.display()))?;
    let result = download(&work, name)
        .or_else(|error| {
            say(format_args!("{error:#}"));
            // The lists may name a version that the server has replaced.
            apt::update()?;
            download(&work, name)
        })
        .and_then(|()| unpack(&work, name))
        .and_then(|()| keep(&work.join("unpacked"), &cache.join(name)));
    remove(&work)?;
    result?;
    Image::open(cache, name).with_context(|| format!("{name} is not whole"))
}

fn download(work: &Path, name: &str) -> anyhow::Result<()> {
    let title = format!("{name} (apt-get download): the kernel that tests run on in qemu");
    let mut command = Command::new("apt-get");
    command.current_dir(work).args(["download", "-q", "-o", "APT::Status-Fd=1", name]);
    Step { title: &title, progress: Some(apt::progress), patience: None }
        .run(command.env("LC_ALL", "C.UTF-8"))
}

fn unpack(work: &Path, name: &str) -> anyhow::Result<()> {
    let script =
        r#"mkdir unpacked && dpkg-deb --fsys-tarfile ./*.deb | tar -x --no-same-owner -C unpacked "$@""#;
    let (vmlinuz, modules) = Image::members(name);
    let mut command = Command::new("sh");
    command.current_dir(work).args(["-ec", script, "sh"]);
    command.args([vmlinuz].iter().chain(&modules).map(|member| format!("./{member}")));
    let output = command.stdin(Stdio::null()).output().context("cannot start sh")?;
    if !output.status.success() {
        bail!("{name} cannot be unpacked: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    }
    Ok(())
}

/// Puts an unpacked image in its place, in one step.
fn keep(unpacked: &Path, place: &Path) -> anyhow::Result<()> {
    if place.exists() {
        remove(place)?;
    }
    fs::rename(unpacked, place).with_context(|| format!("cannot move to {}", place.display()))
}

fn remove(directory: &Path) -> anyhow::Result<()> {
    fs::remove_dir_all(directory).with_context(|| format!("cannot remove {}", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_is_the_highest_number_of_the_series() {
        let names = [
            "linux-image-6.1.0-9-amd64",
            "linux-image-6.1.0-56-amd64",
            "linux-image-6.1.0-57-rt-amd64",
            "linux-image-6.1.0-58-amd64-unsigned",
            "linux-image-6.12.0-60-amd64",
            "fetching-1",
        ];
        assert_eq!(newest(names.into_iter(), "6.1"), Some("linux-image-6.1.0-56-amd64"));
        assert_eq!(newest(names.into_iter(), "6.6"), None);
    }

    #[test]
    fn an_image_that_is_not_whole_is_none() {
        let cache = tempfile::tempdir().unwrap();
        let cache = cache.path();
        let name = "linux-image-6.1.0-56-amd64";
        let (vmlinuz, modules) = Image::members(name);
        assert_eq!(vmlinuz, "boot/vmlinuz-6.1.0-56-amd64");
        for member in modules.iter().chain([&vmlinuz]) {
            assert!(Image::open(cache, name).is_none(), "without {member}");
            let path = cache.join(name).join(member);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let image = Image::open(cache, name).unwrap();
        assert_eq!(image.modules.len(), MODULES.len());
        assert_eq!(kept(cache, "6.1").as_deref(), Some(name));
    }
}
