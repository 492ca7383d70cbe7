//! The CRI v1 wire contract, compiled from proto/cri/v1/api.proto.
