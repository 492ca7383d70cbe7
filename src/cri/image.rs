//! The image service.

use std::path::Path;

use podwright_core::{Error, Runtime, Use};
use podwright_images::{Image, Images, PullProgress, Usage};
use podwright_proto::runtime::v1;
use podwright_proto::runtime::v1::image_service_server::ImageService;
use tokio::sync::watch;
use tokio::task::{JoinError, spawn_blocking};
use tonic::{Request, Response, Status};
use tracing::{Instrument, info_span, instrument};

use crate::batch::{self, Answers};
use crate::convert;
use crate::disk::is_same_file_system;
use crate::parse::image::{credentials, name};
use crate::status::{of_pull, reply};

type Answer<T> = Result<Response<T>, Status>;

/// Answers the calls of the image service.
pub(crate) struct ImageApi {
    runtime: Runtime,
    images: Images,
}

impl ImageApi {
    /// Serves the images of a node; the runtime says where containers write.
    pub(crate) fn new(runtime: Runtime, images: Images) -> Self {
        Self { runtime, images }
    }

    fn list(&self, filter: Option<v1::ImageFilter>) -> Vec<v1::Image> {
        let name = filter.and_then(|filter| filter.image).map(|image| image.image).unwrap_or_default();
        let found = if name.is_empty() { self.images.list() } else { self.images.find(&name).into_iter().collect() };
        found.iter().map(|image| self.message(image)).collect()
    }

    fn message(&self, image: &Image) -> v1::Image {
        convert::image::image(image, self.images.is_pinned(image))
    }

    fn image_status(&self, request: v1::ImageStatusRequest) -> Result<v1::ImageStatusResponse, Error> {
        let Some(image) = self.images.find(&name(request.image)?) else {
            return Ok(v1::ImageStatusResponse::default());
        };
        let info = request.verbose.then(|| convert::info("info", &convert::image::details(&image)));
        Ok(v1::ImageStatusResponse { image: Some(self.message(&image)), info: info.unwrap_or_default() })
    }

    /// Pulls in a task of its own: a kubelet that restarts, or gives up waiting, finds its image later.
    async fn pull(&self, request: v1::PullImageRequest) -> Result<v1::PullImageResponse, Status> {
        let reference = name(request.image).map_err(|error| crate::status::of(&error))?;
        let credentials = credentials(request.auth);
        let images = self.images.clone();
        let span = info_span!("PullImage", image.r#ref = reference);
        let pull =
            async move { images.pull(&reference, credentials, &watch::Sender::new(PullProgress::default())).await };
        let pulled = tokio::spawn(pull.instrument(span)).await.map_err(|error| broken_off("the pull", error))?;
        let image = pulled.map_err(|error| of_pull(&error))?;
        Ok(v1::PullImageResponse { image_ref: image.id.to_string() })
    }

    #[instrument(name = "RemoveImage", skip_all, fields(image.r#ref))]
    async fn remove(&self, request: v1::RemoveImageRequest) -> Result<v1::RemoveImageResponse, Error> {
        let name = name(request.image)?;
        tracing::Span::current().record("image.ref", &name);
        let removed = self.images.remove(&name).await;
        removed.map_err(|error| Error::step(format!("remove the image {name}"), error))?;
        Ok(v1::RemoveImageResponse {})
    }

    async fn file_systems(&self) -> Result<v1::ImageFsInfoResponse, Status> {
        let (images, written) = (self.images.clone(), self.runtime.written());
        let directory = self.runtime.containers_directory();
        let counting = spawn_blocking(move || {
            let images = images.usage();
            let containers = writable_layers(&images, written, &directory);
            v1::ImageFsInfoResponse {
                image_filesystems: vec![convert::image::file_system(&images)],
                container_filesystems: vec![convert::image::file_system(&containers)],
            }
        });
        counting.await.map_err(|error| broken_off("the count", error))
    }
}

/// Tells where containers write, and how much they have written. Where they share a file system with the images, they are told to be at the same
/// place: by two places the kubelet knows a node with two disks.
fn writable_layers(images: &Usage, written: Use, directory: &Path) -> Usage {
    let Use { bytes, inodes } = written;
    let shared = is_same_file_system(&images.mountpoint, directory);
    let mountpoint = if shared { images.mountpoint.clone() } else { directory.to_owned() };
    Usage { bytes, inodes, mountpoint }
}

/// A task ends without a result when it panicked, or when the daemon goes down.
fn broken_off(what: &str, error: JoinError) -> Status {
    if error.is_panic() {
        Status::internal(format!("{what} ended in a panic, which is a bug: the daemon's log has its text"))
    } else {
        Status::unavailable("the daemon is shutting down")
    }
}

#[tonic::async_trait]
impl ImageService for ImageApi {
    type StreamImagesStream = Answers<v1::StreamImagesResponse>;

    async fn list_images(&self, request: Request<v1::ListImagesRequest>) -> Answer<v1::ListImagesResponse> {
        reply(Ok(v1::ListImagesResponse { images: self.list(request.into_inner().filter) }))
    }

    async fn stream_images(&self, request: Request<v1::StreamImagesRequest>) -> Answer<Self::StreamImagesStream> {
        let images = self.list(request.into_inner().filter);
        reply(Ok(batch::stream(images, |images| v1::StreamImagesResponse { images })))
    }

    async fn image_status(&self, request: Request<v1::ImageStatusRequest>) -> Answer<v1::ImageStatusResponse> {
        reply(self.image_status(request.into_inner()))
    }

    async fn pull_image(&self, request: Request<v1::PullImageRequest>) -> Answer<v1::PullImageResponse> {
        self.pull(request.into_inner()).await.map(Response::new)
    }

    async fn remove_image(&self, request: Request<v1::RemoveImageRequest>) -> Answer<v1::RemoveImageResponse> {
        reply(self.remove(request.into_inner()).await)
    }

    async fn image_fs_info(&self, _: Request<v1::ImageFsInfoRequest>) -> Answer<v1::ImageFsInfoResponse> {
        self.file_systems().await.map(Response::new)
    }
}
