//! eipnat against the kernel's own NAT: the same packets, valid and nasty, through both. Where they differ, the
//! difference stands on a list here that names the RFC on eipnat's side; and what stands on the list does occur.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use etherparse::{IpNumber, Ipv4Header};
use nat_common::verdict::{Punt, Reject};
use proptest::prelude::*;
use tests::differential::{Kernel, Output, Side, tagged};
use tests::fixtures::Expect;
use tests::fixtures::world::{BINDINGS, Link};
use tests::reference::expected;
use tests::reference::generate::{any_case, complained, plain_case, seed, stream};

/// A packet that did not come out of both in the same way.
struct Difference<'a> {
    came: &'a [u8],
    header: Ipv4Header,
    expected: Expect,
    ours: &'a Output,
    theirs: &'a Output,
}

/// Why one differs, which RFC says so, and how to recognise it.
type Deviation = (&'static str, &'static str, fn(&Difference<'_>) -> bool);

/// How the kernel's stateless rules differ from eipnat.
const STATELESS: &[Deviation] = &[
    ("AH is dropped: it signs the addresses", "RFC 4302 §3.3.3", |d| d.drops(Reject::AuthenticationHeader)),
    ("fragments that split or overlap a TCP header are dropped", "RFC 1858 §3, §4, RFC 3128", |d| {
        d.drops(Reject::TinyFragment)
    }),
    ("packets that end in the transport's header are dropped", "RFC 768, RFC 9293 §3.1", |d| {
        d.drops(Reject::TransportTruncated)
    }),
    ("240/4 and 169.254/16 do not send", "RFC 1812 §5.3.7, RFC 3927 §7", |d| {
        d.drops(Reject::SourceMartian)
    }),
    ("nothing goes to 240/4 and 169.254/16", "RFC 1812 §5.3.7, RFC 3927 §7", |d| {
        d.drops(Reject::DestinationMartian)
    }),
    ("our own addresses and the VMs' do not send from outside", "RFC 2827 §3", |d| {
        d.drops(Reject::SpoofedSource) || d.drops(Reject::Land)
    }),
    ("private addresses do not reach the internet", "RFC 1918 §3", |d| d.drops(Reject::WrongEgress)),
    ("redirect and source quench are dropped", "RFC 5508 REQ-10, RFC 6633", |d| d.drops(Reject::IcmpType)),
    ("an ICMP error with a wrong checksum is dropped", "RFC 5508 REQ-3", |d| d.drops(Reject::IcmpChecksum)),
    ("an ICMP error with a broken or foreign quote is dropped", "RFC 5508 REQ-3, REQ-4", |d| {
        d.drops(Reject::IcmpQuote)
    }),
    ("an ICMP error that quotes nobody's packet is dropped", "RFC 5508 REQ-4", |d| {
        d.drops(Reject::IcmpUnmatched)
    }),
    ("what an ICMP error quotes is translated", "RFC 5508 REQ-4, REQ-5", |d| {
        d.is_error() && d.both() && d.outside_options().all(|at| at >= d.payload())
    }),
    ("errors of routers without a binding are translated", "RFC 5508 REQ-5", |d| {
        let is_bound = BINDINGS.iter().any(|bound| bound.private_ip.octets() == d.header.source);
        d.is_error() && !is_bound && d.ours.len() == 1 && d.theirs.is_empty()
    }),
    ("a checksum of zero is written as zero but in UDP", "RFC 1624 §3, RFC 9293 §3.1", |d| {
        d.only_spelling()
    }),
    ("the checksum of DCCP covers the addresses", "RFC 4340 §9.1, RFC 5597 REQ-11", |d| {
        let checksum = d.payload() + 6..d.payload() + 8;
        d.header.protocol == IpNumber::DCCP
            && d.both()
            && d.outside_options().all(|at| checksum.contains(&at))
    }),
    ("a checksum of ICMPv6 covers no IPv4 addresses", "RFC 4443 §2.3", |d| {
        // Where the kernel finds no checksum to change it leaves the addresses, too.
        let is_short = usize::from(d.header.total_len) < d.header.header_len() + 4;
        let is_else_alike = d.both() && d.outside_options().all(|at| at >= d.payload());
        d.header.protocol == IpNumber::IPV6_ICMP && d.ours.len() == 1 && (is_short || is_else_alike)
    }),
    ("options stay as they are: nothing recorded, nothing cleared", "RFC 1812 §5.3.13.5, §5.3.13.6", |d| {
        d.both() && d.outside_options().next().is_none()
    }),
    ("options are not judged by what is in them", "RFC 1812 §5.3.13", |d| {
        d.has_options() && d.ours.len() == 1 && d.theirs.is_empty()
    }),
];

/// How the kernel's connection tracking differs from eipnat in ICMP errors.
const TRACKING: &[Deviation] = &[
    ("a checksum that nothing changes keeps its spelling of zero", "RFC 1624 §3", |d| d.only_spelling()),
    ("a router without a binding complains as the node, not as the VM", "RFC 5508 REQ-5", |d| {
        d.both() && d.offsets().iter().all(|at| (24..30).contains(at))
    }),
    ("redirect and source quench are dropped", "RFC 5508 REQ-10, RFC 6633", |d| d.drops(Reject::IcmpType)),
    ("an ICMP error with a broken or foreign quote is dropped", "RFC 5508 REQ-3, REQ-4", |d| {
        d.drops(Reject::IcmpQuote)
    }),
    ("quotes without ports are translated by their addresses", "RFC 5508 REQ-4, REQ-5", |d| {
        let no_ports = |(quoted, length): (Ipv4Header, _)| quoted.fragment_offset.value() != 0 || length < 8;
        d.ours.len() == 1 && d.quote().is_some_and(no_ports)
    }),
    ("a quoted TCP checksum is mended even where the header is cut behind it", "RFC 5508 REQ-4", |d| {
        d.both() && d.quote().is_some_and(|(quoted, length)| quoted.protocol == IpNumber::TCP && length >= 18)
    }),
    ("what stands behind a quote is no part of it", "RFC 4884 §4", |d| {
        let has_length = d.came[d.payload() + 5] != 0;
        d.both() && has_length && d.quote().is_some_and(|(_, length)| length < 18)
    }),
];

impl Difference<'_> {
    /// Whether eipnat's side shows what the reference says, and nothing of what it says is not forwarded.
    fn is_as_expected(&self) -> bool {
        match &self.expected {
            // Without padding, which the nodes may keep or not.
            Expect::Forward(frame, _) => {
                let length = (14 + usize::from(self.header.total_len)).min(frame.len());
                matches!(&self.ours[..], [(_, out)] if *out == frame[..length])
            }
            // The kernel finishes it, if it has nothing against options or source.
            Expect::Punt(Punt::Trailer, ..) => self.ours.len() <= 1,
            // Nobody answers the kernel that asks for the neighbour. Nothing here is too large.
            Expect::Punt(Punt::Neighbour | Punt::Fragment | Punt::Arp, ..)
            | Expect::Pass
            | Expect::Drop(_) => self.ours.is_empty(),
        }
    }

    fn drops(&self, reason: Reject) -> bool {
        self.expected == Expect::Drop(reason) && self.ours.is_empty() && self.theirs.len() == 1
    }

    /// Both have forwarded it, by the same way.
    fn both(&self) -> bool {
        self.ours.len() == 1 && self.theirs.len() == 1 && self.ours[0].0 == self.theirs[0].0
    }

    /// Where the transport begins in the frame.
    fn payload(&self) -> usize {
        14 + self.header.header_len()
    }

    fn has_options(&self) -> bool {
        !self.header.options.is_empty()
    }

    fn is_error(&self) -> bool {
        let is_first = self.header.fragment_offset.value() == 0;
        let is_error = matches!(self.came.get(self.payload()), Some(3 | 11 | 12));
        self.header.protocol == IpNumber::ICMP && is_first && is_error
    }

    /// The header quoted in an ICMP error, and how much of the transport is quoted with it.
    fn quote(&self) -> Option<(Ipv4Header, usize)> {
        let message = &self.came[self.payload()..14 + usize::from(self.header.total_len)];
        let (header, mut quote) = message.split_at(8);
        if header[5] != 0 {
            quote = &quote[..quote.len().min(usize::from(header[5]) * 4)];
        }
        let (quoted, behind) = Ipv4Header::from_slice(quote).ok()?;
        let length = behind.len().min(usize::from(quoted.total_len) - quoted.header_len());
        Some((quoted, length))
    }

    /// Where both wrote other bytes, but for the two ways to write zero: the kernel writes every checksum that comes
    /// out as zero as 0xffff, or computes it anew.
    fn offsets(&self) -> Vec<usize> {
        let ((_, ours), (_, theirs)) = (&self.ours[0], &self.theirs[0]);
        let words = (0..ours.len()).step_by(2).map(|at| at..(at + 2).min(ours.len()));
        let spelling = |word: &[u8]| *word == [0, 0] || *word == [0xff, 0xff];
        words
            .filter(|word| {
                let (ours, theirs) = (&ours[word.clone()], &theirs[word.clone()]);
                ours != theirs && !(spelling(ours) && spelling(theirs))
            })
            .flatten()
            .filter(|&at| ours[at] != theirs[at])
            .collect()
    }

    /// [`Self::offsets`] but for the header's options and its checksum, where there are options.
    fn outside_options(&self) -> impl Iterator<Item = usize> {
        let (has_options, payload) = (self.has_options(), self.payload());
        let is_outside =
            move |at: &usize| !(has_options && ((24..26).contains(at) || (34..payload).contains(at)));
        self.offsets().into_iter().filter(is_outside)
    }

    fn only_spelling(&self) -> bool {
        self.both() && self.offsets().is_empty()
    }

    fn describe(&self) -> String {
        let hex = |frame: &[u8]| frame.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
        let output = |output: &Output| match output.as_slice() {
            [] => "nothing".to_owned(),
            frames => {
                let lines = frames.iter().map(|(link, frame)| format!("by {link:?}: {}", hex(frame)));
                lines.collect::<Vec<_>>().join("\n           ")
            }
        };
        let (ours, theirs) = (output(self.ours), output(self.theirs));
        format!("{}\n eipnat:   {ours}\n kernel:   {theirs}\n expected: {}", hex(self.came), self.expected)
    }
}

/// Sends the frames through both and judges what comes out. At least `enough` of them have to come out alike.
fn compare(
    frames: &[(Link, Vec<u8>)],
    [ours, theirs]: [&Side; 2],
    list: &[Deviation],
    enough: usize,
) -> Result<()> {
    let (ours, theirs) = (ours.exchange(frames)?, theirs.exchange(frames)?);
    let nothing = Output::new();
    let (mut alike, mut seen, mut unexplained) = (0, BTreeMap::new(), Vec::new());
    for (on, frame) in frames {
        let tag = u16::from_be_bytes([frame[18], frame[19]]);
        let difference = Difference {
            came: frame,
            header: Ipv4Header::from_slice(&frame[14..]).map(|(header, _)| header).unwrap_or_default(),
            expected: expected(*on, frame),
            ours: ours.get(&tag).unwrap_or(&nothing),
            theirs: theirs.get(&tag).unwrap_or(&nothing),
        };
        ensure!(difference.is_as_expected(), "not on the wire as it should be: {}", difference.describe());
        if difference.ours == difference.theirs {
            alike += difference.ours.len();
        } else if let Some((why, rfc, _)) = list.iter().find(|(_, _, explains)| explains(&difference)) {
            *seen.entry(format!("{why} ({rfc})")).or_insert(0) += 1;
        } else {
            unexplained.push(difference.describe());
        }
    }
    println!("{} packets, {alike} came out of both alike; differences on the list: {seen:#?}", frames.len());
    ensure!(
        unexplained.is_empty(),
        "{} packets differ for no reason on the list, such as\n{}",
        unexplained.len(),
        unexplained[..unexplained.len().min(3)].join("\n")
    );
    ensure!(alike >= enough, "only {alike} packets came out of both alike");
    ensure!(seen.len() == list.len(), "not everything on the list occurs any more: {seen:#?}");
    Ok(())
}

fn announced_seed() -> Result<u64> {
    let seed = seed(std::time::UNIX_EPOCH.elapsed()?.as_secs());
    println!("EIPNAT_SEED={seed} repeats this run");
    Ok(seed)
}

#[test]
fn plain_and_nasty_packets_as_by_stateless_rules() -> Result<()> {
    let cases = stream(announced_seed()?, prop_oneof![3 => any_case(), 1 => plain_case()]);
    let frames = cases.filter(|case| case.on != Link::Arm);
    let frames = frames.filter_map(|case| Some((case.on, tagged(&case.frame, 0)?)));
    let tagged = |(tag, (on, frame)): (u16, (Link, Vec<u8>))| Some((on, tagged(&frame, tag)?));
    let frames: Vec<_> = (1..).zip(frames).take(60_000).filter_map(tagged).collect();

    let (eipnat, kernel) = (Side::eipnat()?, Side::kernel(Kernel::Stateless)?);
    compare(&frames, [&eipnat, &kernel], STATELESS, 8_000)?;
    eipnat.remove()?;
    kernel.remove()
}

#[test]
fn icmp_errors_as_by_connection_tracking() -> Result<()> {
    let cases = stream(announced_seed()?, (1024..u16::MAX).prop_flat_map(complained));
    let (openings, errors): (Vec<_>, Vec<_>) = (1..)
        .zip(cases.take(20_000))
        .filter_map(|(tag, case)| {
            let opening = (case.opening.on, tagged(&case.opening.frame, tag)?);
            Some((opening, (case.error.on, tagged(&case.error.frame, tag)?)))
        })
        .unzip();

    let (eipnat, kernel) = (Side::eipnat()?, Side::kernel(Kernel::Tracking)?);
    for side in [&eipnat, &kernel] {
        let through = side.exchange(&openings)?.len();
        ensure!(through == openings.len(), "only {through} of {} flows came through", openings.len());
    }
    compare(&errors, [&eipnat, &kernel], TRACKING, 6_000)?;
    eipnat.remove()?;
    kernel.remove()
}
