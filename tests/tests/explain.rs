//! `eipnat explain` of a running daemon, and what it must not disturb.

use anyhow::{Context, Result, bail};
use aya::maps::{DevMapHash, Map, MapData};
use nat_common::abi::map;
use serde_json::Value;
use tests::lab::{
    Bed, Capture, EIP_SPARE, EIP1, INTERNET, INTERNET_DEVICE, Meter, Setup, VM1, ping, refused,
};

fn found(told: &Value) -> Vec<&str> {
    let steps = told["steps"].as_array().into_iter().flatten();
    steps.filter_map(|step| step["found"].as_str()).collect()
}

/// What has been counted, but for what passes: neighbours ask for each other at any time.
fn counted(bed: &Bed) -> Result<(Value, Meter)> {
    let mut stats = bed.daemon.json(&["stats"])?;
    stats["verdicts"]["pass"].take();
    Ok((stats, bed.daemon.meter(EIP1)?))
}

#[test]
fn a_packet_is_explained_as_it_would_be_carried_and_nothing_moves() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        // Both neighbours are known from then on.
        ping(&bed.lab.internet, EIP1, 3, &[])?;
        let before = counted(bed)?;
        let (from, to) = (INTERNET.to_string(), EIP1.to_string());
        let inwards =
            ["explain", "--on", "up0", "--src", &from, "--dst", &to, "--proto", "tcp", "--dport", "22"];
        let told = bed.daemon.json(&inwards)?;
        assert_eq!((&told["verdict"], &told["leaves"]["by"]), (&"forward".into(), &"dn0".into()), "{told}");
        assert_eq!(told["leaves"]["next_hop"], VM1.to_string());
        assert_eq!(told["contradiction"], Value::Null);
        let bound = format!("yes: {EIP1} stands for {VM1}, an EIP of account default");
        assert!(found(&told).contains(&bound.as_str()), "{told}");

        let (from, to) = (VM1.to_string(), INTERNET.to_string());
        let told =
            bed.daemon.json(&["explain", "--on", "dn0", "--src", &from, "--dst", &to, "--proto", "icmp"])?;
        assert_eq!(told["billed"][0]["direction"], "out", "{told}");
        assert!(
            told["leaves"]["packet"].as_str().context("no packet")?.contains(&EIP1.to_string()),
            "{told}"
        );

        let told = bed.daemon.json(&[
            "explain",
            "--on",
            "up0",
            "--src",
            &to,
            "--dst",
            &EIP_SPARE.to_string(),
            "--proto",
            "udp",
        ])?;
        assert_eq!((&told["verdict"], &told["reason"]), (&"drop".into(), &"eip_unbound".into()));
        let table = bed.daemon.ok(&inwards)?;
        assert!(table.contains("leaves by  dn0, to the next hop 10.0.0.10\n"), "{table}");
        assert_eq!(counted(bed)?, before, "it has moved a counter");
        ping(&bed.lab.internet, EIP1, 3, &[])?;
        Ok(())
    })
}

#[test]
fn a_frame_of_a_capture_is_explained() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        let file = bed.lab.file("wan.pcap");
        let capture = Capture::start(&bed.lab.internet, INTERNET_DEVICE, "icmp", file.clone())?;
        ping(&bed.lab.internet, EIP1, 2, &[])?;
        let packets = capture.stop()?;
        assert_eq!(packets.len(), 4);
        let file = file.to_string_lossy().into_owned();
        let told = bed.daemon.json(&["explain", "--on", "up0", "--pcap", &file])?;
        assert_eq!(told["verdict"], "forward", "{told}");
        // The answer, as if it came back.
        let told = bed.daemon.json(&["explain", "--on", "up0", "--pcap", &file, "--frame", "2"])?;
        assert_eq!(told["reason"], "foreign_mac", "{told}");

        let at = |args: &[&str]| refused(&bed.daemon.cli(&[&["explain", "--on", "up0"], args].concat())?);
        assert_eq!(
            at(&["--pcap", &file, "--frame", "5"])?,
            format!("{file}: it has 4 frames, and no frame 5")
        );
        let bytes = std::fs::read(&file)?;
        let cut = bed.lab.file("cut.pcap");
        std::fs::write(&cut, &bytes[..bytes.len() - 7])?;
        let cut = cut.to_string_lossy().into_owned();
        let said = at(&["--pcap", &cut, "--frame", "4"])?;
        assert!(said.starts_with(&format!("{cut}: it is damaged or cut off behind frame 3: ")), "{said}");
        std::fs::write(&cut, b"no capture at all, but some text")?;
        assert_eq!(at(&["--pcap", &cut])?, format!("{cut}: it is no capture (pcap or pcapng)"));
        let said = at(&["--hex", "zz"])?;
        assert_eq!(said, "the frame: 'z' at place 1 is no hexadecimal digit");
        Ok(())
    })
}

#[test]
fn a_way_out_that_is_missing_in_the_programs_map_is_told() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        ping(&bed.lab.internet, EIP1, 3, &[])?;
        let links: Value =
            serde_json::from_str(&bed.lab.node.succeed("ip", &["-j", "link", "show", "dn0"])?)?;
        let index = u32::try_from(links[0]["ifindex"].as_u64().context("no index")?)?;
        let (from, to) = (INTERNET.to_string(), EIP1.to_string());
        // The daemon puts it in again each second, at times before it is asked.
        for _ in 0..20 {
            let pins = std::fs::read_dir(&bed.daemon.config().pin_path)?;
            let mut pins = pins.filter_map(|entry| Some(entry.ok()?.path().join(map::EGRESS)));
            let pin = pins.find(|pin| pin.exists()).context("no map")?;
            let mut egress: DevMapHash<_> = Map::DevMapHash(MapData::from_pin(pin)?).try_into()?;
            egress.remove(index)?;
            let told = bed
                .daemon
                .json(&["explain", "--on", "up0", "--src", &from, "--dst", &to, "--proto", "tcp"])?;
            assert_eq!(told["verdict"], "forward", "{told}");
            if let Some(said) = told["contradiction"].as_str() {
                assert!(said.contains("verdict is forward, but it does otherwise"), "{said}");
                return Ok(());
            }
        }
        bail!("the way out is always there")
    })
}
