//! What a container uses: read from its directories in all hierarchies, each file where it is found. A controller that the
//! host does not have leaves its part out.

use std::collections::BTreeMap;
use std::path::Path;

use rustix::io::Errno;

use super::read_file;

/// What a cgroup uses now, and has used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Usage {
    /// Processor time.
    pub cpu: Option<Cpu>,
    /// Memory.
    pub memory: Option<Memory>,
    /// Processes and threads.
    pub pids: Option<Pids>,
    /// Input and output, by device.
    pub io: Vec<Io>,
    /// Huge pages, by the size in their files' names, such as `2MB`.
    pub huge_pages: BTreeMap<String, Amount>,
}

/// Processor time, in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cpu {
    /// All of it.
    pub total: u64,
    /// In user mode.
    pub user: u64,
    /// In the kernel.
    pub system: u64,
    /// Of each processor; empty on v2, which does not count so.
    pub per_cpu: Vec<u64>,
    /// Periods of the bandwidth limit.
    pub periods: u64,
    /// Those in which it was reached.
    pub throttled_periods: u64,
    /// How long processes were held back.
    pub throttled: u64,
}

/// Something that is counted in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Amount {
    /// Now.
    pub usage: u64,
    /// The most there was; 0 where the kernel does not keep it.
    pub peak: u64,
    /// `u64::MAX` without one on v2; on v1 a number that is larger than all memory.
    pub limit: u64,
    /// How often the limit was reached.
    pub failures: u64,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Memory {
    /// What the limit is on.
    pub own: Amount,
    /// On v1 memory and swap together, on v2 swap alone; `None` where swap is not counted.
    pub swap: Option<Amount>,
    /// Of it, what the kernel holds; v1 only.
    pub kernel: Option<Amount>,
    /// Of it, buffers of TCP; v1 only.
    pub kernel_tcp: Option<Amount>,
    /// `memory.stat`, whose keys differ between the versions.
    pub stat: BTreeMap<String, u64>,
}

/// Processes and threads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pids {
    /// Now.
    pub current: u64,
    /// `None`: as many as the host has.
    pub limit: Option<u64>,
}

/// Input and output on one device since the cgroup was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Io {
    /// The device.
    pub major: u64,
    /// The device.
    pub minor: u64,
    /// Bytes.
    pub read_bytes: u64,
    /// Bytes.
    pub written_bytes: u64,
    /// Operations.
    pub reads: u64,
    /// Operations.
    pub writes: u64,
}

impl Usage {
    /// Reads what the cgroup with these directories, one in each hierarchy, uses.
    ///
    /// # Errors
    /// The kernel's. A file, or a directory, that is missing is no error.
    pub fn read(dirs: &[&Path]) -> Result<Self, Errno> {
        let files = Files(dirs);
        Ok(Self {
            cpu: cpu(&files)?,
            memory: memory(&files)?,
            pids: files
                .number("pids.current")?
                .map(|current| -> Result<_, Errno> {
                    Ok(Pids { current, limit: files.number("pids.max")?.filter(|limit| *limit != u64::MAX) })
                })
                .transpose()?,
            io: io(&files)?,
            huge_pages: huge_pages(&files)?,
        })
    }
}

/// The directories.
struct Files<'a>(&'a [&'a Path]);

impl Files<'_> {
    /// Reads a file wherever it is.
    fn texts(&self, name: &str) -> Result<Vec<String>, Errno> {
        let mut texts = Vec::new();
        for dir in self.0 {
            match read_file(&dir.join(name)) {
                // What is being removed, or has no such number now.
                Err(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP) => {}
                text => texts.push(String::from_utf8_lossy(&text?).into_owned()),
            }
        }
        Ok(texts)
    }

    fn number(&self, name: &str) -> Result<Option<u64>, Errno> {
        Ok(self.texts(name)?.first().and_then(|text| number(text)))
    }

    /// Reads a file of names and numbers; of a name in two hierarchies, the first one's is taken.
    fn table(&self, name: &str) -> Result<BTreeMap<String, u64>, Errno> {
        Ok(self.texts(name)?.iter().rev().flat_map(|text| table(text)).collect())
    }

    /// Reads an amount from files that begin with a name, of either version.
    fn amount(&self, prefix: &str) -> Result<Option<Amount>, Errno> {
        let file = |name: &str| self.number(&format!("{prefix}{name}"));
        if let Some(usage) = file("usage_in_bytes")? {
            return Ok(Some(Amount {
                usage,
                peak: file("max_usage_in_bytes")?.unwrap_or_default(),
                limit: file("limit_in_bytes")?.unwrap_or(u64::MAX),
                failures: file("failcnt")?.unwrap_or_default(),
            }));
        }
        let Some(usage) = file("current")? else { return Ok(None) };
        let events = self.table(&format!("{prefix}events"))?;
        Ok(Some(Amount {
            usage,
            peak: file("peak")?.unwrap_or_default(),
            limit: file("max")?.unwrap_or(u64::MAX),
            failures: events.get("max").copied().unwrap_or_default(),
        }))
    }
}

