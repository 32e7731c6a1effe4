//! Hash maps read and written many entries at a time: by keys it takes two system calls for each, and a node has millions.
#![expect(
    unsafe_code,
    reason = "aya does not know BPF_MAP_LOOKUP_BATCH and its like, and bpf(2) takes addresses"
)]

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::maps::{HashMap, IterableMap as _, MapData};
use aya_obj::generated::{bpf_attr__bindgen_ty_3 as BatchAttr, bpf_cmd};

/// What aya takes for keys and values, and what may be any bytes.
pub(super) trait Pod: aya::Pod + bytemuck::Pod {}
impl<T: aya::Pod + bytemuck::Pod> Pod for T {}

/// Entries, and where those after them begin; `None`: there are none.
pub(super) type Batch<K, V> = (Vec<(K, V)>, Option<u32>);

/// Reads `count` entries of a BPF hash map, a few more or less, from a place on; the first is 0. What stands in the map
/// from the first reading to the last is among what is read.
///
/// # Errors
/// If the kernel refuses.
pub(super) fn read<K: Pod, V: Pod>(
    map: &HashMap<MapData, K, V>,
    from: u32,
    mut count: u32,
) -> io::Result<Batch<K, V>> {
    loop {
        match attempt(map, from, count) {
            // One bucket has more.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) => count *= 2,
            outcome => return outcome,
        }
    }
}

fn attempt<K: Pod, V: Pod>(map: &HashMap<MapData, K, V>, from: u32, count: u32) -> io::Result<Batch<K, V>> {
    let mut keys = vec![K::zeroed(); count as usize];
    let mut values = vec![V::zeroed(); count as usize];
    let mut next = from;
    let mut attr = BatchAttr {
        in_batch: address((&raw const from).cast_mut().cast()),
        out_batch: address((&raw mut next).cast()),
        keys: address(keys.as_mut_ptr().cast()),
        values: address(values.as_mut_ptr().cast()),
        count,
        map_fd: map.map().fd().as_fd().as_raw_fd().cast_unsigned(),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: the kernel writes at most `count` keys and values, for which there is room: aya has checked that the map's
    // are as long as these types, and plain data may be any bytes. All that is pointed to lives through the call.
    let error = unsafe { call(bpf_cmd::BPF_MAP_LOOKUP_BATCH, &mut attr) }.err();
    // kernel: ENOENT, the last bucket has been read; entries may have come along.
    let is_last = error.as_ref().is_some_and(|error| error.raw_os_error() == Some(libc::ENOENT));
    if let Some(error) = error
        && !is_last
    {
        return Err(error);
    }
    let entries = keys.into_iter().zip(values).take(attr.count as usize).collect();
    Ok((entries, (!is_last).then_some(next)))
}

/// Writes entries to a BPF hash map, in the place of those with the same keys. Where it fails, some may be written.
///
/// # Errors
/// If the kernel refuses.
pub(super) fn write<K: Pod, V: Pod>(map: &mut HashMap<MapData, K, V>, entries: &[(K, V)]) -> io::Result<()> {
    if entries.is_empty() {
        return Ok(());
    }
    let (mut keys, mut values): (Vec<K>, Vec<V>) = entries.iter().copied().unzip();
    let count = u32::try_from(entries.len()).map_err(io::Error::other)?;
    let mut attr = BatchAttr {
        in_batch: 0,
        out_batch: 0,
        keys: address(keys.as_mut_ptr().cast()),
        values: address(values.as_mut_ptr().cast()),
        count,
        map_fd: map.map().fd().as_fd().as_raw_fd().cast_unsigned(),
        elem_flags: 0,
        flags: 0,
    };
    // SAFETY: the kernel reads `count` keys and values, as long as aya has checked the map's to be.
    unsafe { call(bpf_cmd::BPF_MAP_UPDATE_BATCH, &mut attr) }
}

fn address(pointer: *mut u8) -> u64 {
    pointer.expose_provenance() as u64
}

/// Calls `bpf(2)`.
///
/// # Safety
/// What the command reads or writes by the attributes must be there until it returns.
unsafe fn call(command: bpf_cmd, attr: &mut BatchAttr) -> io::Result<()> {
    let attr: *mut BatchAttr = attr;
    // SAFETY: the attributes are as long as is said; the rest is the caller's promise.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command as u32, attr, size_of::<BatchAttr>()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
