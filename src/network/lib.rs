//! Pod networks: namespace pins and the built-in bridge.
