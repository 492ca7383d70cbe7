//! System calls: the only home of unsafe code.
