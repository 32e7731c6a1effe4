//! `eipnat usage`: the bill, of any length.

use std::io::Write;

use super::args::{Cli, Output};
use super::rows::Rows;
use super::{ask, render};
use crate::api::types::{UsageQuery, UsageRow};

/// Prints the records that are asked for, a page at a time where the form allows it.
pub(super) fn show(cli: &Cli, mut query: UsageQuery, out: &mut dyn Write) -> anyhow::Result<()> {
    ask(cli, async |daemon| {
        let first = daemon.usage(&query).await?;
        let (mut under_way, mut next) = (first.rows, first.next);
        under_way.sort_by_key(|row| (row.from, row.eip));
        let mut rows = Rows::new(cli.output, out);
        // Those of a table, whose last line is their sum.
        let mut all = Vec::new();
        let mut put = |some: Vec<UsageRow>, is_last: bool| -> anyhow::Result<bool> {
            if cli.output != Output::Table {
                return rows.put(&some, |_| String::new()).and_then(|reads_on| {
                    if is_last {
                        rows.end()?;
                    }
                    Ok(reads_on)
                });
            }
            all.extend(some);
            if is_last { rows.put(&all, render::usage) } else { Ok(true) }
        };
        while let Some(after) = next {
            query.after = Some(after);
            let page = daemon.usage(&query).await?;
            match put(page.rows, false) {
                Ok(true) => next = page.next,
                ended => return Ok(ended.map(drop)),
            }
        }
        Ok(put(under_way, true).map(drop))
    })?
}
