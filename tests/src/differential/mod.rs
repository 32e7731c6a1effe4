//! eipnat and the kernel's own NAT side by side: the same frames go through both, and what comes out is compared.
//!
//! Frames are told apart by their IPv4 identification, which both keep. Nothing else comes out: the nodes are mute,
//! so that a packet of the kernel's own, whose identification may be any, cannot be taken for one that has leaked.

mod tap;
mod twin;

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use etherparse::checksum::Sum16BitWords;
pub use twin::Kernel;

use self::tap::Tap;
use crate::fixtures::Packet;
use crate::fixtures::kernel::{KernelNode, make_world};
use crate::fixtures::world::{GATEWAY_MAC, Link, VM1, X};
use crate::lab::{Lab, Topology};

/// What came out for one frame: by which interfaces, and the frames, without padding. Whatever it looks like: with the
/// TTL or the length that it had, or others.
pub type Output = Vec<(Link, Vec<u8>)>;

/// Frames that are under way at the same time; a veth's queue holds 256.
const BURST: usize = 32;

/// The identification of the frame at the end of a burst.
const MARKER: u16 = 0xffff;

/// How long one burst may take.
const TIMEOUT: Duration = Duration::from_secs(5);

/// A translating node with both its cables in hand.
pub struct Side {
    lab: Lab,
    taps: [(Link, Tap); 2],
    eipnat: Option<KernelNode>,
}

fn far_end(link: Link) -> String {
    format!("{}p", link.name())
}

impl Side {
    /// A node on which eipnat translates.
    ///
    /// # Errors
    /// Without root, or when the node cannot be set up.
    pub fn eipnat() -> Result<Self> {
        let lab = Lab::new(Topology::TwoArmed)?;
        make_world(&lab.node)?;
        let pins = lab.file("pins");
        let node = lab.node.run(|| KernelNode::start(&pins))??;
        Self::start(lab, Some(node))
    }

    /// A node on which the kernel translates.
    ///
    /// # Errors
    /// As for [`Self::eipnat`].
    pub fn kernel(kernel: Kernel) -> Result<Self> {
        let lab = Lab::new(Topology::TwoArmed)?;
        make_world(&lab.node)?;
        twin::translate(&lab.node, kernel)?;
        Self::start(lab, None)
    }

    fn start(lab: Lab, eipnat: Option<KernelNode>) -> Result<Self> {
        twin::prepare(&lab.node)?;
        let open = |link: Link| anyhow::Ok((link, Tap::open(&far_end(link))?));
        let taps = lab.node.run(|| anyhow::Ok([open(Link::Up)?, open(Link::Down)?]))??;
        Ok(Self { lab, taps, eipnat })
    }

    /// Takes the node away.
    ///
    /// # Errors
    /// When something stays.
    pub fn remove(self) -> Result<()> {
        if self.eipnat.is_some() {
            drop(self.eipnat);
            let pins = self.lab.file("pins");
            self.lab.node.run(|| nat_user::dataplane::xdp::unload(&pins, |_| Ok(())))??;
        }
        self.lab.remove()
    }

    /// Sends frames and collects what comes out, by identification. What the node asks by ARP is left out.
    ///
    /// # Errors
    /// When the node cannot be reached, or stops to answer, and when something comes out that was not sent.
    pub fn exchange(&self, frames: &[(Link, Vec<u8>)]) -> Result<HashMap<u16, Output>> {
        let sent: HashSet<u16> = frames.iter().map(|(_, frame)| identification(frame)).collect();
        ensure!(sent.len() == frames.len(), "two frames with the same identification");
        let mut seen: HashMap<u16, Output> = HashMap::new();
        let mut keep = |link, mut frame: Vec<u8>| {
            if frame.get(12..14) == Some(&[8, 6]) {
                return Ok(());
            }
            let id = identification(&frame);
            ensure!(
                is_ipv4(&frame) && sent.contains(&id),
                "what comes out by {link:?} was not sent: {frame:02x?}"
            );
            frame.truncate((14 + total_len(&frame)).max(34));
            seen.entry(id).or_default().push((link, frame));
            Ok(())
        };
        for burst in frames.chunks(BURST) {
            for (on, frame) in burst {
                self.tap(*on).send(frame)?;
            }
            self.settle(&mut keep)?;
        }
        // Whatever went through the kernel's stack on its own time.
        std::thread::sleep(Duration::from_millis(100));
        self.settle(&mut keep)?;
        Ok(seen)
    }

    fn tap(&self, link: Link) -> &Tap {
        let (_, tap) = self.taps.iter().find(|(on, _)| *on == link).expect("the twins have these links");
        tap
    }

    /// Sends a packet through in both directions, and gives all that comes before them to `keep`.
    fn settle(&self, keep: &mut impl FnMut(Link, Vec<u8>) -> Result<()>) -> Result<()> {
        let marked = |packet: Packet| packet.with(|ip| ip.identification = MARKER);
        let out = marked(Packet::udp(VM1.private_ip, X, b"marker"));
        let into = marked(Packet::udp(X, VM1.public_ip, b"marker"));
        self.tap(Link::Down).send(&out.frame(VM1.mac.expect("known"), Link::Down.mac()))?;
        self.tap(Link::Up).send(&into.frame(GATEWAY_MAC, Link::Up.mac()))?;
        let end = Instant::now() + TIMEOUT;
        let mut missing = 2;
        while missing > 0 {
            let mut idle = true;
            for (link, tap) in &self.taps {
                while let Some(frame) = tap.receive()? {
                    idle = false;
                    match identification(&frame) {
                        MARKER if is_ipv4(&frame) => missing -= 1,
                        _ => keep(*link, frame)?,
                    }
                }
            }
            if idle {
                ensure!(Instant::now() < end, "the node lets nothing through any more");
                std::thread::sleep(Duration::from_micros(20));
            }
        }
        Ok(())
    }
}

fn is_ipv4(frame: &[u8]) -> bool {
    frame.len() >= 34 && frame[12..14] == [8, 0]
}

fn identification(frame: &[u8]) -> u16 {
    if is_ipv4(frame) { u16::from_be_bytes([frame[18], frame[19]]) } else { 0 }
}

fn total_len(frame: &[u8]) -> usize {
    usize::from(u16::from_be_bytes([frame[16], frame[17]]))
}

/// Gives a frame another identification. A right header checksum stays right and a wrong one wrong. None: it is no
/// IPv4 frame that fits on the cable.
#[must_use]
pub fn tagged(frame: &[u8], tag: u16) -> Option<Vec<u8>> {
    let mut frame = frame.to_owned();
    if !is_ipv4(&frame) || frame.len() > 1514 {
        return None;
    }
    let header_len = usize::from(frame[14] & 15) * 4;
    let header = 14..14 + header_len.max(20).min(frame.len() - 14);
    let sum = |frame: &[u8]| Sum16BitWords::new().add_slice(&frame[header.clone()]).ones_complement().to_be();
    let was_right = sum(&frame) == 0;
    frame[18..20].copy_from_slice(&tag.to_be_bytes());
    if was_right {
        frame[24..26].fill(0);
        let right = sum(&frame);
        frame[24..26].copy_from_slice(&right.to_be_bytes());
    }
    Some(frame)
}
