//! The process of a specification: what is run, with which environment, as whom.

use std::path::PathBuf;

use oci_spec::image::Config;
use oci_spec::runtime::{PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, Spec, User as OciUser};

use crate::container::ContainerConfig;
use crate::error::SpecError;
use crate::input::ContainerInput;
use crate::mounts::absolute;
use crate::user::User;
use crate::{capabilities, resources, security};

/// Where commands are looked for when the image does not say.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Makes the container's own process.
pub(crate) fn process(input: &ContainerInput<'_>) -> Result<Process, SpecError> {
    let container = input.container;
    let none = Config::default();
    let image = input.image.config().as_ref().unwrap_or(&none);
    let granted = capabilities::granted(&container.security, input.host.capabilities)?;

    let mut process = Process::default();
    process.set_terminal(Some(container.tty));
    process.set_user(oci_user(input.user));
    process.set_args(Some(arguments(container, image)?));
    process.set_env(Some(environment(input, image)?));
    process.set_cwd(working_dir(container, image));
    process.set_capabilities(Some(capabilities::to_oci(granted)));
    process.set_rlimits(input.host.nofile.map(|(soft, hard)| vec![nofile(soft, hard)]));
    process.set_no_new_privileges(Some(container.security.no_new_privs));
    process.set_oom_score_adj(Some(resources::oom_score_adj(&container.resources)?));
    process.set_apparmor_profile(security::apparmor(input)?);
    process.set_selinux_label(security::labels(input).process);
    Ok(process)
}

/// Makes the process of a command that is run in a container: the container's own but for the command.
///
/// # Errors
/// The command is empty or has a NUL byte in it, or the specification has no process.
pub fn exec_process(spec: &Spec, command: &[String], tty: bool) -> Result<Process, SpecError> {
    let mut process = spec.process().clone().ok_or(SpecError::NoProcess)?;
    if command.is_empty() {
        return Err(SpecError::EmptyCommand);
    }
    process.set_args(Some(checked(command.to_vec())?));
    process.set_terminal(Some(tty));
    if tty
        && let Some(env) = process.env_mut()
        && !env.iter().any(|variable| variable.starts_with("TERM="))
    {
        env.push("TERM=xterm".to_owned());
    }
    Ok(process)
}

/// Puts together what is run. A request's command replaces the image's entrypoint, and with it the image's cmd, which
/// was written for that entrypoint; a request's args replace the cmd alone.
fn arguments(container: &ContainerConfig, image: &Config) -> Result<Vec<String>, SpecError> {
    let list = |of: &Option<Vec<String>>| of.clone().unwrap_or_default();
    let mut line = container.command.clone();
    if line.is_empty() {
        // Some builders write "no entrypoint" as one empty string.
        line = Some(list(image.entrypoint())).filter(|entrypoint| *entrypoint != [""]).unwrap_or_default();
        line.extend(if container.args.is_empty() { list(image.cmd()) } else { container.args.clone() });
    } else {
        line.extend(container.args.iter().cloned());
    }
    if line.is_empty() {
        return Err(SpecError::NoCommand { image: container.image.clone() });
    }
    checked(line)
}

fn checked(line: Vec<String>) -> Result<Vec<String>, SpecError> {
    match line.iter().position(|word| word.contains('\0')) {
        Some(index) => Err(SpecError::ArgumentNul { index }),
        None => Ok(line),
    }
}

