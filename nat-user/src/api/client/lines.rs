//! Answers of any length, a line at a time.

use std::collections::VecDeque;
use std::marker::PhantomData;

use anyhow::{Context as _, anyhow};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::{Error, PATIENCE, Result};

/// An answer that comes in lines.
struct Lines {
    body: Incoming,
    whole: VecDeque<Vec<u8>>,
    /// What has come of the line after these.
    rest: Vec<u8>,
}

impl Lines {
    const fn of(body: Incoming) -> Self {
        Self { body, whole: VecDeque::new(), rest: Vec::new() }
    }

    /// The next line; the last one may have no end.
    async fn next(&mut self) -> hyper::Result<Option<Vec<u8>>> {
        loop {
            if let Some(line) = self.whole.pop_front() {
                return Ok(Some(line));
            }
            let Some(frame) = self.body.frame().await else {
                let rest = std::mem::take(&mut self.rest);
                return Ok((!rest.is_empty()).then_some(rest));
            };
            for part in frame?.into_data().unwrap_or_default().split_inclusive(|byte| *byte == b'\n') {
                self.rest.extend(part);
                if part.ends_with(b"\n") {
                    self.whole.push_back(std::mem::take(&mut self.rest));
                }
            }
        }
    }
}

/// Packets that the daemon reports.
pub struct Watch(Lines);

impl Watch {
    pub(super) const fn of(body: Incoming) -> Self {
        Self(Lines::of(body))
    }

    /// The next line: a [`Packet`](crate::trace::Packet), how many were left out, or why there are no more. `None` when the
    /// daemon ends.
    ///
    /// # Errors
    /// [`Error::Broken`] if the daemon is gone.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>> {
        let gone = |_| Error::Broken(anyhow!("the daemon is gone, and the trace with it"));
        // A line without an end is one that was not sent whole.
        Ok(self.0.next().await.map_err(gone)?.filter(|line| line.ends_with(b"\n")))
    }
}

/// A list of any length.
pub struct List<T> {
    lines: Lines,
    /// Whether its end has come.
    is_whole: bool,
    of: PhantomData<T>,
}

impl<T: DeserializeOwned> List<T> {
    pub(super) const fn of(body: Incoming) -> Self {
        Self { lines: Lines::of(body), is_whole: false, of: PhantomData }
    }

    /// Some more of it; `None` at its end.
    ///
    /// # Errors
    /// [`Error::Broken`] if it is cut short.
    pub async fn next(&mut self) -> Result<Option<Vec<T>>> {
        let next = async { Ok::<_, anyhow::Error>(timeout(PATIENCE, self.lines.next()).await??) };
        let line = next.await.context("the list was cut short").map_err(Error::Broken)?;
        let Some(line) = line else {
            let cut = || Error::Broken(anyhow!("the list was cut short"));
            return if self.is_whole { Ok(None) } else { Err(cut()) };
        };
        self.is_whole = line.trim_ascii_end().ends_with(b"]");
        elements(&line).map(Some).map_err(Error::Broken)
    }
}

/// The elements of an array of objects that stand on one of its lines.
fn elements<T: DeserializeOwned>(line: &[u8]) -> anyhow::Result<Vec<T>> {
    let line = str::from_utf8(line)?.trim();
    let line = line.strip_prefix('[').unwrap_or(line);
    let line = line.strip_suffix([',', ']']).unwrap_or(line);
    serde_json::from_str(&format!("[{line}]")).context("the daemon has sent no list of this version")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_an_array_are_arrays_of_their_own() {
        #[derive(Debug, PartialEq, Eq, serde::Deserialize)]
        struct One {
            n: u8,
        }
        let read =
            |line: &str| elements::<One>(line.as_bytes()).map(|all| all.iter().map(|one| one.n).sum::<u8>());
        for (line, sum) in [
            ("[]", 0),
            ("[{\"n\":1}]", 1),
            ("[{\"n\":1},{\"n\":2},\n", 3),
            ("{\"n\":4},\n", 4),
            ("{\"n\":5},{\"n\":6}]", 11),
        ] {
            assert_eq!(read(line).unwrap(), sum, "{line}");
        }
        assert!(read("[{\"n\":1},{\"n\"").is_err() && read("[{\"m\":1}]").is_err());
    }
}
