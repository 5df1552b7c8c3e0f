//! Control groups: which of them hold this process, and what memory and processor time they allow.
//!
//! A process is in one group of version 2, or in one per controller of version 1, or in both on
//! machines that mix them. Each group lies in others, and the tightest limit counts.

use crate::files;
use crate::memory::Limit;
use krasis_core::Bytes;
use std::path::{Path, PathBuf};

/// Of control groups.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

/// Names of the files of one version that tell of memory.
struct Names {
    limit: &'static str,
    used: &'static str,
    /// Of `memory.stat`: pages of files, which the kernel gives back before it refuses anything.
    files: [&'static str; 2],
}

const V2: Names =
    Names { limit: "memory.max", used: "memory.current", files: ["inactive_file", "active_file"] };

const V1: Names = Names {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    files: ["total_inactive_file", "total_active_file"],
};

/// Version 1 writes "no limit" as the largest multiple of a page; no machine has that much.
const NONE: u64 = 1 << 60;

/// Deeper nesting than any container's.
const DEPTH_MAX: usize = 64;

/// Processor time that a control group may have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Quota {
    /// The group, as the system calls it.
    pub group: String,
    /// Of one processor's.
    pub percent: u64,
}

impl Quota {
    /// Threads that run without being stopped, at least one: a thread more would stop all of them for
    /// the rest of each period, wherever they wait for each other.
    pub fn threads(&self) -> usize {
        (self.percent / 100).max(1) as usize
    }
}

/// The limits of memory of all groups that hold this process, innermost first.
pub(crate) fn limits(root: &Path) -> Vec<Limit> {
    let of = |(version, folder, name): (Version, PathBuf, String)| {
        limit(root, &folder, name, if version == Version::One { &V1 } else { &V2 })
    };
    groups(root, "memory").into_iter().filter_map(of).collect()
}

/// The smallest share of processor time that a group which holds this process may have.
pub(crate) fn quota(root: &Path) -> Option<Quota> {
    let of = |(version, folder, group): (Version, PathBuf, String)| {
        let file = |name: &str| folder.join(name).to_str().map(str::to_owned);
        let (quota, period) = match version {
            Version::One => (
                // Without a limit it is -1, which is no number here.
                files::number(root, &file("cpu.cfs_quota_us")?)?,
                files::number(root, &file("cpu.cfs_period_us")?)?,
            ),
            Version::Two => {
                // Without a limit it is `max 100000`.
                let text = files::word(root, &file("cpu.max")?)?;
                let (quota, period) = text.split_once(' ')?;
                (quota.parse().ok()?, period.parse().ok()?)
            }
        };
        Some(Quota { group, percent: quota.checked_mul(100)?.checked_div(period)? })
    };
    groups(root, "cpu").into_iter().filter_map(of).min_by_key(|quota| quota.percent)
}

/// The groups that hold this process, by their controller: where their files are, and their names.
fn groups(root: &Path, controller: &str) -> Vec<(Version, PathBuf, String)> {
    let membership = files::text(root, "proc/self/cgroup").unwrap_or_default();
    let mounts = files::text(root, "proc/self/mountinfo").unwrap_or_default();
    let mut groups = Vec::new();
    for line in membership.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(group)) = (parts.next(), parts.next()) else { continue };
        let version = match controllers {
            "" => Version::Two,
            _ if controllers.split(',').any(|name| name == controller) => Version::One,
            _ => continue,
        };
        let mount = Mount::of(version, controller, &mounts);
        groups.extend(mount.folders(group).map(|(folder, name)| (version, folder, name)));
    }
    groups
}

fn limit(root: &Path, folder: &Path, group: String, names: &Names) -> Option<Limit> {
    let read = |name: &str| files::number(root, folder.join(name).to_str()?);
    let stat = || files::text(root, folder.join("memory.stat").to_str()?);
    // Version 1 tells limits of outer groups, too, which a container may not see.
    let outer = || files::counter(&stat()?, "hierarchical_memory_limit");
    let limit = match names.limit == V1.limit {
        true => read(names.limit).into_iter().chain(outer()).min(),
        false => read(names.limit),
    }?;
    if limit >= NONE {
        return None;
    }
    let stat = stat().unwrap_or_default();
    let files = names.files.iter().filter_map(|name| files::counter(&stat, name));
    let used = files.fold(read(names.used).unwrap_or(0), u64::saturating_sub);
    Some(Limit { group, limit: Bytes(limit), used: Bytes(used) })
}

