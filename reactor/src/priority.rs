//! Threads that have to run at once when their time has come.

use std::io;

/// Lets the calling thread run before every thread without real-time priority. Threads that it starts do not inherit that.
///
/// For threads that sleep nearly always and then do next to nothing: while it runs nobody else does on its core.
///
/// # Errors
/// Without CAP_SYS_NICE, and with no limit (RLIMIT_RTPRIO) that allows it.
pub fn run_before_others() -> io::Result<()> {
    // The lowest of them: kernel threads that others set up with more stay before us.
    let lowest = libc::sched_param { sched_priority: 1 };
    // SAFETY: `lowest` is a valid parameter that lives past the call, which only reads it; 0 is the calling thread.
    let failed =
        unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO | libc::SCHED_RESET_ON_FORK, &raw const lowest) };
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the calling thread may have real-time priority depends on who runs the test: both ends are looked at.
    #[test]
    fn a_thread_runs_before_others_or_is_told_that_it_may_not() {
        let policy = std::thread::spawn(|| {
            let outcome = run_before_others();
            let status = std::fs::read_to_string("/proc/thread-self/stat").expect("a thread can read its own state");
            let fields: Vec<_> = status.rsplit_once(')').expect("the name ends").1.split_whitespace().collect();
            // Field 41 of proc_pid_stat(5), counted from 1; the first behind the name is the third.
            (outcome.map_err(|error| error.kind()), fields[41 - 3].to_owned())
        });
        match policy.join().expect("no panic") {
            (Ok(()), policy) => assert_eq!(policy, libc::SCHED_FIFO.to_string()),
            (Err(kind), policy) => {
                assert_eq!((kind, policy), (io::ErrorKind::PermissionDenied, libc::SCHED_OTHER.to_string()));
            }
        }
    }
}
