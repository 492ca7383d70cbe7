//! Mounts and devices of a container.

use std::path::{Component, Path};

use podwright_core::Error;
use podwright_proto::runtime::v1;
use podwright_spec::container::{Device, ImageVolume, Mount, Propagation};

use super::field::{Field, absolute, known, not_empty, text};

/// Reads the mounts, in their order.
pub(crate) fn mounts(mounts: Vec<v1::Mount>, at: Field<'_>) -> Result<Vec<Mount>, Error> {
    mounts.into_iter().enumerate().map(|(index, value)| mount(value, at.item(index))).collect()
}

fn mount(mount: v1::Mount, at: Field<'_>) -> Result<Mount, Error> {
    refuse_unsupported(&mount, at)?;
    if mount.image.is_none() && !mount.image_sub_path.is_empty() {
        return Err(at.child("image_sub_path").invalid("is for image volumes: name an image"));
    }
    let propagation = match known(mount.propagation, at.child("propagation"))? {
        v1::MountPropagation::PropagationPrivate => Propagation::Private,
        v1::MountPropagation::PropagationHostToContainer => Propagation::HostToContainer,
        v1::MountPropagation::PropagationBidirectional => Propagation::Bidirectional,
    };
    let image = mount.image.map(|image| image_volume(image, mount.image_sub_path, at)).transpose()?;
    // What an image volume must not have beside it is refused with the rest of what a mount must be.
    let host_path = match &image {
        Some(_) => text(mount.host_path, at.child("host_path"))?,
        None => absolute(mount.host_path, at.child("host_path"))?,
    };
    Ok(Mount {
        container_path: absolute(mount.container_path, at.child("container_path"))?,
        host_path: host_path.into(),
        image,
        readonly: mount.readonly,
        recursive_read_only: mount.recursive_read_only,
        selinux_relabel: mount.selinux_relabel,
        propagation,
    })
}

/// What `Status` does not offer yet. `RROUnsupported` is the word by which the kubelet knows this failure.
fn refuse_unsupported(mount: &v1::Mount, at: Field<'_>) -> Result<(), Error> {
    if !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty() {
        return Err(at.child("uidMappings").unsupported("idmapped mounts"));
    }
    // Nothing is mounted in an image: it is read-only to its depths.
    if mount.recursive_read_only && mount.image.is_none() {
        return Err(at.child("recursive_read_only").unsupported("RROUnsupported: recursive read-only mounts"));
    }
    if !mount.mount_options.is_empty() {
        return Err(at.child("mount_options").unsupported("mount options"));
    }
    Ok(())
}

fn image_volume(image: v1::ImageSpec, sub_path: String, at: Field<'_>) -> Result<ImageVolume, Error> {
    let image_at = at.child("image");
    if !image.runtime_handler.is_empty() {
        return Err(super::unknown_handler(&image.runtime_handler, image_at.child("runtime_handler")));
    }
    Ok(ImageVolume {
        image: not_empty(image.image, image_at.child("image"))?,
        user_specified_image: image.user_specified_image,
        sub_path: self::sub_path(sub_path, at.child("image_sub_path"))?,
    })
}

/// A path inside an image, which nothing in it leads out of. Links of the image itself are another matter: they are
/// followed inside it.
fn sub_path(path: String, field: Field<'_>) -> Result<String, Error> {
    let path = text(path, field)?;
    for part in Path::new(&path).components() {
        match part {
            Component::RootDir | Component::Prefix(_) => {
                return Err(field.invalid(format!("{path:?} is absolute: it must be relative to the image's root")));
            }
            Component::ParentDir => return Err(field.invalid(format!("{path:?} has a \"..\" in it"))),
            Component::CurDir | Component::Normal(_) => {}
        }
    }
    Ok(path)
}

/// Reads the devices, in their order.
pub(crate) fn devices(devices: Vec<v1::Device>, at: Field<'_>) -> Result<Vec<Device>, Error> {
    devices.into_iter().enumerate().map(|(index, value)| device(value, at.item(index))).collect()
}

fn device(device: v1::Device, at: Field<'_>) -> Result<Device, Error> {
    let permissions = device.permissions;
    if permissions.is_empty() || !permissions.chars().all(|char| "rwm".contains(char)) {
        let problem = format!("{permissions:?} is not made of r (read), w (write) and m (mknod)");
        return Err(at.child("permissions").invalid(problem));
    }
    Ok(Device {
        container_path: absolute(device.container_path, at.child("container_path"))?,
        host_path: absolute(device.host_path, at.child("host_path"))?.into(),
        permissions,
    })
}
