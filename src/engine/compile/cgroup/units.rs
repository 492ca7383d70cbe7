//! Names of systemd's units, and the directories of their cgroups (systemd.unit(5), systemd.slice(5)).

/// The longest name.
pub(super) const MAX_NAME: usize = 255;
/// What a unit's directory must not begin with, before a dot: a controller's files would be meant.
const CONTROLLERS: [&str; 15] = [
    "cgroup", "cpu", "cpuacct", "cpuset", "io", "blkio", "memory", "devices", "pids", "freezer", "hugetlb", "net_cls",
    "net_prio", "rdma", "misc",
];

/// Names a scope, with what no unit's name may have written as `\x` and two digits.
pub(super) fn scope(prefix: &str, name: &str) -> String {
    let mut scope = String::new();
    for byte in format!("{prefix}-{name}").bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b':' | b'-' | b'_' | b'.' | b'@' | b'\\' => {
                scope.push(byte.into());
            }
            other => scope.push_str(&format!("\\x{other:02x}")),
        }
    }
    scope + ".scope"
}

/// Returns the directory of a unit below that of its slice: where the kernel's own files could be meant, with an underscore
/// in front.
pub(super) fn directory(unit: &str) -> String {
    let controller = unit.split_once('.').is_some_and(|(first, _)| CONTROLLERS.contains(&first));
    if controller || unit.starts_with(['_', '.']) { format!("_{unit}") } else { unit.to_owned() }
}

/// Returns the path of a slice's cgroup: each dash in its name is one step deeper. `None`: this is no slice's name.
pub(super) fn slice_path(slice: &str) -> Option<String> {
    let name = slice.strip_suffix(".slice")?;
    if name == "-" {
        return Some(String::new());
    }
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.@\\".contains(&byte);
    if slice.len() > MAX_NAME || !name.bytes().all(valid) || name.split('-').any(str::is_empty) {
        return None;
    }
    let ends = name.match_indices('-').map(|(at, _)| at).chain([name.len()]);
    Some(ends.map(|end| format!("/{}", directory(&format!("{}.slice", &name[..end])))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_lie_in_each_other() {
        assert_eq!(slice_path("a-b-c.slice").unwrap(), "/a.slice/a-b.slice/a-b-c.slice");
        assert_eq!(slice_path("-.slice").unwrap(), "");
        for bad in ["a", ".slice", "-a.slice", "a-.slice", "a--b.slice", "a/b.slice", "a b.slice"] {
            assert_eq!(slice_path(bad), None, "{bad}");
        }
    }

    #[test]
    fn names_have_no_foreign_characters() {
        assert_eq!(scope("p", "a+b/c"), "p-a\\x2bb\\x2fc.scope");
        assert_eq!(scope("p", "é"), "p-\\xc3\\xa9.scope");
    }

    #[test]
    fn no_directory_looks_like_the_kernels() {
        assert_eq!(directory("cpu.x-1.scope"), "_cpu.x-1.scope");
        assert_eq!(directory("_a-1.scope"), "__a-1.scope");
        assert_eq!(directory("cpu-1.scope"), "cpu-1.scope");
    }
}