/// Where a hierarchy of groups is seen.
struct Mount {
    /// The group that is seen at `point`: containers see their own there.
    top: String,
    /// Below the root folder, without a slash before it.
    point: PathBuf,
}

impl Mount {
    /// A line is `31 23 0:28 /top /point options - type source options`.
    fn of(version: Version, controller: &str, mountinfo: &str) -> Mount {
        let parse = |line: &str| {
            let (before, after) = line.split_once(" - ")?;
            let mut before = before.split(' ').skip(3);
            let (top, point) = (before.next()?, before.next()?);
            let mut after = after.split(' ');
            let (kind, options) = (after.next()?, after.nth(1).unwrap_or(""));
            let right = match version {
                Version::One => kind == "cgroup" && options.split(',').any(|of| of == controller),
                Version::Two => kind == "cgroup2",
            };
            right.then(|| Mount { top: top.into(), point: point.trim_start_matches('/').into() })
        };
        mountinfo.lines().find_map(parse).unwrap_or_else(|| Mount {
            top: "/".into(),
            point: match version {
                Version::One => Path::new("sys/fs/cgroup").join(controller),
                Version::Two => "sys/fs/cgroup".into(),
            },
        })
    }

    /// The folders of a group and of those that it lies in, innermost first, with their names.
    fn folders(&self, group: &str) -> impl Iterator<Item = (PathBuf, String)> {
        let top = self.top.trim_end_matches('/');
        let inside =
            group.strip_prefix(top).filter(|rest| rest.is_empty() || rest.starts_with('/'));
        // A group outside of what is mounted: the mount is the nearest that is known of it.
        let inside = inside.filter(|rest| !rest.split('/').any(|part| part == "..")).unwrap_or("");
        let inside = PathBuf::from(inside.trim_matches('/'));
        let ancestors: Vec<PathBuf> =
            inside.ancestors().take(DEPTH_MAX).map(Path::to_path_buf).collect();
        let (point, top) = (self.point.clone(), top.to_owned());
        ancestors.into_iter().map(move |part| {
            let name = format!("{top}/{}", part.display());
            let name = if name.len() > 1 { name.trim_end_matches('/').to_owned() } else { name };
            (point.join(&part), name)
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::fake::{meminfo, put};
    use crate::{Limit, Memory, Quota};
    use krasis_core::Bytes;

    const V2: &str = "31 23 0:28 / /sys/fs/cgroup rw,relatime shared:4 - cgroup2 cgroup2 rw";
    const V1: &str = "35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                      36 31 0:33 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu";

    #[test]
    fn the_tightest_of_nested_control_groups_counts() {
        let mib = |n: u64| (n << 20).to_string();
        let rows = [
            ("no group", "", "", vec![], vec![], 800),
            (
                "no limit",
                "0::/a",
                V2,
                vec![("sys/fs/cgroup/a/memory.max", "max".into())],
                vec![],
                800,
            ),
            (
                "version 2, nested: what files hold can be taken back",
                "0::/a/b",
                V2,
                vec![
                    ("sys/fs/cgroup/a/b/memory.max", mib(500)),
                    ("sys/fs/cgroup/a/b/memory.current", mib(100)),
                    ("sys/fs/cgroup/a/memory.max", mib(600)),
                    ("sys/fs/cgroup/a/memory.current", mib(590)),
                    (
                        "sys/fs/cgroup/a/memory.stat",
                        format!("anon 5\ninactive_file {}\nactive_file {}", mib(50), mib(40)),
                    ),
                ],
                vec![("/a/b", 500, 100), ("/a", 600, 500)],
                100,
            ),
            (
                "version 2 in a container, whose group is the mount",
                "0::/",
                V2,
                vec![
                    ("sys/fs/cgroup/memory.max", mib(64)),
                    ("sys/fs/cgroup/memory.current", mib(4)),
                ],
                vec![("/", 64, 4)],
                60,
            ),
            (
                "version 1, named as the host does, seen from a container",
                "7:cpu:/docker/x\n4:memory:/docker/x",
                "35 31 0:32 /docker/x /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory",
                vec![
                    ("sys/fs/cgroup/memory/memory.limit_in_bytes", mib(100)),
                    ("sys/fs/cgroup/memory/memory.usage_in_bytes", mib(30)),
                    (
                        "sys/fs/cgroup/memory/memory.stat",
                        format!("total_inactive_file {}", mib(10)),
                    ),
                ],
                vec![("/docker/x", 100, 20)],
                80,
            ),
            (
                "version 1, a limit further out than is seen",
                "4:cpu,memory:/a",
                V1,
                vec![
                    ("sys/fs/cgroup/memory/a/memory.limit_in_bytes", "9223372036854771712".into()),
                    ("sys/fs/cgroup/memory/a/memory.usage_in_bytes", mib(30)),
                    (
                        "sys/fs/cgroup/memory/a/memory.stat",
                        format!("hierarchical_memory_limit {}", mib(200)),
                    ),
                    ("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712".into()),
                ],
                vec![("/a", 200, 30)],
                170,
            ),
            (
                "no list of mounts",
                "4:memory:/a",
                "",
                vec![("sys/fs/cgroup/memory/a/memory.limit_in_bytes", mib(7))],
                vec![("/a", 7, 0)],
                7,
            ),
            (
                "a group that is elsewhere",
                "0::/../../other",
                V2,
                vec![("sys/fs/cgroup/memory.max", mib(9)), ("other/memory.max", mib(1))],
                vec![("/", 9, 0)],
                9,
            ),
        ];
        for (name, membership, mounts, files, limits, available) in rows {
            let mut all = vec![("proc/self/cgroup", membership), ("proc/self/mountinfo", mounts)];
            all.extend(files.iter().map(|(path, text)| (*path, text.as_str())));
            let root = tempfile::tempdir().unwrap();
            put(root.path(), "proc/meminfo", &meminfo(1000, 800)).unwrap();
            all.iter().for_each(|(path, text)| put(root.path(), path, text).unwrap());
            let memory = Memory::read(root.path());
            let expected: Vec<Limit> = limits
                .into_iter()
                .map(|(group, limit, used)| Limit {
                    group: group.into(),
                    limit: Bytes(limit << 20),
                    used: Bytes(used << 20),
                })
                .collect();
            assert_eq!(memory.limits, expected, "{name}");
            assert_eq!(memory.available_within_limits(), Some(Bytes(available << 20)), "{name}");
        }
    }

    #[test]
    fn the_smallest_share_of_processor_time_counts() {
        let check = |membership: &str, mounts: &str, files: &[(&str, &str)], quota| {
            let root = tempfile::tempdir().unwrap();
            put(root.path(), "proc/self/cgroup", membership).unwrap();
            put(root.path(), "proc/self/mountinfo", mounts).unwrap();
            files.iter().for_each(|(path, text)| put(root.path(), path, text).unwrap());
            let quota: Option<(&str, u64)> = quota;
            let quota = quota.map(|(group, percent)| Quota { group: group.into(), percent });
            assert_eq!(super::quota(root.path()), quota, "{files:?}");
        };
        let [inner, outer] = ["sys/fs/cgroup/a/b/cpu.max", "sys/fs/cgroup/a/cpu.max"];
        check("0::/a/b", V2, &[], None);
        check("0::/a/b", V2, &[(inner, "max 100000")], None);
        check("0::/a/b", V2, &[(inner, "250000 100000")], Some(("/a/b", 250)));
        let both = [(inner, "250000 100000"), (outer, "100000 50000")];
        check("0::/a/b", V2, &both, Some(("/a", 200)));
        for rubbish in ["0", "5 0", "-1 100000", "18446744073709551615 1", "x y"] {
            check("0::/a/b", V2, &[(inner, rubbish)], None);
        }
        let [quota, period] = ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
            .map(|file| format!("sys/fs/cgroup/cpu/x/{file}"));
        let membership = "3:memory:/y\n2:cpu,cpuacct:/x";
        check(membership, V1, &[(&quota, "-1"), (&period, "100000")], None);
        check(membership, V1, &[(&quota, "50000"), (&period, "100000")], Some(("/x", 50)));
        assert_eq!([50, 100, 399, 400].map(threads), [1, 1, 3, 4]);
    }

    fn threads(percent: u64) -> usize {
        Quota { group: "/".into(), percent }.threads()
    }
}
