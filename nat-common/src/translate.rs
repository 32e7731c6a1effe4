//! Rewriting of a packet that has been parsed and found its bindings. Everything has been validated before: nothing
//! here decides.

use crate::abi::Addr;
use crate::checksum::Delta;
use crate::frame::Frame;
use crate::parse::{Covered, Ipv4, Quote, Transport};
use crate::verdict::{Egress, Reject};
use crate::wire::{ethernet, icmpv4, ipv4};

/// Source and destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    /// Who sends.
    pub source: Addr,
    /// Who receives.
    pub destination: Addr,
}

impl Addresses {
    /// Those of a header.
    #[inline(always)]
    #[must_use]
    pub const fn of(ip: &Ipv4) -> Self {
        Self { source: ip.source, destination: ip.destination }
    }

    /// What changes in a sum over both addresses.
    #[inline(always)]
    fn delta(self, new: Self) -> Delta {
        Delta::NONE.addr(self.source, new.source).addr(self.destination, new.destination)
    }
}

/// Gives the packet new addresses. `quoted`: those of the packet that an ICMP error quotes.
///
/// # Errors
/// [`Reject::FrameTruncated`], which parsing has excluded: the verifier wants each access checked where it happens.
#[inline(always)]
pub fn readdress<F: Frame + ?Sized>(
    frame: &mut F,
    ip: &Ipv4,
    transport: &Transport,
    new: Addresses,
    quoted: Addresses,
) -> Result<(), Reject> {
    let delta = header(frame, ip, new)?;
    match transport {
        Transport::Opaque => {}
        Transport::Covered(covered) => {
            covered_checksum(frame, covered, delta)?;
        }
        Transport::IcmpError(quote) => {
            let change = quote_addresses(frame, quote, quoted)?;
            let checksum = frame.at(ip.payload + icmpv4::CHECKSUM)?;
            if let Some((old, new)) = change
                && old != new
            {
                *checksum = Delta::NONE.word(old, new).apply(u16::from_be_bytes(*checksum)).to_be_bytes();
            }
        }
    }
    Ok(())
}

/// Puts addresses into a header and mends its checksum. Returns what has changed, for sums over the addresses.
#[inline(always)]
fn header<F: Frame + ?Sized>(frame: &mut F, ip: &Ipv4, new: Addresses) -> Result<Delta, Reject> {
    let delta = Addresses::of(ip).delta(new);
    let [.., c0, c1, s0, s1, s2, s3, d0, d1, d2, d3] = frame.at::<{ ipv4::MIN_HEADER_LEN }>(ip.at)?;
    [*s0, *s1, *s2, *s3] = new.source;
    [*d0, *d1, *d2, *d3] = new.destination;
    [*c0, *c1] = delta.apply(u16::from_be_bytes([*c0, *c1])).to_be_bytes();
    Ok(delta)
}

/// Mends a checksum that covers the addresses. Returns what it was and what it is.
#[inline(always)]
fn covered_checksum<F: Frame + ?Sized>(
    frame: &mut F,
    covered: &Covered,
    delta: Delta,
) -> Result<(u16, u16), Reject> {
    let checksum = frame.at(covered.at)?;
    let old = u16::from_be_bytes(*checksum);
    let new = covered.zero.apply(delta, old);
    *checksum = new.to_be_bytes();
    Ok((old, new))
}

/// Translates a quoted packet. Returns the old and new value of its transport's checksum, if it has one.
///
/// The quoted addresses and the quoted header's checksum need no place in the outer ICMP checksum: what the
/// one adds the other takes away.
#[inline(always)]
fn quote_addresses<F: Frame + ?Sized>(
    frame: &mut F,
    quote: &Quote,
    new: Addresses,
) -> Result<Option<(u16, u16)>, Reject> {
    let delta = header(frame, &quote.ip, new)?;
    match &quote.covered {
        Some(covered) => covered_checksum(frame, covered, delta).map(Some),
        None => Ok(None),
    }
}

/// Takes one hop off the TTL and addresses the frame to the next one.
///
/// # Errors
/// As [`readdress`].
#[inline(always)]
pub fn forward<F: Frame + ?Sized>(frame: &mut F, ip: &Ipv4, egress: &Egress) -> Result<(), Reject> {
    let [ttl, protocol, c0, c1] = frame.at::<4>(ip.at + ipv4::TTL)?;
    let old = u16::from_be_bytes([*ttl, *protocol]);
    *ttl -= 1;
    let new = u16::from_be_bytes([*ttl, *protocol]);
    [*c0, *c1] = Delta::NONE.word(old, new).apply(u16::from_be_bytes([*c0, *c1])).to_be_bytes();
    ethernet::Header(frame.at(0)?).readdress(egress.destination, egress.source);
    Ok(())
}

const _: () = assert!(ipv4::CHECKSUM == ipv4::TTL + 2 && ipv4::ADDRESSES == ipv4::CHECKSUM + 2);
