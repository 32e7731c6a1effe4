//! Whether an interface takes what native XDP redirects to it: what it does not take is lost without a word.

use netlink_packet_core::DefaultNla;

use super::genl::{Family, attributes};

/// kernel: `include/uapi/linux/netdev.h`
mod uapi {
    pub(super) const DEV_GET: u8 = 1;
    pub(super) const DEV_IFINDEX: u16 = 1;
    pub(super) const DEV_XDP_FEATURES: u16 = 3;
    pub(super) const XDP_ACT_NDO_XMIT: u64 = 4;
}

/// Whether it does; `None` where the kernel does not say (before Linux 6.3).
pub(super) fn takes_redirects(ifindex: u32) -> Option<bool> {
    static FAMILY: Family = Family::new("netdev");
    let index = DefaultNla::new(uapi::DEV_IFINDEX, ifindex.to_ne_bytes().to_vec());
    let answer = FAMILY.ask(uapi::DEV_GET, &[index]).ok()?;
    let features = attributes(&answer, uapi::DEV_XDP_FEATURES).into_iter().next()?;
    let features = u64::from_ne_bytes(features.try_into().ok()?);
    Some(features & uapi::XDP_ACT_NDO_XMIT != 0)
}
