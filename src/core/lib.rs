//! Pods and containers: state, operations, recovery.
