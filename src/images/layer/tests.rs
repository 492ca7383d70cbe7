//! Tests that need archives of their own making.

mod apply;
mod archive;
mod complete;
mod listing;
mod mend;
mod view;
