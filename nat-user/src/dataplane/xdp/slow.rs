//! The datapath's slow path.

use std::net::Ipv4Addr;

use anyhow::{Context as _, Result};
use log::{error, warn};

use super::XdpDataplane;
use super::interfaces::Interface;
use super::view::View;
use crate::dataplane::{AT_ONCE, slow_path};
use crate::slowpath::SlowPath;

impl XdpDataplane {
    /// Gives the slow path the interfaces as they are, and starts it where there is none. Where there can be none, the kernel
    /// finishes what the fast path cannot: a warning, and no more.
    pub(super) fn settle_slow_path(&mut self, interfaces: &[Interface]) {
        let trouble = self.try_slow_path(interfaces).err().map(|error| format!("{error:#}"));
        if let Some(trouble) = trouble.as_ref().filter(|_| trouble != self.slow_path_trouble) {
            warn!("{trouble}");
        }
        self.slow_path_trouble = trouble;
    }

    fn try_slow_path(&mut self, interfaces: &[Interface]) -> Result<()> {
        if !self.is_active || !self.config.slow_path.enabled {
            return Ok(());
        }
        if self.slow_path.as_ref().is_some_and(|slow_path| !slow_path.is_alive()) {
            // Its sockets go with it, and what they would have got is the kernel's from then on.
            self.slow_path = None;
            error!("the slow path has ended, and is started again");
            self.is_to_announce = true;
        }
        if self.slow_path.is_none() {
            let view = View::open(&self.generation, self.node.meters)?;
            let started = SlowPath::start(Box::new(view), &self.config.slow_path);
            self.slow_path =
                Some(started.context("no slow path, so the kernel finishes what it would have")?);
        }
        let public_ip = Some(Ipv4Addr::from(self.node.public_ip)).filter(|address| !address.is_unspecified());
        let Some(slow_path) = &self.slow_path else { return Ok(()) };
        let maps = &mut self.maps;
        let ports = self.ports.slow_path(interfaces);
        self.is_to_announce |= slow_path.serve(&ports, public_ip, |interface, queue, socket| {
            interface.port.socket(queue).map_or(Ok(()), |place| maps.set_socket(place, socket))
        })?;
        slow_path.announce(std::mem::take(&mut self.arrived));
        if self.is_to_announce {
            // By parts: whoever announces keeps the worker waiting.
            let bound: Vec<Ipv4Addr> = self.maps.bound().collect();
            bound.chunks(AT_ONCE as usize).for_each(|some| slow_path.announce(some.iter().copied()));
            self.is_to_announce = false;
        }
        Ok(())
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