/// Puts the environment together: the runtime's defaults, then the image's, then the request's, each over the former.
fn environment(input: &ContainerInput<'_>, image: &Config) -> Result<Vec<String>, SpecError> {
    let mut environment = Environment::default();
    environment.set("PATH", DEFAULT_PATH);
    if input.container.tty {
        environment.set("TERM", "xterm");
    }
    let pod_name = input.pod.hostname.as_str();
    environment.set("HOSTNAME", if pod_name.is_empty() { &input.host.hostname } else { pod_name });
    for variable in image.env().iter().flatten() {
        // An image may carry a bare name: in a Dockerfile it takes a value over from the build, of which none is left.
        if let Some((name, value)) = variable.split_once('=').filter(|(name, _)| !name.is_empty()) {
            environment.set(name, value);
        }
    }
    for (index, (name, value)) in input.container.envs.iter().enumerate() {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(SpecError::VariableName { index, name: name.clone() });
        }
        let refuse = |problem| SpecError::VariableValue { index, name: name.clone(), problem };
        let value = std::str::from_utf8(value).map_err(|_| refuse("is not UTF-8, which config.json cannot hold"))?;
        if value.contains('\0') {
            return Err(refuse("holds a NUL byte"));
        }
        environment.set(name, value);
    }
    if environment.get("HOME").is_none_or(str::is_empty) {
        environment.set("HOME", input.user.home.as_deref().unwrap_or("/"));
    }
    Ok(environment.into_list())
}

/// Variables in the order in which each was first set.
#[derive(Default)]
struct Environment(Vec<(String, String)>);

impl Environment {
    fn set(&mut self, name: &str, value: &str) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => value.clone_into(old),
            None => self.0.push((name.to_owned(), value.to_owned())),
        }
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn into_list(self) -> Vec<String> {
        self.0.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
    }
}

/// Chooses the working directory; a relative one is meant from the root, as image builders mean it.
fn working_dir(container: &ContainerConfig, image: &Config) -> PathBuf {
    let given = Some(container.working_dir.as_str()).filter(|dir| !dir.is_empty());
    let dir = given.or(image.working_dir().as_deref()).unwrap_or_default();
    absolute(&format!("/{dir}")).unwrap_or_else(|| PathBuf::from("/"))
}

fn oci_user(user: &User) -> OciUser {
    let mut oci = OciUser::default();
    oci.set_uid(user.uid);
    oci.set_gid(user.gid);
    oci.set_additional_gids(Some(user.additional_gids.clone()));
    oci
}

fn nofile(soft: u64, hard: u64) -> PosixRlimit {
    let limit = PosixRlimitBuilder::default().typ(PosixRlimitType::RlimitNofile).soft(soft).hard(hard);
    limit.build().expect("every field of a limit is given")
}

#[cfg(test)]
mod tests {
    use oci_spec::image::ConfigBuilder;

    use super::*;
    use crate::container_spec;
    use crate::tests::Fixture;

    fn words(line: &[&str]) -> Vec<String> {
        line.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn the_command_replaces_entrypoint_and_cmd_and_args_the_cmd_alone() {
        type Line = &'static [&'static str];
        let table: [(Line, Line, Line, Line, Line); 9] = [
            (&["entry"], &["cmd"], &[], &[], &["entry", "cmd"]),
            (&["entry"], &["cmd"], &["command"], &[], &["command"]),
            (&["entry"], &["cmd"], &["command"], &["args"], &["command", "args"]),
            (&["entry"], &["cmd"], &[], &["args"], &["entry", "args"]),
            (&[], &["cmd"], &[], &[], &["cmd"]),
            (&[], &["cmd"], &[], &["args"], &["args"]),
            (&[], &[], &["command"], &[], &["command"]),
            (&[""], &["cmd"], &[], &[], &["cmd"]),
            (&["entry", ""], &[], &[], &[""], &["entry", "", ""]),
        ];
        for (entrypoint, cmd, command, args, want) in table {
            let image = ConfigBuilder::default().entrypoint(words(entrypoint)).cmd(words(cmd)).build().unwrap();
            let mut fixture = Fixture::default();
            fixture.container.command = words(command);
            fixture.container.args = words(args);
            assert_eq!(
                arguments(&fixture.container, &image),
                Ok(words(want)),
                "{entrypoint:?} {cmd:?} {command:?} {args:?}"
            );
        }
    }

    #[test]
    fn nothing_to_run_is_told_with_the_image() {
        let mut fixture = Fixture::default();
        fixture.image_config(Config::default());
        let error = container_spec(&fixture.input()).unwrap_err();
        assert_eq!(error, SpecError::NoCommand { image: "registry.example/web:1".to_owned() });
        fixture.container.args = words(&["fine", "not\0fine"]);
        assert_eq!(container_spec(&fixture.input()).unwrap_err(), SpecError::ArgumentNul { index: 1 });
    }

