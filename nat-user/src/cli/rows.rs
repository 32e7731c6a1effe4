//! Rows of any number, printed as they come: neither a million EIPs nor a year's bill is held in memory.

use std::io::{self, Write};

use anyhow::anyhow;
use serde::Serialize;

use super::args::Output;

/// Prints rows in the form that was asked for.
pub(super) struct Rows<'a> {
    form: Output,
    out: &'a mut dyn Write,
    is_first: bool,
}

impl<'a> Rows<'a> {
    pub(super) fn new(form: Output, out: &'a mut dyn Write) -> Self {
        Self { form, out, is_first: true }
    }

    /// Prints some; `table` makes lines of them for people. Answers whether anybody reads on: `eipnat eip list | head -1` has
    /// enough.
    pub(super) fn put<T: Serialize>(
        &mut self,
        rows: &[T],
        table: impl FnOnce(&[T]) -> String,
    ) -> anyhow::Result<bool> {
        let text = match self.form {
            Output::Table => table(rows),
            Output::Json => {
                let mut text = String::new();
                for row in rows {
                    text.push(if self.is_first { '[' } else { ',' });
                    text += &serde_json::to_string(row)?;
                    self.is_first = false;
                }
                text
            }
            Output::Csv => {
                let mut csv = csv::WriterBuilder::new().has_headers(self.is_first).from_writer(Vec::new());
                for row in rows {
                    csv.serialize(row)
                        .map_err(|_| anyhow!("this does not fit into lines and columns; use -o json"))?;
                    self.is_first = false;
                }
                String::from_utf8(csv.into_inner()?)?
            }
        };
        self.write(&text)
    }

    /// There are no more.
    pub(super) fn end(&mut self) -> anyhow::Result<()> {
        match self.form {
            Output::Json => self.write(if self.is_first { "[]\n" } else { "]\n" }).map(drop),
            Output::Table | Output::Csv => Ok(()),
        }
    }

    fn write(&mut self, text: &str) -> anyhow::Result<bool> {
        match self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            result => Ok(result.map(|()| true)?),
        }
    }
}
