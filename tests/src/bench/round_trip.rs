//! UDP back and forth between real sockets, one at a time.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::device::Kind;
use super::figures::{Figure, Section, Target, float, quantile};
use super::path::Path;
use super::{on_one_cpu, say};
use crate::lab::Ground;

const PORT: u16 = 7000;

/// Round trips of a device in one round.
const TRIPS: usize = 1000;

const KINDS: [Kind; 3] = [Kind::Redirect, Kind::Eipnat, Kind::Routing];

pub(super) fn measure(quick: bool) -> Result<Section> {
    say("round trips");
    let rounds = if quick { 15 } else { 60 };
    let ground = Ground::new()?;
    let paths = KINDS.iter().map(|kind| Path::new(*kind, &ground)).collect::<Result<Vec<_>>>()?;
    // For each device, for each round, the two quantiles in microseconds.
    let mut times = KINDS.map(|_| Vec::new());
    on_one_cpu(|| {
        let stop = AtomicBool::new(false);
        let sockets = paths.iter().map(ends).collect::<Result<Vec<_>>>()?;
        std::thread::scope(|scope| {
            for (_, echo) in &sockets {
                scope.spawn(|| answer(echo, &stop));
            }
            let done = (0..=rounds).try_for_each(|round| {
                for ((client, _), times) in sockets.iter().zip(&mut times) {
                    let trips = trips(client)?;
                    // The first round fills caches.
                    if round > 0 {
                        times.push([quantile(&trips, 0.5), quantile(&trips, 0.99)]);
                    }
                }
                Ok(())
            });
            stop.store(true, Ordering::Relaxed);
            done
        })
    })?;
    let mut figures = Vec::new();
    for (kind, mine) in KINDS.iter().zip(&times) {
        for (at, what) in [(0, "p50"), (1, "p99")] {
            let column = |times: &[[f64; 2]]| times.iter().map(|time| time[at]).collect::<Vec<_>>();
            let (mine, bare) = (column(mine), column(&times[0]));
            figures.push(Figure::of(kind.name(), what, "round trip", "us", &mine));
            let shares: Vec<_> = mine.iter().zip(&bare).map(|(mine, bare)| mine / bare).collect();
            let share = Figure::of(kind.name(), what, "share of the bare redirect", "", &shares);
            let is_aimed = *kind == Kind::Eipnat && at == 0;
            figures.push(if is_aimed { share.target(Target::AtMost(1.03)) } else { share });
        }
    }
    Ok(Section { name: "round_trip", title: "Round trip of a UDP datagram between real sockets", figures })
}

/// The client's socket, and the VM's.
fn ends(path: &Path) -> Result<(UdpSocket, UdpSocket)> {
    let echo = path.vm.run(|| UdpSocket::bind((Path::own(), PORT)))??;
    echo.set_read_timeout(Some(Duration::from_millis(100)))?;
    let client = path.client.run(|| UdpSocket::bind(("0.0.0.0", 0)))??;
    client.connect((path.target(), PORT))?;
    client.set_read_timeout(Some(Duration::from_secs(2)))?;
    Ok((client, echo))
}

/// Sends everything back until it is stopped.
fn answer(socket: &UdpSocket, stop: &AtomicBool) -> Result<()> {
    let mut buffer = [0; 64];
    while !stop.load(Ordering::Relaxed) {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => {
                socket.send_to(&buffer[..length], from)?;
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// How long each round trip has taken, in microseconds.
fn trips(socket: &UdpSocket) -> Result<Vec<f64>> {
    let mut buffer = [0; 64];
    (0..TRIPS)
        .map(|_| {
            let start = Instant::now();
            socket.send(&buffer[..32])?;
            socket.recv(&mut buffer).context("no answer")?;
            let nanoseconds = u64::try_from(start.elapsed().as_nanos())?;
            Ok(float(nanoseconds) / 1e3)
        })
        .collect()
}
