//! The wire contracts of the daemon's socket, generated from the files beside this one: the CRI at its newest level, and
//! the few calls of Podwright's own commands that the CRI lacks. Modules are named as the protobuf packages are.

use std::fmt;

/// The CRI.
pub mod runtime {
    /// Its one version.
    #[allow(missing_docs, unreachable_pub, deprecated, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("runtime.v1");
    }
}

/// Podwright's own.
pub mod podwright {
    /// Their one version.
    #[allow(missing_docs, unreachable_pub, clippy::all)]
    pub mod v1 {
        tonic::include_proto!("podwright.v1");
    }
}

impl fmt::Debug for runtime::v1::AuthConfig {
    /// Tells which secrets are given, never what they are.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let secret = |value: &str| if value.is_empty() { "" } else { "[redacted]" };
        f.debug_struct("AuthConfig")
            .field("username", &self.username)
            .field("password", &secret(&self.password))
            .field("auth", &secret(&self.auth))
            .field("server_address", &self.server_address)
            .field("identity_token", &secret(&self.identity_token))
            .field("registry_token", &secret(&self.registry_token))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::runtime::v1::{AuthConfig, PullImageRequest};

    #[test]
    fn secrets_are_not_printed() {
        let auth = AuthConfig {
            username: "anna".to_owned(),
            password: "s3cret".to_owned(),
            auth: "s3cret".to_owned(),
            server_address: "registry.example".to_owned(),
            identity_token: "s3cret".to_owned(),
            registry_token: String::new(),
        };
        let printed = format!("{:?}", PullImageRequest { auth: Some(auth), ..Default::default() });
        assert!(printed.contains("anna") && printed.contains("registry.example"), "{printed}");
        assert!(!printed.contains("s3cret"), "{printed}");
        assert_eq!(printed.matches("[redacted]").count(), 3, "{printed}");
    }
}