fn cpu(files: &Files<'_>) -> Result<Option<Cpu>, Errno> {
    let stat = files.table("cpu.stat")?;
    let of = |name: &str| stat.get(name).copied();
    let nanoseconds = |name: &str| of(name).map(|microseconds| microseconds.saturating_mul(1000));
    let v1 = |name: &str| files.number(name);
    let Some(total) = v1("cpuacct.usage")?.or(nanoseconds("usage_usec")) else { return Ok(None) };
    let per_cpu = files.texts("cpuacct.usage_percpu")?;
    Ok(Some(Cpu {
        total,
        user: v1("cpuacct.usage_user")?.or(nanoseconds("user_usec")).unwrap_or_default(),
        system: v1("cpuacct.usage_sys")?.or(nanoseconds("system_usec")).unwrap_or_default(),
        per_cpu: per_cpu.iter().flat_map(|text| text.split_ascii_whitespace().filter_map(number)).collect(),
        periods: of("nr_periods").unwrap_or_default(),
        throttled_periods: of("nr_throttled").unwrap_or_default(),
        throttled: of("throttled_time").or(nanoseconds("throttled_usec")).unwrap_or_default(),
    }))
}

fn memory(files: &Files<'_>) -> Result<Option<Memory>, Errno> {
    let Some(own) = files.amount("memory.")? else { return Ok(None) };
    let swap = match files.amount("memory.memsw.")? {
        None => files.amount("memory.swap.")?,
        both => both,
    };
    Ok(Some(Memory {
        own,
        swap,
        kernel: files.amount("memory.kmem.")?,
        kernel_tcp: files.amount("memory.kmem.tcp.")?,
        stat: files.table("memory.stat")?,
    }))
}

fn io(files: &Files<'_>) -> Result<Vec<Io>, Errno> {
    let mut devices = BTreeMap::new();
    for text in files.texts("io.stat")? {
        for line in text.lines() {
            let fields = line.split_ascii_whitespace().filter_map(|field| field.split_once('='));
            for (name, value) in fields {
                count(&mut devices, line, name, value);
            }
        }
    }
    for (file, suffix) in [("io_service_bytes", "bytes"), ("io_serviced", "ios")] {
        for text in files.texts(&format!("blkio.throttle.{file}_recursive"))? {
            for line in text.lines() {
                let mut fields = line.split_ascii_whitespace().skip(1);
                if let (Some(operation @ ("Read" | "Write")), Some(value)) = (fields.next(), fields.next()) {
                    count(&mut devices, line, &format!("{}{suffix}", &operation[..1].to_ascii_lowercase()), value);
                }
            }
        }
    }
    Ok(devices.into_values().collect())
}

/// Takes one number of a line that begins with a device.
fn count(devices: &mut BTreeMap<(u64, u64), Io>, line: &str, name: &str, value: &str) {
    let device = line.split_ascii_whitespace().next().and_then(|device| device.split_once(':'));
    let Some((major, minor)) = device.and_then(|(major, minor)| Some((number(major)?, number(minor)?))) else { return };
    let io = devices.entry((major, minor)).or_insert(Io { major, minor, ..Io::default() });
    let field = match name {
        "rbytes" => &mut io.read_bytes,
        "wbytes" => &mut io.written_bytes,
        "rios" => &mut io.reads,
        "wios" => &mut io.writes,
        _ => return,
    };
    *field = number(value).unwrap_or_default();
}

fn huge_pages(files: &Files<'_>) -> Result<BTreeMap<String, Amount>, Errno> {
    let mut sizes = BTreeMap::new();
    for dir in files.0 {
        let Ok(entries) = std::fs::read_dir(dir) else { continue };
        for entry in entries.flatten() {
            let name = entry.file_name();
            // The size is what is between; reservations have files of their own.
            let size = name
                .to_str()
                .and_then(|name| name.strip_prefix("hugetlb."))
                .and_then(|name| name.strip_suffix(".current").or_else(|| name.strip_suffix(".usage_in_bytes")));
            if let Some(size) = size.filter(|size| !size.contains('.'))
                && let Some(amount) = files.amount(&format!("hugetlb.{size}."))?
            {
                sizes.insert(size.to_owned(), amount);
            }
        }
    }
    Ok(sizes)
}

/// Reads a number; `max` is the largest.
fn number(text: &str) -> Option<u64> {
    match text.trim() {
        "max" => Some(u64::MAX),
        digits => digits.parse().ok(),
    }
}

