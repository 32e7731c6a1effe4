//! How it looks: on a terminal of 80 columns and 24 rows or more, and as a table.

use std::time::Duration;

use indicatif::HumanCount;
use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Style, Stylize};
use ratatui::text::{Line, Span, Text};
use ratatui::widgets::{Block, Cell, Clear, Paragraph, Row, Table};

use super::super::render;
use super::units::short;
use super::view::{ORDERS, View};
use crate::api::types::{SortBy, Top, TopRow};

/// Most rows of the pane of drops, its title included, as long as the terminal is not higher than usual.
const DROPS: u16 = 5;

/// Columns: title, what it is sorted by, width.
const COLUMNS: [(&str, Option<SortBy>, Constraint); 7] = [
    ("EIP", Some(SortBy::Eip), Constraint::Length(15)),
    ("VM / PRIVATE IP", None, Constraint::Fill(3)),
    ("ACCOUNT", None, Constraint::Fill(2)),
    ("IN bit/s", Some(SortBy::In), Constraint::Length(8)),
    ("IN pkt/s", Some(SortBy::InPackets), Constraint::Length(8)),
    ("OUT bit/s", Some(SortBy::Out), Constraint::Length(9)),
    ("OUT pkt/s", Some(SortBy::OutPackets), Constraint::Length(9)),
];

/// The first column that holds numbers.
const NUMBERS: usize = 3;

/// A row of the table: the EIP, whose it is, and its rates.
fn cells(row: &TopRow) -> [String; 7] {
    let target = row.vm.as_ref().map_or_else(|| row.private_ip.to_string(), ToString::to_string);
    let rates = row.rates;
    let [bits_in, packets_in, bits_out, packets_out] =
        [rates.in_bps, rates.in_pps, rates.out_bps, rates.out_pps].map(short);
    [row.eip.to_string(), target, row.account.to_string(), bits_in, packets_in, bits_out, packets_out]
}

/// What the node and all its EIPs carry.
fn totals(top: &Top) -> [String; 2] {
    let (total, packets) = (&top.total, &top.packets);
    let eips = format!(
        "in {} bit/s {} pkt/s   out {} bit/s {} pkt/s",
        short(total.in_bps),
        short(total.in_pps),
        short(total.out_bps),
        short(total.out_pps)
    );
    let node = format!(
        "forwarded {}   passed {}   punted {}   dropped {} pkt/s",
        short(packets.forward),
        short(packets.pass),
        short(packets.punt),
        short(packets.drop)
    );
    [eips, node]
}

/// Why packets are dropped or punted, most first.
fn reasons(top: &Top) -> Vec<(String, f64)> {
    let drops = top.packets.drops.iter().map(|(reason, rate)| (reason.clone(), *rate));
    let punts = top.packets.punts.iter().map(|(reason, rate)| (format!("punt: {reason}"), *rate));
    let mut all: Vec<(String, f64)> = drops.chain(punts).collect();
    all.sort_by(|left, right| right.1.total_cmp(&left.1));
    all
}

/// One measurement as tables.
pub(in super::super) fn table(top: &Top) -> String {
    let [eips, node] = totals(top).map(|text| text.replace("   ", ", "));
    let ready =
        if top.status.ready { "yes".to_owned() } else { format!("no: {}", top.status.problems.join("; ")) };
    let facts = [("ready", ready), ("EIPs", eips), ("node", node)];
    let facts = facts.map(|(name, value)| [name.to_owned(), value]);
    let drops = reasons(top).into_iter().map(|(reason, rate)| [reason, short(rate)]);
    let drops = match drops.len() {
        0 => String::new(),
        _ => "\n".to_owned() + &render::table(Some(["DROP REASON", "pkt/s"]), drops, &[1]),
    };
    let titles = COLUMNS.map(|(title, ..)| title);
    let rows = render::table(Some(titles), top.rows.iter().map(cells), &[3, 4, 5, 6]);
    format!("{}\n{rows}{drops}", render::table(None, facts, &[]))
}

/// Draws the view.
pub(super) fn draw(frame: &mut Frame<'_>, view: &mut View) {
    let reasons = view.top.as_ref().map(reasons).unwrap_or_default();
    let area = frame.area();
    let lines = u16::try_from(reasons.len().div_ceil(2)).unwrap_or(u16::MAX).max(1);
    let drops = (lines + 1).min(DROPS.max(area.height / 4));
    let trouble = u16::from(trouble(view).is_some());
    let [head, trouble, table, drops_area, foot] = Layout::vertical([
        Constraint::Length(4),
        Constraint::Length(trouble),
        Constraint::Min(2),
        Constraint::Length(drops),
        Constraint::Length(1),
    ])
    .areas(area);
    frame.render_widget(header(view), head);
    frame.render_widget(self::trouble(view).unwrap_or_default(), trouble);
    draw_table(frame, view, table);
    frame.render_widget(drops_pane(&reasons, drops_area), drops_area);
    frame.render_widget(footer(view), foot);
    if view.help {
        draw_help(frame, area);
    }
}

/// What has to be said before all else.
fn trouble(view: &View) -> Option<Line<'static>> {
    let text = match (&view.problem, &view.top) {
        (Some(problem), _) => format!("{problem}; trying again"),
        (None, Some(top)) if !top.status.ready => match &top.status.problems[..] {
            [] => return None,
            [problem] => format!("not ready: {problem}"),
            [first, others @ ..] => format!("not ready, {} problems: {first}", others.len() + 1),
        },
        _ => return None,
    };
    Some(Line::from(text).style(Style::new().fg(Color::Red).bold()))
}

