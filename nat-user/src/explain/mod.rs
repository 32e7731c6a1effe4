//! What would become of a packet, and why.
//!
//! The running program is asked for its verdict and the packet that would leave, and nat-common's pipeline, given the same maps
//! and the same FIB, for the steps that lead there. Both run in one turn at the control plane, so bindings do not change in
//! between; routes and neighbours may.

mod recorder;
mod words;

use std::net::{IpAddr, Ipv4Addr};

use nat_common::pipeline::{self, Direction};
use nat_common::verdict::{Counter, Verdict};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use self::recorder::{Fact, Recorder};
use crate::dataplane::trial::Trial;
use crate::dataplane::{Dataplane, Role};
use crate::model::Model;
use crate::packet::{self, Change, Spec, View};

/// How often it is tried until program and steps agree.
const ATTEMPTS: u32 = 2;

/// Shortest frame that can be tried, in bytes: the kernel takes none without an Ethernet header.
const SHORTEST: usize = 14;

/// Longest, in bytes.
const LONGEST: usize = 16 * 1024;

/// A packet that is to be explained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// The interface that it comes by.
    pub on: String,
    /// The frame in hexadecimal digits, from its Ethernet header on; or else:
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frame: Option<String>,
    /// The packet in a few words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packet: Option<Spec>,
}

/// What would become of a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Explanation {
    /// The interface that it comes by.
    pub on: String,
    /// How that interface serves; absent if the program does not know it.
    pub role: Option<Role>,
    /// The packet in a line.
    pub packet: String,
    /// The frame as it comes, in hexadecimal digits.
    pub frame: String,
    /// What is asked on the way, in order, and what is found.
    pub steps: Vec<Step>,
    /// The running program's verdict: `forward`, `pass`, `punt` or `drop`.
    pub verdict: String,
    /// Why, for a punt or a drop.
    pub reason: Option<String>,
    /// What the verdict or the reason means.
    pub meaning: String,
    /// What usually causes it, and what to do.
    pub remedy: Option<String>,
    /// Whom a packet like this is billed to. This one is not.
    pub billed: Vec<Billed>,
    /// What would leave the program.
    pub leaves: Option<Leaves>,
    /// Set where the steps do not lead to what the running program did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contradiction: Option<String>,
}

/// A question on a packet's way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Step {
    /// What is asked.
    pub asked: String,
    /// What is found.
    pub found: String,
}

/// A public address that a packet is billed to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Billed {
    /// The public address.
    #[schema(value_type = String, format = Ipv4)]
    pub address: Ipv4Addr,
    /// Whose it is.
    pub account: Option<String>,
    /// `in` or `out`.
    pub direction: String,
    /// IPv4 total length.
    pub bytes: u16,
}

/// A packet that leaves the program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Leaves {
    /// The interface that it leaves by; absent if the slow path or the kernel's own stack gets it.
    pub by: Option<String>,
    /// The next hop.
    #[schema(value_type = Option<String>)]
    pub next_hop: Option<IpAddr>,
    /// The packet in a line.
    pub packet: String,
    /// The frame, in hexadecimal digits.
    pub frame: String,
    /// What has changed.
    pub changes: Vec<Change>,
}

/// Why there is no explanation.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The question makes no sense.
    #[error("{0}")]
    Senseless(String),
    /// The datapath cannot be asked.
    #[error("{0:#}")]
    Failed(#[from] anyhow::Error),
}

/// Explains a packet.
///
/// # Errors
/// If the question makes no sense, or the datapath cannot be asked.
pub fn explain(
    dataplane: &mut dyn Dataplane,
    model: &Model,
    question: &Question,
) -> Result<Explanation, Error> {
    let senseless = |what: String| Error::Senseless(what);
    let Some(ifindex) = dataplane.interface(&question.on)? else {
        let names: Vec<String> = dataplane.ports().into_iter().map(|port| port.name).collect();
        return Err(senseless(format!(
            "eipnat does not run on {}; it does on {}",
            question.on,
            names.join(", ")
        )));
    };
    let mac = dataplane.port(ifindex)?.map_or([0; 6], |port| port.mac);
    let frame = match (&question.frame, &question.packet) {
        (Some(hex), None) => packet::from_hex(hex).map_err(|what| senseless(format!("the frame: {what}")))?,
        (None, Some(spec)) => spec.frame(mac).map_err(|what| senseless(format!("the packet: {what}")))?,
        _ => return Err(senseless("either a frame or a packet has to be given".to_owned())),
    };
    check_length(frame.len()).map_err(senseless)?;
    let mut attempt = 1;
    loop {
        let trial = dataplane.try_out(ifindex, &frame)?;
        let way = Path::record(dataplane, ifindex, &frame)?;
        if way.leads_to(&trial) || attempt == ATTEMPTS {
            return Ok(tell(dataplane, model, question, &frame, &trial, &way));
        }
        attempt += 1;
    }
}

