//! Settings of the kernel's own IPv4 stack (`net.ipv4.*`) that the datapath leans on.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// The pseudo-interface whose settings are combined with each interface's own.
const ALL: &str = "all";

/// Without it the kernel's FIB gives the XDP program no routes.
const FORWARDING: &str = "forwarding";
/// Packets that the kernel finishes (see the pipeline's punts) come by a downlink with a public source, an EIP. Strict
/// reverse path filtering would drop them; loose filtering does not. (No packet with the node's own address is among
/// them: even loose filtering drops those.)
const RP_FILTER: &str = "rp_filter";
/// One-armed, the kernel would tell the sender of such a packet of a better way, by its private address.
const SEND_REDIRECTS: &str = "send_redirects";

const STRICT: u8 = 1;
const LOOSE: u8 = 2;

/// What the kernel makes of an ICMP error to the node itself that tells of a smaller path MTU. The FIB that the program asks goes by
/// that for packets on their way, too, though the kernel's own forwarding does not (`ip_forward_use_pmtu`). As the kernel comes,
/// anybody can so make the node refuse everybody's packets to somebody: an error about an echo reply that was never sent is believed.
const IP_NO_PMTU_DISC: &str = "ip_no_pmtu_disc";
/// Only TCP and SCTP are believed, which check what the error quotes (kernel: `icmp_tag_validation()`)...
const HARDENED: u8 = 3;
/// ...or nobody is.
const DEAF: u8 = 2;

/// What an interface has: forwarding, `rp_filter`, `send_redirects`.
pub(super) fn of(interface: &str) -> anyhow::Result<[u8; 3]> {
    let [forwarding, rp_filter, send_redirects] =
        [FORWARDING, RP_FILTER, SEND_REDIRECTS].map(|key| read(&of_interface(interface, key)));
    Ok([forwarding?, rp_filter?, send_redirects?])
}

/// Makes the kernel finish what the program hands to it, and forward. Answers which settings were other ones.
pub(super) fn open(interface: &str) -> anyhow::Result<Vec<&'static str>> {
    let mut changed = Vec::new();
    // The larger of both counts.
    let rp_filter = of_interface(interface, RP_FILTER);
    if read(&rp_filter)?.max(read(&of_interface(ALL, RP_FILTER))?) == STRICT {
        write(&rp_filter, LOOSE)?;
        changed.push(RP_FILTER);
    }
    if write(&of_interface(interface, SEND_REDIRECTS), 0)? {
        changed.push(SEND_REDIRECTS);
    }
    if write(&of_interface(interface, FORWARDING), 1)? {
        changed.push(FORWARDING);
    }
    Ok(changed)
}

/// Turns forwarding off: where the program does not run, the kernel would let private addresses out.
pub(super) fn close(interface: &str) -> anyhow::Result<()> {
    write(&of_interface(interface, FORWARDING), 0).map(drop)
}

/// Puts back what [`of`] found.
pub(super) fn restore(interface: &str, before: [u8; 3]) -> anyhow::Result<()> {
    let keys = [FORWARDING, RP_FILTER, SEND_REDIRECTS].into_iter().zip(before);
    // Each of them, whether or not another fails.
    keys.map(|(key, value)| write(&of_interface(interface, key), value).map(drop)).fold(Ok(()), Result::and)
}

/// Whether `send_redirects` is on for all interfaces, whatever their own settings.
pub(super) fn all_send_redirects() -> anyhow::Result<u8> {
    read(&of_interface(ALL, SEND_REDIRECTS))
}

/// Leaves redirects to each interface's own setting, or not. Answers whether it was otherwise.
pub(super) fn set_all_send_redirects(value: u8) -> anyhow::Result<bool> {
    write(&of_interface(ALL, SEND_REDIRECTS), value)
}

/// What `net.ipv4.ip_no_pmtu_disc` is.
pub(super) fn ip_no_pmtu_disc() -> anyhow::Result<u8> {
    read(IP_NO_PMTU_DISC)
}

/// Keeps others from telling the node of path MTUs that are not so. Answers whether they could.
pub(super) fn harden_path_mtus() -> anyhow::Result<bool> {
    if [HARDENED, DEAF].contains(&ip_no_pmtu_disc()?) {
        return Ok(false);
    }
    write(IP_NO_PMTU_DISC, HARDENED)
}

/// Puts back what [`ip_no_pmtu_disc`] found, unless somebody has chosen otherwise since.
pub(super) fn restore_ip_no_pmtu_disc(before: u8) -> anyhow::Result<()> {
    if ip_no_pmtu_disc()? == HARDENED {
        write(IP_NO_PMTU_DISC, before)?;
    }
    Ok(())
}

fn of_interface(interface: &str, key: &str) -> String {
    format!("conf/{interface}/{key}")
}

fn path(key: &str) -> PathBuf {
    Path::new("/proc/sys/net/ipv4").join(key)
}

fn read(key: &str) -> anyhow::Result<u8> {
    let path = path(key);
    let value = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    value.trim().parse().with_context(|| format!("{} is no small number: {value:?}", path.display()))
}

/// A value that is there already is not written again: the file may be read-only in a container. Answers whether there
/// was another one.
fn write(key: &str, value: u8) -> anyhow::Result<bool> {
    if read(key)? == value {
        return Ok(false);
    }
    let path = path(key);
    fs::write(&path, value.to_string())
        .with_context(|| format!("cannot write {value} to {}", path.display()))?;
    Ok(true)
}
