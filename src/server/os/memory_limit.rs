//! Memory limit: of the process's control group (cgroups(7)).
//!
//! Owns where the kernel publishes the limit. Beyond it the kernel kills the process and
//! with it every connection.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// Version 1 writes "no limit" as the largest multiple of the page size in an `i64`.
const NO_LIMIT: u64 = 1 << 60;

/// The lowest limit, in bytes, of the process's control group and those above it; `None`:
/// there is no limit, or it cannot be read. `root` is `/`, or another directory in a test.
#[must_use]
pub fn of(root: &Path) -> Option<u64> {
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).ok()?;
    groups.lines().filter_map(|line| limit_of_line(root, line)).min()
}

/// The limit for one line, `hierarchy-id:controllers:path`, of `/proc/self/cgroup`.
fn limit_of_line(root: &Path, line: &str) -> Option<u64> {
    let mut fields = line.splitn(3, ':').skip(1);
    let (controllers, path) = (fields.next()?, fields.next()?);
    let (mount, file) = if controllers.is_empty() {
        ("sys/fs/cgroup", "memory.max")
    } else if controllers.split(',').any(|it| it == "memory") {
        ("sys/fs/cgroup/memory", "memory.limit_in_bytes")
    } else {
        return None;
    };
    let mount = root.join(mount);
    // A group of another namespace has `..` in its path. In a container without its own
    // namespace the path is the host's, and only the root of the mount exists.
    let names = Path::new(path).components().filter(|it| matches!(it, Component::Normal(_)));
    let group: PathBuf = mount.components().chain(names).collect();
    group
        .ancestors()
        .take_while(|group| group.starts_with(&mount))
        .filter_map(|group| fs::read_to_string(group.join(file)).ok())
        // "max" is not a number, and means no limit.
        .filter_map(|limit| limit.trim().parse().ok())
        .filter(|limit| *limit < NO_LIMIT)
        .min()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A root directory with these files in it, removed when dropped.
    struct Root(PathBuf);

    impl Root {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let name = format!("pyrycode-relay-cgroup-{}-{name}", std::process::id());
            let root = Self(std::env::temp_dir().join(name));
            for (path, content) in files {
                let path = root.0.join(path);
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, content).unwrap();
            }
            root
        }
    }

    impl Drop for Root {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    /// A name, files below the root, and the limit.
    type Case = (&'static str, &'static [(&'static str, &'static str)], Option<u64>);

    #[test]
    fn the_least_limit_above_counts() {
        const GROUP: &str = "proc/self/cgroup";
        const V2: &str = "0::/system.slice/relay.service\n";
        const V1: &str = "9:cpu,cpuacct:/\n4:memory:/docker/abc\n0::/\n";
        let cases: [Case; 9] = [
            ("none", &[], None),
            (
                "own",
                &[
                    (GROUP, V2),
                    ("sys/fs/cgroup/system.slice/relay.service/memory.max", "1000\n"),
                    ("sys/fs/cgroup/system.slice/memory.max", "max\n"),
                ],
                Some(1000),
            ),
            (
                "above",
                &[
                    (GROUP, V2),
                    ("sys/fs/cgroup/system.slice/relay.service/memory.max", "2000\n"),
                    ("sys/fs/cgroup/system.slice/memory.max", "1500\n"),
                ],
                Some(1500),
            ),
            (
                "max",
                &[(GROUP, V2), ("sys/fs/cgroup/system.slice/relay.service/memory.max", "max\n")],
                None,
            ),
            ("container", &[(GROUP, "0::/\n"), ("sys/fs/cgroup/memory.max", "3000\n")], Some(3000)),
            (
                "namespace",
                &[(GROUP, "0::/../other\n"), ("sys/fs/cgroup/memory.max", "3000\n")],
                Some(3000),
            ),
            (
                "v1",
                &[
                    (GROUP, V1),
                    ("sys/fs/cgroup/memory/docker/abc/memory.limit_in_bytes", "4000\n"),
                    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n"),
                ],
                Some(4000),
            ),
            (
                "v1-container",
                &[(GROUP, V1), ("sys/fs/cgroup/memory/memory.limit_in_bytes", "5000\n")],
                Some(5000),
            ),
            (
                "outside",
                // Beyond the mount nothing is read.
                &[(GROUP, "0::/\n"), ("sys/fs/memory.max", "1\n"), ("memory.max", "1\n")],
                None,
            ),
        ];
        for (name, files, expected) in cases {
            let root = Root::new(name, files);
            assert_eq!(of(&root.0), expected, "{name}");
        }
    }
}
