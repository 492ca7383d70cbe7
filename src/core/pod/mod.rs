//! Pod sandboxes: one task, the driver, owns each.

pub(crate) mod create;
pub(crate) mod driver;
pub(crate) mod handle;
pub(crate) mod link;
pub(crate) mod state;
pub(crate) mod teardown;
