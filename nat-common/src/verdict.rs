//! What becomes of a packet, and the counter for each outcome.

use crate::abi::Mac;

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has been rewritten and leaves.
    Forward(Egress),
    /// It is not eipnat's: untouched, to the kernel's own stack.
    Pass,
    /// The fast path cannot finish it: untouched, to the slow path.
    Punt(Punt),
    /// The same, but it has its new addresses already, and TTL and MAC addresses as they came: whoever gets it, the kernel's
    /// own stack or the slow path, finishes it like any router.
    Finish(Punt),
    /// It is dropped, untouched.
    Drop(Reject),
}

/// How a forwarded frame leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Egress {
    /// Index of the interface that it leaves by.
    pub ifindex: u32,
    /// The next hop's MAC address.
    pub destination: Mac,
    /// That interface's MAC address.
    pub source: Mac,
}

/// Defines an enum whose variants each carry a stable name and an explanation for people.
macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($variant:ident = $text:literal: $meaning:literal, $remedy:literal;)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u8)]
        pub enum $name { $(#[doc = $meaning] $variant),+ }

        impl $name {
            /// Every variant, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// How many there are.
            #[expect(clippy::cast_possible_truncation, reason = "they are numbered by a u8")]
            pub const COUNT: u32 = Self::ALL.len() as u32;

            /// The name in metrics and in `eipnat stats`; stable.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $text),+ }
            }

            /// What it means, for `eipnat stats --explain`.
            #[must_use]
            pub const fn meaning(self) -> &'static str {
                match self { $(Self::$variant => $meaning),+ }
            }

            /// What usually causes it and what to do.
            #[must_use]
            pub const fn remedy(self) -> &'static str {
                match self { $(Self::$variant => $remedy),+ }
            }
        }
    };
}

reasons! {
    /// Why the fast path cannot finish a packet.
    Punt {
        Neighbour = "neighbour": "The next hop's MAC address is not known yet.",
            "Normal for the first packets to a neighbour. If it keeps growing, the next hop does not answer ARP.";
        Fragment = "fragment": "The packet is larger than the next hop's MTU and may be fragmented (DF=0).",
            "Raise the MTU of the interface it leaves by, or lower the sender's.";
        Trailer = "trailer": "More bytes follow the IP packet in its frame than Ethernet's padding.",
            "A switch or probe that appends to frames (timestamps, for one). The slow path takes it off, which costs more.";
        Arp = "arp": "An ARP packet asks for an EIP, or claims to be its holder.",
            "Normal where EIPs are in the uplink's own network.";
    }
}

