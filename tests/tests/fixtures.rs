//! Every packet fixture, on the host and in the kernel: same verdict, same bytes, same counters.

use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use aya_obj::programs::XdpAttachType;
use nat_common::pipeline;
use nat_common::verdict::{Punt, Reject, Verdict};
use nat_user::config::{Datapath, Mode};
use nat_user::dataplane::xdp::{self, XdpDataplane};
use nat_user::dataplane::{Binding, Dataplane as _, Half};
use nat_user::model::PoolSpec;
use nix::net::if_::if_nametoindex;
use tests::fixtures::world::{BINDINGS, BLACKHOLE, GATEWAY, GATEWAY_MAC, Link, MTU, POOL};
use tests::fixtures::{self, Charge, Expect, Fixture, HostNode, Mac};
use tests::lab::{Lab, Namespace, Topology};

#[test]
fn names_are_unique() {
    let mut names: Vec<_> = fixtures::all().iter().map(|fixture| fixture.name).collect();
    let count = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), count);
}

#[test]
fn on_the_host() {
    let failures: Vec<String> = fixtures::all().iter().filter_map(|fixture| on_host(fixture).err()).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

fn on_host(fixture: &Fixture) -> Result<(), String> {
    let mut node = HostNode::default();
    let mut frame = fixture.frame.clone();
    let verdict = pipeline::process(frame.as_mut_slice(), HostNode::ifindex(fixture.on), &mut node);
    let outcome = match verdict {
        Verdict::Forward(_) => Expect::Forward(frame, node.charges),
        Verdict::Punt(punt) => Expect::Punt(punt, frame, node.charges),
        Verdict::Pass if frame == fixture.frame => Expect::Pass,
        Verdict::Drop(reject) if frame == fixture.frame => Expect::Drop(reject),
        Verdict::Pass | Verdict::Drop(_) => {
            return Err(format!("{}: {verdict:?}, but changed", fixture.name));
        }
    };
    compare(fixture, &outcome)
}

fn compare(fixture: &Fixture, outcome: &Expect) -> Result<(), String> {
    if *outcome == fixture.expect {
        return Ok(());
    }
    Err(format!("{}:\n expected {}\n but got  {}", fixture.name, show(&fixture.expect), show(outcome)))
}

fn show(expect: &Expect) -> String {
    let hex = |frame: &[u8]| frame.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ");
    match expect {
        Expect::Forward(frame, charges) => format!("forward {charges:?}\n  {}", hex(frame)),
        Expect::Punt(punt, frame, charges) => format!("punt {punt:?} {charges:?}\n  {}", hex(frame)),
        other => format!("{other:?}"),
    }
}

/// The fixtures' world in a network namespace, with the real program on its interfaces.
struct KernelNode {
    dataplane: XdpDataplane,
    program: Xdp,
    indices: Vec<(Link, u32)>,
}

#[test]
fn in_the_kernel() -> Result<()> {
    let lab = Lab::new(Topology::TwoArmed)?;
    make_world(&lab.node)?;
    let pins = lab.file("pins");
    let config = Datapath {
        uplinks: vec![Link::Up.name().into(), Link::Arm.name().into()],
        downlinks: vec![Link::Down.name().into(), Link::Arm.name().into()],
        mode: Mode::Native,
        max_bindings: 16,
        pin_path: pins.clone(),
        public_ip: None,
    };
    let outcome = lab.node.run(|| -> Result<Vec<String>> {
        let mut node = KernelNode::start(&config)?;
        let fixtures = fixtures::all();
        let mut failures = Vec::new();
        for fixture in &fixtures {
            let outcome = node.run(fixture).with_context(|| fixture.name)?;
            failures.extend(compare(fixture, &outcome).err());
        }
        drop(node);
        xdp::unload(&config.pin_path)?;
        Ok(failures)
    })??;
    assert!(outcome.is_empty(), "{}", outcome.join("\n"));
    ensure!(!pins.exists(), "unload leaves {}", pins.display());
    lab.remove()
}

fn make_world(node: &Namespace) -> Result<()> {
    // Nothing but the fixtures' packets may be counted.
    node.sysctl("net/ipv6/conf/all/disable_ipv6", "1")?;
    node.sysctl("net/ipv6/conf/default/disable_ipv6", "1")?;
    let mut lines = vec!["link del up0".to_owned(), "link del dn0".to_owned()];
    let mac = |mac: Mac| mac.map(|byte| format!("{byte:02x}")).join(":");
    for link in Link::ALL {
        let name = link.name();
        lines.extend([
            format!(
                "link add {name} mtu {MTU} address {} type veth peer name {name}p mtu {MTU}",
                mac(link.mac())
            ),
            format!("link set {name}p up"),
            format!("link set {name} up"),
            format!("address add {}/{} dev {name}", link.address(), link.prefix()),
        ]);
    }
    lines.push(format!("neigh add {GATEWAY} lladdr {} dev up0 nud permanent", mac(GATEWAY_MAC)));
    lines.push(format!("route add default via {GATEWAY}"));
    lines.push(format!("route add blackhole {BLACKHOLE}/32"));
    for bound in BINDINGS {
        if let Some(known) = bound.mac {
            lines.push(format!("neigh add {} lladdr {} dev dn0 nud permanent", bound.private_ip, mac(known)));
        }
    }
    node.ip(&lines)
}

impl KernelNode {
    fn start(config: &Datapath) -> Result<Self> {
        let pool = PoolSpec {
            name: "default".parse()?,
            cidrs: vec![POOL.parse()?],
            reserve: [].into(),
            reuse_delay: std::time::Duration::ZERO,
        };
        let mut dataplane = XdpDataplane::start(config, &[pool])?;
        for (meter, bound) in BINDINGS.iter().enumerate() {
            let binding = Binding {
                public_ip: bound.public_ip,
                tenant: 0,
                private_ip: bound.private_ip,
                meter: u32::try_from(meter)?,
            };
            dataplane.insert(Half::Inbound(binding))?;
            dataplane.insert(Half::Outbound(binding))?;
        }
        let program = Xdp::from_pin(config.pin_path.join("program"), XdpAttachType::Interface)?;
        let index = |link: Link| Ok((link, if_nametoindex(link.name())?));
        let indices = Link::ALL.into_iter().map(index).collect::<Result<_>>()?;
        Ok(Self { dataplane, program, indices })
    }

    fn run(&mut self, fixture: &Fixture) -> Result<Expect> {
        let before = self.counters()?;
        let meters: Vec<u32> = (0..).take(BINDINGS.len()).collect();
        let charged_before = self.dataplane.meters(&meters)?;
        let mut out = vec![0; 4096];
        let (_, ifindex) = *self
            .indices
            .iter()
            .find(|(link, _)| *link == fixture.on)
            .context("an interface that is not there")?;
        // kernel: struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex
        let context = [0, u32::try_from(fixture.frame.len())?, 0, ifindex, 0, 0];
        let context: Vec<u8> = context.iter().flat_map(|word: &u32| word.to_ne_bytes()).collect();
        let result = self.program.test_run(TestRunOptions {
            data_in: Some(&fixture.frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        })?;
        out.truncate(result.data_size_out as usize);
        let after = self.counters()?;
        let mut counted = after.iter().zip(&before).filter(|(after, before)| after.1 != before.1);
        let (counter, packets) = counted.next().map(|(a, b)| (a.0, a.1 - b.1)).context("no counter moved")?;
        ensure!(packets == 1 && counted.next().is_none(), "more than one packet was counted");

        let total_length =
            |frame: &[u8]| Some(u64::from(u16::from_be_bytes([*frame.get(16)?, *frame.get(17)?])));
        let length = total_length(&fixture.frame).unwrap_or(0);
        let mut charges = Vec::new();
        for ((meter, after), before) in meters.iter().zip(self.dataplane.meters(&meters)?).zip(charged_before)
        {
            for (charge, packets, bytes) in [
                (
                    Charge::Out(*meter),
                    after.out_packets - before.out_packets,
                    after.out_bytes - before.out_bytes,
                ),
                (Charge::In(*meter), after.in_packets - before.in_packets, after.in_bytes - before.in_bytes),
            ] {
                match packets {
                    0 => ensure!(bytes == 0, "bytes without packets"),
                    1 => {
                        ensure!(bytes == length, "{bytes} bytes are charged for {length}");
                        charges.push(charge);
                    }
                    more => bail!("one packet is charged {more} times"),
                }
            }
        }
        // The out charge comes first, whichever meter it is.
        charges.sort_by_key(|charge| matches!(charge, Charge::In(_)));

        // kernel: enum xdp_action
        let untouched = out == fixture.frame;
        Ok(match (counter, result.return_value) {
            (Counted::Forward, 4) => Expect::Forward(out, charges),
            (Counted::Punt(punt), 2) => Expect::Punt(punt, out, charges),
            (Counted::Pass, 2) if untouched => Expect::Pass,
            (Counted::Drop(reject), 1) if untouched => Expect::Drop(reject),
            (counter, action) => bail!("counted as {counter:?}, XDP action {action}, untouched: {untouched}"),
        })
    }

    fn counters(&self) -> Result<Vec<(Counted, u64)>> {
        let verdicts = self.dataplane.verdicts()?;
        let mut counters = vec![(Counted::Forward, verdicts.forward), (Counted::Pass, verdicts.pass)];
        counters.extend(verdicts.punts.iter().map(|&(punt, packets)| (Counted::Punt(punt), packets)));
        counters.extend(verdicts.drops.iter().map(|&(reject, packets)| (Counted::Drop(reject), packets)));
        Ok(counters)
    }
}

#[derive(Clone, Copy, Debug)]
enum Counted {
    Forward,
    Pass,
    Punt(Punt),
    Drop(Reject),
}
