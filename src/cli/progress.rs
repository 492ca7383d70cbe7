//! What a pull or an import has done so far: bars on a terminal, lines elsewhere, both on stderr.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Write};

use indicatif::{BinaryBytes, MultiProgress, ProgressBar, ProgressStyle};
use podwright_proto::podwright::v1::{LayerProgress, LayerState};

use super::table::short;

/// How progress is shown.
pub(crate) struct Progress {
    bars: Option<MultiProgress>,
    /// By what each is about: its bar, and whether it is done.
    parts: BTreeMap<String, (Option<ProgressBar>, bool)>,
}

impl Progress {
    /// Chooses by what stderr is.
    pub(crate) fn new() -> Self {
        Self { bars: io::stderr().is_terminal().then(MultiProgress::new), parts: BTreeMap::new() }
    }

    /// Shows the state of an image's layers.
    pub(crate) fn layers(&mut self, layers: &[LayerProgress]) -> io::Result<()> {
        for layer in layers {
            let name = format!("layer {}", short(&layer.digest));
            let (name, done) = match layer.state() {
                LayerState::LayerPresent => (format!("{name}, here before"), true),
                LayerState::LayerDone => (name, true),
                LayerState::LayerWaiting | LayerState::LayerDownloading | LayerState::LayerUnpacking => (name, false),
            };
            let now = if done { layer.total_bytes } else { layer.fetched_bytes };
            self.part(&name, now, layer.total_bytes, done)?;
        }
        Ok(())
    }

    /// Shows how far one thing has come.
    pub(crate) fn part(&mut self, name: &str, now: u64, total: u64, done: bool) -> io::Result<()> {
        let (bar, was_done) = self.parts.entry(name.to_owned()).or_insert_with(|| {
            let bar = self
                .bars
                .as_ref()
                .map(|bars| bars.add(ProgressBar::new(total).with_message(name.to_owned()).with_style(style())));
            (bar, false)
        });
        match bar {
            Some(bar) => {
                bar.set_length(total);
                bar.set_position(now);
                if done && !*was_done {
                    bar.finish();
                }
            }
            None if done && !*was_done => writeln!(io::stderr(), "{name}: {}", BinaryBytes(total))?,
            None => {}
        }
        *was_done |= done;
        Ok(())
    }
}

fn style() -> ProgressStyle {
    // A template that does not parse would be this line's mistake; the default serves as well.
    ProgressStyle::with_template("{msg:32} {wide_bar} {binary_bytes}/{binary_total_bytes}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
}