fn header(view: &View) -> Text<'static> {
    let every = format!("every {} s", Duration::from_millis(view.query.interval_ms).as_secs_f64());
    let every = if view.paused { Span::from("paused").reversed() } else { every.into() };
    let Some(top) = &view.top else {
        let title = Line::from(vec!["eipnat top".bold(), "   ".into(), every]);
        return Text::from(vec![title, "measuring for the first time".into()]);
    };
    let status = &top.status;
    let ready = match (&view.problem, status.ready) {
        (Some(_), _) => Span::from("no answer").red().bold(),
        (None, true) => Span::from("ready").green(),
        (None, false) => Span::from("NOT READY").red().bold(),
    };
    let bindings = format!(
        "   bindings {}   revision {}   ",
        HumanCount(status.bindings as u64),
        HumanCount(status.revision)
    );
    let [eips, node] = totals(top);
    let shown = format!(
        "{} of {} EIPs by {}{}",
        top.rows.len(),
        HumanCount(top.eips as u64),
        view.order(),
        if view.query.reverse { ", least first" } else { "" }
    );
    let account = view.query.account.iter().map(|account| format!("   account {account}"));
    let filter = view.query.filter.iter().map(|filter| format!("   filter {filter:?}"));
    let is_filtered = view.query.account.is_some() || view.query.filter.is_some();
    let matching = is_filtered.then(|| format!(": {} match", HumanCount(top.matching as u64)));
    let shown: String = [shown].into_iter().chain(account).chain(filter).chain(matching).collect();
    Text::from(vec![
        Line::from(vec!["eipnat top".bold(), "   ".into(), ready, bindings.into(), every]),
        Line::from(vec!["EIPs  ".bold(), eips.into()]),
        Line::from(vec!["node  ".bold(), node.into()]),
        Line::from(shown),
    ])
}

fn draw_table(frame: &mut Frame<'_>, view: &mut View, area: Rect) {
    let sort = view.query.sort;
    let title = |(index, (title, key, _)): (usize, &(&'static str, Option<SortBy>, Constraint))| {
        let is_key = match sort {
            SortBy::Total => matches!(key, Some(SortBy::In | SortBy::Out)),
            SortBy::Packets => matches!(key, Some(SortBy::InPackets | SortBy::OutPackets)),
            _ => *key == Some(sort),
        };
        let text = aligned(index, (*title).to_owned());
        Cell::from(if is_key { text.bold().underlined() } else { text })
    };
    let header = Row::new(COLUMNS.iter().enumerate().map(title)).reversed();
    let rows = view.top.iter().flat_map(|top| &top.rows).map(|row| {
        Row::new(cells(row).into_iter().enumerate().map(|(index, text)| Cell::from(aligned(index, text))))
    });
    let stale = if view.problem.is_some() { Style::new().dim() } else { Style::new() };
    let table = Table::new(rows, COLUMNS.map(|(.., width)| width))
        .header(header)
        .style(stale)
        .row_highlight_style(Style::new().bold());
    view.page = area.height.saturating_sub(1).max(1);
    frame.render_stateful_widget(table, area, &mut view.table);
}

fn aligned(column: usize, text: String) -> Text<'static> {
    let alignment = if column < NUMBERS { Alignment::Left } else { Alignment::Right };
    Text::from(text).alignment(alignment)
}

/// Reasons in two columns, as many as there is room for.
fn drops_pane(reasons: &[(String, f64)], area: Rect) -> Text<'static> {
    let places = 2 * usize::from(area.height.saturating_sub(1));
    let (shown, hidden) = reasons.split_at(reasons.len().min(places));
    let more = if hidden.is_empty() { String::new() } else { format!(", {} more", hidden.len()) };
    let title = Line::from(format!("drops and punts by reason, pkt/s{more}")).reversed();
    let width = usize::from(area.width / 2);
    let one = |(reason, rate): &(String, f64)| {
        let name = width.saturating_sub(9);
        format!("{reason:<name$.name$} {:>6}  ", short(*rate))
    };
    let rows = shown.chunks(2).map(|pair| Line::from(pair.iter().map(one).collect::<String>()));
    let none = reasons.is_empty().then(|| Line::from("none").dim());
    [title].into_iter().chain(rows).chain(none).collect()
}

fn footer(view: &View) -> Line<'static> {
    match &view.typing {
        Some(typed) => Line::from(format!("/{typed}_")).bold(),
        None => {
            Line::from("q quit  h help  / filter  s sort  r reverse  p pause  + - interval  ↑↓ PgUp PgDn")
                .dim()
        }
    }
}

fn draw_help(frame: &mut Frame<'_>, area: Rect) {
    let keys = [
        ("q, Esc, Ctrl-C", "leave"),
        ("arrows, j k, PgUp PgDn, g G", "move"),
        ("s", "sort by the next column"),
        ("r", "reverse the order"),
        ("/", "filter: how EIP or private IP begins, a network,"),
        ("", "a part of VM or account; Enter takes it, Esc does not"),
        ("p, space", "pause"),
        ("+ -", "measure for longer or shorter"),
    ];
    let orders = ORDERS.map(|(_, key, name)| (key.to_string(), format!("sort by {name}")));
    let line = |key: &str, what: &str| Line::from(format!(" {key:<28}{what}"));
    let lines = keys.iter().map(|(key, what)| line(key, what));
    let lines = lines.chain(orders.iter().map(|(key, what)| line(key, what)));
    let text: Text<'_> = lines.collect();
    let height = u16::try_from(text.lines.len()).unwrap_or(u16::MAX).saturating_add(2).min(area.height);
    let width = area.width.min(78);
    let place = Rect::new((area.width - width) / 2, (area.height - height) / 2, width, height);
    frame.render_widget(Clear, place);
    frame.render_widget(Paragraph::new(text).block(Block::bordered().title(" any key closes this ")), place);
}
