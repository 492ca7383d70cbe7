//! Network configurations: a file's text made a chain of plugins (CNI specification, section 1). Pure.

use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::version::Version;

/// What is wrong with a configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// It is no JSON.
    #[error("it is not valid JSON ({why}): correct or remove it")]
    Json {
        /// Where and why.
        why: String,
    },
    /// A field is missing.
    #[error("{field} is missing: add {remedy}")]
    Missing {
        /// The field's path.
        field: String,
        /// What to add.
        remedy: &'static str,
    },
    /// A field has a value of another kind.
    #[error("{field} must be {expected}, not {value}")]
    Kind {
        /// The field's path.
        field: String,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        value: String,
    },
    /// The network's name is none.
    #[error("name {name:?} must begin with a letter or digit and go on with letters, digits, '_', '.' and '-'")]
    Name {
        /// As configured.
        name: String,
    },
    /// A plugin's type cannot be a file's name.
    #[error("{field} {kind:?} must be the name of an executable file, without '/'")]
    Type {
        /// The field's path.
        field: String,
        /// As configured.
        kind: String,
    },
    /// None of the stated versions is spoken here.
    #[error("cniVersion {stated}: none is supported; use one of 0.3.0, 0.3.1, 0.4.0, 1.0.0 and 1.1.0")]
    Version {
        /// All that the configuration states.
        stated: String,
    },
    /// There are no plugins.
    #[error("it names no plugins: fill \"plugins\", or the directory {} with *.conf files", folder.display())]
    NoPlugins {
        /// Where plugins of the network would be looked for.
        folder: PathBuf,
    },
    /// `loadOnlyInlinedPlugins` without plugins in the file.
    #[error("loadOnlyInlinedPlugins is true, but there is no \"plugins\": add them, or set it to false")]
    OnlyInlined,
    /// The file, or one of the network's folder, cannot be read.
    #[error("{} cannot be read: {why}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why.
        why: String,
    },
}

/// A network: a chain of plugins.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkConfig {
    /// The network's name.
    pub name: String,
    /// The file that it was read from.
    pub file: PathBuf,
    /// The versions that are stated and spoken here, oldest first; never empty.
    pub versions: Vec<Version>,
    pub(crate) disable_check: bool,
    pub(crate) disable_gc: bool,
    pub(crate) only_inlined: bool,
    pub(crate) plugins: Vec<Plugin>,
}

impl NetworkConfig {
    /// Whether a plugin of the chain declares a capability.
    pub fn has_capability(&self, capability: &str) -> bool {
        self.plugins.iter().any(|plugin| plugin.has_capability(capability))
    }
}

/// One plugin of a chain.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plugin {
    /// The executable's name.
    pub(crate) kind: String,
    /// As configured, with all that only the plugin understands.
    pub(crate) conf: Map<String, Value>,
}

impl Plugin {
    pub(crate) fn parse(field: &str, value: Value) -> Result<Self, Problem> {
        let Value::Object(conf) = value else { return Err(kind(field, "an object", &value)) };
        let field = format!("{field}.type");
        let kind = match conf.get("type") {
            Some(Value::String(kind)) => kind.clone(),
            Some(other) => return Err(self::kind(&field, "a string", other)),
            None => return Err(Problem::Missing { field, remedy: "the name of the plugin's executable" }),
        };
        if kind.is_empty() || kind == "." || kind == ".." || kind.contains(['/', '\0']) {
            return Err(Problem::Type { field, kind });
        }
        Ok(Self { kind, conf })
    }

    pub(crate) fn has_capability(&self, capability: &str) -> bool {
        let declared = self.conf.get("capabilities").and_then(|all| all.get(capability));
        declared.and_then(Value::as_bool) == Some(true)
    }
}

/// Parses a file's text: a list of plugins, or a single plugin, which is a chain of one.
pub(crate) fn parse(file: PathBuf, text: &[u8]) -> Result<NetworkConfig, Problem> {
    let value: Value = serde_json::from_slice(text).map_err(|error| Problem::Json { why: error.to_string() })?;
    let Value::Object(mut top) = value else { return Err(kind("the configuration", "an object", &value)) };
    let name = match top.get("name") {
        Some(Value::String(name)) => name.clone(),
        Some(other) => return Err(kind("name", "a string", other)),
        None => return Err(Problem::Missing { field: "name".to_owned(), remedy: "the network's name" }),
    };
    if !is_name(&name) {
        return Err(Problem::Name { name });
    }
    let versions = versions(&top)?;
    let (disable_check, disable_gc) = (flag(&top, "disableCheck")?, flag(&top, "disableGC")?);
    let only_inlined = flag(&top, "loadOnlyInlinedPlugins")?;
    let is_single = top.contains_key("type") && !top.contains_key("plugins");
    let plugins = match top.remove("plugins") {
        None if is_single => vec![Plugin::parse("the configuration", Value::Object(top))?],
        None if only_inlined => return Err(Problem::OnlyInlined),
        None => Vec::new(),
        Some(Value::Array(all)) => {
            let numbered = all.into_iter().enumerate();
            numbered.map(|(index, one)| Plugin::parse(&format!("plugins[{index}]"), one)).collect::<Result<_, _>>()?
        }
        Some(other) => return Err(kind("plugins", "a list", &other)),
    };
    let only_inlined = only_inlined || is_single;
    Ok(NetworkConfig { name, file, versions, disable_check, disable_gc, only_inlined, plugins })
}

