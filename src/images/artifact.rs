//! Artifacts: what registries hold beside images (charts, models, policies), to be mounted as image volumes.
//!
//! A manifest is an artifact's when its configuration is of no image's media type. There are no diffIDs then: each blob
//! becomes a layer whose id is made of the blob's digest and of what it is to become. A blob is a file, named by its title,
//! unless its media type is that of an image's layer, or the packer has noted that it is a packed directory.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Component, Path};

use oci_client::manifest::{OciDescriptor, OciImageManifest};
use podwright_base::Digest;
use podwright_layer::Form;

use crate::fetch::Wanted;
use crate::manifest::{self, ManifestError};

/// A blob's file name (OCI image specification, annotations).
const TITLE: &str = "org.opencontainers.image.title";
/// "true": the blob is a directory that oras(1) has packed.
const UNPACK: &str = "io.deis.oras.content.unpack";
/// A name in an archive that begins so is an order to remove another.
const WHITEOUT: &str = ".wh.";

/// Reads which layers an artifact has, the first blob's undermost.
pub(crate) fn layers(manifest: &OciImageManifest) -> Result<Vec<Wanted>, ManifestError> {
    let mut names = BTreeSet::new();
    let mut layers = Vec::new();
    for descriptor in &manifest.layers {
        let form = form(descriptor)?;
        if let Form::File { name, .. } = &form {
            let is_taken = |known: &String| Path::new(known).starts_with(name) || Path::new(name).starts_with(known);
            if names.iter().any(is_taken) {
                return Err(title(name, "is in the way of another blob's"));
            }
            names.insert(name.clone());
        }
        let blob = manifest::blob(descriptor)?;
        layers.push(Wanted { id: id(&blob.digest, &form), blob, form: Some(form) });
    }
    Ok(layers)
}

fn form(descriptor: &OciDescriptor) -> Result<Form, ManifestError> {
    let annotation = |key| descriptor.annotations.as_ref().and_then(|all: &BTreeMap<_, _>| all.get(key));
    let is_packed = annotation(UNPACK).is_some_and(|value| value == "true");
    if is_packed || manifest::is_layer(&descriptor.media_type) {
        return Ok(Form::Archive);
    }
    let size = manifest::blob(descriptor)?.size;
    let name = match annotation(TITLE) {
        Some(title) => file_name(title)?,
        None => descriptor.digest.replace(':', "-"),
    };
    Ok(Form::File { name, size })
}

/// Takes a title that is a path below the layer's root.
fn file_name(text: &str) -> Result<String, ManifestError> {
    let mut names = Vec::new();
    for part in Path::new(text).components() {
        match part {
            Component::Normal(name) => names.push(name.to_string_lossy()),
            Component::CurDir => {}
            Component::ParentDir => return Err(title(text, "leads out of the artifact")),
            Component::RootDir | Component::Prefix(_) => return Err(title(text, "is absolute")),
        }
    }
    if names.is_empty() || text.contains('\0') {
        return Err(title(text, "is no file's name"));
    }
    if names.iter().any(|name| name.starts_with(WHITEOUT)) {
        return Err(title(text, "has a name in it that removes another"));
    }
    Ok(names.join("/"))
}

fn title(title: &str, problem: &'static str) -> ManifestError {
    ManifestError::Title { title: title.to_owned(), problem }
}

/// No layer of an image can have this id: nothing is known whose hash it is but this text.
fn id(blob: &Digest, form: &Form) -> Digest {
    let form = match form {
        Form::Archive => "archive".to_owned(),
        Form::File { name, .. } => format!("file\0{name}"),
    };
    Digest::of(format!("podwright artifact layer\0{blob}\0{form}").as_bytes())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(blobs: &[(&str, Value)]) -> Result<Vec<Wanted>, ManifestError> {
        let descriptor = |(index, (media_type, annotations)): (usize, &(&str, Value))| {
            let digest = Digest::of(&[index as u8 / 2]);
            json!({"mediaType": media_type, "digest": digest, "size": 7, "annotations": annotations})
        };
        let manifest = json!({
            "schemaVersion": 2,
            "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": Digest::of(b"{}"), "size": 2},
            "layers": blobs.iter().enumerate().map(descriptor).collect::<Vec<_>>(),
        });
        layers(&serde_json::from_value(manifest).unwrap())
    }

    fn file(name: &str) -> Option<Form> {
        Some(Form::File { name: name.to_owned(), size: 7 })
    }

    #[test]
    fn blobs_are_files_unless_they_are_archives() {
        let found = read(&[
            ("text/plain", json!({TITLE: "notes/./a.txt"})),
            ("text/plain", json!({TITLE: "notes/b.txt"})),
            ("application/vnd.cncf.helm.chart.content.v1.tar+gzip", json!({})),
            ("application/vnd.oci.image.layer.v1.tar+gzip", json!({TITLE: "dir"})),
            ("application/x-directory", json!({TITLE: "dir", UNPACK: "true"})),
            ("application/x-file", json!({TITLE: "kept.tar.gz", UNPACK: "false"})),
        ])
        .unwrap();
        let chart = Digest::of(&[1]).to_string().replace(':', "-");
        let expected = [
            file("notes/a.txt"),
            file("notes/b.txt"),
            file(&chart),
            Some(Form::Archive),
            Some(Form::Archive),
            file("kept.tar.gz"),
        ];
        assert_eq!(found.iter().map(|layer| layer.form.clone()).collect::<Vec<_>>(), expected);
        let ids: BTreeSet<_> = found.iter().map(|layer| layer.id.clone()).collect();
        assert_eq!(ids.len(), found.len(), "one blob with two names is two layers");
        assert!(found.iter().all(|layer| layer.id != layer.blob.digest));
    }

    #[test]
    fn titles_that_are_no_names_are_refused() {
        for bad in ["", ".", "/etc/passwd", "../x", "a/../../x", "a\0b", "a/.wh.b", ".wh..wh..opq"] {
            let error = read(&[("text/plain", json!({TITLE: bad}))]).unwrap_err();
            assert!(matches!(error, ManifestError::Title { .. }), "{bad:?}: {error}");
        }
        for second in ["a/b", "a//b", "a", "a/b/c"] {
            let error = read(&[("text/plain", json!({TITLE: "a/b"})), ("text/plain", json!({TITLE: second}))]);
            assert!(matches!(error, Err(ManifestError::Title { .. })), "{second}");
        }
    }
}
