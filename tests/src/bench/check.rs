//! Whether the benchmark would see it if eipnat did not carry packets.

use anyhow::{Result, ensure};

use super::device::{Device, Kind};
use super::figures::{Figure, Section, float};
use super::line::Direction;
use super::throughput::TURN;
use super::{on_one_cpu, say, works};
use crate::lab::Ground;

/// Sends to an EIP while it is attached, while it is not, and again while it is.
pub(super) fn measure() -> Result<Section> {
    say("an EIP that is not attached carries nothing");
    let ground = Ground::new()?;
    let (internet, vms) = (works::host(&ground, "internet")?, works::host(&ground, "vms")?);
    let mut eipnat = Device::new(Kind::Eipnat, &ground, &internet, &vms, 1)?;
    let (eip, vm) = works::pair(0);
    let (eip, vm) = (eip.to_string(), vm.to_string());
    let mut figures = Vec::new();
    for (case, command, expected) in [
        ("attached", vec![], TURN),
        ("detached", vec!["eip", "detach", &eip], 0),
        ("attached again", vec!["eip", "attach", &eip, &vm], TURN),
    ] {
        if !command.is_empty() {
            eipnat.daemon()?.ok(&command)?;
        }
        for direction in Direction::BOTH {
            let (carried, _) = on_one_cpu(|| eipnat.line(direction).turn(TURN))?;
            ensure!(
                carried == u64::from(expected),
                "{case}, {}: {carried} of {TURN} packets come, and not {expected}",
                direction.name()
            );
            let case = format!("{case}, {}", direction.name());
            figures.push(Figure::new(Kind::Eipnat.name(), case, "carried", "packets", float(carried)));
        }
    }
    Ok(Section {
        name: "self_check",
        title: "Self-check: an EIP that is not attached carries nothing",
        figures,
    })
}
