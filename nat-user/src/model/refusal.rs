//! Why a command is refused, in words that say what to do instead.

use std::net::Ipv4Addr;
use std::time::{Duration, SystemTime};

use humantime::{format_duration, format_rfc3339_seconds};

use super::Name;

/// Why a command is refused. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The address is nobody's EIP.
    #[error("{0} is not an EIP; `eipnat eip list` shows those that are")]
    UnknownEip(Ipv4Addr),
    /// No pool has that name.
    #[error("there is no pool {0}; `eipnat pool list` shows those that are")]
    UnknownPool(Name),
    /// No VM has that name.
    #[error("there is no VM {0}; `eipnat vm list` shows those that are")]
    UnknownVm(Name),
    /// Several pools, none of them the default, and none named.
    #[error("there are several pools and none is called default; name one with --pool")]
    WhichPool,
    /// The wanted address is in no pool.
    #[error("{0} is in no pool; `eipnat pool list` shows what is")]
    InNoPool(Ipv4Addr),
    /// The wanted address is not in the wanted pool.
    #[error("{address} is in pool {actual} and not in {wanted}; leave --pool out or name the right one")]
    InOtherPool {
        /// The address.
        address: Ipv4Addr,
        /// The pool that it is in.
        actual: Name,
        /// The pool that was asked for.
        wanted: Name,
    },
    /// The configuration keeps the address back.
    #[error(
        "{0} is reserved by the configuration; choose another address, or take it out of the pool's reserve"
    )]
    Reserved(Ipv4Addr),
    /// The wanted address is an EIP already.
    #[error("{address} is allocated already, to account {account}; choose another address")]
    Held {
        /// The address.
        address: Ipv4Addr,
        /// Who has it.
        account: Name,
    },
    /// The wanted address is the public IP of a VM.
    #[error("{0} is a VM's public IP; choose another address, or attach an EIP to that VM first")]
    HeldByVm(Ipv4Addr),
    /// The account has as many EIPs as it may.
    #[error("account {account} has {quota} EIPs, which is its quota; release one, or raise [quota] eips")]
    EipQuota {
        /// The account.
        account: Name,
        /// How many it may have.
        quota: u64,
    },
    /// The account has as many VMs as it may.
    #[error("account {account} has {quota} VMs, which is its quota; destroy one, or raise [quota] vms")]
    VmQuota {
        /// The account.
        account: Name,
        /// How many it may have.
        quota: u64,
    },
    /// An EIP is for VMs of its own account.
    #[error("{eip} is of account {account} and VM {vm} of account {owner}; name a VM of the same account")]
    OtherAccount {
        /// The EIP.
        eip: Ipv4Addr,
        /// Who holds it.
        account: Name,
        /// The VM.
        vm: Name,
        /// Whose it is.
        owner: Name,
    },
    /// There is another VM of that name.
    #[error("there is a VM {name} already, at {private_ip} or of other properties; choose another name")]
    VmExists {
        /// The name.
        name: Name,
        /// The address of the VM that has it.
        private_ip: Ipv4Addr,
    },
    /// Another VM has that address.
    #[error("{private_ip} is VM {vm}'s; choose another address, or destroy that VM first")]
    PrivateIpTaken {
        /// The address.
        private_ip: Ipv4Addr,
        /// The VM that has it.
        vm: Name,
    },
    /// An import names an EIP twice.
    #[error("{eip} stands in line {first} as well; keep one of them")]
    TwiceInFile {
        /// The EIP.
        eip: Ipv4Addr,
        /// The line that it stood in first.
        first: u64,
    },
    /// The wanted address was given back a short while ago.
    #[error("{address} was given back lately and is free again at {}, in {}; choose another address or wait",
        format_rfc3339_seconds(round_up(*.free_at)), format_duration(*.wait))]
    Cooling {
        /// The address.
        address: Ipv4Addr,
        /// When it can be had.
        free_at: SystemTime,
        /// How long that is, in whole seconds.
        wait: Duration,
    },
    /// Nothing is left to hand out.
    #[error("pool {pool} has no free address{}; release an EIP, or add CIDRs to the pool",
        .next_free.map_or(String::new(), |wait| format!(" (the next one is free in {})", format_duration(wait))))]
    PoolExhausted {
        /// The pool.
        pool: Name,
        /// When the first address that was given back can be had again, in whole seconds from now.
        next_free: Option<Duration>,
    },
    /// The EIP is attached to something else.
    #[error(
        "{eip} is attached to {private_ip}; move it with --reassign, or detach it first: eipnat eip detach {eip}"
    )]
    Attached {
        /// The EIP.
        eip: Ipv4Addr,
        /// Where it is attached.
        private_ip: Ipv4Addr,
    },
    /// The private address has another EIP.
    #[error("{private_ip} has {eip} already; detach that first: eipnat eip detach {eip}")]
    PrivateIpBound {
        /// The private address.
        private_ip: Ipv4Addr,
        /// Its EIP.
        eip: Ipv4Addr,
    },
    /// No VM can have that address.
    #[error("{private_ip} is in {range}, which is never a VM's address; name the VM's private IP")]
    Unusable {
        /// The address.
        private_ip: Ipv4Addr,
        /// What it is instead.
        range: &'static str,
    },
    /// A public address cannot be the private end.
    #[error("{private_ip} is a public address, of pool {pool}; name the VM's private IP")]
    NotPrivate {
        /// The address.
        private_ip: Ipv4Addr,
        /// Its pool.
        pool: Name,
    },
    /// There is no room for another binding.
    #[error(
        "all {0} places for bindings are taken; detach an EIP, destroy a VM, or raise datapath.max_bindings"
    )]
    NoRoom(u32),
    /// Bindings that end keep their counters until these are read, and there is no room for so many more.
    #[error("too many bindings would end at once while all places are taken; do it in parts of {0}")]
    TooManyEnd(u32),
    /// The client has used that name for another EIP.
    #[error("the request {} has got {address} already; name another one", .request.as_ref().map_or("", Name::as_str))]
    RequestUsed {
        /// The client's name for what it wanted.
        request: Option<Name>,
        /// What it got.
        address: Ipv4Addr,
    },
}

