//! Devices of the host's that are moved into a container.

use std::process::Command;

use serde_json::json;

use crate::bundle::Bundle;

fn ip(words: &str) {
    assert!(Command::new("ip").args(words.split(' ')).status().unwrap().success(), "{words}");
}

#[test]
fn a_device_comes_with_its_addresses_under_its_new_name() {
    for with_ids in [false, true] {
        let script = "cat /sys/class/net/inside/flags; cat /proc/net/fib_trie | grep -o 10.66.77.8; \
            grep -o '^fd667788[0-9a-f]*' /proc/net/if_inet6; ls /sys/class/net";
        let mut bundle = Bundle::new(script);
        // Both ends go with the container's namespace.
        let host = format!("pwt{}{}", std::process::id() % 1_000_000, u8::from(with_ids));
        ip(&format!("link add {host} type veth peer name {host}p"));
        ip(&format!("addr add 10.66.77.8/24 dev {host}"));
        ip(&format!("addr add fd66:7788::9/64 dev {host} nodad"));
        if with_ids {
            bundle.map_ids();
        }
        bundle.config["linux"]["netDevices"] = json!({ (host.as_str()): { "name": "inside" } });
        let seen = bundle.output();
        let lines: Vec<_> = seen.lines().collect();
        // Up, broadcast, multicast.
        assert_eq!((lines[0], lines[1]), ("0x1003", "10.66.77.8"), "{seen}");
        assert!(seen.contains("\nfd667788000000000000000000000009\ninside\nlo\n"), "{seen}");
        assert!(!std::path::Path::new(&format!("/sys/class/net/{host}")).exists());
    }
}

#[test]
fn a_device_that_is_not_there_is_named() {
    let mut bundle = Bundle::new("true");
    bundle.config["linux"]["netDevices"] = json!({ "pwt-none": {} });
    let error = String::from_utf8(bundle.run().stderr).unwrap();
    assert!(error.contains("move network device \"pwt-none\"") && error.contains("No such device"), "{error}");
}
