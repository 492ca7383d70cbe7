//! Mount options, word by word: attributes of the mount, propagation, bind or not, and what the file system itself reads.

use oci_spec::runtime::Mount;
use podwright_plan::wire::{Atime, FsOption, MountAttrs, Propagation};

use crate::error::{CompileError, invalid, unsupported};

/// A mount's options, sorted by who acts on them.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct MountOptions {
    pub(crate) attrs: MountAttrs,
    pub(crate) propagation: Propagation,
    /// `Some(recursive)` when a bind word is there.
    pub(crate) bind: Option<bool>,
    /// What is left: options of the file system.
    pub(crate) fs: Vec<FsOption>,
}

/// Words of mount(8) and the runtime specification that no part of the engine acts on. They are attributes, so that a
/// file system would not know them either.
const UNSUPPORTED: [&str; 24] = [
    "nodiratime",
    "remount",
    "unbindable",
    "runbindable",
    "idmap",
    "ridmap",
    "tmpcopyup",
    "rrw",
    "rnosuid",
    "rsuid",
    "rnodev",
    "rdev",
    "rnoexec",
    "rexec",
    "rnodiratime",
    "rdiratime",
    "rrelatime",
    "rnorelatime",
    "rnoatime",
    "ratime",
    "rstrictatime",
    "rnostrictatime",
    "rnosymfollow",
    "rsymfollow",
];

impl MountOptions {
    /// Sorts a mount's options; a later word overrides an earlier one that contradicts it, as in mount(8).
    pub(crate) fn parse(mount: &Mount, field: &str) -> Result<Self, CompileError> {
        let mut options = Self::default();
        for word in mount.options().iter().flatten() {
            if UNSUPPORTED.contains(&word.as_str()) {
                return Err(unsupported(format!("{field}.options[{word}]")));
            }
            if word.contains('\0') {
                return Err(invalid(format!("{field}.options"), word, "has a NUL"));
            }
            if !(options.attribute(word) || options.placement(word)) {
                options.fs.push(fs_option(word));
            }
        }
        Ok(options)
    }

    /// Takes a word that sets or clears an attribute.
    fn attribute(&mut self, word: &str) -> bool {
        let attrs = &mut self.attrs;
        match word {
            "ro" => attrs.readonly = true,
            "rw" => (attrs.readonly, attrs.recursive_readonly) = (false, false),
            "rro" => (attrs.readonly, attrs.recursive_readonly) = (true, true),
            "nosuid" => attrs.nosuid = true,
            "suid" => attrs.nosuid = false,
            "nodev" => attrs.nodev = true,
            "dev" => attrs.nodev = false,
            "noexec" => attrs.noexec = true,
            "exec" => attrs.noexec = false,
            "nosymfollow" => attrs.nosymfollow = true,
            "symfollow" => attrs.nosymfollow = false,
            "noatime" => attrs.atime = Atime::Noatime.into(),
            "strictatime" => attrs.atime = Atime::Strict.into(),
            "relatime" => attrs.atime = Atime::Relatime.into(),
            "atime" | "norelatime" | "nostrictatime" => attrs.atime = Atime::Default.into(),
            // What a mount is anyway.
            "defaults" | "diratime" | "async" | "nomand" | "noiversion" | "nolazytime" | "loud" => {}
            _ => return false,
        }
        true
    }

    /// Takes a word that says how a mount hangs in the tree. One that names a propagation holds for the whole tree below
    /// a recursive bind, as for a volume with volumes inside.
    fn placement(&mut self, word: &str) -> bool {
        match word {
            "bind" => self.bind = Some(self.bind.unwrap_or(false)),
            "rbind" => self.bind = Some(true),
            "private" | "rprivate" => self.propagation = Propagation::Private,
            "slave" | "rslave" => self.propagation = Propagation::Slave,
            "shared" | "rshared" => self.propagation = Propagation::Shared,
            _ => return false,
        }
        true
    }
}

fn fs_option(word: &str) -> FsOption {
    match word.split_once('=') {
        Some((key, value)) => FsOption { key: key.to_owned(), value: value.to_owned(), flag: false },
        None => FsOption { key: word.to_owned(), value: String::new(), flag: true },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<MountOptions, CompileError> {
        let mut mount = Mount::default();
        mount.set_options(Some(words.iter().map(|word| (*word).to_owned()).collect()));
        MountOptions::parse(&mount, "mounts[0]")
    }

    #[test]
    fn words_go_to_whoever_acts_on_them() {
        let options = parse(&["rbind", "ro", "nosuid", "rslave", "mode=755", "size=64k", "inode64"]).unwrap();
        assert_eq!(options.attrs, MountAttrs { readonly: true, nosuid: true, ..MountAttrs::default() });
        assert_eq!((options.propagation, options.bind), (Propagation::Slave, Some(true)));
        let option = |key: &str, value: &str| FsOption { key: key.into(), value: value.into(), flag: value.is_empty() };
        assert_eq!(options.fs, [option("mode", "755"), option("size", "64k"), option("inode64", "")]);
    }

    #[test]
    fn later_words_win() {
        let options = parse(&["rro", "nosuid", "noatime", "rw", "suid", "strictatime", "rbind", "bind"]).unwrap();
        assert_eq!(options.attrs, MountAttrs { atime: Atime::Strict.into(), ..MountAttrs::default() });
        assert_eq!(options.bind, Some(true), "bind beside rbind takes nothing back");
    }

    #[test]
    fn what_nobody_acts_on_is_named() {
        let error = parse(&["bind", "rnoexec"]).unwrap_err();
        assert_eq!(error.to_string(), "mounts[0].options[rnoexec] is not supported by this version");
    }
}
