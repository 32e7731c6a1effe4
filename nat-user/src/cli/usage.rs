//! `eipnat usage`: the bill, of any length.

use std::io::Write;

use super::args::{Cli, Output};
use super::{ask, put, render};
use crate::api::types::{UsageQuery, UsageRow};

/// Prints the records that are asked for, a page at a time where the form allows it.
pub(super) fn show(cli: &Cli, mut query: UsageQuery, out: &mut dyn Write) -> anyhow::Result<()> {
    ask(cli, async |daemon| {
        let first = daemon.usage(&query).await?;
        let (mut under_way, mut next) = (first.rows, first.next);
        under_way.sort_by_key(|row| (row.from, row.eip));
        let mut printer = Printer::new(cli.output, out);
        while let Some(after) = next {
            query.after = Some(after);
            let page = daemon.usage(&query).await?;
            if printer.rows(page.rows).is_err() {
                break;
            }
            next = page.next;
        }
        Ok(printer.rows(under_way).and_then(|()| printer.end()))
    })?
}

/// Prints rows in the form that was asked for.
struct Printer<'a> {
    form: Output,
    out: &'a mut dyn Write,
    /// Those of a table, whose columns are as wide as all of them want.
    rows: Vec<UsageRow>,
    is_first: bool,
}

impl<'a> Printer<'a> {
    fn new(form: Output, out: &'a mut dyn Write) -> Self {
        Self { form, out, rows: Vec::new(), is_first: true }
    }

    fn rows(&mut self, rows: Vec<UsageRow>) -> anyhow::Result<()> {
        match self.form {
            Output::Table => self.rows.extend(rows),
            Output::Json => {
                for row in rows {
                    let before = if self.is_first { "[" } else { "," };
                    put(self.out, &format!("{before}{}", serde_json::to_string(&row)?))?;
                    self.is_first = false;
                }
            }
            Output::Csv => {
                let mut csv = csv::WriterBuilder::new().has_headers(self.is_first).from_writer(Vec::new());
                for row in rows {
                    csv.serialize(row)?;
                    self.is_first = false;
                }
                put(self.out, &String::from_utf8(csv.into_inner()?)?)?;
            }
        }
        Ok(())
    }

    fn end(&mut self) -> anyhow::Result<()> {
        match self.form {
            Output::Table => put(self.out, &render::usage(&self.rows)),
            Output::Json => put(self.out, if self.is_first { "[]\n" } else { "]\n" }),
            Output::Csv => Ok(()),
        }
    }
}