fn table(text: &str) -> impl Iterator<Item = (String, u64)> {
    text.lines().filter_map(|line| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), number(value)?))
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn usage(dirs: &[&[(&str, &str)]]) -> Usage {
        let root = tempfile::tempdir().unwrap();
        let paths: Vec<_> = (0..dirs.len()).map(|at| root.path().join(at.to_string())).collect();
        for (path, files) in paths.iter().zip(dirs) {
            fs::create_dir(path).unwrap();
            files.iter().for_each(|(name, text)| fs::write(path.join(name), text).unwrap());
        }
        Usage::read(&paths.iter().map(|path| &**path).collect::<Vec<_>>()).unwrap()
    }

    #[test]
    fn a_v2_directory_has_all() {
        let usage = usage(&[&[
            (
                "cpu.stat",
                "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 4\nnr_throttled 3\nthrottled_usec 2\n",
            ),
            ("memory.current", "100\n"),
            ("memory.max", "max\n"),
            ("memory.peak", "150\n"),
            ("memory.events", "low 0\nhigh 0\nmax 5\noom 1\n"),
            ("memory.swap.current", "7\n"),
            ("memory.swap.max", "8\n"),
            ("memory.stat", "anon 60\nfile 40\n"),
            ("pids.current", "2\n"),
            ("pids.max", "max\n"),
            ("io.stat", "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n8:16 \n"),
            ("hugetlb.2MB.current", "9\n"),
            ("hugetlb.2MB.max", "10\n"),
            ("hugetlb.2MB.events", "max 11\n"),
            ("hugetlb.2MB.rsvd.current", "1\n"),
        ]]);
        let cpu = usage.cpu.unwrap();
        assert_eq!((cpu.total, cpu.user, cpu.system), (30_000, 20_000, 10_000));
        assert_eq!((cpu.periods, cpu.throttled_periods, cpu.throttled), (4, 3, 2000));
        let memory = usage.memory.unwrap();
        assert_eq!(memory.own, Amount { usage: 100, peak: 150, limit: u64::MAX, failures: 5 });
        assert_eq!(memory.swap, Some(Amount { usage: 7, peak: 0, limit: 8, failures: 0 }));
        assert_eq!((memory.kernel, memory.stat["file"]), (None, 40));
        assert_eq!(usage.pids, Some(Pids { current: 2, limit: None }));
        let io = Io { major: 8, minor: 0, read_bytes: 1, written_bytes: 2, reads: 3, writes: 4 };
        assert_eq!(usage.io, [io]);
        let pages = Amount { usage: 9, peak: 0, limit: 10, failures: 11 };
        assert_eq!(usage.huge_pages, BTreeMap::from([("2MB".to_owned(), pages)]));
    }

    #[test]
    fn v1_has_a_directory_for_each() {
        let usage = usage(&[
            &[("cpu.stat", "nr_periods 4\nnr_throttled 3\nthrottled_time 2\n")],
            &[
                ("cpuacct.usage", "30\n"),
                ("cpuacct.usage_user", "20\n"),
                ("cpuacct.usage_sys", "10\n"),
                ("cpuacct.usage_percpu", "10 20 \n"),
            ],
            &[
                ("memory.usage_in_bytes", "100\n"),
                ("memory.max_usage_in_bytes", "150\n"),
                ("memory.limit_in_bytes", "200\n"),
                ("memory.failcnt", "5\n"),
                ("memory.kmem.usage_in_bytes", "6\n"),
                ("memory.stat", "cache 40\n"),
            ],
            &[("pids.current", "2\n"), ("pids.max", "9\n")],
            &[
                ("blkio.throttle.io_service_bytes_recursive", "8:0 Read 1\n8:0 Write 2\n8:0 Total 3\nTotal 3\n"),
                ("blkio.throttle.io_serviced_recursive", "8:0 Read 3\n8:0 Write 4\n"),
            ],
            &[("hugetlb.1GB.usage_in_bytes", "1\n"), ("hugetlb.1GB.rsvd.usage_in_bytes", "1\n")],
            // The v2 directory of a hybrid host.
            &[("cpu.stat", "usage_usec 99\nuser_usec 99\n")],
        ]);
        let cpu = usage.cpu.unwrap();
        assert_eq!((cpu.total, cpu.user, cpu.system, cpu.per_cpu), (30, 20, 10, vec![10, 20]));
        assert_eq!((cpu.periods, cpu.throttled_periods, cpu.throttled), (4, 3, 2));
        let memory = usage.memory.unwrap();
        assert_eq!(memory.own, Amount { usage: 100, peak: 150, limit: 200, failures: 5 });
        assert_eq!((memory.swap, memory.kernel.unwrap().usage, memory.stat["cache"]), (None, 6, 40));
        assert_eq!(usage.pids, Some(Pids { current: 2, limit: Some(9) }));
        let io = Io { major: 8, minor: 0, read_bytes: 1, written_bytes: 2, reads: 3, writes: 4 };
        assert_eq!(usage.io, [io]);
        assert_eq!(usage.huge_pages.into_keys().collect::<Vec<_>>(), ["1GB"]);
    }

    #[test]
    fn what_is_not_there_is_left_out() {
        assert_eq!(Usage::read(&[Path::new("/sys/fs/cgroup/podwright-no-such-cgroup")]), Ok(Usage::default()));
    }
}