reasons! {
    /// Why a packet is dropped.
    Reject {
        FrameTruncated = "frame_truncated": "The frame is shorter than its IPv4 total length or its headers.",
            "A broken sender or a cable fault: look at the interface's error counters.";
        IpHeader = "ip_header": "Version is not 4, the header length is below 20, or the total length below the header's.",
            "A broken or hostile sender.";
        IpChecksum = "ip_checksum": "The IPv4 header checksum is wrong.",
            "A broken link or sender; on a veth, turn checksum offload off in the sender's namespace.";
        SourceMartian = "source_martian": "The source can never be one: 0/8, 127/8, 169.254/16, multicast, 240/4 or broadcast.",
            "Spoofed traffic, or a VM that has not got its address yet.";
        DestinationMartian = "destination_martian": "The destination is never forwarded: 0/8, 127/8, 169.254/16, multicast, 240/4.",
            "A VM that asks for a link-local service (such as metadata) which this node does not offer.";
        SpoofedSource = "spoofed_source": "A packet from the uplink claims to come from a pool, from the node itself, or from the VMs' network.",
            "Spoofing; a VM's public address that is routed outside of this node; or what the node itself sends to an EIP.";
        Land = "land": "Source and destination would be the same address after translation.",
            "A LAND attack.";
        SourceRoute = "source_route": "The packet has a source-route option, which would leak private addresses.",
            "Probing. Nothing legitimate uses it.";
        TtlExpired = "ttl_expired": "The TTL is 1 or 0 and the packet would have to be forwarded.",
            "traceroute, or a routing loop.";
        TinyFragment = "tiny_fragment": "A TCP fragment that splits or overlaps the TCP header (RFC 1858, RFC 3128), or an ICMP \
             fragment that begins in front of where an error's quoted addresses end.",
            "An attempt to get around a firewall. No link has so small an MTU (RFC 791 §3.1: 68).";
        AuthenticationHeader = "authentication_header": "The authentication header signs the addresses and cannot survive NAT.",
            "Use ESP, best in UDP (RFC 3948).";
        TransportTruncated = "transport_truncated": "The packet ends before its transport header does.",
            "A broken or hostile sender.";
        IcmpChecksum = "icmp_checksum": "The checksum of an ICMP error is wrong.",
            "A broken link or sender.";
        IcmpQuote = "icmp_quote": "The packet quoted in an ICMP error is cut short, corrupt, or not the addressee's; or the error is in fragments.",
            "A broken router, or forged errors meant to reset connections.";
        IcmpUnmatched = "icmp_unmatched": "An ICMP error quotes a packet that belongs to no binding.",
            "Late errors after a detach, or forged ones.";
        IcmpType = "icmp_type": "ICMP redirect or source quench, which need not cross a NAT (RFC 5508 REQ-10, RFC 6633).",
            "A misconfigured router on the path.";
        EipUnbound = "eip_unbound": "The destination is a public address of ours that is attached to nothing.",
            "Attach the address, or ignore the scan.";
        SourceUnbound = "source_unbound": "The private source has no public address.",
            "Attach an EIP to the VM that sends. If it is a router's ICMP error (traceroute, path MTU): set node.public_ip.";
        Transit = "transit": "The destination is neither ours nor the node's: it would only pass through.",
            "Somebody routes through this node; or a pool is missing in the configuration.";
        ForeignMac = "foreign_mac": "The frame is addressed to another machine's MAC address.",
            "A switch that floods; or the interface's MAC address has just been changed.";
        ForwardingDisabled = "forwarding_disabled": "The interface's forwarding sysctl is off, so the kernel's FIB gives no route. (Towards \
             the internet such packets count as passed, since they may be the node's own.)",
            "sysctl net.ipv4.conf.IF.forwarding=1 for the interface that the packet came by.";
        NoRoute = "no_route": "The kernel has no route for the translated packet, or one that forbids it.",
            "ip route get the destination; add the missing route. (Without any route to the internet, packets to it count as \
             passed, since they may be the node's own.)";
        WrongEgress = "wrong_egress": "The route leads to an interface that is no uplink (outbound) or no downlink (inbound).",
            "ip route get the destination; check uplinks and downlinks in the configuration.";
        MtuExceeded = "mtu_exceeded": "The packet is larger than the next hop's MTU and must not be fragmented (DF=1).",
            "Raise the MTU of the interface it leaves by, or lower the sender's. If TCP alone is slow, segments are merged before \
             eipnat sees them: ethtool -K IF gro off lro off tso off on the VM's side of a veth.";
        FibError = "fib_error": "The kernel's FIB lookup failed in a way that has no name here.",
            "Run the daemon with RUST_LOG=debug for the number, and report it.";
        PriorityTag = "priority_tag": "The frame has an 802.1p tag (VLAN 0), which eipnat does not look behind.",
            "Switch priority tagging off at the sender or on the switch port.";
        PortUnknown = "port_unknown": "The program runs on an interface that the daemon has not described to it.",
            "Restart the daemon; if it stays, eipnat unload and start again.";
        IcmpOversize = "icmp_oversize": "An ICMP error of more than 1,536 bytes, where 576 are the most (RFC 1812 §4.3.2.3).",
            "Forged errors; or a host with a large MTU that quotes whole packets.";
        RouterError = "router_error": "An ICMP error of a router without a binding, which leaves as the node's own, would have to be \
             finished by the kernel: to be fragmented, to lose a trailer, or because the next hop's MAC address is not known.",
            "Passing, and only while no daemon runs. Or give the router a binding.";
        SlowPathLimited = "slow_path_limited": "More such packets wanted to go to the slow path than it takes in a second: those whose next hop's \
             MAC address is not known, to be fragmented, with a trailer, or ARP.",
            "A scan of addresses that nobody answers for, or an MTU that is too small for most. See the slow path in `eipnat stats`; \
             slow_path.rate is the limit.";
        NeighbourUnresolved = "neighbour_unresolved": "The next hop has not answered ARP within a second.",
            "A VM that is off, or a wrong private address; or the gateway is down. The sender is told that the host is unreachable.";
        SlowPathFull = "slow_path_full": "The slow path had no room: too many packets wait for neighbours, or the interface takes no more.",
            "A scan, or an interface that is congested.";
    }
}

