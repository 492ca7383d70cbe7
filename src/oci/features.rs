//! `features`: what this runtime understands, as the specification's features document has it.

use serde_json::json;

use crate::args::print;
use crate::error::Error;
use crate::state::OCI_VERSION;

/// Does `features`.
pub(crate) fn features() -> Result<(), Error> {
    let features = json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": OCI_VERSION,
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"],
            "cgroup": { "v1": true, "v2": true, "systemd": true, "systemdUser": true, "rdma": true },
            "seccomp": { "enabled": true },
            "apparmor": { "enabled": true },
            "selinux": { "enabled": true },
            "netDevices": { "enabled": true },
            "intelRdt": { "enabled": false },
        },
    });
    print(&format!("{features:#}\n"))
}
