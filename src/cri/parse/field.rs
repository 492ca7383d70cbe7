//! The path of a field in its request, and the checks that many fields share. Every error names the field.

use std::fmt;

use podwright_core::Error;

/// Ids end one below the highest number: `setresuid(2)` and `chown(2)` read that one as "leave unchanged".
const HIGHEST_ID: i64 = u32::MAX as i64 - 1;

/// Where in a request a value stands; printed as `config.mounts[2].host_path`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Field<'a> {
    parent: Option<&'a Field<'a>>,
    name: &'a str,
    index: Option<usize>,
}

impl<'a> Field<'a> {
    /// Names a field of the request itself.
    pub(crate) const fn root(name: &'a str) -> Self {
        Self { parent: None, name, index: None }
    }

    /// Names a field of this message.
    pub(crate) const fn child(&'a self, name: &'a str) -> Self {
        Self { parent: Some(self), name, index: None }
    }

    /// Names one item of this repeated field.
    pub(crate) const fn item(self, index: usize) -> Self {
        Self { index: Some(index), ..self }
    }

    /// Makes the error of this field's value.
    pub(crate) fn invalid(&self, problem: impl Into<String>) -> Error {
        Error::invalid(self.to_string(), problem)
    }

    /// Makes the error of a field that only a later version knows how to honour.
    ///
    /// It is an invalid argument, not an unimplemented call: clients read the latter as "never ask again".
    pub(crate) fn unsupported(&self, feature: &str) -> Error {
        self.invalid(format!("{feature}: not supported by this version"))
    }
}

impl fmt::Display for Field<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            write!(f, "{parent}.")?;
        }
        f.write_str(self.name)?;
        match self.index {
            Some(index) => write!(f, "[{index}]"),
            None => Ok(()),
        }
    }
}

/// Takes a message that must be there.
pub(crate) fn required<T>(value: Option<T>, field: Field<'_>) -> Result<T, Error> {
    value.ok_or_else(|| field.invalid("is missing"))
}

/// Takes a text that must not be empty.
pub(crate) fn not_empty(value: String, field: Field<'_>) -> Result<String, Error> {
    if value.is_empty() { Err(field.invalid("is empty")) } else { text(value, field) }
}

/// Takes a text that ends up in a C string of the kernel's.
pub(crate) fn text(value: String, field: Field<'_>) -> Result<String, Error> {
    if value.contains('\0') { Err(field.invalid(format!("{value:?} has a zero byte"))) } else { Ok(value) }
}

/// Takes a list of such texts.
pub(crate) fn texts(values: Vec<String>, field: Field<'_>) -> Result<Vec<String>, Error> {
    values.into_iter().enumerate().map(|(index, value)| text(value, field.item(index))).collect()
}

/// Takes one word of a line-oriented file: white space or a control character in it would start something new.
pub(crate) fn word(value: String, field: Field<'_>) -> Result<String, Error> {
    if value.is_empty() {
        Err(field.invalid("is empty"))
    } else if value.chars().any(|char| char.is_whitespace() || char.is_control()) {
        Err(field.invalid(format!("{value:?} has white space or a control character in it")))
    } else {
        Ok(value)
    }
}

/// Takes a path that must begin at the root.
pub(crate) fn absolute(value: String, field: Field<'_>) -> Result<String, Error> {
    let value = not_empty(value, field)?;
    if value.starts_with('/') {
        Ok(value)
    } else {
        Err(field.invalid(format!("{value:?} is relative: an absolute path is needed")))
    }
}

/// Takes a list of such paths.
pub(crate) fn absolutes(values: Vec<String>, field: Field<'_>) -> Result<Vec<String>, Error> {
    values.into_iter().enumerate().map(|(index, value)| absolute(value, field.item(index))).collect()
}

/// Takes a user or group id.
pub(crate) fn id(value: i64, field: Field<'_>) -> Result<u32, Error> {
    match u32::try_from(value) {
        Ok(id) if value <= HIGHEST_ID => Ok(id),
        _ => Err(field.invalid(format!("{value} is no id: ids go from 0 to {HIGHEST_ID}"))),
    }
}

/// Takes a list of ids.
pub(crate) fn ids(values: Vec<i64>, field: Field<'_>) -> Result<Vec<u32>, Error> {
    values.into_iter().enumerate().map(|(index, value)| id(value, field.item(index))).collect()
}

/// Takes a number that has a lowest value.
pub(crate) fn at_least(lowest: i64, value: i64, field: Field<'_>) -> Result<i64, Error> {
    if value < lowest { Err(field.invalid(format!("{value} is below {lowest}"))) } else { Ok(value) }
}

/// Takes a value of an enumeration.
pub(crate) fn known<E: TryFrom<i32>>(value: i32, field: Field<'_>) -> Result<E, Error> {
    E::try_from(value).map_err(|_| field.invalid(format!("{value} is no value that this version knows")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_printed_as_it_is_written_in_the_interface() {
        let config = Field::root("config");
        let mounts = config.child("mounts").item(2);
        assert_eq!(mounts.child("host_path").to_string(), "config.mounts[2].host_path");
    }

    #[test]
    fn ids_have_two_ends() {
        let field = Field::root("uid");
        assert_eq!(id(0, field).unwrap(), 0);
        assert_eq!(id(HIGHEST_ID, field).unwrap(), u32::MAX - 1);
        for bad in [-1, i64::MIN, HIGHEST_ID + 1, i64::MAX] {
            assert!(id(bad, field).unwrap_err().to_string().starts_with("uid: "), "{bad}");
        }
    }
}