    fn env_of(fixture: &Fixture) -> Vec<String> {
        container_spec(&fixture.input()).unwrap().process().as_ref().unwrap().env().clone().unwrap()
    }

    #[test]
    fn each_environment_goes_over_the_one_before() {
        let mut fixture = Fixture::default();
        fixture.image_config(
            ConfigBuilder::default()
                .cmd(words(&["run"]))
                .env(words(&["A=image", "B=image", "NONE", "=x", "HOSTNAME=image", "EQ=a=b"]))
                .build()
                .unwrap(),
        );
        fixture.container.envs =
            vec![("B".into(), b"request".to_vec()), ("C".into(), b"".to_vec()), ("C".into(), b"last".to_vec())];
        let path = format!("PATH={DEFAULT_PATH}");
        let want = [&path, "HOSTNAME=image", "A=image", "B=request", "EQ=a=b", "C=last", "HOME=/root"];
        assert_eq!(env_of(&fixture), want);

        fixture.container.tty = true;
        fixture.pod.hostname = String::new();
        fixture.container.envs = vec![("HOME".into(), b"/elsewhere".to_vec()), ("PATH".into(), b"/bin".to_vec())];
        fixture.image_config(ConfigBuilder::default().cmd(words(&["run"])).build().unwrap());
        assert_eq!(env_of(&fixture), ["PATH=/bin", "TERM=xterm", "HOSTNAME=node-1", "HOME=/elsewhere"]);

        fixture.container.envs = vec![("HOME".into(), Vec::new())];
        fixture.user.home = None;
        assert!(env_of(&fixture).contains(&"HOME=/".to_owned()));
    }

    #[test]
    fn variables_that_cannot_be_are_named() {
        for (name, value, field, words) in [
            ("", &b"x"[..], "envs[1].key", "no name"),
            ("A=B", b"x", "envs[1].key", "no name"),
            ("A\0", b"x", "envs[1].key", "no name"),
            ("BIN", b"\xff", "envs[1].value", "\"BIN\" is not UTF-8"),
            ("NUL", b"a\0b", "envs[1].value", "\"NUL\" holds a NUL"),
        ] {
            let mut fixture = Fixture::default();
            fixture.container.envs = vec![("FINE".into(), b"1".to_vec()), (name.into(), value.to_vec())];
            let error = container_spec(&fixture.input()).unwrap_err();
            assert_eq!(error.field(), field);
            assert!(error.to_string().contains(words), "{error}");
        }
    }

    #[test]
    fn the_working_directory_is_absolute() {
        for (request, image, want) in [
            ("", None, "/"),
            ("", Some("/srv"), "/srv"),
            ("", Some("app"), "/app"),
            ("", Some(""), "/"),
            ("/tmp/", Some("/srv"), "/tmp"),
            ("a/../../b", None, "/b"),
        ] {
            let mut config = Config::default();
            config.set_working_dir(image.map(str::to_owned));
            let container = ContainerConfig { working_dir: request.to_owned(), ..Fixture::default().container };
            assert_eq!(working_dir(&container, &config), PathBuf::from(want), "{request:?} {image:?}");
        }
    }

    #[test]
    fn an_exec_differs_from_its_container_by_the_command() {
        let fixture = Fixture::default();
        let spec = container_spec(&fixture.input()).unwrap();
        let own = spec.process().clone().unwrap();
        let exec = exec_process(&spec, &words(&["ls", "-l"]), false).unwrap();
        assert_eq!(exec.args(), &Some(words(&["ls", "-l"])));
        let mut same = exec.clone();
        same.set_args(own.args().clone());
        assert_eq!(same, own);

        let tty = exec_process(&spec, &words(&["sh"]), true).unwrap();
        assert_eq!(tty.terminal(), Some(true));
        assert_eq!(tty.env().as_ref().unwrap().last().unwrap(), "TERM=xterm");
        assert_eq!(exec_process(&spec, &[], false), Err(SpecError::EmptyCommand));
        assert!(exec_process(&spec, &words(&["a\0"]), false).is_err());
    }
}
