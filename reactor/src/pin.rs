//! Which cores this process may use, what the user asked for, and pinning a thread to one.
//!
//! The crate `affinity` does the pinning and does not check core numbers (a number past 1,023 would be written outside its
//! set), so everything is checked here first, against what the scheduler allows: the cpuset of the cgroup included.

use std::fmt;

use thiserror::Error;

/// Why cores cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PinError {
    /// The text is no list of cores.
    #[error("\"{text}\" is no list of cores: {reason}; a list looks like \"0,2-3\"")]
    Syntax {
        /// What was given.
        text: String,
        /// What is wrong with it.
        reason: String,
    },
    /// This machine has no such cores.
    #[error("this machine has no core {missing}; it has {present}")]
    Missing {
        /// The cores asked for that do not exist.
        missing: CoreList,
        /// The cores that do.
        present: CoreList,
    },
    /// They exist, and this process may not run there.
    #[error("core {denied} is not allowed for this process; allowed: {allowed} (cpuset of its cgroup, or taskset)")]
    Denied {
        /// The cores asked for that are not allowed.
        denied: CoreList,
        /// The cores that are.
        allowed: CoreList,
    },
    /// The kernel refused.
    #[error("cannot pin this thread to core {core}: {reason}")]
    Kernel {
        /// The core.
        core: usize,
        /// The kernel's words.
        reason: String,
    },
}

/// Cores, ascending; prints as "0,2-3".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CoreList(pub Vec<usize>);

impl fmt::Display for CoreList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut rest = &self.0[..];
        let mut separator = "";
        while let Some(&first) = rest.first() {
            let run = rest.iter().enumerate().take_while(|&(step, &core)| core == first + step).count();
            match run {
                1 => write!(f, "{separator}{first}")?,
                _ => write!(f, "{separator}{first}-{}", first + run - 1)?,
            }
            separator = ",";
            rest = &rest[run..];
        }
        if self.0.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}

/// The most that a list may name: what a kernel's cpu set holds.
const CORES_MAX: usize = 1024;

/// The cores that the scheduler lets this thread use, ascending.
pub fn allowed_cores() -> Result<Vec<usize>, PinError> {
    let set = rustix::thread::sched_getaffinity(None)
        .map_err(|error| PinError::Kernel { core: 0, reason: format!("sched_getaffinity: {error}") })?;
    Ok((0..CORES_MAX).filter(|&core| set.is_set(core)).collect())
}

/// The cores that this machine has online, ascending; empty where /sys does not tell.
fn present_cores() -> Vec<usize> {
    std::fs::read_to_string("/sys/devices/system/cpu/online")
        .ok()
        .and_then(|text| parse_core_list(text.trim()).ok())
        .unwrap_or_default()
}

/// Reads "0,2-3". The result ascends and names no core twice.
pub fn parse_core_list(text: &str) -> Result<Vec<usize>, PinError> {
    let fail = |reason: String| PinError::Syntax { text: text.to_owned(), reason };
    let number = |part: &str| {
        let core: usize = part.trim().parse().map_err(|_| fail(format!("\"{}\" is no core number", part.trim())))?;
        if core < CORES_MAX { Ok(core) } else { Err(fail(format!("{core} is over {}", CORES_MAX - 1))) }
    };
    let mut cores = Vec::new();
    for part in text.split(',') {
        let (first, last) = match part.split_once('-') {
            Some((first, last)) => (number(first)?, number(last)?),
            None => (number(part)?, number(part)?),
        };
        if first > last {
            return Err(fail(format!("{first}-{last} runs backwards")));
        }
        for core in first..=last {
            if cores.contains(&core) {
                return Err(fail(format!("core {core} is named twice")));
            }
            cores.push(core);
        }
    }
    cores.sort_unstable();
    Ok(cores)
}

/// Whether all of `cores` exist and are allowed.
pub fn check_cores(cores: &[usize]) -> Result<(), PinError> {
    check_against(cores, &present_cores(), &allowed_cores()?)
}

