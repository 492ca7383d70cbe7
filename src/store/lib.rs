//! Versioned records on disk, atomic writes and the single-daemon lock.
