//! Memory that the daemon has needed for a while goes back to the machine.
//!
//! A start, an import and a backup need a multiple of what stays. glibc keeps what was freed for the next time, in an arena for
//! each thread that happened to run them, and a node has other uses for hundreds of megabytes.
#![expect(unsafe_code, reason = "mallopt(3) and malloc_trim(3)")]

/// Has all threads share two arenas. To be called before there are any.
pub fn share_arenas() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it sets a number in the allocator, which may be done at any time.
    let _ = unsafe { libc::mallopt(libc::M_ARENA_MAX, 2) };
}

/// Gives back what is free. It takes some milliseconds for each hundred megabytes.
pub fn give_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the allocator locks its arenas; it only touches memory that nobody has.
    let _ = unsafe { libc::malloc_trim(0) };
}
