//! Bytes that nobody has made sense of, in frames that are looked at all the same.

use proptest::prelude::*;
use proptest::sample::select;

use super::{Case, plain_ends};
use crate::fixtures::world::GATEWAY_MAC;
use crate::fixtures::{Packet, mend};

/// What of a packet's header is made right. Each hides behind those before it.
#[derive(Clone, Debug)]
struct Sense {
    /// Version, and length of the header.
    first: Option<u8>,
    length: bool,
    /// Flags and fragment offset.
    fragment: Option<u16>,
    addresses: bool,
    checksums: bool,
    protocol: Option<u8>,
    /// The type of an ICMP error; what it quotes begins as a header does.
    error: Option<u8>,
}

prop_compose! {
    fn sense()(
        first in prop_oneof![1 => Just(None), 10 => Just(Some(0x45)), 9 => (0x45u8..=0x4f).prop_map(Some)],
        [length, addresses, checksums] in prop::array::uniform3(prop::bool::weighted(0.95)),
        fragment in prop::option::of(Just(0)),
        // What has the most to be parsed.
        protocol in prop::option::of(select(vec![1, 6, 17])),
        error in prop::option::of(select(vec![3, 11, 12])),
    ) -> Sense {
        Sense { first, length, fragment, addresses, checksums, protocol, error }
    }
}

prop_compose! {
    /// Frames of noise, but for a right Ethernet header and what mostly is right in a header of IPv4: the version, the
    /// length, the checksum, and addresses between which there is a way.
    pub fn noise()(
        (on, source, destination) in plain_ends(),
        sense in sense(),
        mut bytes in prop_oneof![
            1 => prop::collection::vec(any::<u8>(), 0..20),
            8 => prop::collection::vec(any::<u8>(), 20..120),
            1 => prop::collection::vec(any::<u8>(), 120..4000),
        ],
    ) -> Case {
        let mut frame = Packet::udp(source, destination, b"").frame(GATEWAY_MAC, on.mac());
        let addresses = frame[26..34].to_vec();
        frame.truncate(14);
        if bytes.len() >= 20 {
            sense.put(&mut bytes, &addresses);
        }
        Case { on, frame: [frame, bytes].concat() }
    }
}

impl Sense {
    fn put(&self, packet: &mut [u8], addresses: &[u8]) {
        packet[0] = self.first.unwrap_or(packet[0]);
        if self.length {
            let length = u16::try_from(packet.len()).expect("a few thousand");
            packet[2..4].copy_from_slice(&length.to_be_bytes());
        }
        if let Some(fragment) = self.fragment {
            packet[6..8].copy_from_slice(&fragment.to_be_bytes());
        }
        packet[9] = self.protocol.unwrap_or(packet[9]);
        if self.addresses {
            packet[12..20].copy_from_slice(addresses);
        }
        let payload = usize::from(packet[0] & 15) * 4;
        if let (1, Some(kind), Some(message)) = (packet[9], self.error, packet.get_mut(payload..payload + 9))
        {
            (message[0], message[8]) = (kind, 0x45);
        }
        if self.checksums {
            mend(packet);
        }
    }
}
