//! Cores and CPU time: of this thread, of another process, and what the machine's other tenants took.

use std::io;
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

/// Cores that this process may use, ascending.
#[must_use]
pub fn allowed() -> Vec<usize> {
    match sched_getaffinity(None) {
        Ok(set) => (0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect(),
        Err(_) => vec![0],
    }
}

/// Pins this thread.
pub fn pin(core: usize) -> io::Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).map_err(|error| {
        io::Error::new(
            io::Error::from(error).kind(),
            format!("core {core} cannot be used (allowed: {:?}): {error}", allowed()),
        )
    })
}

/// Lets this thread run on each of `cores` again.
pub fn unpin(cores: &[usize]) {
    let mut set = CpuSet::new();
    cores.iter().for_each(|&core| set.set(core));
    // Cores that were allowed a moment ago are; if not, staying pinned only makes things slower.
    let _ = sched_setaffinity(None, &set);
}

/// CPU time of this thread.
#[must_use]
pub fn of_thread() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// CPU time of this process.
#[must_use]
pub fn of_this_process() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// CPU time of a process, user and system, of all its threads; `None` if there is no such process. In ticks of 10 ms.
#[must_use]
pub fn of_process(pid: u32) -> Option<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    parse_stat(&stat)
}

/// Fields 14 and 15 of proc(5)'s stat; the command's name, field 2, may hold spaces and parentheses.
fn parse_stat(stat: &str) -> Option<Duration> {
    let after_name = &stat[stat.rfind(')')? + 2..];
    let mut fields = after_name.split_ascii_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    // USER_HZ is 100 on every architecture that Rust's std supports on Linux.
    Some(Duration::from_millis((user + system) * 10))
}

/// The share of time that the hypervisor gave to others since boot: steal over all, in ticks.
#[must_use]
pub fn steal() -> Option<(u64, u64)> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    let fields: Vec<u64> =
        stat.lines().next()?.split_ascii_whitespace().skip(1).filter_map(|f| f.parse().ok()).collect();
    Some((*fields.get(7)?, fields.iter().take(8).sum()))
}

/// Percent of all CPU time stolen between two calls of [`steal`].
#[must_use]
pub fn steal_percent(before: Option<(u64, u64)>, after: Option<(u64, u64)>) -> Option<f64> {
    let ((stolen_before, all_before), (stolen, all)) = (before?, after?);
    let all = all.checked_sub(all_before).filter(|&all| all > 0)?;
    Some(stolen.saturating_sub(stolen_before) as f64 * 100.0 / all as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_name_with_parentheses_does_not_shift_the_fields() {
        let stat = "7 (a) b (c)) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 100 1000 10";
        assert_eq!(parse_stat(stat), Some(Duration::from_secs(3)));
    }

    #[test]
    fn work_shows_in_this_threads_and_this_processs_time() {
        // In this order: the process is read first and last, so that its time covers the thread's.
        let process = of_this_process();
        let thread = of_thread();
        let mut x = 1_u64;
        while of_thread() - thread < Duration::from_millis(20) {
            x = std::hint::black_box(x.wrapping_mul(3));
        }
        assert!(of_this_process() - process >= Duration::from_millis(20));
        assert!(of_process(std::process::id()).is_some() && of_process(u32::MAX).is_none());
    }
}
