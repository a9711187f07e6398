//! What was given to the program and not taken back: so that a second release, or one of something else, is an error and not a crash.
//!
//! Calls on the way of data do not look here.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What an address is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Attributes,
    Context,
    Completion,
    Listener,
}

static LIVE: Mutex<BTreeSet<(usize, Kind)>> = Mutex::new(BTreeSet::new());

fn live() -> MutexGuard<'static, BTreeSet<(usize, Kind)>> {
    // A panic elsewhere leaves a set that is whole.
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The program has this now.
pub(crate) fn enter<T>(kind: Kind, at: *const T) {
    live().insert((at.addr(), kind));
}

/// Whether it has.
pub(crate) fn knows<T>(kind: Kind, at: *const T) -> bool {
    live().contains(&(at.addr(), kind))
}

/// It has it no more; whether it had.
pub(crate) fn leave<T>(kind: Kind, at: *const T) -> bool {
    live().remove(&(at.addr(), kind))
}