impl Reject {
    /// The one with the number 0.
    pub const FIRST: Self = Self::FrameTruncated;
}

/// A packet counter in [`map::COUNTERS`](crate::abi::map::COUNTERS). Each packet is counted exactly once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counter {
    /// [`Verdict::Forward`].
    Forward,
    /// [`Verdict::Pass`].
    Pass,
    /// [`Verdict::Punt`] and [`Verdict::Finish`], by reason.
    Punt(Punt),
    /// [`Verdict::Drop`], by reason.
    Drop(Reject),
}

impl Counter {
    /// How many places there are; not all of them are taken.
    pub const COUNT: u32 = Self::FIRST_DROP + Reject::COUNT;
    const FIRST_PUNT: u32 = 2;
    // With room for more punts before it: a counter keeps its place in every version.
    const FIRST_DROP: u32 = 32;

    /// The counter's place in the map.
    #[must_use]
    pub const fn index(self) -> u32 {
        match self {
            Self::Forward => 0,
            Self::Pass => 1,
            Self::Punt(punt) => Self::FIRST_PUNT + punt as u32,
            Self::Drop(reject) => Self::FIRST_DROP + reject as u32,
        }
    }

    /// The counter with that place in the map, if it is taken.
    #[must_use]
    pub fn at(index: u32) -> Option<Self> {
        let of = |first: u32| usize::try_from(index.checked_sub(first)?).ok();
        match index {
            0 => Some(Self::Forward),
            1 => Some(Self::Pass),
            Self::FIRST_DROP.. => {
                of(Self::FIRST_DROP).and_then(|at| Reject::ALL.get(at)).copied().map(Self::Drop)
            }
            _ => of(Self::FIRST_PUNT).and_then(|at| Punt::ALL.get(at)).copied().map(Self::Punt),
        }
    }

    /// `forward`, `pass`, `punt` or `drop`.
    #[must_use]
    pub const fn verdict(self) -> &'static str {
        match self {
            Self::Forward => "forward",
            Self::Pass => "pass",
            Self::Punt(_) => "punt",
            Self::Drop(_) => "drop",
        }
    }

    /// The name of the reason, where there is one.
    #[must_use]
    pub const fn reason(self) -> Option<&'static str> {
        match self {
            Self::Forward | Self::Pass => None,
            Self::Punt(punt) => Some(punt.name()),
            Self::Drop(reject) => Some(reject.name()),
        }
    }
}

/// What the slow path gets a packet for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Errand {
    /// To send it on, or to answer it if it is ARP.
    Carry(Punt),
    /// To tell its sender why it was dropped.
    Answer(Reject),
}

