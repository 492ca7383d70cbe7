//! A container's image volumes: which images they are of, and which parts of their layers they show.

use std::collections::BTreeMap;

use podwright_base::Digest;
use podwright_images::{Image, Images, Lease, Located, ReadFileError};
use podwright_spec::VolumeSource;
use podwright_spec::container::{ImageVolume, Mount};
use serde::{Deserialize, Serialize};

use crate::error::Error;

/// An image volume, as its container's record keeps it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct VolumeRecord {
    /// Its place in `config.mounts`.
    pub(crate) mount: usize,
    /// The image's id.
    pub(crate) image_id: Digest,
    /// The image's layers, bottom first: held until the container is removed.
    pub(crate) layers: Vec<Digest>,
}

/// A container's image volumes, found on this node.
#[derive(Debug, Default)]
pub(crate) struct Volumes {
    /// For the record.
    pub(crate) records: Vec<VolumeRecord>,
    /// What each shows, by its place in `config.mounts`.
    pub(crate) sources: BTreeMap<usize, VolumeSource>,
    /// Keep the images' layers.
    pub(crate) leases: Vec<Lease>,
}

/// Finds the image volumes among a container's mounts. Blocks on the disk.
///
/// # Errors
/// Names the field of the first one that cannot be mounted.
pub(crate) fn find(images: &Images, mounts: &[Mount]) -> Result<Volumes, Error> {
    let mut volumes = Volumes::default();
    for (index, mount) in mounts.iter().enumerate() {
        let Some(volume) = &mount.image else { continue };
        let not_found = || Error::VolumeImageNotFound { index, image: volume.image.clone() };
        let (image, lease) = images.hold(&volume.image).ok_or_else(not_found)?;
        volumes.sources.insert(index, source(images, index, volume, &image)?);
        volumes.records.push(VolumeRecord { mount: index, image_id: image.id.clone(), layers: image.layers.clone() });
        volumes.leases.push(lease);
    }
    Ok(volumes)
}

fn source(images: &Images, index: usize, volume: &ImageVolume, image: &Image) -> Result<VolumeSource, Error> {
    let path = &volume.sub_path;
    let refuse = |field, problem| Err(Error::ImageVolume { index, field, problem });
    if image.layers.is_empty() {
        return refuse("image.image", format!("image {} has no layers: nothing is in it", image.id));
    }
    match images.locate(image, path) {
        Ok(Some(Located::Directories(directories))) => Ok(VolumeSource::Directories(directories)),
        Ok(Some(Located::File(file))) => Ok(VolumeSource::File(file)),
        Ok(None) => refuse("image_sub_path", format!("{path:?} does not exist in the image {:?}", volume.image)),
        Err(ReadFileError::NotFile { .. }) => {
            refuse("image_sub_path", format!("{path:?} is neither a directory nor a file of the image"))
        }
        Err(error @ ReadFileError::Loop { .. }) => refuse("image_sub_path", error.to_string()),
        Err(error) => {
            Err(Error::step(format!("ImageVolumeMountFailed: find config.mounts[{index}].image_sub_path"), error))
        }
    }
}
