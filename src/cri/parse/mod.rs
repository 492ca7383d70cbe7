//! From messages of the wire to validated configuration. Each error names the field by its path in the request, and
//! what a later version brings is refused, not ignored: a pod that asked for it must not run without it.

pub(crate) mod container;
pub(crate) mod field;
pub(crate) mod image;
mod mounts;
pub(crate) mod namespaces;
pub(crate) mod pod;
mod resources;
mod security;
#[cfg(test)]
mod tests;

use podwright_core::Error;

use self::field::Field;

/// Makes the error of a handler that nobody has configured.
fn unknown_handler(name: &str, field: Field<'_>) -> Error {
    field.invalid(format!("{name:?} is not known here; known is \"\", the default one"))
}
