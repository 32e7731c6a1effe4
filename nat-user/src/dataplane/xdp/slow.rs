//! The datapath's slow path.

use std::net::Ipv4Addr;

use anyhow::Result;
use log::warn;

use super::XdpDataplane;
use super::interfaces::Interface;
use super::view::View;
use crate::dataplane::slow_path;
use crate::slowpath::SlowPath;

impl XdpDataplane {
    /// Gives the slow path the interfaces as they are.
    pub(super) fn settle_slow_path(&mut self, interfaces: &[Interface]) -> Result<()> {
        let Some(slow_path) = &self.slow_path else { return Ok(()) };
        let public_ip = self.public_ip();
        let maps = &mut self.maps;
        slow_path.serve(&self.ports.slow_path(interfaces), public_ip, |interface, queue, socket| {
            interface.port.socket(queue).map_or(Ok(()), |place| maps.set_socket(place, socket))
        })
    }

    /// Starts the slow path. Where there is none, the kernel finishes what the fast path cannot.
    pub(super) fn start_slow_path(&mut self) {
        let started = View::open(&self.generation, self.node.meters)
            .and_then(|view| SlowPath::start(Box::new(view), &self.config.slow_path));
        match started {
            Ok(slow_path) => self.slow_path = Some(slow_path),
            Err(error) => warn!("no slow path, so the kernel finishes what it would have: {error:#}"),
        }
    }

    fn public_ip(&self) -> Option<Ipv4Addr> {
        Some(Ipv4Addr::from(self.node.public_ip)).filter(|address| !address.is_unspecified())
    }

    /// How it does, and what the fast path has sent to it.
    pub(super) fn slow_path_report(&self) -> Result<slow_path::Report> {
        let state = self.slow_path.as_ref().map(SlowPath::state).unwrap_or_default();
        let mut buckets = Vec::new();
        for (name, port) in self.ports.told() {
            for (errand, bucket) in self.maps.handed_over(port)? {
                buckets.push(slow_path::Bucket {
                    interface: name.to_owned(),
                    errand,
                    sent: bucket.sent,
                    limited: bucket.limited,
                });
            }
        }
        let tally = |tally| self.maps.tally(tally);
        Ok(slow_path::Report { state, buckets, tallies: slow_path::Tallies::of(tally) })
    }
}
