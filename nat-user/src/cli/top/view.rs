//! What the view shows and what keys do to it, without a terminal.

use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};
use ratatui::widgets::TableState;

use crate::api::types::{SortBy, Top, TopQuery};
use crate::top::Ranking;

/// Longest filter that can be typed.
const MAX_FILTER: usize = 63;

/// The intervals that `+` and `-` choose from, in milliseconds.
const INTERVALS_MS: [u64; 7] = [100, 200, 500, 1000, 2000, 5000, 10_000];

/// Every order, in that of the key `s`, with the key that chooses it and its name.
pub(super) const ORDERS: [(SortBy, char, &str); 7] = [
    (SortBy::Total, 't', "total bit/s"),
    (SortBy::In, 'i', "in bit/s"),
    (SortBy::Out, 'o', "out bit/s"),
    (SortBy::Packets, 'T', "total pkt/s"),
    (SortBy::InPackets, 'I', "in pkt/s"),
    (SortBy::OutPackets, 'O', "out pkt/s"),
    (SortBy::Eip, 'e', "EIP"),
];

/// What is to be done after a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing but to draw.
    Nothing,
    /// Something else is to be asked than is being asked now.
    Ask,
    /// The view is left.
    Quit,
}

/// What the view shows.
#[derive(Debug)]
pub(super) struct View {
    /// What is asked of the daemon.
    pub(super) query: TopQuery,
    /// What it has said the last time.
    pub(super) top: Option<Top>,
    /// Why it says nothing now.
    pub(super) problem: Option<String>,
    pub(super) paused: bool,
    pub(super) help: bool,
    /// A filter that is being typed.
    pub(super) typing: Option<String>,
    /// Which row is selected, and where the table begins.
    pub(super) table: TableState,
    /// How many rows there was room for when it was drawn.
    pub(super) page: u16,
}

impl View {
    pub(super) fn new(query: TopQuery) -> Self {
        Self {
            query,
            top: None,
            problem: None,
            paused: false,
            help: false,
            typing: None,
            table: TableState::new().with_selected(0),
            page: 1,
        }
    }

    /// Takes an answer in, or why there is none.
    pub(super) fn hear(&mut self, answer: Result<Top, String>) {
        match answer {
            Ok(top) => {
                self.top = Some(top);
                self.problem = None;
                self.sort();
            }
            Err(problem) => self.problem = Some(problem),
        }
    }

    pub(super) fn key(&mut self, key: KeyEvent) -> Outcome {
        if key.kind == KeyEventKind::Release {
            return Outcome::Nothing;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return if key.code == KeyCode::Char('c') { Outcome::Quit } else { Outcome::Nothing };
        }
        if let Some(typed) = self.typing.take() {
            return self.type_filter(typed, key.code);
        }
        if std::mem::take(&mut self.help) && !matches!(key.code, KeyCode::Char('q')) {
            return Outcome::Nothing;
        }
        match key.code {
            KeyCode::Char('q') | KeyCode::Esc => return Outcome::Quit,
            KeyCode::Char('h' | '?') => self.help = true,
            KeyCode::Char('/') => self.typing = Some(self.query.filter.clone().unwrap_or_default()),
            KeyCode::Up | KeyCode::Char('k') => self.select(-1),
            KeyCode::Down | KeyCode::Char('j') => self.select(1),
            KeyCode::PageUp => self.select(-i32::from(self.page)),
            KeyCode::PageDown => self.select(i32::from(self.page)),
            KeyCode::Home | KeyCode::Char('g') => self.select(i32::MIN),
            KeyCode::End | KeyCode::Char('G') => self.select(i32::MAX),
            KeyCode::Char('p' | ' ') => {
                self.paused = !self.paused;
                return Outcome::Ask;
            }
            KeyCode::Char('+' | '=') => return self.step_interval(1),
            KeyCode::Char('-') => return self.step_interval(-1),
            KeyCode::Char('r') => {
                self.query.reverse = !self.query.reverse;
                return self.reorder();
            }
            KeyCode::Char('s') => {
                let at = ORDERS.iter().position(|(sort, ..)| *sort == self.query.sort).unwrap_or_default();
                self.query.sort = ORDERS[(at + 1) % ORDERS.len()].0;
                return self.reorder();
            }
            KeyCode::Char(letter) => {
                if let Some((sort, ..)) = ORDERS.iter().find(|(_, key, _)| *key == letter) {
                    self.query.sort = *sort;
                    return self.reorder();
                }
            }
            _ => {}
        }
        Outcome::Nothing
    }

    fn type_filter(&mut self, mut typed: String, key: KeyCode) -> Outcome {
        match key {
            KeyCode::Esc => return Outcome::Nothing,
            KeyCode::Enter => {
                let typed = typed.trim();
                self.query.filter = (!typed.is_empty()).then(|| typed.to_owned());
                self.select(i32::MIN);
                return Outcome::Ask;
            }
            KeyCode::Backspace => {
                typed.pop();
            }
            KeyCode::Char(letter) if typed.chars().count() < MAX_FILTER => typed.push(letter),
            _ => {}
        }
        self.typing = Some(typed);
        Outcome::Nothing
    }

    fn step_interval(&mut self, step: i8) -> Outcome {
        let now = self.query.interval_ms;
        let next = if step > 0 {
            INTERVALS_MS.iter().find(|interval| **interval > now)
        } else {
            INTERVALS_MS.iter().rfind(|interval| **interval < now)
        };
        let Some(next) = next else { return Outcome::Nothing };
        self.query.interval_ms = *next;
        Outcome::Ask
    }

    /// What is shown comes into the new order at once; which EIPs come first in it, the daemon has to be asked.
    fn reorder(&mut self) -> Outcome {
        self.sort();
        Outcome::Ask
    }

    fn sort(&mut self) {
        let ranking = Ranking { sort: self.query.sort, reverse: self.query.reverse, limit: self.query.limit };
        if let Some(top) = &mut self.top {
            let key = |row: &crate::api::types::TopRow| (row.eip, row.rates);
            top.rows.sort_by(|left, right| {
                let (left, right) = (key(left), key(right));
                ranking.compare((left.0, &left.1), (right.0, &right.1))
            });
        }
        self.select(0);
    }

    fn select(&mut self, step: i32) {
        let last = self.top.as_ref().map_or(0, |top| top.rows.len().saturating_sub(1));
        let selected = i64::try_from(self.table.selected().unwrap_or_default()).unwrap_or(i64::MAX);
        let selected = usize::try_from(selected.saturating_add(step.into()).max(0)).unwrap_or(usize::MAX);
        self.table.select(Some(selected.min(last)));
    }

    /// What the EIPs are sorted by, for people.
    pub(super) fn order(&self) -> &'static str {
        ORDERS.iter().find(|(sort, ..)| *sort == self.query.sort).map_or("", |(.., name)| name)
    }
}
