//! What the error stream says at a session's end.

use bytes::Bytes;
use serde::Serialize;

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// An attach is over, or a command has ended with code 0.
    Success,
    /// A command has ended with another code.
    ExitCode(i32),
    /// There was no session, or it broke.
    Failed(String),
}

impl Outcome {
    /// Tells success from other exit codes.
    pub(crate) fn of(code: i32) -> Self {
        if code == 0 { Self::Success } else { Self::ExitCode(code) }
    }
}

/// How it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    /// Before version 4: an error's text, nothing for success.
    Text,
    /// From version 4 on: a `Status` of the Kubernetes API.
    Json,
}

#[derive(Serialize)]
struct Status<'a> {
    metadata: Metadata,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    message: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<Details>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<u16>,
}

/// Of which an ephemeral object has none, and which strict clients look for.
#[derive(Serialize)]
struct Metadata {}

#[derive(Serialize)]
struct Details {
    causes: [Cause; 1],
}

#[derive(Serialize)]
struct Cause {
    reason: &'static str,
    message: String,
}

impl Format {
    /// Returns what the error stream carries; none where it stays empty.
    pub(crate) fn render(self, outcome: &Outcome) -> Option<Bytes> {
        let message = match outcome {
            Outcome::Success => None,
            Outcome::ExitCode(code) => Some(format!("command terminated with non-zero exit code: exit status {code}")),
            Outcome::Failed(message) => Some(message.clone()),
        };
        if self == Self::Text {
            return message.map(Bytes::from);
        }
        let message = message.as_deref();
        let metadata = Metadata {};
        let status = match outcome {
            Outcome::Success => {
                Status { metadata, status: "Success", message, reason: None, details: None, code: None }
            }
            Outcome::ExitCode(code) => {
                let details = Some(Details { causes: [Cause { reason: "ExitCode", message: code.to_string() }] });
                Status { metadata, status: "Failure", message, reason: Some("NonZeroExitCode"), details, code: None }
            }
            Outcome::Failed(_) => {
                let reason = Some("InternalError");
                Status { metadata, status: "Failure", message, reason, details: None, code: Some(500) }
            }
        };
        let json = serde_json::to_vec(&status).expect("strings and numbers always become JSON");
        Some(Bytes::from(json))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_what_clients_of_each_version_read() {
        let code = Outcome::ExitCode(3);
        let json =
            |outcome| serde_json::from_slice::<serde_json::Value>(&Format::Json.render(outcome).unwrap()).unwrap();
        let expected = serde_json::json!({
            "metadata": {},
            "status": "Failure",
            "message": "command terminated with non-zero exit code: exit status 3",
            "reason": "NonZeroExitCode",
            "details": { "causes": [{ "reason": "ExitCode", "message": "3" }] },
        });
        assert_eq!(json(&code), expected);
        assert_eq!(json(&Outcome::Success), serde_json::json!({ "metadata": {}, "status": "Success" }));
        assert_eq!(json(&Outcome::Failed("gone".to_owned()))["message"], "gone");
        assert_eq!(Format::Text.render(&Outcome::Success), None);
        let text = Format::Text.render(&code).unwrap();
        assert_eq!(text, "command terminated with non-zero exit code: exit status 3");
    }
}
