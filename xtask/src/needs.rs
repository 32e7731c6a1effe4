//! The one table of what the product, its lab and its tests take from the system.

use clap::ValueEnum;
use nat_ebpf_builder::find_program;

/// What is going to be done. Each takes what those before it take, and more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Profile {
    /// Build the daemon and the XDP program.
    Build,
    /// Run the lab's demonstration.
    Lab,
    /// Run every check and test.
    Test,
}

/// A program, or a library to build with, that Debian packages.
#[derive(Debug)]
pub(crate) struct Need {
    /// Who needs it.
    pub(crate) profile: Profile,
    /// It is there when this is: a program on the PATH, a header, or a library.
    pub(crate) sign: &'static str,
    /// Debian's packages that bring it.
    pub(crate) packages: &'static [&'static str],
    /// What it is for.
    pub(crate) why: &'static str,
    /// How it comes in.
    pub(crate) how: How,
}

/// How a program comes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// Its packages are installed.
    Package,
    /// They are unpacked beside the system: installed, they would start a service, now and at every boot, or be in the way
    /// of what is installed already.
    Unpacked,
}

const fn package(
    profile: Profile,
    sign: &'static str,
    packages: &'static [&'static str],
    why: &'static str,
) -> Need {
    Need { profile, sign, packages, why, how: How::Package }
}

impl Need {
    /// Whether it is there already.
    pub(crate) fn is_there(&self) -> bool {
        let any_in = |pattern: &str| glob::glob(pattern).is_ok_and(|mut found| found.next().is_some());
        match self.sign.rsplit_once('.') {
            Some((_, "h")) => {
                ["", "*-linux-gnu/"].iter().any(|dir| any_in(&format!("/usr/include/{dir}{}", self.sign)))
            }
            Some((_, "so")) => ["", "*-linux-gnu/", "llvm-*/lib/"]
                .iter()
                .any(|dir| any_in(&format!("/usr/lib*/{dir}{}*", self.sign))),
            _ => find_program(self.sign).is_some(),
        }
    }
}

/// All of them. What only compiling the XDP program takes stands in [`LLVM`] and [`DEBIAN_RUST`].
pub(crate) const NEEDS: &[Need] = &[
    package(Profile::Build, "cc", &["gcc", "libc6-dev"], "links every Rust program"),
    // What libxdp, the C library for AF_XDP sockets, is compiled with.
    package(Profile::Build, "clang", &["clang"], "compiles libxdp's BPF programs"),
    package(Profile::Build, "m4", &["m4"], "makes one of libxdp's BPF programs"),
    package(
        Profile::Build,
        "pkg-config",
        &["pkg-config"],
        "finds the libraries that libxdp reads BPF objects by",
    ),
    package(Profile::Build, "libclang.so", &["libclang-dev"], "reads libxdp's headers"),
    package(Profile::Build, "libelf.h", &["libelf-dev"], "libxdp reads BPF objects by it"),
    package(Profile::Build, "zlib.h", &["zlib1g-dev"], "libxdp reads BPF objects by it"),
    package(
        Profile::Lab,
        "ip",
        &["iproute2"],
        "makes the lab's network namespaces, links, addresses and routes",
    ),
    package(Profile::Lab, "ping", &["iputils-ping"], "the lab's ICMP traffic"),
    package(Profile::Lab, "curl", &["curl"], "the lab's HTTP downloads"),
    package(Profile::Lab, "iperf3", &["iperf3"], "the lab's TCP and UDP streams"),
    package(
        Profile::Lab,
        "ethtool",
        &["ethtool"],
        "turns off checksum offload, which hides wrong checksums on veth",
    ),
    package(Profile::Test, "arping", &["arping"], "asks for EIPs by ARP, in tests"),
    package(Profile::Test, "tcpdump", &["tcpdump"], "captures what came out at the far end"),
    package(Profile::Test, "tshark", &["tshark"], "reads what eipnat captures"),
    package(
        Profile::Test,
        "strace",
        &["strace"],
        "records what the store writes, and kills at any system call",
    ),
    package(Profile::Test, "bpftool", &["bpftool"], "takes programs off behind the daemon's back"),
    package(Profile::Test, "traceroute", &["traceroute"], "finds the routers on the way, in tests"),
    package(Profile::Test, "socat", &["socat"], "holds sockets with options of their own, in tests"),
    package(Profile::Test, "tmux", &["tmux"], "a terminal for `eipnat top`, whose screen tests can read"),
    package(Profile::Test, "g++", &["g++"], "compiles libFuzzer, which drives the fuzzers"),
    package(Profile::Test, "nft", &["nftables"], "the kernel's own NAT, which eipnat is compared with"),
    Need {
        profile: Profile::Test,
        sign: "prometheus",
        packages: &["prometheus"],
        why: "scrapes the daemon's metrics in a test",
        how: How::Unpacked,
    },
    Need {
        profile: Profile::Test,
        sign: "promtool",
        packages: &["prometheus"],
        why: "checks the rules for Prometheus, and tries them out",
        how: How::Unpacked,
    },
    Need {
        profile: Profile::Test,
        sign: "qemu-system-x86_64",
        packages: &["qemu-system-x86"],
        why: "runs tests on the kernel of Debian 12, whatever this machine runs",
        how: How::Unpacked,
    },
    package(Profile::Test, "busybox", &["busybox-static"], "the first process on that kernel"),
];

/// What compiling bpf-linker takes.
pub(crate) const LLVM: &[(&str, &str)] = &[("llvm-22-dev", "bpf-linker is built on LLVM")];

/// Where [`LLVM`] comes to stand.
pub(crate) const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// Debian's second Rust, which has a prebuilt core for BPF. It does not get in the way of rustup's: rustup's
/// programs come first on the PATH.
pub(crate) const DEBIAN_RUST: &[(&str, &str)] = &[
    ("rustc-web", "compiles the XDP program"),
    ("cargo-web", "compiles the XDP program"),
    ("libstd-rust-web-dev-bpf", "Rust's core for the BPF target"),
];

/// Cargo's subcommands that the checks use: name, version, and what for.
pub(crate) const CARGO_TOOLS: [(&str, &str, &str); 2] = [
    ("cargo-deny", "0.20.2", "checks licences and sources of the crates used"),
    ("cargo-fuzz", "0.13.2", "builds and runs the fuzzers"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sign_is_a_program_a_header_or_a_library() {
        let is_there = |sign| package(Profile::Build, sign, &[], "").is_there();
        assert!(is_there("sh") && is_there("stdio.h") && is_there("libc.so"));
        assert!(!is_there("no-such-program") && !is_there("no-such-header.h") && !is_there("libnosuch.so"));
    }
}
