//! The configuration of nodes whose pod addresses the cluster chooses: written from the administrator's template once
//! they are known.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ipnet::IpNet;

use crate::config::{self, Problem};
use crate::template::{self, Data, TemplateError};
use crate::{Cni, directory};

/// The file that is written.
const GENERATED: &str = "10-podwright.conflist";

/// Why no configuration was written.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// The template cannot be read.
    #[error("read the CNI template {}", path.display())]
    Read {
        /// The template.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The template cannot be filled.
    #[error("fill the CNI template {}", path.display())]
    Template {
        /// The template.
        path: PathBuf,
        /// What is wrong with it.
        source: TemplateError,
    },
    /// What the template makes is no configuration.
    #[error("what the CNI template {} makes cannot be used", path.display())]
    Unusable {
        /// The template.
        path: PathBuf,
        /// What is wrong.
        source: Problem,
    },
    /// The configuration cannot be written.
    #[error("write {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Cni {
    /// Writes a configuration from a template, unless there is a valid one that was not written here. Returns the file
    /// when it was written.
    ///
    /// # Errors
    /// What is wrong with the template, or with its place.
    pub fn generate(&self, template: &Path, ranges: &[IpNet]) -> Result<Option<PathBuf>, GenerateError> {
        let dir = &self.0.conf_dir;
        let file = dir.join(GENERATED);
        let present = directory::read(dir).ok().and_then(|found| found.network);
        if present.is_some_and(|network| network.file != file) {
            return Ok(None);
        }
        let path = template.to_owned();
        let text = fs::read_to_string(template).map_err(|source| GenerateError::Read { path: path.clone(), source })?;
        let text = template::fill(&text, &Data::new(ranges))
            .map_err(|source| GenerateError::Template { path: path.clone(), source })?;
        config::parse(file.clone(), text.as_bytes()).map_err(|source| GenerateError::Unusable { path, source })?;
        if fs::read(&file).is_ok_and(|present| present == text.as_bytes()) {
            return Ok(None);
        }
        // Until it is whole it has an ending that no runtime looks for.
        let written = fs::create_dir_all(dir).and_then(|()| podwright_base::replace(&file, text.as_bytes()));
        match written {
            Ok(()) => Ok(Some(file)),
            Err(source) => Err(GenerateError::Write { path: file, source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Settings;

    #[test]
    fn a_template_is_filled_when_there_is_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let cni = Cni::new(Settings {
            conf_dir: dir.path().join("conf"),
            bin_dirs: Vec::new(),
            records: dir.path().join("records"),
            plugin_limit: std::time::Duration::from_secs(1),
        });
        let template = dir.path().join("template");
        let ranges = |text: &str| vec![text.parse::<IpNet>().unwrap()];
        assert!(matches!(cni.generate(&template, &ranges("10.1.0.0/24")), Err(GenerateError::Read { .. })));
        fs::write(&template, r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"x","s":"{{.PodCIDR}}"}]}"#)
            .unwrap();
        let file = cni.generate(&template, &ranges("10.1.0.0/24")).unwrap().unwrap();
        let subnet = || cni.network().unwrap().unwrap().plugins[0].conf["s"].clone();
        assert_eq!((subnet(), cni.network().unwrap().unwrap().file), ("10.1.0.0/24".into(), file));
        assert_eq!(cni.generate(&template, &ranges("10.1.0.0/24")).unwrap(), None, "it is the same");
        assert!(cni.generate(&template, &ranges("10.2.0.0/24")).unwrap().is_some(), "the cluster chose anew");
        assert_eq!(subnet(), "10.2.0.0/24");
        fs::write(&template, "{{.PodCIDR}}").unwrap();
        let error = cni.generate(&template, &ranges("10.3.0.0/24")).unwrap_err();
        assert!(matches!(error, GenerateError::Unusable { .. }), "{error}");
        fs::write(dir.path().join("conf/05.conflist"), r#"{"cniVersion":"1.0.0","name":"m","plugins":[{"type":"x"}]}"#)
            .unwrap();
        assert_eq!(cni.generate(&template, &ranges("10.3.0.0/24")).unwrap(), None, "somebody else brought one");
    }
}
