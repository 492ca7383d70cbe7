//! The C library's heap.

/// Gives free memory of the heap back to the kernel, wherever in it that is.
///
/// glibc keeps what was freed below the heap's top; musl gives it back on its own.
pub fn trim() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes the heap's own locks and touches only memory that no allocation owns, so there is
    // nothing a caller could hold that it invalidates.
    unsafe {
        libc::malloc_trim(0);
    }
}
