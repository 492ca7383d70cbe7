//! The requests of the CRI that a URL is handed out for, checked before it is.

/// CRI `ExecRequest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecRequest {
    /// Where to run it.
    pub container_id: String,
    /// The command and its arguments.
    pub command: Vec<String>,
    /// Whether it gets a terminal.
    pub tty: bool,
    /// Whether the client sends input.
    pub stdin: bool,
    /// Whether the client wants the output.
    pub stdout: bool,
    /// Whether the client wants the error output.
    pub stderr: bool,
}

/// CRI `AttachRequest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachRequest {
    /// What to attach to.
    pub container_id: String,
    /// Whether the client takes the container to have a terminal.
    pub tty: bool,
    /// Whether the client sends input.
    pub stdin: bool,
    /// Whether the client wants the output.
    pub stdout: bool,
    /// Whether the client wants the error output.
    pub stderr: bool,
}

/// CRI `PortForwardRequest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortForwardRequest {
    /// Whose ports.
    pub pod_sandbox_id: String,
    /// The ports of a WebSocket client; one that speaks SPDY names them stream by stream.
    pub ports: Vec<i32>,
}

/// Why a request gets no URL.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// A field is missing or makes no sense (CRI `InvalidArgument`).
    #[error("{field}: {reason}")]
    Invalid {
        /// The field of the CRI message.
        field: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Too many URLs are handed out and not used yet (CRI `ResourceExhausted`).
    #[error("{limit} streaming requests wait for their clients already")]
    Exhausted {
        /// How many may wait.
        limit: usize,
    },
}

/// What a token stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Request {
    /// A process and its streams.
    Remote(RemoteRequest),
    /// Connections to ports.
    Forward(ForwardRequest),
}

/// Whose process: a new one's or the container's own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RemoteRequest {
    Exec(ExecRequest),
    Attach(AttachRequest),
}

/// A [`PortForwardRequest`] with ports that exist.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForwardRequest {
    pub(crate) pod_sandbox_id: String,
    pub(crate) ports: Vec<u16>,
}

impl Request {
    /// Returns the first part of the request's path.
    pub(crate) fn verb(&self) -> &'static str {
        match self {
            Self::Remote(RemoteRequest::Exec(_)) => "exec",
            Self::Remote(RemoteRequest::Attach(_)) => "attach",
            Self::Forward(_) => "portforward",
        }
    }

    /// Returns the id of the container or the pod.
    pub(crate) fn target(&self) -> &str {
        match self {
            Self::Remote(RemoteRequest::Exec(request)) => &request.container_id,
            Self::Remote(RemoteRequest::Attach(request)) => &request.container_id,
            Self::Forward(request) => &request.pod_sandbox_id,
        }
    }
}

fn invalid<T>(field: &'static str, reason: impl Into<String>) -> Result<T, TokenError> {
    Err(TokenError::Invalid { field, reason: reason.into() })
}

fn check(id: &str, tty: bool, [stdin, stdout, stderr]: [bool; 3]) -> Result<(), TokenError> {
    if id.is_empty() {
        return invalid("container_id", "it is required");
    }
    if tty && stderr {
        return invalid("stderr", "a terminal has one output: tty and stderr cannot both be true");
    }
    if !stdin && !stdout && !stderr {
        return invalid("stdin, stdout, stderr", "one of them must be true");
    }
    Ok(())
}

impl TryFrom<ExecRequest> for Request {
    type Error = TokenError;

    fn try_from(request: ExecRequest) -> Result<Self, TokenError> {
        check(&request.container_id, request.tty, [request.stdin, request.stdout, request.stderr])?;
        if request.command.is_empty() {
            return invalid("cmd", "it is required");
        }
        Ok(Self::Remote(RemoteRequest::Exec(request)))
    }
}

impl TryFrom<AttachRequest> for Request {
    type Error = TokenError;

    fn try_from(request: AttachRequest) -> Result<Self, TokenError> {
        check(&request.container_id, request.tty, [request.stdin, request.stdout, request.stderr])?;
        Ok(Self::Remote(RemoteRequest::Attach(request)))
    }
}

impl TryFrom<PortForwardRequest> for Request {
    type Error = TokenError;

    fn try_from(request: PortForwardRequest) -> Result<Self, TokenError> {
        if request.pod_sandbox_id.is_empty() {
            return invalid("pod_sandbox_id", "it is required");
        }
        let port = |&port: &i32| match u16::try_from(port) {
            Ok(port) if port != 0 => Ok(port),
            _ => invalid("port", format!("{port} is no port: it takes 1 to 65535")),
        };
        let ports = request.ports.iter().map(port).collect::<Result<_, _>>()?;
        Ok(Self::Forward(ForwardRequest { pod_sandbox_id: request.pod_sandbox_id, ports }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attach(tty: bool, [stdin, stdout, stderr]: [bool; 3]) -> Result<Request, TokenError> {
        AttachRequest { container_id: "c".to_owned(), tty, stdin, stdout, stderr }.try_into()
    }

    #[test]
    fn what_makes_no_sense_is_refused_by_field() {
        let field = |result: Result<Request, TokenError>| match result {
            Err(TokenError::Invalid { field, .. }) => field,
            other => panic!("{other:?}"),
        };
        assert_eq!(field(attach(true, [true, true, true])), "stderr");
        assert_eq!(field(attach(false, [false; 3])), "stdin, stdout, stderr");
        let forward = |ports: &[i32]| PortForwardRequest { pod_sandbox_id: "p".to_owned(), ports: ports.to_vec() };
        for bad in [0, -1, 65536] {
            assert_eq!(field(forward(&[80, bad]).try_into()), "port");
        }
        let nowhere = PortForwardRequest { pod_sandbox_id: String::new(), ports: Vec::new() };
        assert_eq!(field(nowhere.try_into()), "pod_sandbox_id");
        assert!(attach(true, [true, true, false]).is_ok());
        let all = Request::Forward(ForwardRequest { pod_sandbox_id: "p".to_owned(), ports: vec![1, 65535] });
        assert_eq!(Request::try_from(forward(&[1, 65535])), Ok(all));
    }
}
