//! Memory that a process holds without using it: given back to the kernel while it is idle.

/// How far below the stack pointer pages are looked for: more than any call chain here has used.
const STACK: usize = 256 << 10;
/// What the calls made here may need of the stack themselves.
const MARGIN: usize = 4 << 10;

/// Gives back what the heap has free and what the main thread's stack has below this call.
///
/// Only for the main thread of a process that has no other one, where nothing else can be on the stack's lower pages.
pub fn release() {
    trim_heap();
    trim_stack();
}

/// glibc keeps what was freed below the heap's top; musl gives it back on its own.
fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: malloc_trim takes the heap's own locks and touches only memory that no allocation owns, so there is
    // nothing a caller could hold that it invalidates.
    unsafe {
        libc::malloc_trim(0);
    }
}

#[inline(never)]
fn trim_stack() {
    let page = rustix::param::page_size();
    let marker = 0_u8;
    let here = (&raw const marker).addr();
    let end = here.saturating_sub(MARGIN) / page * page;
    let start = end.saturating_sub(STACK);
    // SAFETY: the stack grows down, so what is below this frame belongs to calls that have returned; MARGIN keeps clear of
    // the frames of the calls made here. The kernel maps the stack far from everything else (its guard gap alone is
    // 1 MiB), so a range of this length reaches no other mapping. Pages that are not mapped make the call fail after the
    // others were dropped, and a failure leaves only memory in use.
    unsafe {
        libc::madvise(start as *mut libc::c_void, end - start, libc::MADV_DONTNEED);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Fills a part of the stack, deep enough to be above what is given back.
    #[inline(never)]
    fn deep(levels: u32) -> u32 {
        let fill = std::hint::black_box([levels as u8; 4096]);
        if levels == 0 { 0 } else { deep(levels - 1) + u32::from(fill[levels as usize % 4096] != 0) }
    }

    #[test]
    fn what_is_in_use_stays() {
        let kept = std::hint::black_box([7_u8; 8192]);
        let heap = std::hint::black_box(vec![9_u8; 1 << 20]);
        assert_eq!(deep(20), 20);
        trim_stack();
        trim_heap();
        assert_eq!(deep(20), 20);
        assert!(kept.iter().all(|byte| *byte == 7) && heap.iter().all(|byte| *byte == 9));
    }
}
