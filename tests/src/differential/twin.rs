//! The same node twice: one where eipnat translates, one where the kernel's nftables do.

use std::fmt::Write as _;

use anyhow::Result;

use crate::fixtures::world::{BINDINGS, Link, POOL};
use crate::lab::Namespace;

/// How the kernel translates.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// By rules that rewrite addresses, packet by packet.
    Stateless,
    /// By connection tracking, which also translates what ICMP errors quote.
    Tracking,
}

/// The interfaces that the twins use: each faces one side.
pub(super) const LINKS: [Link; 2] = [Link::Up, Link::Down];

/// The node says nothing itself: no ICMP error, no echo reply, no reset.
const MUTE: &str = "table ip mute {
    chain output { type filter hook output priority 0; policy drop; }
}";

/// Lets the cables' far ends take in what XDP redirects, and show frames as they were on the wire; and mutes the node.
pub(super) fn prepare(node: &Namespace) -> Result<()> {
    for link in LINKS {
        let far = super::far_end(link);
        node.succeed("ethtool", &["-K", &far, "tx", "off", "gro", "on"])?;
        node.ip(&[format!("link set dev {far} gro_max_size 1")])?;
    }
    load(node, MUTE)
}

/// Adds rules of nftables.
fn load(node: &Namespace, rules: &str) -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    std::fs::write(file.path(), rules)?;
    node.succeed("nft", &["-f", &file.path().to_string_lossy()])?;
    Ok(())
}

/// Makes the node a router that translates as `kernel` says, and drops what has no binding, as eipnat would.
pub(super) fn translate(node: &Namespace, kernel: Kernel) -> Result<()> {
    for link in LINKS {
        node.succeed("ethtool", &["-K", link.name(), "tx", "off", "gro", "off"])?;
        for (key, value) in [("forwarding", "1"), ("rp_filter", "0"), ("send_redirects", "0")] {
            node.sysctl(&format!("net/ipv4/conf/{}/{key}", link.name()), value)?;
        }
    }
    for (key, value) in [("forwarding", "1"), ("rp_filter", "0"), ("send_redirects", "0")] {
        node.sysctl(&format!("net/ipv4/conf/all/{key}"), value)?;
    }
    node.ip(&[format!("route add blackhole {POOL}")])?;
    load(node, &ruleset(kernel))
}

fn ruleset(kernel: Kernel) -> String {
    let map = |pairs: &mut dyn Iterator<Item = (std::net::Ipv4Addr, std::net::Ipv4Addr)>| {
        pairs.fold(String::new(), |mut text, (from, to)| {
            let _ = write!(text, "{from} : {to}, ");
            text
        })
    };
    let into = map(&mut BINDINGS.iter().map(|bound| (bound.public_ip, bound.private_ip)));
    let out = map(&mut BINDINGS.iter().map(|bound| (bound.private_ip, bound.public_ip)));
    let privates = BINDINGS.iter().map(|bound| bound.private_ip.to_string()).collect::<Vec<_>>().join(", ");
    let publics = BINDINGS.iter().map(|bound| bound.public_ip.to_string()).collect::<Vec<_>>().join(", ");
    let (up, down) = (Link::Up.name(), Link::Down.name());
    match kernel {
        Kernel::Stateless => format!(
            "table ip twin {{
                chain translate {{
                    type filter hook prerouting priority raw; policy accept;
                    iifname {up} ip daddr {{ {publics} }} meta mark set 1
                    iifname {down} ip saddr {{ {privates} }} meta mark set 1
                    iifname {down} ip saddr set ip saddr map {{ {out} }}
                    ip daddr set ip daddr map {{ {into} }}
                }}
                chain bound {{
                    type filter hook forward priority 0; policy drop;
                    meta mark 1 accept
                }}
            }}"
        ),
        Kernel::Tracking => format!(
            "table ip twin {{
                chain destination {{
                    type nat hook prerouting priority dstnat; policy accept;
                    dnat to ip daddr map {{ {into} }}
                }}
                chain source {{
                    type nat hook postrouting priority srcnat; policy accept;
                    snat to ip saddr map {{ {out} }}
                }}
            }}"
        ),
    }
}
