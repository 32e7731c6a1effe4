//! Many EIPs at once.

use std::net::Ipv4Addr;
use std::time::SystemTime;

use super::draft::Draft;
use super::{Change, Model, Name, Record, Refusal, Subject};

/// An EIP that is to be allocated and attached, as far as it is not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Where it stands in the file, from 1.
    pub number: u64,
    /// The EIP.
    pub eip: Ipv4Addr,
    /// What it is to stand for.
    pub private_ip: Ipv4Addr,
    /// Who is to hold it; the default account if nobody is named.
    pub account: Option<Name>,
}

/// Why a line cannot be had, and so none of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {number}: {refusal}; nothing was imported")]
pub struct ImportError {
    /// The line, from 1.
    pub number: u64,
    /// What is wrong with it.
    pub refusal: Refusal,
}

impl Model {
    /// What makes every line true. Those that are so already change nothing.
    ///
    /// # Errors
    /// At the first line that cannot be.
    pub fn plan_import(&self, lines: &[Line], now: SystemTime) -> Result<Change, ImportError> {
        let mut draft = Draft::new(self, now);
        draft.expect(lines.len());
        let repeated = repeated(lines);
        let mut changed = 0_u64;
        for (place, line) in lines.iter().enumerate() {
            let failed = |refusal| ImportError { number: line.number, refusal };
            if let Some((_, first)) = repeated.filter(|(second, _)| *second == place) {
                let first = lines[first].number;
                return Err(failed(Refusal::TwiceInFile { eip: line.eip, first }));
            }
            changed += u64::from(draft.import(line).map_err(failed)?);
        }
        let what = format!("{changed} of {} EIPs imported", lines.len());
        Ok(draft.done(Subject::Many, what))
    }
}

/// Where the first EIP stands that stood before, and where that was.
fn repeated(lines: &[Line]) -> Option<(usize, usize)> {
    let mut eips: Vec<(Ipv4Addr, usize)> =
        lines.iter().enumerate().map(|(place, line)| (line.eip, place)).collect();
    // By places among equal ones.
    eips.sort_unstable();
    let pairs = eips.windows(2).filter(|pair| pair[0].0 == pair[1].0);
    pairs.map(|pair| (pair[1].1, pair[0].1)).min()
}

impl Draft<'_> {
    /// Makes one line true, and answers whether it was not.
    fn import(&mut self, line: &Line) -> Result<bool, Refusal> {
        let account = line.account.clone().unwrap_or_else(Name::default_one);
        let Ok(there) = self.model.eip(line.eip) else {
            let eip = self.allocate(line.eip, None, account)?;
            let after = self.attach(&eip, line.private_ip, false)?.unwrap_or(eip);
            self.change.push(None, Some(Record::Eip(after.into())));
            return Ok(true);
        };
        if there.account != account {
            return Err(Refusal::Held { address: line.eip, account: there.account.clone() });
        }
        let after = self.attach(there, line.private_ip, false)?;
        if let Some(after) = &after {
            self.edit_eip(Some(there), after);
        }
        Ok(after.is_some())
    }
}
