//! `/metrics` for Prometheus. Nothing is collected between scrapes: each one reads the datapath, and sends what it has read
//! while it goes on reading, so that a million EIPs take no more memory than some thousands, and let commands through.

mod series;
mod slow_path;

use std::collections::BTreeMap;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, TextEncoder};

use crate::api::pieces::pieces;
use crate::api::types::Stats;
use crate::config;
use crate::control::{self, Control, Shared};

/// How long a scrape may take.
pub const MAX_CONNECTION: Duration = Duration::from_mins(2);

/// The metrics of a control plane.
pub fn router(control: Shared, config: config::Metrics) -> Router {
    Router::new().route("/metrics", get(scrape)).with_state((control, config))
}

async fn scrape(State((control, config)): State<(Shared, config::Metrics)>) -> Response {
    let text = |control: &mut Control| Ok(TextEncoder::new().encode_to_string(&families(control)?)?);
    let node = match control::call(&control, text).await.flatten() {
        Ok(text) => text,
        Err(error) => return (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response(),
    };
    let (pipe, body) = pieces();
    tokio::spawn(async move {
        if !pipe.send(node).await {
            // Whoever asked has gone.
            return;
        }
        let made = series::send(&control, config, &pipe).await;
        // A cut answer is an error to Prometheus; a short one would be taken for the end of some EIPs.
        pipe.end(made).await;
    });
    let format = [(header::CONTENT_TYPE, TextEncoder::new().format_type().to_owned())];
    (format, Body::new(body)).into_response()
}

fn families(control: &Control) -> anyhow::Result<Vec<MetricFamily>> {
    let report = control.slow_path()?;
    let Stats { verdicts, punts, drops, .. } = Stats::of(&control.verdicts()?, &report);
    let verdicts = verdicts
        .named()
        .iter()
        .map(|(verdict, packets)| counter(&[("verdict", verdict)], *packets))
        .collect();
    let by_reason = |counters: &BTreeMap<String, u64>| {
        counters.iter().map(|(reason, packets)| counter(&[("reason", reason)], *packets)).collect()
    };

    let families = [
        (
            "eipnat_packets_total",
            "Packets by verdict of the fast path; each is counted once. What was punted and died in the slow path is among the dropped, too.",
            MetricType::COUNTER,
            verdicts,
        ),
        (
            "eipnat_punted_packets_total",
            "Packets that the fast path left to the slow path or to the kernel, by reason.",
            MetricType::COUNTER,
            by_reason(&punts),
        ),
        (
            "eipnat_dropped_packets_total",
            "Dropped packets by reason, in the fast path and in the slow path.",
            MetricType::COUNTER,
            by_reason(&drops),
        ),
        (
            "eipnat_bindings",
            "Public addresses that stand for a private one.",
            MetricType::GAUGE,
            vec![gauge(&[], control.model().bound() as u64)],
        ),
        (
            "eipnat_revision",
            "Revision of the desired state: one more with each change.",
            MetricType::GAUGE,
            vec![gauge(&[], control.revision())],
        ),
        (
            "eipnat_ready",
            "Whether every binding forwards: 1, or 0 and `eipnat status` says why not.",
            MetricType::GAUGE,
            vec![gauge(&[], u64::from(control.problems().is_empty()))],
        ),
        (
            "eipnat_repairs_total",
            "How often the datapath was not as it has to be, and was put right.",
            MetricType::COUNTER,
            vec![counter(&[], control.repairs())],
        ),
        (
            "eipnat_usage_flushed_timestamp_seconds",
            "When the usage ledger had all that the meters showed; a power cut would lose what came since.",
            MetricType::GAUGE,
            vec![gauge(&[], crate::usage::seconds(control.flushed()))],
        ),
        (
            "eipnat_build_info",
            "Always 1; the label tells the daemon's version.",
            MetricType::GAUGE,
            vec![gauge(&[("version", env!("CARGO_PKG_VERSION"))], 1)],
        ),
    ];
    // The encoder refuses a family without samples.
    let families =
        families.into_iter().chain(slow_path::families(&report)).filter(|(.., metrics)| !metrics.is_empty());
    Ok(families.map(|(name, help, kind, metrics)| family(name, help, kind, metrics)).collect())
}

fn family(name: &str, help: &str, kind: MetricType, metrics: Vec<Metric>) -> MetricFamily {
    let mut family = MetricFamily::default();
    family.set_name(name.to_owned());
    family.set_help(help.to_owned());
    family.set_field_type(kind);
    family.set_metric(metrics);
    family
}

fn counter(labels: &[(&str, &str)], value: u64) -> Metric {
    let mut counter = Counter::default();
    counter.set_value(float(value));
    let mut metric = labelled(labels);
    metric.set_counter(counter);
    metric
}

fn gauge(labels: &[(&str, &str)], value: u64) -> Metric {
    let mut gauge = Gauge::default();
    gauge.set_value(float(value));
    let mut metric = labelled(labels);
    metric.set_gauge(gauge);
    metric
}

fn labelled(labels: &[(&str, &str)]) -> Metric {
    let pair = |(name, value): &(&str, &str)| {
        let mut pair = LabelPair::default();
        pair.set_name((*name).to_owned());
        pair.set_value((*value).to_owned());
        pair
    };
    Metric::from_label(labels.iter().map(pair).collect())
}

#[expect(
    clippy::cast_precision_loss,
    reason = "Prometheus' values are floats: exact up to 2^53, which is 9 PB"
)]
fn float(value: u64) -> f64 {
    value as f64
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use crate::config::Series;
    use crate::testing::TestDaemon;

    fn samples(daemon: &TestDaemon, beginning: &str) -> Vec<String> {
        daemon.scrape().lines().filter(|line| line.starts_with(beginning)).map(str::to_owned).collect()
    }

    #[test]
    fn names_labels_and_types_are_fixed() {
        let daemon = TestDaemon::start();
        daemon.done("eip allocate --account acme");
        daemon.done("eip attach 203.0.113.0 10.0.0.2");
        {
            let mut state = daemon.dataplane.state();
            state.meters[0].in_bytes = (1 << 53) - 1;
            state.meters[0].out_packets = 3;
            state.verdicts.pass = 5;
            state.verdicts.drops[2].1 = 2;
            state.verdicts.punts[0].1 = 4;
        }
        let scrape = daemon.scrape();
        let (head, body) = scrape.split_once("\r\n\r\n").unwrap();
        assert!(
            head.starts_with("HTTP/1.1 200 ") && head.contains("content-type: text/plain; version=0.0.4"),
            "{head}"
        );
        for line in [
            "# TYPE eipnat_eip_bytes_total counter",
            r#"eipnat_eip_bytes_total{eip="203.0.113.0",account="acme",direction="in"} 9007199254740991"#,
            r#"eipnat_eip_bytes_total{eip="203.0.113.0",account="acme",direction="out"} 0"#,
            "# TYPE eipnat_eip_packets_total counter",
            r#"eipnat_eip_packets_total{eip="203.0.113.0",account="acme",direction="in"} 0"#,
            r#"eipnat_eip_packets_total{eip="203.0.113.0",account="acme",direction="out"} 3"#,
            "# TYPE eipnat_packets_total counter",
            r#"eipnat_packets_total{verdict="forward"} 0"#,
            r#"eipnat_packets_total{verdict="pass"} 5"#,
            r#"eipnat_packets_total{verdict="punt"} 4"#,
            r#"eipnat_packets_total{verdict="drop"} 2"#,
            "# TYPE eipnat_punted_packets_total counter",
            r#"eipnat_punted_packets_total{reason="neighbour"} 4"#,
            "# TYPE eipnat_dropped_packets_total counter",
            r#"eipnat_dropped_packets_total{reason="ip_checksum"} 2"#,
            r#"eipnat_dropped_packets_total{reason="source_unbound"} 0"#,
            "# TYPE eipnat_bindings gauge",
            "eipnat_bindings 1",
            "# TYPE eipnat_revision gauge",
            "eipnat_revision 2",
            "# TYPE eipnat_ready gauge",
            "eipnat_ready 1",
            "# TYPE eipnat_repairs_total counter",
            "eipnat_repairs_total 0",
            "# TYPE eipnat_build_info gauge",
            concat!(r#"eipnat_build_info{version=""#, env!("CARGO_PKG_VERSION"), r#""} 1"#),
        ] {
            assert!(body.lines().any(|other| other == line), "{line}\nis not in\n{body}");
        }
        let families = body.lines().filter(|line| line.starts_with("# TYPE ")).count();
        assert_eq!(body.lines().filter(|line| line.starts_with("# HELP ")).count(), families);
    }

    #[test]
    fn series_of_an_eip_begin_with_its_attach_and_end_with_its_release() {
        let daemon = TestDaemon::start();
        let count = |expected| assert_eq!(samples(&daemon, "eipnat_eip_").len(), expected);
        daemon.done("eip allocate");
        count(0);
        daemon.done("eip attach 203.0.113.0 10.0.0.2");
        count(4);
        daemon.done("eip detach 203.0.113.0");
        count(4);
        daemon.done("eip release 203.0.113.0");
        count(0);
    }

    #[test]
    fn whose_traffic_is_told_is_the_operators_choice() {
        let choices =
            [(Series::All, 8, 4), (Series::Active, 4, 4), (Series::Account, 0, 4), (Series::None, 0, 0)];
        for (series, of_eips, of_accounts) in choices {
            let daemon = TestDaemon::start_with(|config| config.metrics.series = series);
            for (eip, vm) in [("203.0.113.0", "10.0.0.2"), ("203.0.113.1", "10.0.0.3")] {
                daemon.done("eip allocate --account acme");
                daemon.done(&format!("eip attach {eip} {vm}"));
            }
            // One of them carries something.
            daemon.dataplane.state().meters[1].in_bytes = 100;
            let told = || (samples(&daemon, "eipnat_eip_").len(), samples(&daemon, "eipnat_account_").len());
            let deadline = Instant::now() + Duration::from_secs(30);
            while told() != (of_eips, of_accounts) {
                // Accounts follow when the ledger is written.
                assert!(Instant::now() < deadline, "{series:?}: {:?}", told());
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}
