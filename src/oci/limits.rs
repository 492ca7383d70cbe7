//! New limits and those of before, as JSON of `linux.resources`: what belongs together is given together, and the
//! specification that is kept of a container says what holds.

use serde_json::{Map, Value};

/// Fields that the kernel has in one file or checks against each other.
const TOGETHER: [(&str, &str, &str); 3] =
    [("cpu", "quota", "period"), ("cpu", "realtimeRuntime", "realtimePeriod"), ("memory", "limit", "swap")];
/// What tells the items of a list apart.
const KEYS: [&[&str]; 2] = [&["pageSize"], &["major", "minor"]];

/// Adds to new limits what of the earlier ones goes with them.
pub(crate) fn complete(new: &mut Value, earlier: &Value) {
    for (group, one, other) in TOGETHER {
        let Some(fields) = new.get_mut(group).and_then(Value::as_object_mut) else { continue };
        for (given, missing) in [(one, other), (other, one)] {
            if fields.get(given).is_none_or(Value::is_null) || fields.contains_key(missing) {
                continue;
            }
            // A limit of both together does not outlive that of memory.
            let unlimited = given == "limit" && fields[given] == -1;
            let value = if unlimited { Some(Value::from(-1)) } else { earlier[group].get(missing).cloned() };
            fields.extend(value.map(|value| (missing.to_owned(), value)));
        }
    }
    if let (Some(memory), Some(check)) =
        (new.get_mut("memory").and_then(Value::as_object_mut), earlier["memory"].get("checkBeforeUpdate"))
    {
        memory.entry("checkBeforeUpdate").or_insert_with(|| check.clone());
    }
}

/// Puts new limits over the earlier ones in a specification. Device rules are a whole.
pub(crate) fn record(specification: &mut Value, new: &Value) {
    let mut at = specification;
    for name in ["linux", "resources"] {
        if !at[name].is_object() {
            at[name] = Map::new().into();
        }
        at = &mut at[name];
    }
    let Some(fields) = new.as_object() else { return };
    for (name, value) in fields {
        match (name.as_str(), value.as_array()) {
            // An empty list changes nothing.
            ("devices", Some(rules)) if rules.is_empty() => {}
            ("devices", _) => at[name] = value.clone(),
            _ => merge(&mut at[name], value),
        }
    }
}

fn merge(earlier: &mut Value, new: &Value) {
    match (earlier, new) {
        (Value::Object(earlier), Value::Object(new)) => {
            for (name, value) in new.iter().filter(|(_, value)| !value.is_null()) {
                merge(earlier.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (Value::Array(earlier), Value::Array(new)) => {
            earlier.retain(|item| !new.iter().any(|other| is_same(item, other)));
            earlier.extend(new.iter().cloned());
        }
        (earlier, new) => *earlier = new.clone(),
    }
}

/// Whether two items of a list limit the same thing.
fn is_same(one: &Value, other: &Value) -> bool {
    KEYS.iter().any(|keys| keys.iter().all(|key| one.get(key).is_some() && one.get(key) == other.get(key)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_goes_together_is_completed() {
        let earlier = json!({"cpu": {"quota": 5000, "period": 10_000}, "memory": {"limit": 4, "swap": 8}});
        for (new, expected) in [
            (json!({"cpu": {"quota": 1}}), json!({"cpu": {"quota": 1, "period": 10_000}})),
            (json!({"cpu": {"period": 1}}), json!({"cpu": {"quota": 5000, "period": 1}})),
            (json!({"cpu": {"shares": 1}}), json!({"cpu": {"shares": 1}})),
            (json!({"memory": {"limit": 6}}), json!({"memory": {"limit": 6, "swap": 8}})),
            (json!({"memory": {"limit": -1}}), json!({"memory": {"limit": -1, "swap": -1}})),
            (json!({"memory": {"swap": -1}}), json!({"memory": {"limit": 4, "swap": -1}})),
            (json!({"pids": {"limit": 1}}), json!({"pids": {"limit": 1}})),
        ] {
            let mut completed = new.clone();
            complete(&mut completed, &earlier);
            assert_eq!(completed, expected, "{new}");
        }
        let mut new = json!({"memory": {"reservation": 1}});
        complete(&mut new, &json!({"memory": {"checkBeforeUpdate": true}}));
        assert_eq!(new, json!({"memory": {"reservation": 1, "checkBeforeUpdate": true}}));
    }

    #[test]
    fn the_specification_says_what_holds() {
        let mut spec = json!({"hostname": "a", "linux": {"resources": {
            "devices": [{"allow": false}],
            "cpu": {"shares": 5, "cpus": "0"},
            "hugepageLimits": [{"pageSize": "2MB", "limit": 1}, {"pageSize": "1GB", "limit": 2}],
        }}});
        record(
            &mut spec,
            &json!({
                "devices": [],
                "cpu": {"shares": 6, "mems": null},
                "pids": {"limit": 3},
                "hugepageLimits": [{"pageSize": "2MB", "limit": 9}],
            }),
        );
        assert_eq!(
            spec,
            json!({"hostname": "a", "linux": {"resources": {
                "devices": [{"allow": false}],
                "cpu": {"shares": 6, "cpus": "0"},
                "pids": {"limit": 3},
                "hugepageLimits": [{"pageSize": "1GB", "limit": 2}, {"pageSize": "2MB", "limit": 9}],
            }}})
        );
        let mut spec = json!({});
        record(&mut spec, &json!({"devices": [{"allow": true}]}));
        assert_eq!(spec, json!({"linux": {"resources": {"devices": [{"allow": true}]}}}));
    }
}
