//! `eipnat top` as an engineer uses it: in a terminal of 80 columns and 24 rows, while traffic passes.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};
use tests::lab::{
    Bed, Daemon, EIP_SPARE, EIP1, EIP2, INTERNET, Screen, Sender, Setup, Sink, eipnat_binary, refused,
};

/// Where the table begins.
const FIRST_ROW: usize = 5;

/// To EIP1 2,000 packets a second of 1,028 bytes, from EIP2 400 of 228, and 100 that are dropped.
fn under_traffic(bed: &mut Bed, look: impl FnOnce(&mut Bed) -> Result<()>) -> Result<()> {
    let sinks = [Sink::start(&bed.lab.vm1, 7000)?, Sink::start(&bed.lab.internet, 7000)?];
    let senders = [
        Sender::start(&bed.lab.internet, (EIP1, 7000), 2000, 1000)?,
        Sender::start(&bed.lab.vm2, (INTERNET, 7000), 400, 200)?,
        Sender::start(&bed.lab.internet, (EIP_SPARE, 7000), 100, 100)?,
    ];
    let looked = look(bed);
    for sender in senders {
        sender.stop()?;
    }
    for sink in sinks {
        sink.stop()?;
    }
    looked
}

/// A number as it is shown: `16.4M`.
fn number(text: &str) -> Option<f64> {
    let digits = text.trim_end_matches(['k', 'M', 'G']);
    let factor = match &text[digits.len()..] {
        "" => 1.0,
        "k" => 1e3,
        "M" => 1e6,
        "G" => 1e9,
        _ => return None,
    };
    Some(digits.parse::<f64>().ok()? * factor)
}

/// The EIP in a row of the table, counted from the first, and its rates: in bit/s, in pkt/s, out bit/s, out pkt/s.
fn row(lines: &[String], index: usize) -> Option<(String, Vec<f64>)> {
    let words: Vec<&str> = lines.get(FIRST_ROW + index)?.split_whitespace().collect();
    let (eip, rates) = (*words.first()?, words.get(3..)?);
    let rates: Option<Vec<f64>> = rates.iter().map(|rate| number(rate)).collect();
    Some((eip.to_owned(), rates.filter(|rates| rates.len() == 4)?))
}

fn is_row(lines: &[String], index: usize, eip: Ipv4Addr) -> bool {
    row(lines, index).is_some_and(|(first, _)| first == eip.to_string())
}

/// The machine may have more to do than this test: within a factor.
fn is_about(value: f64, expected: f64) -> bool {
    (expected / 4.0..expected * 4.0).contains(&value)
}

fn command(bed: &Bed, options: &str) -> Result<String> {
    let (eipnat, socket) = (eipnat_binary()?, bed.daemon.config().socket());
    Ok(format!(
        "echo before; {} --socket {} top {options}; echo exit code $?; stty -a; exec sleep 600",
        eipnat.display(),
        socket.display()
    ))
}

/// The terminal is as it was before.
fn check_restored(screen: &Screen, code: &str) -> Result<()> {
    let said = format!("exit code {code}");
    let lines = screen.wait_for("the shell again", |lines| lines.contains(&said))?;
    assert_eq!(lines[0], "before", "{lines:#?}");
    assert!(!lines.iter().any(|line| line.contains("eipnat top")), "{lines:#?}");
    let modes =
        screen.wait_for("the terminal's modes", |lines| lines.iter().any(|line| line.contains("icanon")))?;
    let modes = modes.join(" ");
    assert!([" icanon", " echo ", " isig"].iter().all(|mode| modes.contains(mode)), "{modes}");
    assert_eq!(screen.tell("#{alternate_on} #{cursor_flag}")?, "0 1");
    Ok(())
}

#[test]
fn it_shows_who_carries_most_and_why_packets_die() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        under_traffic(bed, |bed| {
            let screen = Screen::start(&bed.lab, "top", (80, 24), &command(bed, "--interval 0.5")?)?;
            let lines = screen.wait_for("the rates of both EIPs", |lines| {
                is_row(lines, 0, EIP1)
                    && row(lines, 0).is_some_and(|(_, rates)| is_about(rates[0], 1028.0 * 8.0 * 2000.0))
                    && row(lines, 1).is_some_and(|(_, rates)| is_about(rates[2], 228.0 * 8.0 * 400.0))
                    && lines.iter().any(|line| line.starts_with("eip_unbound "))
            })?;
            assert_eq!(lines.len(), 24);
            assert!(lines[0].starts_with("eipnat top   ready   bindings 2   revision "), "{lines:#?}");
            assert_eq!(lines[3], "2 of 2 EIPs by total bit/s");
            assert!(is_row(&lines, 1, EIP2), "{lines:#?}");
            let (_, first) = row(&lines, 0).context("no rates")?;
            assert!(is_about(first[1], 2000.0), "{lines:#?}");
            assert!(first[2..].iter().all(|rate| *rate == 0.0), "nothing goes out: {lines:#?}");
            let drops =
                lines.iter().find_map(|line| line.strip_prefix("eip_unbound ")).context("no drops")?;
            assert!(number(drops.trim()).is_some_and(|rate| is_about(rate, 100.0)), "{lines:#?}");
            keys_do_what_help_says(&screen)?;
            daemon_that_goes_and_comes(bed, &screen)?;
            screen.keys(&["q"])?;
            check_restored(&screen, "0")
        })
    })
}

