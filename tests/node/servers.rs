//! Real servers from a real registry, used as their users use them.

use k8s_cri::v1::KeyValue;

use crate::lab::cri::{container, eventually, pod};
use crate::lab::node::image;
use crate::lab::{Node, log, tcp};

fn env(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.to_owned(), value: value.to_owned() }
}

#[tokio::test]
async fn nginx_serves_its_page() {
    let node = Node::start_with_images(&["nginx"]).await;
    let running = node.run(&container("nginx", &image("nginx"), &[])).await;
    let ips = node.pod_ips(&running.pod).await;
    assert!(ips.len() == 2 && ips[0].is_ipv4() && ips[1].is_ipv6(), "{ips:?}");
    for ip in ips {
        let page = tcp::get(ip, 80).await;
        assert!(page.starts_with("HTTP/1.1 200 OK") && page.contains("Welcome to nginx!"), "{page}");
    }
    let path = node.status(&running.container).await.log_path;
    let requests =
        async || (log::text(&path, Some("stdout")).matches("\"GET / HTTP/1.1\" 200").count() == 2).then_some(());
    eventually("both requests are in the log", requests).await;
    node.delete(&running.pod).await;
    node.finish().await;
}

#[tokio::test]
async fn redis_keeps_what_it_is_given() {
    let node = Node::start_with_images(&["redis"]).await;
    let running = node.run(&container("redis", &image("redis"), &[])).await;
    let ip = node.pod_ips(&running.pod).await[0];
    let answer = tcp::ask(ip, 6379, "SET colour blue\r\nGET colour\r\n", "blue\r\n").await;
    assert_eq!(answer, "+OK\r\n$4\r\nblue\r\n");
    let user = node.sh(&running.container, "cat /proc/1/status").await;
    assert!(user.contains("Uid:\t999\t999\t999\t999"), "the entry point became the image's user: {user}");
    node.delete(&running.pod).await;
    node.finish().await;
}

#[tokio::test]
async fn postgres_answers_a_query_from_another_pod() {
    let node = Node::start_with_images(&["postgres"]).await;
    let mut config = container("server", &image("postgres"), &[]);
    config.envs = vec![env("POSTGRES_PASSWORD", "sesame")];
    let server = node.run(&config).await;
    let ip = node.pod_ips(&server.pod).await[0];
    let path = node.status(&server.container).await.log_path;
    let ready = "database system is ready to accept connections";
    eventually("postgres is up", async || log::text(&path, Some("stderr")).contains(ready).then_some(())).await;

    let client_config = pod(&node, "client");
    let query =
        "create table t(n int); insert into t select generate_series(1, 100); select sum(n), current_user from t";
    let ip = ip.to_string();
    let mut config = container("psql", &image("postgres"), &["psql", "-h", &ip, "-U", "postgres", "-Atc", query]);
    config.envs = vec![env("PGPASSWORD", "sesame")];
    let client = node.run_in(&client_config, &config).await;
    let status = node.exited(&client.container).await;
    let output = log::text(&status.log_path, None);
    assert_eq!(status.exit_code, 0, "{output}");
    assert!(output.lines().any(|line| line == "5050|postgres"), "{output}");

    node.delete(&client.pod).await;
    node.stop_container(&server.container, 30).await.expect("StopContainer");
    assert_eq!(node.status(&server.container).await.exit_code, 0, "the image's SIGINT is a clean shutdown");
    assert!(log::text(&path, Some("stderr")).contains("database system is shut down"));
    node.delete(&server.pod).await;
    node.finish().await;
}

#[tokio::test]
async fn a_python_traceback_is_in_the_log() {
    let node = Node::start_with_images(&["python"]).await;
    let script = "import os, sys\nprint('pid', os.getpid(), flush=True)\n{}['missing']";
    let running = node.run(&container("python", &image("python"), &["python3", "-c", script])).await;
    let status = node.exited(&running.container).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (1, "Error"));
    assert_eq!(log::text(&status.log_path, Some("stdout")), "pid 1\n");
    let errors = log::text(&status.log_path, Some("stderr"));
    assert!(errors.starts_with("Traceback (most recent call last):\n"), "{errors}");
    assert!(errors.ends_with("KeyError: 'missing'\n"), "{errors}");
    node.delete(&running.pod).await;
    node.finish().await;
}
