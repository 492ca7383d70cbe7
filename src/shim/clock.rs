//! The wall clock as messages carry it.

/// Unix nanoseconds. The clock's 64 bits of nanoseconds last until the year 2262.
pub(crate) fn now() -> i64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    now.tv_sec.saturating_mul(1_000_000_000).saturating_add(now.tv_nsec)
}
