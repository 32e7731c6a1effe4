//! The slow path's metrics.

use std::collections::BTreeMap;

use prometheus::proto::{Metric, MetricType};

use super::{counter, gauge};
use crate::dataplane::slow_path::{Bucket, Outcomes, Report};
use crate::slowpath::SocketState;

/// A family: name, meaning, type and samples.
type Family = (&'static str, &'static str, MetricType, Vec<Metric>);

/// All of them.
pub(super) fn families(report: &Report) -> Vec<Family> {
    let by_outcome = report.tallies.errands.iter().flat_map(|(errand, outcomes)| {
        named(*outcomes)
            .map(|(outcome, packets)| counter(&[("reason", errand.name()), ("outcome", outcome)], packets))
    });
    let of_buckets = |count: fn(&Bucket) -> u64| -> Vec<Metric> {
        let sample = |bucket: &Bucket| {
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

/// The numbers of a socket, each with its name, as samples by interface: its queues together.
fn by_interface<const N: usize>(
    report: &Report,
    label: &str,
    sample: fn(&[(&str, &str)], u64) -> Metric,
    numbers: impl Fn(&SocketState) -> [(&'static str, u64); N],
) -> Vec<Metric> {
    let mut sums: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for socket in &report.state.sockets {
        for (name, number) in numbers(socket) {
            *sums.entry((&socket.interface, name)).or_default() += number;
        }
    }
    let labelled = |((interface, name), number)| sample(&[("interface", interface), (label, name)], number);
    sums.into_iter().map(labelled).collect()
}

fn frames(report: &Report) -> Vec<Metric> {
    by_interface(report, "holder", gauge, |SocketState { shares, .. }| {
        [
            ("free", shares.free as u64),
            ("receiving", shares.receiving as u64),
            ("sending", shares.sending as u64),
        ]
    })
}

fn rings(report: &Report) -> Vec<Metric> {
    by_interface(report, "ring", gauge, |SocketState { rings, .. }| {
        [
            ("fill", rings.fill.into()),
            ("receive", rings.receive.into()),
            ("send", rings.send.into()),
            ("completion", rings.completion.into()),
        ]
    })
}

fn lost(report: &Report) -> Vec<Metric> {
    by_interface(report, "cause", counter, |SocketState { lost, .. }| {
        [("ring_full", lost.ring_full), ("no_frames", lost.no_frames), ("other", lost.dropped)]
    })
}
