//! A limit of memory for a process, as a container has it: a cgroup of Linux, version 1 or 2, where this user may create one.

use std::{fs, path::PathBuf};

use anyhow::{Context, Result};

/// A memory cgroup. Dropping it removes it; its processes move to the one around it.
pub struct Cage {
    path: PathBuf,
}

impl Cage {
    /// A cgroup that may use that many bytes; `None` where none can be created.
    #[must_use]
    pub fn new(bytes: u64) -> Option<Self> {
        // The name of the limit's file in version 1, and in version 2.
        let kinds = [("/sys/fs/cgroup/memory", "memory.limit_in_bytes"), ("/sys/fs/cgroup", "memory.max")];
        kinds.into_iter().find_map(|(root, limit)| {
            let path = PathBuf::from(root).join(format!("kyhan-test-{}-{:x}", std::process::id(), rand::random::<u32>()));
            fs::create_dir(&path).ok()?;
            let cage = Self { path };
            fs::write(cage.path.join(limit), bytes.to_string()).ok()?;
            Some(cage)
        })
    }

    /// Moves a process into it. What the process used before does not count.
    ///
    /// # Errors
    /// When the process is gone.
    pub fn lock_in(&self, pid: u32) -> Result<()> {
        fs::write(self.path.join("cgroup.procs"), pid.to_string()).with_context(|| format!("{pid} into {}", self.path.display()))
    }
}

impl Drop for Cage {
    fn drop(&mut self) {
        // Only an empty one can be removed.
        let processes = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        for pid in processes.lines() {
            let _ = fs::write(self.path.with_file_name("cgroup.procs"), pid);
        }
        let _ = fs::remove_dir(&self.path);
    }
}

/// The most memory that a process had resident, in bytes. `None` once it is gone, and without `/proc`.
#[must_use]
pub fn peak_of(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}
