//! Errors to gRPC codes: the one place where an error becomes an answer, and its chain of causes becomes a text.

use podwright_core::Error;
use podwright_core::error::{Class, chain};
use podwright_images::{CompletionError, LoadError, PullClass, PullError};
use tonic::{Code, Response, Status};

/// Bytes of an error's text that are sent. It travels as a header, and clients accept little more than four times
/// this in all of them.
const LIMIT: usize = 4 << 10;

/// Turns the outcome of a call into its answer.
pub(crate) fn reply<T>(outcome: Result<T, Error>) -> Result<Response<T>, Status> {
    outcome.map(Response::new).map_err(|error| of(&error))
}

/// Makes the answer of a failed operation.
pub(crate) fn of(error: &Error) -> Status {
    Status::new(code(error.class()), cut(chain(error)))
}

/// Makes the answer of a failed pull. Where the kubelet knows a word for the cause, the code is `Unknown` and the text
/// begins with the word: of other codes it shows the code first, and does not see the word.
pub(crate) fn of_pull(error: &PullError) -> Status {
    let text = chain(error);
    let (code, text) = match error.class() {
        PullClass::Invalid if matches!(error, PullError::Reference(_)) => {
            (Code::InvalidArgument, format!("image.image: {text}"))
        }
        PullClass::Invalid => (Code::InvalidArgument, text),
        PullClass::NotFound => (Code::NotFound, text),
        PullClass::Unauthorized => (Code::PermissionDenied, text),
        PullClass::Unavailable => (Code::Unknown, format!("RegistryUnavailable: {text}")),
        PullClass::Untrusted => (Code::Unknown, format!("SignatureValidationFailed: {text}")),
        PullClass::Mismatch => (Code::DataLoss, text),
        PullClass::Unsupported => (Code::FailedPrecondition, text),
        PullClass::StorageFull => (Code::ResourceExhausted, text),
        PullClass::Internal => (Code::Internal, text),
    };
    Status::new(code, cut(text))
}

/// Makes the answer of a failed load. What is wrong with the archive is wrong with the request.
pub(crate) fn of_load(error: LoadError) -> Status {
    let is_ours = match &error {
        LoadError::Aborted | LoadError::Stage { .. } | LoadError::Store(_) => true,
        LoadError::Complete { source, .. } => !matches!(source, CompletionError::Layers(_)),
        _ => false,
    };
    let error = Error::step("load images", error);
    match error.class() {
        Class::Internal if !is_ours => Status::invalid_argument(cut(chain(&error))),
        _ => of(&error),
    }
}

/// Makes the answer of a failed verification.
pub(crate) fn of_verify(error: impl std::error::Error + Send + Sync + 'static) -> Status {
    of(&Error::step("verify images", error))
}

/// Makes the answer of a call that a later version brings.
pub(crate) fn later(call: &str, what: &str) -> Status {
    Status::unimplemented(format!("{call}: {what} not part of this version yet"))
}

fn code(class: Class) -> Code {
    match class {
        Class::NotFound => Code::NotFound,
        Class::InvalidArgument => Code::InvalidArgument,
        Class::FailedPrecondition => Code::FailedPrecondition,
        Class::AlreadyExists => Code::AlreadyExists,
        Class::DeadlineExceeded => Code::DeadlineExceeded,
        Class::ResourceExhausted => Code::ResourceExhausted,
        Class::Unavailable => Code::Unavailable,
        Class::Unimplemented => Code::Unimplemented,
        Class::Internal => Code::Internal,
    }
}

