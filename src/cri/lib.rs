//! Where protobuf stops: CRI requests to core operations.
