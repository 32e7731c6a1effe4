//! The slow path's metrics.

use std::collections::BTreeMap;

use prometheus::proto::{Metric, MetricType};

use super::{counter, gauge};
use crate::dataplane::slow_path::{Outcomes, Report};

/// A family: name, meaning, type and samples.
type Family = (&'static str, &'static str, MetricType, Vec<Metric>);

/// All of them.
pub(super) fn families(report: &Report) -> Vec<Family> {
    let by_outcome = report.tallies.errands.iter().flat_map(|(errand, outcomes)| {
        named(*outcomes)
            .map(|(outcome, packets)| counter(&[("reason", errand.name()), ("outcome", outcome)], packets))
    });
    let of_buckets = |count: fn(&crate::dataplane::slow_path::Bucket) -> u64| -> Vec<Metric> {
        let sample = |bucket| {
            let bucket: &crate::dataplane::slow_path::Bucket = bucket;
            let labels = [("interface", bucket.interface.as_str()), ("reason", bucket.errand.name())];
            counter(&labels, count(bucket))
        };
        report.buckets.iter().map(sample).collect()
    };
    let state = &report.state;
    vec![
        (
            "eipnat_slow_path_packets_total",
            "Packets that have come to the slow path, and what it made of them.",
            MetricType::COUNTER,
            by_outcome.collect(),
        ),
        (
            "eipnat_slow_path_sent_packets_total",
            "Packets that the fast path has sent to the slow path.",
            MetricType::COUNTER,
            of_buckets(|bucket| bucket.sent),
        ),
        (
            "eipnat_slow_path_limited_packets_total",
            "Packets that the fast path has not sent to the slow path, because there were too many.",
            MetricType::COUNTER,
            of_buckets(|bucket| bucket.limited),
        ),
        (
            "eipnat_slow_path_waiting_packets",
            "Packets that wait for a neighbour's MAC address.",
            MetricType::GAUGE,
            vec![gauge(&[], state.waiting as u64)],
        ),
        (
            "eipnat_slow_path_frames",
            "Frames of the AF_XDP sockets' memory, by who has them.",
            MetricType::GAUGE,
            frames(report),
        ),
        (
            "eipnat_slow_path_ring_frames",
            "Frames that stand in the AF_XDP sockets' rings.",
            MetricType::GAUGE,
            rings(report),
        ),
        (
            "eipnat_slow_path_lost_packets_total",
            "Packets that have not come into an AF_XDP socket.",
            MetricType::COUNTER,
            lost(report),
        ),
        (
            "eipnat_arp_announcements_total",
            "Announcements of EIPs by ARP.",
            MetricType::COUNTER,
            vec![counter(&[], report.tallies.announced)],
        ),
        (
            "eipnat_arp_conflicts_total",
            "ARP packets in which somebody else claimed to hold an EIP.",
            MetricType::COUNTER,
            vec![counter(&[], report.tallies.conflicts)],
        ),
    ]
}

/// Each outcome with its name.
const fn named(outcomes: Outcomes) -> [(&'static str, u64); 4] {
    [
        ("received", outcomes.received),
        ("carried", outcomes.carried),
        ("answered", outcomes.answered),
        ("unanswered", outcomes.unanswered),
    ]
}

/// By interface: its queues together.
fn frames(report: &Report) -> Vec<Metric> {
    let mut sums: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for socket in &report.state.sockets {
        let shares = socket.shares;
        for (holder, frames) in
            [("free", shares.free), ("receiving", shares.receiving), ("sending", shares.sending)]
        {
            *sums.entry((&socket.interface, holder)).or_default() += frames;
        }
    }
    let sample =
        |((interface, holder), frames)| gauge(&[("interface", interface), ("holder", holder)], frames as u64);
    sums.into_iter().map(sample).collect()
}

fn rings(report: &Report) -> Vec<Metric> {
    let mut sums: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for socket in &report.state.sockets {
        let rings = socket.rings;
        for (ring, frames) in [
            ("fill", rings.fill),
            ("receive", rings.receive),
            ("send", rings.send),
            ("completion", rings.completion),
        ] {
            *sums.entry((&socket.interface, ring)).or_default() += u64::from(frames);
        }
    }
    sums.into_iter()
        .map(|((interface, ring), frames)| gauge(&[("interface", interface), ("ring", ring)], frames))
        .collect()
}

fn lost(report: &Report) -> Vec<Metric> {
    let mut sums: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for socket in &report.state.sockets {
        let lost = socket.lost;
        for (cause, packets) in
            [("ring_full", lost.ring_full), ("no_frames", lost.no_frames), ("other", lost.dropped)]
        {
            *sums.entry((&socket.interface, cause)).or_default() += packets;
        }
    }
    sums.into_iter()
        .map(|((interface, cause), packets)| counter(&[("interface", interface), ("cause", cause)], packets))
        .collect()
}