fn versions(top: &Map<String, Value>) -> Result<Vec<Version>, Problem> {
    let mut stated = Vec::new();
    match top.get("cniVersion") {
        None => {}
        Some(Value::String(version)) => stated.push(version.clone()),
        Some(other) => return Err(kind("cniVersion", "a string", other)),
    }
    match top.get("cniVersions") {
        None => {}
        Some(Value::Array(all)) => {
            for (index, one) in all.iter().enumerate() {
                let version = one.as_str().ok_or_else(|| kind(&format!("cniVersions[{index}]"), "a string", one))?;
                stated.push(version.to_owned());
            }
        }
        Some(other) => return Err(kind("cniVersions", "a list of strings", other)),
    }
    if stated.is_empty() {
        return Err(Problem::Missing { field: "cniVersion".to_owned(), remedy: "\"cniVersion\": \"1.0.0\"" });
    }
    let mut known: Vec<_> = stated.iter().filter_map(|version| Version::parse(version)).collect();
    known.sort_unstable();
    known.dedup();
    if known.is_empty() { Err(Problem::Version { stated: stated.join(", ") }) } else { Ok(known) }
}

/// Reads a boolean; the words "true" and "false" count, as other runtimes take them.
fn flag(top: &Map<String, Value>, field: &str) -> Result<bool, Problem> {
    match top.get(field) {
        None => Ok(false),
        Some(Value::Bool(flag)) => Ok(*flag),
        Some(Value::String(word)) if word.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(word)) if word.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => Err(kind(field, "true or false", other)),
    }
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

fn kind(field: &str, expected: &'static str, value: &Value) -> Problem {
    let value = value.to_string().chars().take(80).collect();
    Problem::Kind { field: field.to_owned(), expected, value }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str) -> Result<NetworkConfig, Problem> {
        parse("10-test.conflist".into(), text.as_bytes())
    }

    #[test]
    fn a_list_is_a_chain() {
        let config = of(r#"{"cniVersion":"0.4.0","cniVersions":["0.3.1","1.0.0","9.9.9"],"name":"db-net","disableCheck":"true",
            "plugins":[{"type":"bridge","keyA":[1]},{"type":"portmap","capabilities":{"portMappings":true,"mac":false}}]}"#)
        .unwrap();
        assert_eq!(config.versions, [Version::V0_3_1, Version::V0_4_0, Version::V1_0_0]);
        assert!(config.disable_check && !config.disable_gc && !config.only_inlined);
        assert_eq!(config.plugins.iter().map(|plugin| plugin.kind.as_str()).collect::<Vec<_>>(), ["bridge", "portmap"]);
        assert!(config.has_capability("portMappings") && !config.has_capability("mac"));
    }

    #[test]
    fn a_single_plugin_is_wrapped() {
        let config = of(r#"{"cniVersion":"0.3.1","name":"n","type":"ptp","ipam":{"type":"host-local"}}"#).unwrap();
        assert_eq!(config.plugins[0].conf["ipam"]["type"], "host-local");
        assert!(config.only_inlined, "a single plugin has no folder");
    }

    #[test]
    fn what_is_wrong_is_named_by_field() {
        let cases = [
            ("{", "it is not valid JSON"),
            ("[]", "the configuration must be an object"),
            (r#"{"cniVersion":"1.0.0"}"#, "name is missing: add the network's name"),
            (r#"{"cniVersion":"1.0.0","name":"../x","plugins":[]}"#, "name \"../x\" must begin with"),
            (r#"{"name":"n","plugins":[]}"#, "cniVersion is missing: add \"cniVersion\": \"1.0.0\""),
            (r#"{"cniVersion":"0.2.0","name":"n"}"#, "cniVersion 0.2.0: none is supported; use one of"),
            (r#"{"cniVersion":1,"name":"n"}"#, "cniVersion must be a string, not 1"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":{}}"#, "plugins must be a list, not {}"),
            (r#"{"cniVersion":"1.0.0","name":"n","plugins":[{}]}"#, "plugins[0].type is missing"),
            (
                r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"a/b"}]}"#,
                "plugins[0].type \"a/b\" must be the name",
            ),
            (r#"{"cniVersion":"1.0.0","name":"n","disableGC":"no"}"#, "disableGC must be true or false, not \"no\""),
            (r#"{"cniVersion":"1.0.0","name":"n","loadOnlyInlinedPlugins":true}"#, "loadOnlyInlinedPlugins is true"),
        ];
        for (text, expected) in cases {
            let problem = of(text).unwrap_err().to_string();
            assert!(problem.starts_with(expected), "{text}: {problem}");
        }
    }
}