impl Errand {
    /// Every one, in the order of their numbers.
    pub const ALL: &'static [Self] = &[
        Self::Carry(Punt::Neighbour),
        Self::Carry(Punt::Fragment),
        Self::Carry(Punt::Trailer),
        Self::Carry(Punt::Arp),
        Self::Answer(Reject::TtlExpired),
        Self::Answer(Reject::MtuExceeded),
    ];

    /// How many there are.
    #[expect(clippy::cast_possible_truncation, reason = "a handful")]
    pub const COUNT: u32 = Self::ALL.len() as u32;

    /// The errand on which the fast path would send a packet that it has judged so.
    #[inline(always)]
    #[must_use]
    pub const fn of(verdict: &Verdict) -> Option<Self> {
        match verdict {
            Verdict::Punt(punt) => Some(Self::Carry(*punt)),
            Verdict::Drop(reject @ (Reject::TtlExpired | Reject::MtuExceeded)) => Some(Self::Answer(*reject)),
            _ => None,
        }
    }

    /// Its number.
    #[inline(always)]
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::Carry(punt) => punt as u32,
            Self::Answer(Reject::MtuExceeded) => Punt::COUNT + 1,
            Self::Answer(_) => Punt::COUNT,
        }
    }

    /// The name of its reason.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Carry(punt) => punt.name(),
            Self::Answer(reject) => reject.name(),
        }
    }
}

impl From<&Verdict> for Counter {
    fn from(verdict: &Verdict) -> Self {
        match *verdict {
            Verdict::Forward(_) => Self::Forward,
            Verdict::Pass => Self::Pass,
            Verdict::Punt(punt) | Verdict::Finish(punt) => Self::Punt(punt),
            Verdict::Drop(reject) => Self::Drop(reject),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_has_its_own_place() {
        let all = [Counter::Forward, Counter::Pass]
            .into_iter()
            .chain(Punt::ALL.iter().map(|&punt| Counter::Punt(punt)))
            .chain(Reject::ALL.iter().map(|&reject| Counter::Drop(reject)));
        let all: Vec<Counter> = all.collect();
        assert!(all.iter().all(|counter| Counter::at(counter.index()) == Some(*counter)));
        let indices: Vec<u32> = all.into_iter().map(Counter::index).collect();
        assert_eq!((Counter::at(31), Counter::at(Counter::COUNT)), (None, None));
        assert!(indices.is_sorted_by(|a, b| a < b), "{indices:?}");
        assert_eq!(indices.last(), Some(&(Counter::COUNT - 1)));
    }

    /// Counters are carried over from one version's maps to another's by their place.
    #[test]
    fn a_reason_keeps_its_number() {
        let names = |first: &[&str], all: Vec<&'static str>| {
            assert_eq!(
                all.get(..first.len()),
                Some(first),
                "append new reasons here and there, and change no other"
            );
        };
        names(
            &["neighbour", "fragment", "trailer", "arp"],
            Punt::ALL.iter().map(|punt| punt.name()).collect(),
        );
        let drops = [
            "frame_truncated",
            "ip_header",
            "ip_checksum",
            "source_martian",
            "destination_martian",
            "spoofed_source",
            "land",
            "source_route",
            "ttl_expired",
            "tiny_fragment",
            "authentication_header",
            "transport_truncated",
            "icmp_checksum",
            "icmp_quote",
            "icmp_unmatched",
            "icmp_type",
            "eip_unbound",
            "source_unbound",
            "transit",
            "foreign_mac",
            "forwarding_disabled",
            "no_route",
            "wrong_egress",
            "mtu_exceeded",
            "fib_error",
            "priority_tag",
            "port_unknown",
            "icmp_oversize",
            "router_error",
            "slow_path_limited",
            "neighbour_unresolved",
            "slow_path_full",
        ];
        names(&drops, Reject::ALL.iter().map(|reject| reject.name()).collect());
    }

    #[test]
    fn every_errand_has_its_own_number() {
        for (number, errand) in (0..).zip(Errand::ALL) {
            assert_eq!(errand.number(), number, "{errand:?}");
        }
        assert!(Punt::ALL.iter().all(|punt| Errand::ALL.contains(&Errand::Carry(*punt))));
    }

    #[test]
    fn reason_names_are_unique_snake_case() {
        let mut names: Vec<_> =
            Reject::ALL.iter().map(|r| r.name()).chain(Punt::ALL.iter().map(|p| p.name())).collect();
        assert!(names.iter().all(|name| name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_')));
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
