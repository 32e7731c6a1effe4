//! Many EIPs at once.

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::SystemTime;

use super::{Allocation, Change, Command, Edit, Model, Name, Refusal, Subject, Target};

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
        let mut draft = self.clone();
        let mut change = Change::nothing(Subject::Many);
        let mut seen = HashMap::with_capacity(lines.len());
        let mut changed = 0_u64;
        for line in lines {
            let failed = |refusal| ImportError { number: line.number, refusal };
            if let Some(first) = seen.insert(line.eip, line.number) {
                return Err(failed(Refusal::TwiceInFile { eip: line.eip, first }));
            }
            let mut is_new = false;
            for command in draft.commands(line).map_err(failed)? {
                let step = draft.plan(&command, now).map_err(failed)?;
                is_new |= !step.is_nothing();
                change.edits.extend(step.edits.iter().cloned());
                draft.apply(step);
            }
            changed += u64::from(is_new);
        }
        change.what = format!("{changed} of {} EIPs imported", lines.len());
        Ok(change.folded())
    }

    /// What makes one line true.
    fn commands(&self, line: &Line) -> Result<Vec<Command>, Refusal> {
        let account = line.account.clone().unwrap_or_else(Name::default_one);
        let attach =
            Command::Attach { eip: line.eip, target: Target::PrivateIp(line.private_ip), reassign: false };
        match self.eip(line.eip) {
            Ok(there) if there.account != account => {
                Err(Refusal::Held { address: line.eip, account: there.account.clone() })
            }
            Ok(_) => Ok(vec![attach]),
            Err(_) => {
                let wanted =
                    Allocation { address: Some(line.eip), account: Some(account), ..Allocation::default() };
                Ok(vec![Command::Allocate(wanted), attach])
            }
        }
    }
}

impl Change {
    /// Each record once, as it was at first and as it is in the end.
    fn folded(mut self) -> Self {
        let mut places = HashMap::new();
        let mut edits: Vec<Edit> = Vec::with_capacity(self.edits.len());
        for edit in self.edits {
            let Some(key) = edit.key() else { continue };
            if let Some(&place) = places.get(&key) {
                let first: &mut Edit = &mut edits[place];
                first.after = edit.after;
            } else {
                places.insert(key, edits.len());
                edits.push(edit);
            }
        }
        edits.retain(|edit| edit.before != edit.after);
        self.edits = edits;
        self
    }
}
