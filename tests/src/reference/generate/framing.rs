//! How packets come in their frames, and what happens to them on the way.

use etherparse::{EtherType, Ethernet2Header};
use proptest::prelude::*;
use proptest::sample::{Index, select};

use super::Case;
use crate::fixtures::world::{GATEWAY_MAC, Link};
use crate::fixtures::{Packet, mend};

/// How a packet comes in its frame.
#[derive(Clone, Debug)]
pub(super) struct Framing {
    destination: Option<[u8; 6]>,
    ethertype: u16,
    /// A VLAN tag's type and value.
    tag: Option<(u16, u16)>,
    padding: usize,
    cut: usize,
    /// Whether the header's checksum comes out as zero, and is written as 0xffff.
    ones: bool,
    /// Whether a mutated packet gets its header checksum, and an ICMP message its own, computed again.
    mend: bool,
}

prop_compose! {
    pub(super) fn framing()(
        destination in prop_oneof![
            20 => Just(None), 1 => Just(Some([0xff; 6])), 1 => Just(Some([2, 9, 9, 9, 9, 9])), 1 => Just(Some([1, 0, 0x5e, 0, 0, 1])),
        ],
        ethertype in prop_oneof![40 => Just(0x0800u16), 1 => Just(0x86dd), 1 => Just(0x8100), 1 => any::<u16>()],
        tag in prop_oneof![
            40 => Just(None),
            1 => (select(vec![0x8100u16, 0x88a8]), select(vec![0u16, 0xe000, 1, 0x0fff])).prop_map(Some),
        ],
        padding in prop_oneof![3 => Just(0usize), 1 => 1usize..40],
        cut in prop_oneof![20 => Just(0usize), 1 => 0usize..60],
        ones in prop::bool::weighted(0.05),
        mend in prop::bool::weighted(0.8),
    ) -> Framing {
        Framing { destination, ethertype, tag, padding, cut, ones, mend }
    }
}

pub(super) fn mutations() -> impl Strategy<Value = Vec<(Index, u8)>> {
    prop::collection::vec((any::<Index>(), any::<u8>()), 1..4)
}

impl Framing {
    pub(super) fn apply(&self, on: Link, packet: &Packet, mutations: &[(Index, u8)]) -> Case {
        let mut bytes = packet.bytes();
        for (index, flip) in mutations {
            // Most of what matters stands in front.
            let reach = if flip & 1 == 0 { bytes.len() } else { bytes.len().min(64) };
            bytes[index.index(reach)] ^= flip;
        }
        if self.mend && !mutations.is_empty() {
            mend(&mut bytes);
        }
        if self.ones && bytes.len() >= 20 {
            bytes[4..6].fill(0);
            mend(&mut bytes);
            bytes.copy_within(10..12, 4);
            bytes[10..12].fill(0xff);
        }
        let header = Ethernet2Header {
            source: GATEWAY_MAC,
            destination: self.destination.unwrap_or(on.mac()),
            ether_type: EtherType(self.ethertype),
        };
        let mut frame = [&header.to_bytes()[..], &bytes].concat();
        if let Some((kind, value)) = self.tag {
            frame.splice(12..12, [kind.to_be_bytes(), value.to_be_bytes()].concat());
        }
        frame.resize(frame.len() + self.padding, 0xee);
        // The kernel takes no frame without an Ethernet header.
        frame.truncate((frame.len().saturating_sub(self.cut)).max(14));
        Case { on, frame }
    }
}
