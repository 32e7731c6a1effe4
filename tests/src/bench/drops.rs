//! Packets to EIPs of the pool that nobody has.

use anyhow::{Result, ensure};
use yardsticks::Plan;

use super::device::{Device, Kind};
use super::figures::{Figure, Section, Target, float};
use super::line::Direction;
use super::throughput::TURN;
use super::{on_one_cpu, say, works};
use crate::lab::Ground;

/// So many EIPs are sent to that are not bound.
const COUNT: u32 = 1 << 16;

/// The first number of those in a part of the pool where nobody has any; and of those between which every second is bound.
const EMPTY: u32 = 8 * COUNT;
const MIXED: u32 = 4 * COUNT;

pub(super) fn measure(quick: bool) -> Result<Section> {
    say("drops of packets to unbound EIPs");
    let rounds = if quick { 15 } else { 60 };
    let ground = Ground::new()?;
    let (internet, vms) = (works::host(&ground, "internet")?, works::host(&ground, "vms")?);
    let mut bare = Device::new(Kind::Discard, &ground, &internet, &vms, COUNT)?;
    let mut eipnat = Device::new(Kind::Eipnat, &ground, &internet, &vms, COUNT)?;
    let every_second = (0..COUNT).map(|number| works::pair(MIXED + 2 * number + 1));
    works::import(eipnat.daemon()?, &ground, every_second)?;
    let mut figures = Vec::new();
    for (case, first, destination_mask, least) in [
        ("to one unbound EIP", EMPTY, 0, 0.85),
        ("to 65536 of which none is bound", EMPTY, COUNT - 1, 0.48),
        ("to 65536 between as many that are bound", MIXED, 2 * (COUNT - 1), 0.48),
    ] {
        for device in [&mut bare, &mut eipnat] {
            let destination = u32::from(works::pair(first).0);
            let aim = |plan| Plan { destination, destination_mask, ..plan };
            device.line(Direction::In).aim(aim)?;
        }
        let before = eipnat.daemon()?.drops("eip_unbound")?;
        let mut rates = [Vec::new(), Vec::new()];
        let mut received = 0;
        on_one_cpu(|| {
            for _ in 0..=rounds {
                rates[0].push(turn(&mut bare)?.1);
                let (of_eipnat, rate) = turn(&mut eipnat)?;
                received += of_eipnat;
                rates[1].push(rate);
            }
            Ok(())
        })?;
        let dropped = eipnat.daemon()?.drops("eip_unbound")? - before;
        ensure!(
            dropped == received,
            "{case}: {dropped} of {received} packets are counted as to unbound EIPs"
        );
        // The first round fills caches.
        let [bare, eipnat] = rates.map(|rates| rates[1..].to_vec());
        let shares: Vec<_> = eipnat.iter().zip(&bare).map(|(rate, bare)| rate / bare).collect();
        let (yardstick, name) = (Kind::Discard.name(), Kind::Eipnat.name());
        figures.push(Figure::of(yardstick, case, "rate", "packets/s", &bare));
        figures.push(Figure::of(name, case, "rate", "packets/s", &eipnat));
        let share = Figure::of(name, case, "share of the bare drop", "", &shares);
        figures.push(share.target(Target::AtLeast(least)));
    }
    Ok(Section { name: "drops", title: "Drops of packets to unbound EIPs", figures })
}

/// How many packets one turn has brought to the device, none of them further, and how many a second these are.
fn turn(device: &mut Device) -> Result<(u64, f64)> {
    let before = device.received()?;
    let (came, taken) = device.line(Direction::In).turn(TURN)?;
    ensure!(came == 0, "{came} packets to unbound EIPs are carried by {}", device.kind().name());
    // Some have found no room between the two hosts.
    let received = device.received()? - before;
    Ok((received, float(received) / taken.as_secs_f64()))
}
