//! The memory of a process, as the kernel counts it.

use std::fs;

use nix::unistd::Pid;

/// The resident memory of a process in bytes (RSS, proc_pid_statm(5)), shared memory included;
/// `None` when /proc does not say.
#[must_use]
pub fn resident(pid: Pid) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
    let pages: u64 = text.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_some_memory_and_nobody_has_none() {
        let own = resident(Pid::this()).expect("/proc is there");
        assert!((1 << 16..1 << 40).contains(&own), "{own}");
        assert_eq!(resident(Pid::from_raw(i32::MAX)), None);
    }
}