/// What a client can do about a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What it names does not exist.
    Missing,
    /// It makes no sense, whatever the state.
    Senseless,
    /// It does not go with the present state.
    Conflict,
}

impl Refusal {
    /// What a client can do about it.
    #[must_use]
    pub const fn kind(&self) -> Kind {
        match self {
            Self::UnknownEip(_) | Self::UnknownPool(_) | Self::UnknownVm(_) => Kind::Missing,
            Self::WhichPool
            | Self::InNoPool(_)
            | Self::InOtherPool { .. }
            | Self::Reserved(_)
            | Self::Unusable { .. }
            | Self::TwiceInFile { .. }
            | Self::NotPrivate { .. } => Kind::Senseless,
            Self::Held { .. }
            | Self::HeldByVm(_)
            | Self::EipQuota { .. }
            | Self::VmQuota { .. }
            | Self::OtherAccount { .. }
            | Self::VmExists { .. }
            | Self::PrivateIpTaken { .. }
            | Self::Cooling { .. }
            | Self::PoolExhausted { .. }
            | Self::Attached { .. }
            | Self::PrivateIpBound { .. }
            | Self::NoRoom(_)
            | Self::TooManyEnd(_)
            | Self::RequestUsed { .. } => Kind::Conflict,
        }
    }
}

/// How long it is from `now` to `then` in whole seconds, never too short.
pub(super) fn wait(now: SystemTime, then: SystemTime) -> Duration {
    let exact = then.duration_since(now).unwrap_or_default();
    Duration::from_secs(exact.as_secs() + u64::from(exact.subsec_nanos() > 0))
}

/// The whole second at or after `time`.
fn round_up(time: SystemTime) -> SystemTime {
    SystemTime::UNIX_EPOCH + wait(SystemTime::UNIX_EPOCH, time)
}
