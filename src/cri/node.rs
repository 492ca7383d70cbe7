//! The service of Podwright's own commands: pulls and loads whose progress is watched, and verification. They are given
//! up when their client leaves, as somebody who interrupts a command expects.

use std::path::Path;

use podwright_images::{Image, Images, PullProgress};
use podwright_proto::podwright::v1;
use podwright_proto::podwright::v1::node_server::Node;
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::batch::Answers;
use crate::convert;
use crate::parse::field::{Field, absolute, not_empty};
use crate::parse::image::credentials;
use crate::progress;
use crate::status::{of, of_load, of_pull};
use crate::verify;

/// Answers the calls of the node service.
pub(crate) struct NodeApi {
    images: Images,
}

impl NodeApi {
    /// Serves the images of a node.
    pub(crate) fn new(images: Images) -> Self {
        Self { images }
    }
}

#[tonic::async_trait]
impl Node for NodeApi {
    type PullImageStream = Answers<v1::PullProgress>;
    type LoadImageStream = Answers<v1::LoadProgress>;
    type VerifyImagesStream = Answers<v1::VerifiedImage>;

    async fn pull_image(
        &self,
        request: Request<v1::PullImageRequest>,
    ) -> Result<Response<Self::PullImageStream>, Status> {
        let request = request.into_inner();
        let reference = not_empty(request.image, Field::root("image")).map_err(|error| of(&error))?;
        let credentials = credentials(request.auth);
        let images = self.images.clone();
        let (sender, receiver) = watch::channel(PullProgress::default());
        let pull = async move {
            let image = images.pull(&reference, credentials, &sender).await.map_err(|error| of_pull(&error))?;
            Ok(v1::PullProgress { image: Some(named(&image)), ..pull_progress(&sender.borrow()) })
        };
        Ok(Response::new(progress::stream(receiver, pull, pull_progress)))
    }

    async fn load_image(
        &self,
        request: Request<v1::LoadImageRequest>,
    ) -> Result<Response<Self::LoadImageStream>, Status> {
        let path = absolute(request.into_inner().path, Field::root("path")).map_err(|error| of(&error))?;
        let images = self.images.clone();
        let (sender, receiver) = watch::channel(PullProgress::default());
        let load = async move {
            let loaded = images.load(Path::new(&path), &sender).await.map_err(of_load)?;
            let images = loaded.iter().map(|image| named(image)).collect();
            Ok(v1::LoadProgress { images, ..load_progress(&sender.borrow()) })
        };
        Ok(Response::new(progress::stream(receiver, load, load_progress)))
    }

    async fn verify_images(
        &self,
        request: Request<v1::VerifyImagesRequest>,
    ) -> Result<Response<Self::VerifyImagesStream>, Status> {
        let request = request.into_inner();
        let answers = verify::stream(self.images.clone(), &request.images, request.repair)?;
        Ok(Response::new(answers))
    }
}

fn pull_progress(progress: &PullProgress) -> v1::PullProgress {
    v1::PullProgress { layers: progress.layers.iter().map(convert::image::layer).collect(), image: None }
}

fn load_progress(progress: &PullProgress) -> v1::LoadProgress {
    let read_bytes = progress.layers.iter().map(|layer| layer.done).sum();
    let total_bytes = progress.layers.iter().map(|layer| layer.total).sum();
    v1::LoadProgress { read_bytes, total_bytes, images: Vec::new() }
}

pub(crate) fn named(image: &Image) -> v1::Image {
    v1::Image { id: image.id.to_string(), names: image.tags.iter().chain(&image.digests).cloned().collect() }
}
