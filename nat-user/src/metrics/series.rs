//! The series of EIPs and accounts, of which there may be millions: written in Prometheus' text format a piece at a time.

use std::fmt::{Display, Write as _};
use std::net::Ipv4Addr;
use std::time::SystemTime;

use crate::api::pieces::Pipe;
use crate::config::{self, Series};
use crate::control::{self, Control, Shared};
use crate::model::Carried;

/// A family of counters, two for whoever carries anything.
struct Family {
    name: &'static str,
    help: &'static str,
    /// Towards the VM, and towards the internet.
    counts: fn(&Carried) -> [u64; 2],
}

const fn bytes(carried: &Carried) -> [u64; 2] {
    [carried.in_bytes, carried.out_bytes]
}

const fn packets(carried: &Carried) -> [u64; 2] {
    [carried.in_packets, carried.out_packets]
}

const OF_EIPS: [Family; 2] = [
    Family {
        name: "eipnat_eip_bytes_total",
        help: "Bytes that an EIP has carried: IPv4 total lengths of forwarded packets, as seen on the public side.",
        counts: bytes,
    },
    Family { name: "eipnat_eip_packets_total", help: "Packets that an EIP has carried.", counts: packets },
];

const OF_ACCOUNTS: [Family; 2] = [
    Family {
        name: "eipnat_account_bytes_total",
        help: "Bytes that all public addresses of an account have carried, up to the last time the usage ledger was written.",
        counts: bytes,
    },
    Family {
        name: "eipnat_account_packets_total",
        help: "Packets that all public addresses of an account have carried, likewise.",
        counts: packets,
    },
];

/// Sends the series that the configuration asks for. If whoever asked goes away, that is no error.
pub(super) async fn send(control: &Shared, config: config::Metrics, pipe: &Pipe) -> anyhow::Result<()> {
    if config.series == Series::None {
        return Ok(());
    }
    let accounts = control::call(control, |control| control.accounts().clone()).await?;
    for family in &OF_ACCOUNTS {
        let mut piece = Piece::new(family);
        for (account, carried) in &accounts {
            piece.add(format_args!("account=\"{account}\""), carried);
        }
        if !pipe.send(piece.text).await {
            return Ok(());
        }
    }
    let active_since = match config.series {
        Series::All => None,
        // Before the clock's beginning everything is active.
        Series::Active => {
            Some(SystemTime::now().checked_sub(config.active_window).unwrap_or(SystemTime::UNIX_EPOCH))
        }
        Series::Account | Series::None => return Ok(()),
    };
    for family in &OF_EIPS {
        let (mut piece, mut next) = (Piece::new(family), Some(Ipv4Addr::UNSPECIFIED));
        while let Some(from) = next {
            let read = |control: &mut Control| control.metered(from, active_since);
            let (some, after) = control::call(control, read).await??;
            for (address, account, carried) in &some {
                piece.add(format_args!("eip=\"{address}\",account=\"{account}\""), carried);
            }
            if !pipe.send(std::mem::take(&mut piece.text)).await {
                return Ok(());
            }
            next = after;
        }
    }
    Ok(())
}

/// Lines of a family.
struct Piece<'a> {
    family: &'a Family,
    text: String,
    is_begun: bool,
}

impl<'a> Piece<'a> {
    const fn new(family: &'a Family) -> Self {
        Self { family, text: String::new(), is_begun: false }
    }

    /// Adds two samples. Names and addresses have nothing that the format wants escaped.
    fn add(&mut self, labels: impl Display, carried: &Carried) {
        let Family { name, help, counts } = self.family;
        // Writing to a string does not fail.
        if !self.is_begun {
            let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} counter");
            self.is_begun = true;
        }
        for (direction, count) in ["in", "out"].iter().zip(counts(carried)) {
            let _ = writeln!(self.text, "{name}{{{labels},direction=\"{direction}\"}} {count}");
        }
    }
}
