//! Damaged trees, put right from fresh ones.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};

use proptest::prelude::*;

use super::listing::{Layer, hostile};
use crate::{Depth, MendError, mend};

/// Ways to damage the tree of [`hostile`].
const DAMAGES: [fn(&Layer); 14] = [
    |layer| flip(layer, "dir/file"),
    |layer| flip(layer, "two"),
    |layer| drop(fs::remove_file(layer.at("one"))),
    |layer| drop(fs::remove_dir_all(layer.at("implied"))),
    |layer| drop(fs::remove_dir_all(layer.at("dir"))),
    |layer| drop(fs::write(layer.at("opaque/extra"), "x")),
    |layer| drop(fs::create_dir_all(layer.at("dir/extra/deep"))),
    |layer| drop(fs::set_permissions(layer.at("renewed"), Permissions::from_mode(0o700))),
    |layer| rustix::fs::removexattr(layer.at("opaque"), "trusted.overlay.opaque").unwrap_or_default(),
    |layer| rustix::fs::setxattr(layer.at(""), "user.more", b"x", rustix::fs::XattrFlags::empty()).unwrap_or_default(),
    |layer| {
        drop(fs::remove_file(layer.at("link")));
        drop(fs::create_dir(layer.at("link")));
        drop(fs::write(layer.at("link/inside"), "x"));
    },
    |layer| {
        drop(fs::remove_dir_all(layer.at("renewed")));
        drop(std::os::unix::fs::symlink("/", layer.at("renewed")));
    },
    |layer| {
        drop(fs::remove_file(layer.at("null")));
        drop(fs::write(layer.at("null"), "no device"));
    },
    |layer| drop(fs::File::options().write(true).open(layer.at("sparse")).map(|file| file.set_len(7))),
];

fn flip(layer: &Layer, path: &str) {
    let Ok(mut bytes) = fs::read(layer.at(path)) else { return };
    if let Some(byte) = bytes.last_mut() {
        *byte ^= 1;
    }
    // A file that is a directory by now is damaged enough.
    let _ = fs::write(layer.at(path), bytes);
}

/// Puts a layer right by its own listing, or by that of the fresh one.
fn put_right(damaged: &Layer, by_own: bool) -> Result<(), MendError> {
    let fresh = Layer::new(hostile());
    let of = if by_own { damaged } else { &fresh };
    let differences = of.listing().compare(&damaged.at(""), Depth::Content).unwrap();
    mend(&of.dir.path().join("listing"), &of.unpacked.listing, &fresh.at(""), &damaged.at(""), &differences)?;
    assert_eq!(differences_by(of, damaged), Vec::<String>::new());
    Ok(())
}

fn differences_by(listed: &Layer, found: &Layer) -> Vec<String> {
    let differences = listed.listing().compare(&found.at(""), Depth::Content).unwrap();
    differences.iter().map(ToString::to_string).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]
    #[test]
    fn any_damage_is_put_right(damages in prop::sample::subsequence(DAMAGES.to_vec(), 1..6)) {
        let damaged = Layer::new(hostile());
        for damage in &damages {
            damage(&damaged);
        }
        prop_assert!(!damaged.differences(Depth::Content).is_empty());
        put_right(&damaged, false).unwrap();
    }
}

#[test]
fn only_what_differs_is_touched() {
    let damaged = Layer::new(hostile());
    let inode = |path: &str| fs::symlink_metadata(damaged.at(path)).unwrap().ino();
    let before = ["", "dir", "dir/file", "one", "twice", "sparse"].map(inode);
    flip(&damaged, "one");
    fs::write(damaged.at("dir/extra"), "x").unwrap();
    put_right(&damaged, true).unwrap();
    let after = ["", "dir", "dir/file", "one", "twice", "sparse"].map(inode);
    for (index, path) in ["", "dir", "dir/file", "one", "twice", "sparse"].iter().enumerate() {
        assert_eq!(before[index] != after[index], *path == "one", "{path}");
    }
    assert_eq!(inode("dir/three"), inode("one"), "all names of an inode go together");
}

#[test]
fn what_the_fresh_tree_lacks_is_told() {
    let (damaged, fresh) = (Layer::new(hostile()), Layer::new(hostile()));
    flip(&damaged, "twice");
    fs::remove_file(fresh.at("twice")).unwrap();
    let differences = damaged.listing().compare(&damaged.at(""), Depth::Content).unwrap();
    let listing = damaged.dir.path().join("listing");
    let error = mend(&listing, &damaged.unpacked.listing, &fresh.at(""), &damaged.at(""), &differences).unwrap_err();
    assert_eq!(error.to_string(), "restore /twice");
}