fn keys_do_what_help_says(screen: &Screen) -> Result<()> {
    screen.keys(&["o"])?;
    screen.wait_for("EIP2 first by out", |lines| {
        is_row(lines, 0, EIP2) && lines[3] == "2 of 2 EIPs by out bit/s"
    })?;
    screen.keys(&["r"])?;
    screen.wait_for("EIP1 first in reverse", |lines| {
        is_row(lines, 0, EIP1) && lines[3].ends_with("least first")
    })?;
    // Every change is asked for anew, and what was asked before gives way.
    screen.keys(&["r", "s", "s", "s", "s", "s"])?;
    screen.wait_for("the first order again", |lines| {
        is_row(lines, 0, EIP1) && lines[3] == "2 of 2 EIPs by total bit/s"
    })?;
    let filter = format!("/{EIP2}");
    screen.keys(&[&filter, "Enter"])?;
    screen.wait_for("EIP2 alone", |lines| {
        is_row(lines, 0, EIP2) && row(lines, 1).is_none() && lines[3].ends_with(": 1 match")
    })?;
    screen.keys(&["/"])?;
    screen.wait_for("the filter in the foot", |lines| lines[23] == format!("{filter}_"))?;
    screen.keys(&["C-u", "Escape"])?;
    screen.wait_for("the foot again", |lines| lines[23].starts_with("q quit"))?;
    let erase = vec!["BSpace"; EIP2.to_string().len()];
    screen.keys(&[&["/"], &erase[..], &["Enter"]].concat())?;
    screen.wait_for("both again", |lines| is_row(lines, 0, EIP1) && is_row(lines, 1, EIP2))?;

    screen.keys(&["?"])?;
    screen.wait_for("help", |lines| lines.iter().any(|line| line.contains("sort by out pkt/s")))?;
    screen.keys(&["Escape"])?;
    screen.wait_for("no help", |lines| is_row(lines, 0, EIP1))?;
    screen.keys(&["p"])?;
    screen.wait_for("paused", |lines| lines[0].ends_with("paused"))?;
    screen.keys(&["p", "-"])?;
    screen.wait_for("a shorter interval", |lines| lines[0].ends_with("every 0.2 s"))?;

    screen.resize(120, 40)?;
    screen.wait_for("more room", |lines| {
        lines.len() == 40 && lines[39].starts_with("q quit") && is_row(lines, 0, EIP1)
    })?;
    screen.resize(60, 12)?;
    screen.wait_for("less room", |lines| lines.len() == 12 && lines[11].starts_with("q quit"))?;
    screen.resize(80, 24)?;
    screen.wait_for("as before", |lines| lines.len() == 24 && is_row(lines, 0, EIP1))?;
    Ok(())
}

fn daemon_that_goes_and_comes(bed: &mut Bed, screen: &Screen) -> Result<()> {
    bed.daemon.stop()?;
    screen.wait_for("that there is no daemon", |lines| {
        lines[0].contains("no answer") && lines[4].starts_with("no daemon at ")
    })?;
    let config = bed.daemon.config().clone();
    bed.daemon = Daemon::start(&bed.lab, &eipnat_binary()?, config)?;
    screen.wait_for("the new daemon", |lines| lines[0].contains("   ready   ") && is_row(lines, 0, EIP1))?;
    Ok(())
}

#[test]
fn the_terminal_is_restored_however_it_ends() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        let is_shown = |lines: &[String]| lines.first().is_some_and(|line| line.contains("   ready   "));
        for (name, keys) in [("interrupt", &["C-c"][..]), ("escape", &["Escape"])] {
            let screen = Screen::start(&bed.lab, name, (80, 24), &command(bed, "")?)?;
            screen.wait_for("the view", is_shown)?;
            screen.keys(keys)?;
            check_restored(&screen, "0")?;
        }
        let screen = Screen::start(&bed.lab, "terminate", (80, 24), &command(bed, "")?)?;
        screen.wait_for("the view", is_shown)?;
        // Its only child.
        let shell = screen.tell("#{pane_pid}")?;
        let children = std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children"))?;
        let pid = children.trim().parse().ok().and_then(Pid::from_raw).context(children)?;
        kill_process(pid, Signal::TERM)?;
        check_restored(&screen, "0")?;

        bed.daemon.stop()?;
        let screen = Screen::start(&bed.lab, "nobody", (80, 24), &command(bed, "")?)?;
        check_restored(&screen, "3")
    })
}

#[test]
fn without_a_terminal_it_measures_once() -> Result<()> {
    Bed::run(Setup::default(), |bed| {
        let said = refused(&bed.daemon.cli(&["top"])?)?;
        assert!(said.contains("`eipnat top --once`"), "{said}");
        under_traffic(bed, |bed| {
            std::thread::sleep(Duration::from_millis(100));
            let top = bed.daemon.json(&["top", "--once"])?;
            let eip = |index: usize| top["rows"][index]["eip"].as_str().map(str::to_owned);
            assert_eq!((eip(0), eip(1)), (Some(EIP1.to_string()), Some(EIP2.to_string())), "{top}");
            let rate = |pointer: &str| top.pointer(pointer).and_then(serde_json::Value::as_f64);
            let in_bps = rate("/rows/0/in_bps").context("no rate")?;
            assert!(is_about(in_bps, 1028.0 * 8.0 * 2000.0), "{top}");
            assert!(rate("/packets/drops/eip_unbound").is_some_and(|rate| is_about(rate, 100.0)), "{top}");
            let table = bed.daemon.ok(&["top", "--once", "--interval", "0.2", "--sort", "out"])?;
            let first = table.lines().find(|line| line.starts_with("203.")).context("no row")?;
            assert!(first.starts_with(&EIP2.to_string()), "{table}");
            assert!(table.contains("eip_unbound"), "{table}");
            Ok(())
        })
    })
}
