//! The one table of what the product, its lab and its tests take from the system.

use clap::ValueEnum;

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

/// A program that Debian packages.
#[derive(Debug)]
pub(crate) struct Need {
    /// Who needs it.
    pub(crate) profile: Profile,
    /// It is there when this is on the PATH.
    pub(crate) program: &'static str,
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
    /// The program alone is taken out of its package and put into cargo's directory of programs: the package would
    /// start a service, now and at every boot.
    ProgramAlone,
}

const fn package(
    profile: Profile,
    program: &'static str,
    packages: &'static [&'static str],
    why: &'static str,
) -> Need {
    Need { profile, program, packages, why, how: How::Package }
}

/// All of them. What only compiling the XDP program takes stands in [`LLVM`] and [`DEBIAN_RUST`].
pub(crate) const NEEDS: &[Need] = &[
    package(Profile::Build, "cc", &["gcc", "libc6-dev"], "links every Rust program"),
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
        program: "prometheus",
        packages: &["prometheus"],
        why: "scrapes the daemon's metrics in a test",
        how: How::ProgramAlone,
    },
    Need {
        profile: Profile::Test,
        program: "promtool",
        packages: &["prometheus"],
        why: "checks the rules for Prometheus, and tries them out",
        how: How::ProgramAlone,
    },
    package(
        Profile::Test,
        "qemu-system-x86_64",
        &["qemu-system-x86"],
        "runs tests on the kernel of Debian 12, whatever this machine runs",
    ),
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
