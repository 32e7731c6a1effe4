//! `/metrics` for Prometheus. Nothing is collected between scrapes: each one reads the datapath.

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::proto::{Counter, Gauge, LabelPair, Metric, MetricFamily, MetricType};
use prometheus::{Encoder, TextEncoder};

use crate::api::types::{Counters, Stats};
use crate::control::{self, Control, Shared};

/// The metrics of a control plane.
pub fn router(control: Shared) -> Router {
    Router::new().route("/metrics", get(scrape)).with_state(control)
}

async fn scrape(State(control): State<Shared>) -> Response {
    let text = |control: &mut Control| Ok(TextEncoder::new().encode_to_string(&families(control)?)?);
    match control::call(&control, text).await.flatten() {
        Ok(text) => {
            ([(header::CONTENT_TYPE, TextEncoder::new().format_type().to_owned())], text).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}\n")).into_response(),
    }
}

fn families(control: &Control) -> anyhow::Result<Vec<MetricFamily>> {
    let (mut bytes, mut packets) = (Vec::new(), Vec::new());
    for (eip, meter) in control.metered()? {
        let (address, account) = (eip.address.to_string(), eip.account.to_string());
        let labels =
            |direction| [("eip", address.as_str()), ("account", account.as_str()), ("direction", direction)];
        let meter = Counters::from(meter);
        bytes.extend([counter(&labels("in"), meter.in_bytes), counter(&labels("out"), meter.out_bytes)]);
        packets
            .extend([counter(&labels("in"), meter.in_packets), counter(&labels("out"), meter.out_packets)]);
    }
    let Stats { verdicts, drops } = Stats::from(&control.verdicts()?);
    let verdicts = verdicts
        .named()
        .iter()
        .map(|(verdict, packets)| counter(&[("verdict", verdict)], *packets))
        .collect();
    let drops = drops.iter().map(|(reason, packets)| counter(&[("reason", reason)], *packets)).collect();

    let families = [
        (
            "eipnat_eip_bytes_total",
            "Bytes that an EIP has carried: IPv4 total lengths of forwarded packets, as seen on the public side.",
            MetricType::COUNTER,
            bytes,
        ),
        ("eipnat_eip_packets_total", "Packets that an EIP has carried.", MetricType::COUNTER, packets),
        ("eipnat_packets_total", "Packets by verdict; each is counted once.", MetricType::COUNTER, verdicts),
        ("eipnat_dropped_packets_total", "Dropped packets by reason.", MetricType::COUNTER, drops),
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
            "eipnat_build_info",
            "Always 1; the label tells the daemon's version.",
            MetricType::GAUGE,
            vec![gauge(&[("version", env!("CARGO_PKG_VERSION"))], 1)],
        ),
    ];
    // The encoder refuses a family without samples.
    let families = families.into_iter().filter(|(.., metrics)| !metrics.is_empty());
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
