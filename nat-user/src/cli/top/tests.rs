use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};

use super::*;
use crate::api::types::{PacketRates, Rates, SortBy, Status, TopRow};
use crate::testing::TestDaemon;

fn row(last: u8, vm: Option<&str>, account: &str, rates: [f64; 4]) -> TopRow {
    TopRow {
        eip: [203, 0, 113, last].into(),
        private_ip: [10, 0, 0, last].into(),
        vm: vm.map(|vm| vm.parse().unwrap()),
        account: account.parse().unwrap(),
        rates: Rates { in_bps: rates[0], in_pps: rates[1], out_bps: rates[2], out_pps: rates[3] },
    }
}

/// A node with three EIPs, one of which has the longest names.
fn measured() -> Top {
    let long = "an-account-with-a-name-of-sixty-three-letters-which-is-the-most";
    Top {
        status: Status {
            ready: true,
            revision: 1234,
            bindings: 3,
            interfaces: vec![],
            problems: vec![],
            repairs: None,
        },
        interval_ms: 1000,
        eips: 3,
        total: Rates { in_bps: 1.15e9, in_pps: 96_289.0, out_bps: 133e6, out_pps: 11_805.0 },
        matching: 3,
        rows: vec![
            row(10, Some("web-1"), "acme", [1.0e9, 90_000.0, 33e6, 1805.0]),
            row(11, None, long, [1.5e8, 6289.0, 1e8, 10_000.0]),
            row(254, Some(long), "acme", [0.0, 0.0, 0.0, 0.0]),
        ],
        packets: PacketRates {
            forward: 108_094.0,
            drop: 2012.0,
            drops: [("ttl_expired".to_owned(), 2000.0), ("eip_unbound".to_owned(), 12.0)].into(),
            punts: [("neighbour".to_owned(), 0.5)].into(),
            ..PacketRates::default()
        },
    }
}

fn view() -> View {
    let mut view = View::new(TopQuery::default());
    view.hear(Ok(measured()));
    view
}

fn press(view: &mut View, keys: &str) -> Outcome {
    keys.chars().fold(Outcome::Nothing, |_, key| {
        let code = match key {
            '\n' => KeyCode::Enter,
            '\x1b' => KeyCode::Esc,
            '\x08' => KeyCode::Backspace,
            '↓' => KeyCode::Down,
            '↑' => KeyCode::Up,
            key => KeyCode::Char(key),
        };
        view.key(KeyEvent::new(code, KeyModifiers::NONE))
    })
}

/// What stands on the screen, line by line, without what is blank at the end.
fn screen(view: &mut View, width: u16, height: u16) -> Vec<String> {
    let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw::draw(frame, view)).unwrap();
    let buffer = terminal.backend().buffer();
    let line = |y| {
        (0..width).map(|x| buffer.cell((x, y)).unwrap().symbol()).collect::<String>().trim_end().to_owned()
    };
    (0..height).map(line).collect()
}

#[test]
fn eighty_by_twenty_four() {
    let lines = screen(&mut view(), 80, 24);
    let expected = [
        "eipnat top   ready   bindings 3   revision 1,234   every 1 s",
        "EIPs  in 1.15G bit/s 96.3k pkt/s   out 133M bit/s 11.8k pkt/s",
        "node  forwarded 108k   passed 0   punted 0   dropped 2.01k pkt/s",
        "3 of 3 EIPs by total bit/s",
        "EIP             VM / PRIVATE IP ACCOUNT    IN bit/s IN pkt/s OUT bit/s OUT pkt/s",
        "203.0.113.10    web-1           acme          1.00G    90.0k     33.0M     1.80k",
        "203.0.113.11    10.0.0.11       an-account     150M    6.29k      100M     10.0k",
        "203.0.113.254   an-account-with acme              0        0         0         0",
    ];
    assert_eq!(lines[..8], expected, "{lines:#?}");
    assert!(lines[8..20].iter().all(String::is_empty), "{lines:#?}");
    let expected = [
        "drops and punts by reason, pkt/s",
        "ttl_expired                      2.00k  eip_unbound                         12",
        "punt: neighbour                    0.5",
        "q quit  h help  / filter  s sort  r reverse  p pause  + - interval  ↑↓ PgUp PgDn",
    ];
    assert_eq!(lines[20..], expected, "{lines:#?}");
}

