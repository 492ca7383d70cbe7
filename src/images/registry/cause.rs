//! Why a request failed, for people: the client's error without the layers that say only that a request failed.

use std::error::Error;
use std::fmt;
use std::io;

use hyper_util::client::legacy;

/// A failed request's cause. It tells all of it in its own text.
#[derive(Debug)]
pub struct Cause(reqwest::Error);

impl From<reqwest::Error> for Cause {
    fn from(error: reqwest::Error) -> Self {
        // Who reports it has said which server it is about; parameters of the URL may be secrets.
        Self(error.without_url())
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cause: &(dyn Error + 'static) = &self.0;
        while let Some(source) = next(cause)
            && (cause.is::<reqwest::Error>() || cause.is::<legacy::Error>())
        {
            cause = source;
        }
        write!(f, "{cause}")?;
        let mut told = cause.to_string();
        while let Some(source) = next(cause) {
            cause = source;
            let text = cause.to_string();
            // An io::Error has the text of the error that it wraps.
            if !told.ends_with(&text) {
                write!(f, ": {text}")?;
            }
            told = text;
        }
        Ok(())
    }
}

impl Error for Cause {}

impl Cause {
    /// Tells whether no connection came about.
    pub(crate) fn is_connect(&self) -> bool {
        self.0.is_connect()
    }

    /// Tells whether the request could not even be made, or went where it must not.
    pub(crate) fn is_final(&self) -> bool {
        self.0.is_redirect() || self.0.is_builder() || self.is_certificate()
    }

    /// Tells whether the server's certificate was rejected.
    pub(crate) fn is_certificate(&self) -> bool {
        let mut cause: Option<&(dyn Error + 'static)> = Some(&self.0);
        while let Some(error) = cause {
            if let Some(rustls::Error::InvalidCertificate(_)) = error.downcast_ref::<rustls::Error>() {
                return true;
            }
            cause = next(error);
        }
        false
    }
}

/// An `io::Error` hides the error that it wraps from `source`.
fn next<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a (dyn Error + 'static)> {
    match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
        Some(inner) => Some(inner),
        None => error.source(),
    }
}