/// Whether a frame of so many bytes can be tried.
///
/// # Errors
/// Says what can.
pub fn check_length(bytes: usize) -> Result<(), String> {
    if (SHORTEST..=LONGEST).contains(&bytes) {
        return Ok(());
    }
    Err(format!("a frame of {bytes} bytes cannot be tried; it has {SHORTEST} to {LONGEST}"))
}

/// What the pipeline has asked, and what it came to.
struct Path {
    facts: Vec<Fact>,
    verdict: Verdict,
    frame: Vec<u8>,
    /// What the slow path would make of it, if it takes it.
    finished: Option<(Vec<Fact>, Vec<u8>)>,
}

impl Path {
    fn record(dataplane: &mut dyn Dataplane, ifindex: u32, frame: &[u8]) -> anyhow::Result<Self> {
        let process = |mut recorder: Recorder<'_>| -> anyhow::Result<(Verdict, Vec<Fact>, Vec<u8>)> {
            let mut frame = frame.to_vec();
            let verdict = pipeline::process(frame.as_mut_slice(), ifindex, &mut recorder);
            Ok((verdict, recorder.facts()?, frame))
        };
        let (verdict, facts, left) = process(Recorder::new(dataplane, ifindex))?;
        let finished = if matches!(verdict, Verdict::Punt(_)) {
            let (_, facts, frame) = process(Recorder::of_slow_path(dataplane, ifindex))?;
            Some((facts, frame))
        } else {
            None
        };
        Ok(Self { facts, verdict, frame: left, finished })
    }

    /// What leaves in the end, and the facts that lead there.
    fn end(&self) -> (&[Fact], &[u8]) {
        self.finished.as_ref().map_or((&self.facts, &self.frame), |(facts, frame)| (facts, frame))
    }

    fn leads_to(&self, trial: &Trial) -> bool {
        let egress = if let Verdict::Forward(egress) = &self.verdict { Some(egress.ifindex) } else { None };
        trial.is_carried_out
            && (Counter::from(&self.verdict), egress, &self.frame)
                == (trial.counter, trial.egress, &trial.frame)
    }

    /// Why the steps do not lead to what the program did.
    fn contradiction(&self, trial: &Trial) -> Option<String> {
        if self.leads_to(trial) {
            return None;
        }
        let verdict = words::outcome(trial.counter);
        Some(if trial.is_carried_out {
            format!(
                "the steps lead to {}, but the running program's verdict is {verdict}: routes or neighbours change all the \
                 time, or it is another version's program; ask again, or restart the daemon",
                words::outcome(Counter::from(&self.verdict))
            )
        } else {
            format!(
                "the running program's verdict is {verdict}, but it does otherwise, which loses what is to leave by an \
                 interface that somebody has taken out of its maps; the daemon mends that within a second, so ask again"
            )
        })
    }
}

fn tell(
    dataplane: &dyn Dataplane,
    model: &Model,
    question: &Question,
    frame: &[u8],
    trial: &Trial,
    path: &Path,
) -> Explanation {
    let (meaning, remedy) = words::verdict(trial.counter);
    // Of steps that lead elsewhere, neither the bill nor the next hop is the program's.
    let (facts, finished) = if path.leads_to(trial) { path.end() } else { (&[][..], trial.frame.as_slice()) };
    let billed = facts.iter().filter_map(|fact| words::billed(fact, facts, model)).collect();
    let has_left = matches!(trial.counter, Counter::Forward | Counter::Punt(_)) && finished != frame;
    Explanation {
        on: question.on.clone(),
        role: dataplane.ports().into_iter().find(|port| port.name == question.on).map(|port| port.role),
        packet: View::line(frame),
        frame: packet::to_hex(frame),
        steps: path.facts.iter().filter_map(|fact| words::step(fact, dataplane, model)).collect(),
        verdict: trial.counter.verdict().to_owned(),
        reason: trial.counter.reason().map(str::to_owned),
        meaning: meaning.to_owned(),
        remedy: remedy.map(str::to_owned),
        billed,
        leaves: has_left.then(|| Leaves {
            by: trial.egress.map(|index| words::interface(dataplane, index)),
            next_hop: words::next_hop(facts),
            packet: View::line(finished),
            frame: packet::to_hex(finished),
            changes: packet::changes(frame, finished),
        }),
        contradiction: path.contradiction(trial),
    }
}

/// The name of a direction in bills.
const fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::In => "in",
        Direction::Out => "out",
    }
}

#[cfg(test)]
mod tests;
