//! What command lines are made of: flags, their values, and what is neither.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use lexopt::{Arg, Parser};

use super::{Create, Format};
use crate::error::Error;
use crate::state;

/// A flag's name without its dashes; a word that is none has the empty name.
pub(super) struct Flag(pub(super) String);

impl Flag {
    pub(super) fn of(arg: &Arg<'_>) -> Self {
        match arg {
            Arg::Short(letter) => Self(letter.to_string()),
            Arg::Long(name) => Self((*name).to_owned()),
            Arg::Value(_) => Self(String::new()),
        }
    }

    /// Takes a flag that `create` and `run` share; `false` for another one.
    pub(super) fn take_for_create(&self, parser: &mut Parser, create: &mut Create) -> Result<bool, Error> {
        match self.0.as_str() {
            "b" | "bundle" => create.bundle = Some(PathBuf::from(parser.value()?)),
            "console-socket" => create.console_socket = Some(PathBuf::from(parser.value()?)),
            "pid-file" => create.pid_file = Some(PathBuf::from(parser.value()?)),
            "preserve-fds" => create.preserve_fds = number(parser.value()?, "--preserve-fds")?,
            // Nothing is pivoted on a root that cannot be, and no keyring is made.
            "no-pivot" | "no-new-keyring" => drop(flag(parser)?),
            _ => return Ok(false),
        }
        Ok(true)
    }
}

pub(super) fn other_flag(name: Flag) -> Error {
    Error::argument("flag", name.0, "is not one of this command's")
}

/// What is no flag.
#[derive(Debug, Default)]
pub(super) struct Words(pub(super) Vec<String>);

impl Words {
    /// Keeps a word; gives a flag back.
    pub(super) fn take<'a>(&mut self, arg: Arg<'a>) -> Option<Arg<'a>> {
        match arg {
            Arg::Value(word) => {
                self.0.push(word.to_string_lossy().into_owned());
                None
            }
            flag => Some(flag),
        }
    }

    /// The container's id, which must be all there is.
    pub(super) fn id(self) -> Result<String, Error> {
        match <[String; 1]>::try_from(self.0) {
            Ok([id]) => state::check_id(id),
            Err(words) => Err(Error::argument("arguments", words.join(" "), "take one container id")),
        }
    }
}

/// A flag that may have `=true` or `=false` behind it.
pub(super) fn flag(parser: &mut Parser) -> Result<bool, Error> {
    match parser.optional_value() {
        None => Ok(true),
        Some(value) if value == "true" || value == "1" => Ok(true),
        Some(value) if value == "false" || value == "0" => Ok(false),
        Some(value) => Err(Error::argument("flag", value.to_string_lossy(), "is neither true nor false")),
    }
}

pub(super) fn number(value: OsString, name: &'static str) -> Result<u32, Error> {
    let text = value.to_string_lossy();
    text.parse().map_err(|_| Error::argument(name, &text, "is no number"))
}

/// A time above zero: whole numbers with h, m, s or ms behind each.
pub(super) fn duration(value: OsString, name: &'static str) -> Result<Duration, Error> {
    let text = value.to_string_lossy();
    let parsed = milliseconds(&text).filter(|milliseconds| *milliseconds > 0).map(Duration::from_millis);
    parsed.ok_or_else(|| Error::argument(name, &text, "is no time above zero, such as 5s or 200ms"))
}

fn milliseconds(mut text: &str) -> Option<u64> {
    let mut sum = 0_u64;
    while !text.is_empty() {
        let (number, rest) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
        let (unit, rest) = rest.split_at(rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len()));
        let factor = match unit {
            "h" => 3_600_000,
            "m" => 60_000,
            "s" => 1000,
            "ms" => 1,
            _ => return None,
        };
        sum = sum.checked_add(number.parse::<u64>().ok()?.checked_mul(factor)?)?;
        text = rest;
    }
    Some(sum)
}

pub(super) fn log_format(value: OsString) -> Result<Format, Error> {
    match &*value.to_string_lossy() {
        "text" => Ok(Format::Text),
        "json" => Ok(Format::Json),
        other => Err(Error::argument("--log-format", other, "is neither text nor json")),
    }
}

/// The format of a listing.
pub(super) fn format(value: OsString, name: &'static str) -> Result<Format, Error> {
    match &*value.to_string_lossy() {
        "table" => Ok(Format::Text),
        "json" => Ok(Format::Json),
        other => Err(Error::argument(name, other, "is neither table nor json")),
    }
}
