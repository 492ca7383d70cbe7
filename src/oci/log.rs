//! Where errors are told: on stderr, and in the file of `--log`, as those who call runc read them.

use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;

use podwright_sys::stamp::Stamp;

use crate::args::{Format, Globals};

/// The log file, if there is one.
#[derive(Debug, Default)]
pub(crate) struct Log {
    file: Option<PathBuf>,
    format: Format,
}

impl Log {
    /// Takes the place and the format from the command line.
    pub(crate) fn new(globals: &Globals) -> Self {
        Self { file: globals.log.clone(), format: globals.log_format }
    }

    /// Tells an error.
    pub(crate) fn error(&self, message: &str) {
        self.write("error", message);
        // Where stderr is closed too, the exit code is all that is left to tell.
        let _ = writeln!(io::stderr(), "podwright-oci: {message}");
    }

    /// Tells of something that went wrong and keeps nobody up.
    pub(crate) fn warning(&self, message: &str) {
        self.write("warning", message);
        let _ = writeln!(io::stderr(), "podwright-oci: warning: {message}");
    }

    fn write(&self, level: &str, message: &str) {
        let Some(path) = &self.file else { return };
        let stamp = Stamp::now();
        let time = stamp.as_str();
        let line = match self.format {
            Format::Json => serde_json::json!({ "level": level, "msg": message, "time": time }).to_string(),
            Format::Text => format!("time={time:?} level={level} msg={message:?}"),
        };
        let file = File::options().append(true).create(true).open(path);
        // stderr has it too.
        let _ = file.and_then(|mut file| writeln!(file, "{line}"));
    }
}
