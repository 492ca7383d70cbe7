//! Where protobuf stops: the services of the daemon's socket.
//!
//! A call is three steps: [`parse`] makes validated configuration of its message, the core or the image store does the
//! work, [`convert`] makes a message of what they know. Errors become gRPC codes in [`status`] and nowhere else. The
//! work goes on when a client hangs up: what a call of the CRI waits for runs in a task that is not the call's.

mod batch;
mod containers;
mod convert;
mod disk;
mod filter;
#[cfg(test)]
mod fixtures;
mod image;
mod node;
mod parse;
mod pods;
mod progress;
mod runtime;
mod signal;
mod status;
mod streaming;
mod verify;

use std::sync::Arc;

use podwright_core::Runtime;
use podwright_images::Images;
use podwright_proto::podwright::v1::node_server::NodeServer;
use podwright_proto::runtime::v1::image_service_server::ImageServiceServer;
use podwright_proto::runtime::v1::runtime_service_server::RuntimeServiceServer;
use podwright_streaming::{Backend, Server};
use tonic::service::Routes;

/// Bytes of the largest message that is taken: as much as the kubelet takes and more than the 4 MiB of tonic's own.
const MESSAGE_LIMIT: usize = 16 << 20;

/// Makes what the streaming server reaches containers and pods by.
pub fn backend(runtime: Runtime) -> Arc<dyn Backend> {
    Arc::new(streaming::Sessions::new(runtime))
}

/// Makes the services: the CRI's two, and [`podwright_proto::podwright::v1`] for Podwright's own commands.
pub fn services(runtime: Runtime, images: Images, server: Server) -> Routes {
    let image_service = image::ImageApi::new(runtime.clone(), images.clone());
    let node = node::NodeApi::new(images);
    Routes::new(
        RuntimeServiceServer::new(runtime::RuntimeApi::new(runtime, server)).max_decoding_message_size(MESSAGE_LIMIT),
    )
    .add_service(ImageServiceServer::new(image_service).max_decoding_message_size(MESSAGE_LIMIT))
    .add_service(NodeServer::new(node).max_decoding_message_size(MESSAGE_LIMIT))
}
