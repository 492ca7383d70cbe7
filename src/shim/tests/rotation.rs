//! Logs that the shim rotates itself.

use std::fs;
use std::path::PathBuf;

use podwright_plan::wire::request::Op;
use podwright_plan::wire::{Cause, ContainerPlan};

use crate::rig::{Shim, texts};
use crate::{DONE, log_problem, reopen};

const LINES: usize = 100_000;
const MAX: u64 = 64 << 10;

fn rotated(mut plan: ContainerPlan, max_files: u32) -> ContainerPlan {
    let log = plan.log.as_mut().unwrap();
    (log.max_bytes, log.max_files) = (MAX, max_files);
    plan
}

/// A log's files, the oldest first.
fn files(shim: &Shim, name: &str) -> Vec<PathBuf> {
    let older = (1..).map(|number| shim.path(&format!("{name}.{number}"))).take_while(|path| path.exists());
    let mut files: Vec<PathBuf> = std::iter::once(shim.path(name)).chain(older).collect();
    files.reverse();
    files
}

#[test]
fn a_log_is_rotated_under_load_and_loses_nothing() {
    let (shim, mut client) = Shim::with_pod();
    let script = format!("seq 1 {LINES}");
    client.started(rotated(shim.container("c", &script), 1000));
    assert_eq!(client.container_exit("c").code, 0);
    let whole = files(&shim, "c");
    assert!(whole.len() > 50, "{}", whole.len());
    for file in &whole[..whole.len() - 1] {
        let length = fs::metadata(file).unwrap().len();
        assert!((MAX..MAX + 100).contains(&length), "{length}");
    }
    let expected = || (1..=LINES).map(|line| format!("stdout F {line}"));
    assert!(whole.iter().flat_map(|file| texts(file)).eq(expected()));

    // As many as are wanted, and they are the newest.
    client.started(rotated(shim.container("d", &script), 3));
    assert_eq!(client.container_exit("d").code, 0);
    let kept: Vec<String> = files(&shim, "d").iter().flat_map(|file| texts(file)).collect();
    assert_eq!(files(&shim, "d").len(), 4);
    assert!(kept.iter().cloned().eq(expected().skip(LINES - kept.len())));
    shim.end(client);
}

#[test]
fn a_rotation_that_fails_is_told_and_loses_nothing() {
    let (shim, mut client) = Shim::with_pod();
    let mut none = rotated(shim.container("c", "true"), 0);
    assert_eq!(client.refused(Op::Start(none.clone())).cause(), Cause::InvalidPlan);
    none.log.as_mut().unwrap().max_bytes = 0;
    client.started(none);
    assert_eq!(client.container_exit("c").code, 0);

    fs::create_dir(shim.path("d.1")).unwrap();
    let script = format!("seq 1 {LINES}; read go; seq {} {}", LINES + 1, 2 * LINES);
    client.started(ContainerPlan { stdin: true, ..rotated(shim.container("d", &script), 1) });
    let problem = "it cannot be rotated and goes on in the old file: Is a directory (os error 21)";
    assert_eq!(log_problem(&mut client), problem);
    assert_eq!(client.inspect().containers.iter().find(|it| it.id == "d").unwrap().log_problem, problem);
    shim.wait_for_log("d", &mut client, &format!("stdout F {LINES}"));
    assert!(shim.log("d").into_iter().eq((1..=LINES).map(|line| format!("stdout F {line}"))));
    // A daemon that asks for the file again does not get in the way.
    assert_eq!(client.ask(reopen("d")), DONE);
    fs::remove_dir(shim.path("d.1")).unwrap();
    crate::attach::say(&mut client, "d", "go\n");
    assert_eq!(log_problem(&mut client), "");
    assert_eq!(client.container_exit("d").code, 0);
    assert_eq!(files(&shim, "d").len(), 2);
    shim.end(client);
}