#[test]
fn any_size_will_do() {
    for (width, height) in [(1, 1), (20, 5), (79, 23), (80, 10), (300, 100)] {
        let mut view = view();
        view.hear(Err("no daemon at /run/eipnat/api.sock".to_owned()));
        view.help = height % 2 == 0;
        screen(&mut view, width, height);
    }
    let wide = screen(&mut view(), 200, 50);
    assert!(wide[7].contains("an-account-with-a-name-of-sixty-three-letters-which-is-the-most"), "{wide:#?}");
}

#[test]
fn trouble_is_told_and_the_last_figures_stay() {
    let mut view = View::new(TopQuery::default());
    assert_eq!(screen(&mut view, 80, 24)[1], "measuring for the first time");
    let mut top = measured();
    top.status.ready = false;
    top.status.problems = vec!["up0 has no carrier".to_owned(), "dn0 is down".to_owned()];
    view.hear(Ok(top));
    let lines = screen(&mut view, 80, 24);
    assert!(lines[0].contains("NOT READY"), "{lines:#?}");
    assert_eq!(lines[4], "not ready, 2 problems: up0 has no carrier");
    view.hear(Err("no daemon at /run/eipnat/api.sock; start it".to_owned()));
    let lines = screen(&mut view, 80, 24);
    assert!(lines[0].contains("no answer"), "{lines:#?}");
    assert_eq!(lines[4], "no daemon at /run/eipnat/api.sock; start it; trying again");
    assert!(lines[6].starts_with("203.0.113.10 "), "{lines:#?}");
    view.hear(Ok(measured()));
    assert!(screen(&mut view, 80, 24)[0].contains("   ready   "));
}

#[test]
fn keys_sort_at_once_and_ask_again() {
    let mut view = view();
    let first = |view: &View| view.top.as_ref().unwrap().rows[0].eip.octets()[3];
    assert_eq!(first(&view), 10);
    for (key, sort, eip) in [
        ("o", SortBy::Out, 11),
        ("i", SortBy::In, 10),
        ("O", SortBy::OutPackets, 11),
        ("I", SortBy::InPackets, 10),
        ("T", SortBy::Packets, 10),
        ("e", SortBy::Eip, 10),
        ("r", SortBy::Eip, 254),
        ("s", SortBy::Total, 254),
        ("r", SortBy::Total, 10),
        ("s", SortBy::In, 10),
    ] {
        assert_eq!(press(&mut view, key), Outcome::Ask, "{key}");
        assert_eq!((view.query.sort, first(&view)), (sort, eip), "{key}");
    }
    assert_eq!(screen(&mut view, 80, 24)[3], "3 of 3 EIPs by in bit/s");
    assert_eq!(press(&mut view, "x"), Outcome::Nothing);
}

#[test]
fn a_filter_is_typed_taken_and_given_up() {
    let mut view = view();
    assert_eq!(press(&mut view, "/acq\x08"), Outcome::Nothing);
    assert_eq!(screen(&mut view, 80, 24)[23], "/ac_");
    assert_eq!(view.query.filter, None);
    assert_eq!(press(&mut view, "\n"), Outcome::Ask);
    assert_eq!(view.query.filter.as_deref(), Some("ac"));
    view.top.as_mut().unwrap().matching = 2;
    assert_eq!(screen(&mut view, 80, 24)[3], "3 of 3 EIPs by total bit/s   filter \"ac\": 2 match");
    assert_eq!(press(&mut view, "/me\x1b"), Outcome::Nothing, "does not leave");
    assert_eq!(view.query.filter.as_deref(), Some("ac"));
    assert_eq!(press(&mut view, "/\x08\x08\x08\n"), Outcome::Ask);
    assert_eq!(view.query.filter, None);
}

