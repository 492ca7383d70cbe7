//! `hooks`: programs of the host's that are run at fixed points of a container's life.

use oci_spec::runtime::{Hook, Hooks};
use podwright_plan::wire;

use crate::error::{CompileError, invalid};
use crate::mounts::absolute;

/// Compiles all six lists; `None` when there is no hook.
#[allow(deprecated)] // prestart hooks are still in the specification.
pub(crate) fn hooks(hooks: Option<&Hooks>) -> Result<Option<wire::Hooks>, CompileError> {
    let Some(hooks) = hooks else { return Ok(None) };
    let compiled = wire::Hooks {
        prestart: list(hooks.prestart().as_deref(), "hooks.prestart")?,
        create_runtime: list(hooks.create_runtime().as_deref(), "hooks.createRuntime")?,
        create_container: list(hooks.create_container().as_deref(), "hooks.createContainer")?,
        start_container: list(hooks.start_container().as_deref(), "hooks.startContainer")?,
        poststart: list(hooks.poststart().as_deref(), "hooks.poststart")?,
        poststop: list(hooks.poststop().as_deref(), "hooks.poststop")?,
    };
    Ok((compiled != wire::Hooks::default()).then_some(compiled))
}

fn list(list: Option<&[Hook]>, field: &str) -> Result<Vec<wire::Hook>, CompileError> {
    let hooks = list.unwrap_or_default().iter().enumerate();
    hooks.map(|(index, it)| hook(it, &format!("{field}[{index}]"))).collect()
}

fn hook(hook: &Hook, field: &str) -> Result<wire::Hook, CompileError> {
    let texts = |texts: &Option<Vec<String>>, name: &str| {
        let texts = texts.as_deref().unwrap_or_default();
        match texts.iter().any(|text| text.contains('\0')) {
            // The text may be a secret.
            true => Err(invalid(format!("{field}.{name}"), "", "has a NUL")),
            false => Ok(texts.iter().map(|text| text.clone().into_bytes()).collect::<Vec<_>>()),
        }
    };
    let env = texts(hook.env(), "env")?;
    if env.iter().any(|variable| variable.iter().position(|byte| *byte == b'=').is_none_or(|at| at == 0)) {
        return Err(invalid(format!("{field}.env"), "", "is not of the form NAME=value"));
    }
    let timeout_s = match hook.timeout() {
        None => 0,
        Some(seconds) => u32::try_from(seconds)
            .ok()
            .filter(|seconds| *seconds > 0)
            .ok_or_else(|| invalid(format!("{field}.timeout"), seconds.to_string(), "is not a number above 0"))?,
    };
    Ok(wire::Hook {
        path: absolute(hook.path(), &format!("{field}.path"))?,
        args: texts(hook.args(), "args")?,
        env,
        timeout_s,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compile(json: &str) -> Result<Option<wire::Hooks>, String> {
        let it: Hooks = serde_json::from_str(json).unwrap();
        hooks(Some(&it)).map_err(|error| error.to_string())
    }

    #[test]
    fn a_hook_keeps_its_list_and_its_arguments() {
        let json = r#"{"poststop": [{"path": "/bin/true", "args": ["true", "-x"], "env": ["A=b"], "timeout": 3}]}"#;
        let hooks = compile(json).unwrap().unwrap();
        assert!(hooks.prestart.is_empty());
        let expected = wire::Hook {
            path: "/bin/true".into(),
            args: vec![b"true".to_vec(), b"-x".to_vec()],
            env: vec![b"A=b".to_vec()],
            timeout_s: 3,
        };
        assert_eq!(hooks.poststop, [expected]);
        assert_eq!(compile(r#"{"poststop": []}"#).unwrap(), None);
    }

    #[test]
    fn bad_hooks_are_named() {
        for (json, words) in [
            (r#"{"prestart": [{"path": "true"}]}"#, "hooks.prestart[0].path"),
            (r#"{"createRuntime": [{"path": "/x", "timeout": 0}]}"#, "hooks.createRuntime[0].timeout"),
            (r#"{"startContainer": [{"path": "/x"}, {"path": "/x", "env": ["A"]}]}"#, "hooks.startContainer[1].env"),
        ] {
            let error = compile(json).unwrap_err();
            assert!(error.contains(words), "{error}");
        }
    }
}
