//! The protocol, and plugins that do not keep to it: each is a script of the test.

#![allow(clippy::unwrap_used, reason = "a step that fails fails its test")]

mod lab;

use std::collections::HashSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use lab::{Lab, answers, chain, network, request, told};
use podwright_cni::{AddFailure, CheckError, Failure};
use serde_json::{Map, json};

/// How long a plugin may take in tests of those that hang.
const SHORT: Duration = Duration::from_secs(2);

fn processes(arguments: &str) -> usize {
    let of = |entry: fs::DirEntry| fs::read(entry.path().join("cmdline")).unwrap_or_default();
    let all = fs::read_dir("/proc").unwrap().flatten().map(of);
    all.filter(|line| String::from_utf8_lossy(line).replace('\0', " ").trim() == arguments).count()
}

#[tokio::test]
async fn a_chain_is_added_in_order_and_deleted_in_reverse() {
    let lab = Lab::new();
    lab.plugin("first", &answers("10.0.0.2/24"));
    lab.plugin("second", r#"[ $CNI_COMMAND = ADD ] && echo '{"cniVersion":"0.4.0","ips":[{"version":"4","address":"10.0.0.3/24"}]}'; exit 0"#);
    let mut conf = chain("1.0.0", &["first", "second"]);
    conf["plugins"][1]["capabilities"] = json!({ "mac": true, "dns": false });
    lab.configure(&conf);
    let cni = lab.open();
    let capabilities = json!({ "mac": "0a:00:00:00:00:01", "dns": {} });
    let netns = lab.path("netns");
    let result =
        cni.add(&network(&cni), &request("pod1", &netns, capabilities.as_object().unwrap().clone())).await.unwrap();
    assert_eq!(result.addresses("eth0"), ["10.0.0.3".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(cni.result("pod1").unwrap(), Some(result));
    assert_eq!(lab.input("ADD.first"), json!({ "cniVersion": "1.0.0", "name": "test-net", "type": "first" }));
    assert_eq!(
        lab.input("ADD.second"),
        json!({
            "cniVersion": "1.0.0", "name": "test-net", "type": "second",
            "runtimeConfig": { "mac": "0a:00:00:00:00:01" },
            "prevResult": { "cniVersion": "1.0.0", "ips": [{ "address": "10.0.0.2/24" }] },
        })
    );
    let expected = [
        "CNI_ARGS=IgnoreUnknown=1;K8S_POD_NAME=web-0".to_owned(),
        "CNI_COMMAND=ADD".to_owned(),
        "CNI_CONTAINERID=pod1".to_owned(),
        "CNI_IFNAME=eth0".to_owned(),
        format!("CNI_NETNS={}", netns.display()),
        format!("CNI_PATH={}", lab.path("bin").display()),
    ];
    assert_eq!(lab.environment("ADD.second"), expected);
    assert_eq!(lab.records(), ["test-net-pod1-eth0.json"]);

    cni.check("pod1").await.unwrap();
    assert!(cni.del("pod1").await.unwrap());
    assert!(!cni.del("pod1").await.unwrap(), "there is nothing left to undo");
    assert_eq!(lab.calls(), ["ADD first", "ADD second", "CHECK first", "CHECK second", "DEL second", "DEL first"]);
    for call in ["DEL.first", "DEL.second", "CHECK.first"] {
        let input = lab.input(call);
        assert_eq!(input["prevResult"]["ips"][0]["address"], "10.0.0.3/24", "{call}: the final result");
    }
    assert_eq!(lab.records(), Vec::<String>::new());
    assert!(matches!(cni.check("pod1").await, Err(CheckError::NotAttached { .. })));
}

#[tokio::test]
async fn old_versions_get_what_they_know() {
    let lab = Lab::new();
    lab.plugin("one", &answers("fd00::2/64"));
    lab.plugin("two", "echo '{}'");
    lab.configure(&chain("0.3.1", &["one", "two"]));
    lab.add("pod1").await.unwrap();
    let cni = lab.open();
    cni.check("pod1").await.unwrap();
    cni.status(&network(&cni)).await.unwrap();
    assert_eq!(cni.gc(&network(&cni)).await.map(|errors| errors.len()), None);
    cni.del("pod1").await.unwrap();
    let previous = &lab.input("ADD.two")["prevResult"];
    assert_eq!((&previous["cniVersion"], &previous["ips"][0]["version"]), (&json!("0.3.1"), &json!("6")));
    assert!(lab.input("DEL.one").get("prevResult").is_none());
    assert_eq!(lab.calls(), ["ADD one", "ADD two", "DEL two", "DEL one"]);
}

#[tokio::test]
async fn the_newest_version_that_all_speak_is_chosen_once() {
    let lab = Lab::new();
    lab.plugin("new", &answers("10.0.0.2/24"));
    lab.plugin_speaking(r#""0.3.1","0.4.0","1.0.0""#, "old", "echo '{}'");
    lab.plugin_speaking("garbage", "mute", "echo '{}'");
    let mut conf = chain("0.4.0", &["new", "old", "mute"]);
    conf["cniVersions"] = json!(["0.3.1", "1.0.0", "1.1.0", "2.0.0"]);
    lab.configure(&conf);
    let cni = lab.open();
    let netns = lab.path("netns");
    for pod in ["pod1", "pod2"] {
        cni.add(&network(&cni), &request(pod, &netns, Map::new())).await.unwrap();
    }
    assert_eq!(lab.input("ADD.new")["cniVersion"], "1.0.0");
    let asked = |plugin: &str| lab.calls().iter().filter(|call| **call == format!("VERSION {plugin}")).count();
    assert_eq!((asked("new"), asked("old")), (1, 1), "as long as the files stay as they are");
    lab.plugin("old", "echo '{}'");
    cni.add(&network(&cni), &request("pod3", &netns, Map::new())).await.unwrap();
    assert_eq!(lab.input("ADD.new")["cniVersion"], "1.1.0", "the plugin was replaced by one that speaks it");
}

#[tokio::test]
async fn a_failed_add_is_undone_and_both_errors_are_told() {
    let lab = Lab::new();
    lab.plugin("first", r#"[ $CNI_COMMAND = DEL ] && { echo 'no lease file' >&2; exit 2; }; echo '{"ips":[{"address":"10.0.0.2/24"}]}'"#);
    lab.plugin(
        "second",
        r#"[ $CNI_COMMAND = DEL ] && exit 0; echo '{"code":11,"msg":"try again later","details":"no room"}'; exit 1"#,
    );
    lab.plugin("third", "exit 0");
    lab.configure(&chain("1.0.0", &["first", "second", "third"]));
    let error = lab.add("pod1").await.unwrap_err();
    assert_eq!(
        told(&error),
        "CNI network test-net: plugin second, ADD (and it is not wholly undone: CNI network test-net: plugin first, DEL: \
         it ended with exit status: 2 and no error of CNI: no lease file): try again later (code 11): no room"
    );
    assert_eq!(lab.calls(), ["ADD first", "ADD second", "DEL third", "DEL second", "DEL first"]);
    assert_eq!(lab.input("DEL.first")["prevResult"]["ips"][0]["address"], "10.0.0.2/24");
    assert_eq!(lab.records(), ["test-net-pod1-eth0.json"], "it is tried again");

    // The next attempt begins with what the last one left.
    let again = lab.add("pod1").await.unwrap_err();
    assert!(matches!(again.failure, AddFailure::Earlier(_)), "{again}");
    lab.plugin("first", &answers("10.0.0.2/24"));
    lab.plugin("second", &answers("10.0.0.2/24"));
    lab.plugin("third", &answers("10.0.0.2/24"));
    lab.forget_calls();
    lab.add("pod1").await.unwrap();
    assert_eq!(lab.calls(), ["DEL third", "DEL second", "DEL first", "ADD first", "ADD second", "ADD third"]);
    lab.open().del("pod1").await.unwrap();
}

#[tokio::test]
async fn a_plugin_that_hangs_is_killed_with_its_children() {
    let lab = Lab::with_limit(SHORT);
    // Arguments that no other process has.
    let seconds = format!("{}.25", std::process::id());
    lab.plugin("hang", &format!("[ $CNI_COMMAND = DEL ] && exit 0; echo waiting for the lake >&2; sleep {seconds}"));
    lab.configure(&chain("1.0.0", &["hang"]));
    let error = lab.add("pod1").await.unwrap_err();
    let text = told(&error);
    assert!(
        text.starts_with("CNI network test-net: plugin hang, ADD: it had not ended after 2s and was killed"),
        "{text}"
    );
    while processes(&format!("sleep {seconds}")) > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(lab.records(), Vec::<String>::new());
}

#[tokio::test]
async fn a_wait_that_is_given_up_kills_the_plugin_and_leaves_the_record() {
    let lab = Lab::new();
    let seconds = format!("{}.75", std::process::id());
    lab.plugin("hang", &format!("[ $CNI_COMMAND = DEL ] && exit 0; sleep {seconds}"));
    lab.configure(&chain("1.0.0", &["hang"]));
    let sleeping = format!("sleep {seconds}");
    tokio::select! {
        result = lab.add("pod1") => panic!("{result:?}"),
        () = async { while processes(&sleeping) == 0 { tokio::task::yield_now().await } } => {}
    }
    while processes(&sleeping) > 0 {
        tokio::task::yield_now().await;
    }
    assert_eq!(lab.records(), ["test-net-pod1-eth0.json"], "intent outlives the daemon");
    assert_eq!(lab.open().result("pod1").unwrap(), None);
    let swept = lab.open().sweep(&HashSet::new(), None).await;
    assert_eq!((swept.detached, swept.failures.0.len()), (vec!["pod1".to_owned()], 0));
    assert_eq!(lab.calls(), ["ADD hang", "DEL hang"]);
    assert_eq!(lab.records(), Vec::<String>::new());
}

#[tokio::test]
async fn a_plugin_that_outlived_its_daemon_is_killed_before_the_pod_is_detached() {
    let lab = Lab::new();
    let seconds = format!("{}.5", std::process::id());
    // Not killed with the wait: it is of a process group of its own, as if the daemon had had no time.
    lab.plugin("stray", &format!("[ $CNI_COMMAND = DEL ] && exit 0; setsid sleep {seconds} & sleep {seconds}"));
    lab.configure(&chain("1.0.0", &["stray"]));
    let sleeping = format!("sleep {seconds}");
    tokio::select! {
        result = lab.add("pod1") => panic!("{result:?}"),
        () = async { while processes(&sleeping) < 2 { tokio::task::yield_now().await } } => {}
    }
    assert!(processes(&sleeping) >= 1, "one is left");
    lab.open().del("pod1").await.unwrap();
    assert_eq!(processes(&sleeping), 0);
}

#[tokio::test]
async fn what_a_plugin_leaves_running_holds_nobody_up() {
    let lab = Lab::new();
    let log = lab.path("log/pid").display().to_string();
    lab.plugin("daemon", &format!("sleep 600 & echo $! >{log}; {}", answers("10.0.0.2/24")));
    lab.configure(&chain("1.0.0", &["daemon"]));
    let result = lab.add("pod1").await;
    let pid: i32 = fs::read_to_string(log).unwrap().trim().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    assert_eq!(result.unwrap().addresses("eth0").len(), 1);
}

#[tokio::test]
async fn every_way_to_fail_is_told_apart() {
    let cases = [
        (
            "echo 'iptables: not found' >&2; exit 1",
            "it ended with exit status: 1 and no error of CNI: iptables: not found",
        ),
        ("echo panic; exit 3", "it ended with exit status: 3 and no error of CNI: panic"),
        ("exit 1", "it ended with exit status: 1 and no error of CNI"),
        ("kill -9 $$", "it ended with signal: 9 (SIGKILL) and no error of CNI"),
        ("echo '{\"code\":1,\"msg\":\"incompatible CNI versions\"}'; exit 1", "incompatible CNI versions (code 1)"),
        ("echo hello", "it succeeded, but what it wrote is no result: hello: expected value at line 1 column 1"),
        ("true", "it succeeded, but what it wrote is no result: EOF while parsing a value at line 1 column 0"),
        ("head -c 2000000 /dev/zero", "it wrote more than 1 MiB and was killed"),
        ("head -c 2000000 /dev/zero >&2", "it wrote more than 1 MiB and was killed"),
    ];
    let lab = Lab::new();
    lab.configure(&chain("1.0.0", &["bad"]));
    for (script, expected) in cases {
        lab.plugin("bad", &format!("[ $CNI_COMMAND = DEL ] && exit 0; {script}"));
        let text = told(&lab.add("pod1").await.unwrap_err());
        assert_eq!(text, format!("CNI network test-net: plugin bad, ADD: {expected}"), "{script}");
        assert_eq!(lab.records(), Vec::<String>::new());
    }

    let missing = "no executable file bad in";
    fs::set_permissions(lab.path("bin/bad"), std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    let text = told(&lab.add("pod1").await.unwrap_err());
    assert!(text.contains(missing) && text.ends_with("install the plugin, or set network.cni_bin_dirs"), "{text}");
    let status = lab.open().status(&network(&lab.open())).await.unwrap_err();
    assert!(matches!(status.failure, Failure::Missing { .. }), "{status}");
    fs::write(lab.path("bin/bad"), "no script\n").unwrap();
    fs::set_permissions(lab.path("bin/bad"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let text = told(&lab.add("pod1").await.unwrap_err());
    assert!(text.contains("Exec format error"), "{text}");
}

#[tokio::test]
async fn an_argument_that_would_be_several_is_refused() {
    let lab = Lab::new();
    lab.plugin("p", &answers("10.0.0.2/24"));
    lab.configure(&chain("1.0.0", &["p"]));
    let cni = lab.open();
    let args = [("K8S_POD_NAME", "a;IP=10.0.0.9")];
    let netns = lab.path("netns");
    let pod = podwright_cni::Request { args: &args, ..request("pod1", &netns, Map::new()) };
    let error = cni.add(&network(&cni), &pod).await.unwrap_err();
    assert!(matches!(error.failure, AddFailure::Argument { name: "K8S_POD_NAME", .. }), "{error}");
    assert_eq!(lab.calls(), Vec::<String>::new());
}

#[tokio::test]
async fn del_goes_on_after_failures_and_needs_neither_configuration_nor_namespace() {
    let lab = Lab::new();
    lab.plugin("first", &answers("10.0.0.2/24"));
    lab.plugin("second", &answers("10.0.0.2/24"));
    lab.configure(&chain("1.0.0", &["first", "second"]));
    lab.add("pod1").await.unwrap();
    fs::remove_file(lab.path("conf/10-test.conflist")).unwrap();
    fs::remove_dir(lab.path("netns")).unwrap();
    lab.plugin("second", "exit 7");
    let failures = lab.open().del("pod1").await.unwrap_err();
    assert_eq!(failures.0.len(), 1, "{failures}");
    assert_eq!(lab.calls()[2..], ["DEL second", "DEL first"]);
    assert_eq!(lab.input("DEL.first")["prevResult"]["ips"][0]["address"], "10.0.0.2/24");
    assert!(lab.environment("DEL.first").contains(&"CNI_NETNS=".to_owned()));
    // A plugin that does not know the container has nothing to undo.
    lab.plugin("second", r#"echo '{"code":3,"msg":"unknown container"}'; exit 1"#);
    lab.open().del("pod1").await.unwrap();
    assert_eq!(lab.records(), Vec::<String>::new());
}

#[tokio::test]
async fn a_damaged_record_is_undone_by_the_configuration_of_its_network() {
    let lab = Lab::new();
    lab.plugin("p", &answers("10.0.0.2/24"));
    lab.configure(&chain("1.0.0", &["p"]));
    lab.add("pod1").await.unwrap();
    let record = lab.path("root/network/cni").join(&lab.records()[0]);
    fs::write(&record, "").unwrap();
    lab.open().del("pod1").await.unwrap();
    assert_eq!(lab.calls(), ["ADD p", "DEL p"]);
    fs::write(&record, "").unwrap();
    fs::remove_file(lab.path("conf/10-test.conflist")).unwrap();
    lab.open().del("pod1").await.unwrap();
    assert_eq!((lab.calls().len(), lab.records()), (2, Vec::new()));
}

#[tokio::test]
async fn check_and_status_tell_the_plugins_own_words() {
    let lab = Lab::new();
    let no = |operation: &str, text: &str| {
        format!("[ $CNI_COMMAND = {operation} ] && {{ echo '{{\"code\":50,\"msg\":\"{text}\"}}'; exit 1; }}")
    };
    lab.plugin("first", &answers("10.0.0.2/24"));
    let script =
        [no("CHECK", "the route is gone"), no("STATUS", "the agent is down"), answers("10.0.0.2/24")].join("\n");
    lab.plugin("second", &script);
    lab.configure(&chain("1.1.0", &["first", "second"]));
    let cni = lab.open();
    let status = cni.status(&network(&cni)).await.unwrap_err();
    assert_eq!(told(&status), "CNI network test-net: plugin second, STATUS: the agent is down (code 50)");
    lab.add("pod1").await.unwrap();
    let check = cni.check("pod1").await.unwrap_err();
    assert_eq!(told(&check), "CNI network test-net: plugin second, CHECK: the route is gone (code 50)");
    let mut conf = chain("1.1.0", &["first", "second"]);
    conf["disableCheck"] = json!(true);
    lab.configure(&conf);
    lab.add("pod2").await.unwrap();
    lab.open().check("pod2").await.unwrap();
}

#[tokio::test]
async fn a_sweep_detaches_the_dead_and_lets_plugins_collect() {
    let lab = Lab::new();
    let waits = format!(
        "[ $CNI_COMMAND$CNI_CONTAINERID = ADDslow ] && {{ echo >{0}/begun; while [ ! -e {0}/go ]; do sleep 0.01; done; }}\n",
        lab.path("log").display()
    );
    lab.plugin("p", &(waits + &answers("10.0.0.2/24")));
    lab.configure(&chain("1.1.0", &["p"]));
    for pod in ["live", "dead"] {
        lab.add(pod).await.unwrap();
    }
    let cni = lab.open();
    let swept = cni.sweep(&HashSet::from(["live".to_owned()]), Some(&network(&cni))).await;
    assert_eq!((swept.detached, swept.failures.0.len()), (vec!["dead".to_owned()], 0));
    assert_eq!(lab.calls()[2..], ["DEL p", "GC p"]);
    let valid = json!([{ "containerID": "live", "ifname": "eth0" }]);
    let input = lab.input("GC.p");
    assert_eq!((&input["cni.dev/valid-attachments"], &input["cni.dev/attachments"]), (&valid, &valid));
    assert!(!lab.environment("GC.p").iter().any(|word| word.starts_with("CNI_CONTAINERID")));

    // Not beside an ADD.
    let netns = lab.path("netns");
    let (config, pod) = (network(&cni), request("slow", &netns, Map::new()));
    let begun = lab.path("log/begun");
    let (slow, ()) = tokio::join!(cni.add(&config, &pod), async {
        while !begun.exists() {
            tokio::task::yield_now().await;
        }
        assert!(cni.gc(&config).await.is_none());
        fs::write(lab.path("log/go"), "").unwrap();
    });
    slow.unwrap();
    assert_eq!(cni.gc(&config).await.map(|errors| errors.len()), Some(0));
    assert_eq!(lab.input("GC.p")["cni.dev/valid-attachments"].as_array().unwrap().len(), 2);

    let mut conf = chain("1.1.0", &["p"]);
    conf["disableGC"] = json!(true);
    lab.configure(&conf);
    assert!(cni.gc(&network(&cni)).await.is_none());
}

#[tokio::test]
async fn an_executable_that_is_being_installed_is_waited_for() {
    let lab = Lab::new();
    lab.plugin("p", &answers("10.0.0.2/24"));
    lab.configure(&chain("1.0.0", &["p"]));
    let writer = fs::OpenOptions::new().append(true).open(lab.path("bin/p")).unwrap();
    let (result, ()) = tokio::join!(lab.add("pod1"), async {
        // The first try has been made when this is polled.
        assert!(lab.records().len() == 1 && !Path::new(&lab.path("log/calls")).exists());
        drop(writer);
    });
    result.unwrap();
}