#[test]
fn the_other_keys() {
    let mut view = view();
    screen(&mut view, 80, 24);
    press(&mut view, "jj↓j");
    assert_eq!(view.table.selected(), Some(2), "no further than to the last");
    press(&mut view, "k↑");
    assert_eq!(view.table.selected(), Some(0));
    press(&mut view, "G");
    assert_eq!(view.table.selected(), Some(2));
    let mut fewer = measured();
    fewer.rows.truncate(1);
    view.hear(Ok(fewer));
    assert_eq!(view.table.selected(), Some(0));

    assert_eq!(press(&mut view, "+"), Outcome::Ask);
    assert_eq!(view.query.interval_ms, 2000);
    press(&mut view, "++");
    assert_eq!((press(&mut view, "+"), view.query.interval_ms), (Outcome::Nothing, 10_000));
    press(&mut view, "------");
    assert_eq!((press(&mut view, "-"), view.query.interval_ms), (Outcome::Nothing, 100));

    assert_eq!((press(&mut view, "p"), view.paused), (Outcome::Ask, true));
    assert!(screen(&mut view, 80, 24)[0].ends_with("paused"));
    assert_eq!((press(&mut view, "p"), view.paused), (Outcome::Ask, false));

    press(&mut view, "?");
    let lines = screen(&mut view, 80, 24);
    assert!(lines.iter().any(|line| line.contains("sort by total pkt/s")), "{lines:#?}");
    assert_eq!(press(&mut view, "\x1b"), Outcome::Nothing, "closes the help alone");
    assert!(!view.help);
    for key in ["q", "\x1b"] {
        assert_eq!(press(&mut view, key), Outcome::Quit);
    }
    let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(view.key(interrupt), Outcome::Quit);
    press(&mut view, "/");
    assert_eq!(view.key(interrupt), Outcome::Quit, "while a filter is typed, too");
}

#[test]
fn a_long_list_is_scrolled() {
    let mut view = View::new(TopQuery::default());
    let mut top = measured();
    top.rows = (0..200).map(|last| row(last, None, "acme", [0.0; 4])).collect();
    view.hear(Ok(top));
    let first = |view: &mut View| screen(view, 80, 24)[5].split(' ').next().unwrap().to_owned();
    assert_eq!(first(&mut view), "203.0.113.0");
    assert_eq!(view.page, 15);
    press(&mut view, "G");
    assert_eq!(first(&mut view), "203.0.113.185");
    view.key(KeyEvent::new(KeyCode::PageUp, KeyModifiers::NONE));
    view.key(KeyEvent::new(KeyCode::PageUp, KeyModifiers::NONE));
    assert_eq!(view.table.selected(), Some(169));
    assert_eq!(first(&mut view), "203.0.113.169");
}

#[test]
fn one_measurement_as_table_and_json() {
    let text = once(&measured());
    assert!(text.contains("203.0.113.10   web-1 "), "{text}");
    assert!(text.contains("ttl_expired      2.00k"), "{text}");
    let daemon = TestDaemon::start();
    daemon.done("eip allocate --account acme");
    daemon.done("eip attach 203.0.113.0 10.0.0.2");
    let json: Top = serde_json::from_str(&daemon.done("top --once --interval 0.1 -o json")).unwrap();
    assert_eq!((json.eips, json.rows.len()), (1, 1));
    assert!(daemon.done("top --once --interval 0.1 --filter 10.0 --sort in-packets").contains("acme"));
    assert!(!daemon.done("top --once --interval 0.1 --account other").contains("acme"));
    let (code, out, err) = daemon.eipnat("top -o json");
    assert_eq!((code, out.as_str()), (1, ""));
    assert_eq!(
        err,
        "error: a live view takes a terminal; write `eipnat top --once` to print one measurement\n"
    );
    for wrong in ["--interval 0", "--interval 11", "--interval x", "--limit 0", "--limit 1001", "--sort up"] {
        assert_eq!(daemon.eipnat(&format!("top --once {wrong}")).0, 2, "{wrong}");
    }
}
