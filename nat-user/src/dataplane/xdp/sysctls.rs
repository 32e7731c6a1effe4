//! Settings of the kernel's own IPv4 stack (`net.ipv4.conf.*`) that the datapath leans on.

use std::fs;
use std::path::PathBuf;

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

/// What an interface has: forwarding, `rp_filter`, `send_redirects`.
pub(super) fn of(interface: &str) -> anyhow::Result<[u8; 3]> {
    Ok([read(interface, FORWARDING)?, read(interface, RP_FILTER)?, read(interface, SEND_REDIRECTS)?])
}

/// Makes the kernel finish what the program hands to it, and forward. Answers which settings were other ones.
pub(super) fn open(interface: &str) -> anyhow::Result<Vec<&'static str>> {
    let mut changed = Vec::new();
    // The larger of both counts.
    if read(interface, RP_FILTER)?.max(read(ALL, RP_FILTER)?) == STRICT {
        write(interface, RP_FILTER, LOOSE)?;
        changed.push(RP_FILTER);
    }
    if write(interface, SEND_REDIRECTS, 0)? {
        changed.push(SEND_REDIRECTS);
    }
    if write(interface, FORWARDING, 1)? {
        changed.push(FORWARDING);
    }
    Ok(changed)
}

/// Turns forwarding off: where the program does not run, the kernel would let private addresses out.
pub(super) fn close(interface: &str) -> anyhow::Result<()> {
    write(interface, FORWARDING, 0).map(drop)
}

/// Puts back what [`of`] found.
pub(super) fn restore(interface: &str, before: [u8; 3]) -> anyhow::Result<()> {
    let keys = [FORWARDING, RP_FILTER, SEND_REDIRECTS].into_iter().zip(before);
    // Each of them, whether or not another fails.
    keys.map(|(key, value)| write(interface, key, value).map(drop)).fold(Ok(()), Result::and)
}

/// Whether `send_redirects` is on for all interfaces, whatever their own settings.
pub(super) fn all_send_redirects() -> anyhow::Result<u8> {
    read(ALL, SEND_REDIRECTS)
}

/// Leaves redirects to each interface's own setting, or not. Answers whether it was otherwise.
pub(super) fn set_all_send_redirects(value: u8) -> anyhow::Result<bool> {
    write(ALL, SEND_REDIRECTS, value)
}

fn path(interface: &str, key: &str) -> PathBuf {
    ["/proc/sys/net/ipv4/conf", interface, key].iter().collect()
}

fn read(interface: &str, key: &str) -> anyhow::Result<u8> {
    let path = path(interface, key);
    let value = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    value.trim().parse().with_context(|| format!("{} is no small number: {value:?}", path.display()))
}

/// A value that is there already is not written again: the file may be read-only in a container. Answers whether there
/// was another one.
fn write(interface: &str, key: &str, value: u8) -> anyhow::Result<bool> {
    if read(interface, key)? == value {
        return Ok(false);
    }
    let path = path(interface, key);
    fs::write(&path, value.to_string())
        .with_context(|| format!("cannot write {value} to {}", path.display()))?;
    Ok(true)
}