fn check_against(cores: &[usize], present: &[usize], allowed: &[usize]) -> Result<(), PinError> {
    let outside = |set: &[usize]| CoreList(cores.iter().copied().filter(|core| !set.contains(core)).collect());
    let missing = outside(present);
    if !present.is_empty() && !missing.0.is_empty() {
        return Err(PinError::Missing { missing, present: CoreList(present.to_vec()) });
    }
    let denied = outside(allowed);
    if !denied.0.is_empty() {
        return Err(PinError::Denied { denied, allowed: CoreList(allowed.to_vec()) });
    }
    Ok(())
}

/// Pins the calling thread to `core`. Only the kernel is asked whether it is allowed: a thread that is started by a pinned one
/// sees that one's core alone as allowed, and may leave it.
pub fn pin_current(core: usize) -> Result<(), PinError> {
    let present = present_cores();
    check_against(&[core], &present, &[core])?;
    if core >= CORES_MAX {
        return Err(PinError::Missing { missing: CoreList(vec![core]), present: CoreList(present) });
    }
    if let Err(error) = affinity::set_thread_affinity([core]) {
        // EINVAL: no core of the set is in the cpuset.
        return match check_cores(&[core]) {
            Err(denied) => Err(denied),
            Ok(()) => Err(PinError::Kernel { core, reason: error.to_string() }),
        };
    }
    Ok(())
}

/// Lets the calling thread run on any of `cores`; on where it is if there are none.
pub fn run_on(cores: &[usize]) -> Result<(), PinError> {
    let Some(&first) = cores.first() else { return Ok(()) };
    check_against(cores, &present_cores(), cores)?;
    let refused = |error: &dyn fmt::Display| PinError::Kernel { core: first, reason: error.to_string() };
    affinity::set_thread_affinity(cores).map_err(|error| refused(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_cores_reads_and_prints_the_same() {
        for text in ["0", "0,2-3", "0-7,9"] {
            assert_eq!(CoreList(parse_core_list(text).unwrap()).to_string(), text);
        }
        assert_eq!(parse_core_list("3, 0-1").unwrap(), [0, 1, 3]);
    }

    #[test]
    fn what_is_no_list_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "\"\" is no core number"),
            ("a", "\"a\" is no core number"),
            ("1,,2", "\"\" is no core number"),
            ("3-1", "runs backwards"),
            ("1,0-2", "named twice"),
            ("5000", "over 1023"),
            ("-1", "is no core number"),
        ] {
            let error = parse_core_list(text).unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn cores_that_do_not_exist_or_are_not_allowed_are_named() {
        let error = check_against(&[0, 5, 6], &[0, 1, 2, 3], &[0, 1]).unwrap_err();
        assert_eq!(error.to_string(), "this machine has no core 5-6; it has 0-3");
        let error = check_against(&[0, 3], &[0, 1, 2, 3], &[0, 1]).unwrap_err();
        assert!(error.to_string().starts_with("core 3 is not allowed for this process; allowed: 0-1"));
    }

    #[test]
    fn a_pinned_thread_runs_where_it_was_pinned() {
        let allowed = allowed_cores().unwrap();
        let (first, core) = (allowed[0], *allowed.last().unwrap());
        std::thread::spawn(move || {
            pin_current(core).unwrap();
            assert_eq!(allowed_cores().unwrap(), [core]);
            assert_eq!(rustix::thread::sched_getcpu(), core);
            // A thread of a pinned thread may go elsewhere.
            std::thread::spawn(move || pin_current(first).unwrap()).join().unwrap();
        })
        .join()
        .unwrap();
        let all = allowed_cores().unwrap();
        std::thread::spawn(move || {
            pin_current(core).unwrap();
            run_on(&all).unwrap();
            assert_eq!(allowed_cores().unwrap(), all);
            run_on(&[]).unwrap();
        })
        .join()
        .unwrap();
        assert!(matches!(pin_current(1000), Err(PinError::Missing { .. })));
    }
}
