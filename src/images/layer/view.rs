//! Reads files of an image without mounting it, as overlayfs would show them.
//!
//! The path is walked name by name. At each directory the layers that take part in it are known, topmost first: a
//! whiteout or a file ends the search below it, an opaque directory hides what is below it. Links are followed inside
//! the image, `..` stops at its root. Only single names are opened, never through a link, so nothing leads out.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{CWD, FileType, Mode, OFlags};

use crate::tree;

/// As the kernel: more links than this are a loop.
const MOST_LINKS: usize = 40;

/// Why a file of an image was not read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadFileError {
    /// A layer of the image is gone: it was removed meanwhile.
    #[error("open the layer {}", path.display())]
    Layer {
        /// Its directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file system step.
    #[error("read {path:?} of the image")]
    Io {
        /// In the image.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// Of another kind than what is asked for: a directory where a file is, or a node.
    #[error("{path:?} of the image is of another kind than what is asked for")]
    NotFile {
        /// In the image.
        path: String,
    },
    /// Longer than the caller takes.
    #[error("{path:?} of the image is longer than {limit} bytes")]
    TooLong {
        /// In the image.
        path: String,
        /// The caller's bound.
        limit: usize,
    },
    /// Links that lead nowhere.
    #[error("{path:?} of the image goes through more than {MOST_LINKS} links")]
    Loop {
        /// In the image.
        path: String,
    },
}

/// A directory of one layer.
struct Part {
    fd: OwnedFd,
    path: PathBuf,
}

enum Found {
    Nothing,
    /// Directories of this name that take part, topmost first.
    Directory(Vec<Part>),
    Link(Vec<u8>),
    File(Part),
    Other,
}

/// Where a path of an image is, in the directories of its layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Located {
    /// A directory: those that overlayfs would merge into it, topmost first.
    Directories(Vec<PathBuf>),
    /// A regular file.
    File(PathBuf),
}

/// Reads a file below layer directories given topmost first; `None` when the image has no such file.
///
/// # Errors
/// When it is no regular file, longer than `limit`, or a layer is gone.
pub fn read_file(layers: &[PathBuf], path: &str, limit: usize) -> Result<Option<Vec<u8>>, ReadFileError> {
    match walk(layers, path)? {
        Found::File(part) => read(part.fd, path, limit).map(Some),
        Found::Nothing => Ok(None),
        _ => Err(ReadFileError::NotFile { path: path.to_owned() }),
    }
}

/// Finds a file or a directory below layer directories given topmost first; `None` when the image has neither there.
/// No part of what is returned is a link.
///
/// # Errors
/// When it is another kind of file, or a layer is gone.
pub fn locate(layers: &[PathBuf], path: &str) -> Result<Option<Located>, ReadFileError> {
    match walk(layers, path)? {
        Found::File(part) => Ok(Some(Located::File(part.path))),
        Found::Directory(parts) => Ok(Some(Located::Directories(parts.into_iter().map(|part| part.path).collect()))),
        Found::Nothing => Ok(None),
        Found::Link(_) | Found::Other => Err(ReadFileError::NotFile { path: path.to_owned() }),
    }
}

/// Follows a path to its end, links included.
fn walk(layers: &[PathBuf], path: &str) -> Result<Found, ReadFileError> {
    let failed = |source| ReadFileError::Io { path: path.to_owned(), source };
    let mut names: Vec<Vec<u8>> = components(path.as_bytes());
    let mut way = vec![open_layers(layers)?];
    let mut links = 0;
    while let Some(name) = names.pop() {
        if name == b".." {
            if way.len() > 1 {
                way.pop();
            }
            continue;
        }
        let here = way.last().map(Vec::as_slice).unwrap_or_default();
        match look(here, &name).map_err(failed)? {
            Found::Directory(directory) => way.push(directory),
            Found::Link(target) => {
                links += 1;
                if links > MOST_LINKS {
                    return Err(ReadFileError::Loop { path: path.to_owned() });
                }
                if target.starts_with(b"/") {
                    way.truncate(1);
                }
                names.extend(components(&target));
            }
            // A file in the middle of a path is as good as none.
            Found::File(_) | Found::Other if !names.is_empty() => return Ok(Found::Nothing),
            end => return Ok(end),
        }
    }
    Ok(way.pop().map_or(Found::Nothing, Found::Directory))
}

fn open_layers(layers: &[PathBuf]) -> Result<Vec<Part>, ReadFileError> {
    let open = |path: &PathBuf| {
        let fd = open_directory(CWD, path.as_os_str().as_encoded_bytes())
            .map_err(|source| ReadFileError::Layer { path: path.clone(), source })?;
        Ok(Part { fd, path: path.clone() })
    };
    layers.iter().map(open).collect()
}

/// Splits a path into its names, the next one last.
fn components(path: &[u8]) -> Vec<Vec<u8>> {
    let names = path.split(|byte| *byte == b'/').filter(|name| !matches!(*name, b"" | b"."));
    names.rev().map(<[u8]>::to_vec).collect()
}

fn look(directories: &[Part], name: &[u8]) -> io::Result<Found> {
    let mut merged = Vec::new();
    for directory in directories {
        let Some(found) = tree::stat(&directory.fd, name)? else { continue };
        let kind = tree::file_type(&found);
        let path = directory.path.join(OsStr::from_bytes(name));
        if kind != FileType::Directory {
            // Below a directory, whatever else has its name is hidden, and a whiteout hides all.
            if !merged.is_empty() {
                break;
            }
            return match kind {
                _ if tree::is_whiteout(&found) => Ok(Found::Nothing),
                FileType::RegularFile => Ok(Found::File(Part { fd: open_file(&directory.fd, name)?, path })),
                FileType::Symlink => {
                    Ok(Found::Link(rustix::fs::readlinkat(&directory.fd, name, Vec::new())?.into_bytes()))
                }
                _ => Ok(Found::Other),
            };
        }
        let fd = open_directory(directory.fd.as_fd(), name)?;
        let opaque = tree::is_opaque(fd.as_fd())?;
        merged.push(Part { fd, path });
        if opaque {
            break;
        }
    }
    Ok(if merged.is_empty() { Found::Nothing } else { Found::Directory(merged) })
}

fn open_directory(parent: std::os::fd::BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

fn open_file(parent: &OwnedFd, name: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

fn read(fd: OwnedFd, path: &str, limit: usize) -> Result<Vec<u8>, ReadFileError> {
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file that is too long.
    File::from(fd)
        .take(limit as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|source| ReadFileError::Io { path: path.to_owned(), source })?;
    if bytes.len() > limit {
        return Err(ReadFileError::TooLong { path: path.to_owned(), limit });
    }
    Ok(bytes)
}
