//! Mounts and devices of a container.

use podwright_core::Error;
use podwright_proto::runtime::v1;
use podwright_spec::container::{Device, Mount, Propagation};

use super::field::{Field, absolute, known};

/// Reads the mounts, in their order.
pub(crate) fn mounts(mounts: Vec<v1::Mount>, at: Field<'_>) -> Result<Vec<Mount>, Error> {
    mounts.into_iter().enumerate().map(|(index, value)| mount(value, at.item(index))).collect()
}

fn mount(mount: v1::Mount, at: Field<'_>) -> Result<Mount, Error> {
    refuse_unsupported(&mount, at)?;
    let propagation = match known(mount.propagation, at.child("propagation"))? {
        v1::MountPropagation::PropagationPrivate => Propagation::Private,
        v1::MountPropagation::PropagationHostToContainer => Propagation::HostToContainer,
        v1::MountPropagation::PropagationBidirectional => Propagation::Bidirectional,
    };
    Ok(Mount {
        container_path: absolute(mount.container_path, at.child("container_path"))?,
        host_path: absolute(mount.host_path, at.child("host_path"))?.into(),
        readonly: mount.readonly,
        recursive_read_only: false,
        selinux_relabel: mount.selinux_relabel,
        propagation,
    })
}

/// What `Status` does not offer yet. `RROUnsupported` is the word by which the kubelet knows this failure.
fn refuse_unsupported(mount: &v1::Mount, at: Field<'_>) -> Result<(), Error> {
    if mount.image.is_some() || !mount.image_sub_path.is_empty() {
        return Err(at.child("image").unsupported("image volumes"));
    }
    if !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty() {
        return Err(at.child("uidMappings").unsupported("idmapped mounts"));
    }
    if mount.recursive_read_only {
        return Err(at.child("recursive_read_only").unsupported("RROUnsupported: recursive read-only mounts"));
    }
    if !mount.mount_options.is_empty() {
        return Err(at.child("mount_options").unsupported("mount options"));
    }
    Ok(())
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
