//! Fragmentation (RFC 791 §3.2).

use nat_common::checksum;
use nat_common::parse::Ipv4;
use nat_common::wire::ipv4::MIN_HEADER_LEN;

/// The bit of an option's type that says that every fragment has it.
const COPIED: u8 = 0x80;

const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;

/// More fragments.
const MF: u16 = 0x2000;

/// The largest offset of a fragment, in units of 8 bytes: what stands above it are flags.
const MAX_OFFSET: u16 = 0x1fff;

/// Cuts a packet into frames whose packets have at most `mtu` bytes; `ip` is its header in `frame`. None if no more than 8 bytes
/// of payload fit, the header is none that a router takes, or the packet would reach beyond what an offset can say.
#[must_use]
pub fn fragment(frame: &[u8], ip: &Ipv4, mtu: u16) -> Option<Vec<Vec<u8>>> {
    let (link, packet) = (frame.get(..ip.at)?, frame.get(ip.at..ip.end())?);
    let (header, payload) = packet.split_at_checked(ip.payload - ip.at)?;
    let later_header = later(header)?;
    let mut fragments = Vec::new();
    let mut rest = payload;
    while !rest.is_empty() {
        let header = if fragments.is_empty() { header } else { &later_header };
        let room = usize::from(mtu).checked_sub(header.len())? & !7;
        if room == 0 {
            return None;
        }
        // What is left may be the last, whose length need not be a multiple of 8.
        let fits = rest.len() + header.len() <= usize::from(mtu);
        let (part, after) = rest.split_at(if fits { rest.len() } else { room });
        let offset = ip.fragment_offset + u16::try_from((payload.len() - rest.len()) / 8).ok()?;
        if offset > MAX_OFFSET {
            return None;
        }
        let flags = if after.is_empty() && !ip.more_fragments { 0 } else { MF };
        let mut fragment = [link, header, part].concat();
        let length = u16::try_from(header.len() + part.len()).ok()?;
        let (_, header) = fragment.split_at_mut_checked(ip.at)?;
        let header = header.get_mut(..usize::from(length) - part.len())?;
        write_word(header, 2, length)?;
        write_word(header, 6, flags | offset)?;
        write_word(header, 10, 0)?;
        let sum = checksum::sum(header, 0, header.len()).ok()?;
        write_word(header, 10, !checksum::fold(sum))?;
        fragments.push(fragment);
        rest = after;
    }
    Some(fragments)
}

fn write_word(header: &mut [u8], at: usize, word: u16) -> Option<()> {
    header.get_mut(at..at + 2)?.copy_from_slice(&word.to_be_bytes());
    Some(())
}

/// The header of all fragments but the first: only the options that say so are in it.
fn later(header: &[u8]) -> Option<Vec<u8>> {
    let (fixed, mut rest) = header.split_at_checked(MIN_HEADER_LEN)?;
    let mut later = fixed.to_vec();
    while let [kind, after @ ..] = rest {
        match *kind {
            END_OF_OPTIONS => break,
            NO_OPERATION => rest = after,
            kind => {
                let length = usize::from(*after.first()?);
                let (option, after) = rest.split_at_checked(length).filter(|_| length >= 2)?;
                if kind & COPIED != 0 {
                    later.extend_from_slice(option);
                }
                rest = after;
            }
        }
    }
    later.resize(later.len().next_multiple_of(4), END_OF_OPTIONS);
    later[0] = 0x40 | u8::try_from(later.len() / 4).ok()?;
    Some(later)
}
