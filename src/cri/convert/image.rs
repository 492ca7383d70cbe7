//! Images.

use podwright_images::{Image, LayerProgress, LayerState, Usage};
use podwright_proto::podwright::v1 as node;
use podwright_proto::runtime::v1;
use serde_json::{Value, json};

use super::now;

/// Makes an image as lists and its status hold it.
pub(crate) fn image(image: &Image, pinned: bool) -> v1::Image {
    let user = image.config.config().as_ref().and_then(|config| config.user().as_deref()).unwrap_or_default();
    let (uid, username) = user_of(user);
    v1::Image {
        id: image.id.to_string(),
        repo_tags: image.tags.clone(),
        repo_digests: image.digests.clone(),
        size: image.size,
        uid,
        username,
        spec: Some(v1::ImageSpec { image: image.id.to_string(), ..Default::default() }),
        pinned,
    }
}

/// Makes the details of a verbose status.
pub(crate) fn details(image: &Image) -> Value {
    json!({ "imageSpec": image.config, "artifactType": image.artifact.as_ref().map(|artifact| &artifact.kind), "manifest": image.manifest, "layers": image.layers })
}

/// Makes the use of one file system.
pub(crate) fn file_system(usage: &Usage) -> v1::FilesystemUsage {
    v1::FilesystemUsage {
        timestamp: now(),
        fs_id: Some(v1::FilesystemIdentifier { mountpoint: usage.mountpoint.display().to_string() }),
        used_bytes: Some(v1::UInt64Value { value: usage.bytes }),
        inodes_used: Some(v1::UInt64Value { value: usage.inodes }),
    }
}

/// Makes the progress of one layer.
pub(crate) fn layer(layer: &LayerProgress) -> node::LayerProgress {
    let state = match layer.state {
        LayerState::Waiting => node::LayerState::LayerWaiting,
        LayerState::Downloading => node::LayerState::LayerDownloading,
        LayerState::Unpacking => node::LayerState::LayerUnpacking,
        LayerState::Done => node::LayerState::LayerDone,
        LayerState::Present => node::LayerState::LayerPresent,
    };
    node::LayerProgress {
        digest: layer.digest.to_string(),
        state: state.into(),
        fetched_bytes: layer.done,
        total_bytes: layer.total,
    }
}

/// Splits an image's `user[:group]` into the number or the name of its user; an image without one says neither.
fn user_of(user: &str) -> (Option<v1::Int64Value>, String) {
    let name = user.split(':').next().unwrap_or_default();
    match name.parse::<u32>() {
        Ok(uid) => (Some(v1::Int64Value { value: uid.into() }), String::new()),
        Err(_) => (None, name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_images_user_is_a_number_or_a_name() {
        let number = |value| Some(v1::Int64Value { value });
        for (user, uid, name) in [
            ("", None, ""),
            ("1000", number(1000), ""),
            ("0:0", number(0), ""),
            ("www-data", None, "www-data"),
            ("www-data:adm", None, "www-data"),
        ] {
            assert_eq!(user_of(user), (uid, name.to_owned()), "{user}");
        }
    }
}
