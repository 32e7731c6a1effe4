//! What a look at the datapath has come to.

use anyhow::anyhow;
use log::debug;

use crate::dataplane::Mended;

/// Collects what was done, what failed, and what stands in the way.
#[derive(Debug, Default)]
pub(super) struct Findings {
    done: Vec<String>,
    failed: Vec<anyhow::Error>,
    problems: Vec<String>,
    advice: Vec<String>,
}

impl Findings {
    /// Something was not as it has to be, and is now.
    pub(super) fn done(&mut self, what: String) {
        self.done.push(what);
    }

    /// Something is not as it has to be.
    pub(super) fn fail(&mut self, error: anyhow::Error) {
        self.failed.push(error);
    }

    /// Something outside of the daemon's reach stands in the way of packets.
    pub(super) fn problem(&mut self, what: String) {
        self.problems.push(what);
    }

    /// Something could be better.
    pub(super) fn advise(&mut self, what: String) {
        self.advice.push(what);
    }

    /// Takes down what an attempt has come to: what had to be done, if anything.
    pub(super) fn note(&mut self, attempt: anyhow::Result<Option<String>>) {
        match attempt {
            Ok(done) => self.done.extend(done),
            Err(error) => self.failed.push(error),
        }
    }

    /// Takes down whether an attempt has failed.
    pub(super) fn check(&mut self, attempt: anyhow::Result<()>) {
        self.failed.extend(attempt.err());
    }

    /// For an end: fails with all that has failed.
    pub(super) fn ended(self) -> anyhow::Result<()> {
        let failed: Vec<String> = self.failed.iter().map(|error| format!("{error:#}")).collect();
        if failed.is_empty() { Ok(()) } else { Err(anyhow!("removed, but for this: {}", failed.join("; "))) }
    }

    /// For a start: fails with what failed first, and answers the advice. Everything else is expected then.
    pub(super) fn started(self) -> anyhow::Result<Vec<String>> {
        self.done.iter().for_each(|what| debug!("{what}"));
        self.failed.into_iter().next().map_or(Ok(self.advice), Err)
    }
}

impl From<Findings> for Mended {
    fn from(findings: Findings) -> Self {
        let failed = findings.failed.iter().map(|error| format!("{error:#}"));
        Self { repaired: findings.done, problems: failed.chain(findings.problems).collect() }
    }
}