/// Cuts a text that is too long, at the end of a character.
fn cut(mut text: String) -> String {
    if text.len() > LIMIT {
        let end = (0..=LIMIT).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;
    use std::time::Duration;

    use podwright_images::{PolicyError, Refusal, RegistryError, TrustError};

    use super::*;

    #[test]
    fn each_class_has_its_code() {
        let absent = || "x".to_owned();
        for (error, code) in [
            (Error::PodNotFound { id: absent() }, Code::NotFound),
            (Error::ContainerNotFound { id: absent() }, Code::NotFound),
            (Error::ImageNotFound { image: absent() }, Code::NotFound),
            (Error::invalid("config", "is missing"), Code::InvalidArgument),
            (Error::AmbiguousId { prefix: absent(), count: 2 }, Code::InvalidArgument),
            (Error::NameInUse { what: "container", name: absent(), id: absent() }, Code::AlreadyExists),
            (Error::ExecTimeout { limit: Duration::from_secs(1) }, Code::DeadlineExceeded),
            (Error::ShuttingDown, Code::Unavailable),
            (Error::Unsupported { field: absent(), feature: absent() }, Code::Unimplemented),
            (Error::step("write", io::Error::from(io::ErrorKind::StorageFull)), Code::ResourceExhausted),
            (Error::step("write", io::Error::from(io::ErrorKind::NotFound)), Code::Internal),
            (Error::Joined(Arc::new(Error::ShuttingDown)), Code::Unavailable),
        ] {
            assert_eq!(of(&error).code(), code, "{error}");
        }
    }

    #[test]
    fn every_cause_is_told_once() {
        let error = Error::step("start the shim", Error::step("open /x", io::Error::other("no luck")));
        let joined = Error::Joined(Arc::new(error));
        assert_eq!(of(&joined).message(), "start the shim: open /x: no luck");
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let status = of(&Error::invalid("config", "ü".repeat(LIMIT)));
        assert!(status.message().len() <= LIMIT + '…'.len_utf8());
        assert!(status.message().ends_with("ü…"));
    }

    #[test]
    fn a_malformed_reference_is_told_by_its_field() {
        let error = podwright_images::normalize("example.org/UPPER").unwrap_err();
        let status = of_pull(&PullError::Reference(error));
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with("image.image: \"example.org/UPPER\""), "{}", status.message());
    }

    #[test]
    fn the_kubelets_words_come_first() {
        let host = || "https://r.io".to_owned();
        let away = RegistryError::Stalled { host: host(), seconds: 30 };
        let status = of_pull(&PullError::Registry { reference: "r.io/x:1".to_owned(), source: away });
        assert_eq!((status.code(), status.message().split(' ').next()), (Code::Unknown, Some("RegistryUnavailable:")));
        let policy = PolicyError::Value { path: "/p.json".into(), at: "default".to_owned(), problem: "no".to_owned() };
        for source in [
            TrustError::Policy(policy),
            TrustError::Refused(Refusal::Rejected { policy: "/p.json".into(), scope: "default".to_owned() }),
        ] {
            let status = of_pull(&PullError::Trust { reference: "r.io/x:1".to_owned(), source });
            assert_eq!(status.code(), Code::Unknown);
            let (word, text) = status.message().split_once(": ").unwrap();
            assert_eq!(word, "SignatureValidationFailed");
            assert!(text.starts_with("pull r.io/x:1: ") && text.contains("/p.json"), "{text}");
        }
        let away = RegistryError::Stalled { host: host(), seconds: 30 };
        let status =
            of_pull(&PullError::Trust { reference: "r.io/x:1".to_owned(), source: TrustError::Registry(away) });
        assert!(status.message().starts_with("RegistryUnavailable: "), "{}", status.message());
    }

    #[test]
    fn a_bad_archive_is_the_requests_fault() {
        let missing = LoadError::Missing { name: "index.json".to_owned() };
        assert_eq!(of_load(missing).code(), Code::InvalidArgument);
        let full = LoadError::Read { name: "x".to_owned(), source: io::ErrorKind::StorageFull.into() };
        assert_eq!(of_load(full).code(), Code::ResourceExhausted);
        assert_eq!(of_load(LoadError::Aborted).code(), Code::Internal);
    }
}
