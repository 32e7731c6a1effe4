use nat_common::parse::Ipv4;
use proptest::prelude::*;

use super::super::fragment::fragment;
use super::*;

/// A packet with these options, which are a multiple of four bytes long.
fn with_options(options: &[u8], payload: usize, offset: u16, more: bool) -> Vec<u8> {
    let plain = udp(UP_MAC, X, VM, 64, payload);
    let mut frame = [&plain[..34], options, &plain[34..]].concat();
    frame[14] = 0x40 | u8::try_from(5 + options.len() / 4).unwrap();
    let length = u16::try_from(frame.len() - 14).unwrap();
    frame[16..18].copy_from_slice(&length.to_be_bytes());
    frame[20..22].copy_from_slice(&(offset | if more { 0x2000 } else { 0 }).to_be_bytes());
    mend_header(&mut frame);
    frame
}

proptest! {
    /// Every fragment is a packet by itself, and together they are the whole.
    #[test]
    fn fragments_are_the_whole_again(
        payload in 0_usize..3000,
        mtu in 68_u16..2000,
        offset in 0_u16..4000,
        more: bool,
        options in prop::sample::select(vec![
            vec![],
            // Router alert, which is copied.
            vec![0x94, 4, 0, 0],
            // Record route, which is not, and no operation.
            vec![7, 7, 4, 0, 0, 0, 0, 1],
            // Both, and the end.
            vec![7, 3, 4, 0x94, 4, 0, 0, 0],
        ]),
    ) {
        let frame = with_options(&options, payload, offset, more);
        let ip = Ipv4::parse(frame.clone().as_mut_slice()).unwrap();
        let fragments = fragment(&frame, &ip, mtu).unwrap();
        let mut whole = Vec::new();
        for (number, bytes) in fragments.iter().enumerate() {
            let part = Ipv4::parse(bytes.clone().as_mut_slice()).unwrap();
            let is_last = number + 1 == fragments.len();
            prop_assert_eq!(part.end(), bytes.len());
            prop_assert!(part.total_len <= mtu);
            prop_assert_eq!(usize::from(part.fragment_offset), usize::from(offset) + whole.len() / 8);
            prop_assert!(is_last || (bytes.len() - part.payload).is_multiple_of(8));
            prop_assert_eq!(part.more_fragments, more || !is_last);
            prop_assert_eq!((part.source, part.destination, part.ttl), (ip.source, ip.destination, ip.ttl));
            prop_assert_eq!(&bytes[18..20], &frame[18..20]);
            let kept = &bytes[34..part.payload];
            if number == 0 {
                prop_assert_eq!(kept, &options[..]);
            } else {
                prop_assert_eq!(kept.windows(2).any(|two| two == [0x94, 4]), options.contains(&0x94));
                prop_assert!(!kept.contains(&7));
            }
            whole.extend_from_slice(&bytes[part.payload..]);
        }
        prop_assert_eq!(&whole[..], &frame[ip.payload..]);
    }
}

/// An offset that ran over would say that a later fragment is a first one.
#[test]
fn what_reaches_beyond_the_last_offset_is_not_cut() {
    let frame = with_options(&[], 1400, 8120, false);
    let ip = Ipv4::parse(frame.clone().as_mut_slice()).unwrap();
    assert_eq!(fragment(&frame, &ip, 600), None);
}

#[test]
fn a_broken_option_or_no_room_gives_nothing() {
    for (options, mtu) in [(&[0x94, 0, 0, 0][..], 600), (&[0x94, 9, 0, 0], 600), (&[], 27)] {
        let frame = with_options(options, 1000, 0, false);
        let ip = Ipv4::parse(frame.clone().as_mut_slice()).unwrap();
        assert_eq!(fragment(&frame, &ip, mtu), None, "{options:?} {mtu}");
    }
}
