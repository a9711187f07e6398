//! A guest's memory on its way into the reactors' rings, for exports that ask for it.
//!
//! The pages are brought in by a thread of its own, a slice after the other: for pages that are not there yet the kernel takes some 2.5 s a
//! gigabyte, which neither a reactor nor the guest's front end is to wait for. Each slice goes to the reactors when its pages are there.
//!
//! Invariant: while the thread runs, `areas` are mapped; it is joined before they are given up.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

use ringway_reactor::shared::SharedMemory;

use super::mail::Mail;
use super::server::Link;
use crate::transport::pins::SLICE;

/// See the module's description.
pub(super) struct Pinning {
    link: Arc<Link>,
    areas: Vec<Arc<SharedMemory>>,
    enough: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pinning {
    /// Begins with these areas.
    pub(super) fn start(link: &Arc<Link>, areas: Vec<Arc<SharedMemory>>) -> Pinning {
        let enough = Arc::new(AtomicBool::new(false));
        let pinning = Pinning { link: Arc::clone(link), areas, enough, thread: None };
        let (link, areas, enough) = (Arc::clone(link), pinning.areas.clone(), Arc::clone(&pinning.enough));
        let work = move || areas.iter().for_each(|area| bring_in(&link, area, &enough));
        match thread::Builder::new().name("ringway-pin".to_owned()).spawn(work) {
            Ok(thread) => Pinning { thread: Some(thread), ..pinning },
            Err(error) => {
                tracing::warn!(%error, "no thread to pin a guest's memory with: it is used by its addresses, at some cost an operation");
                pinning
            }
        }
    }

    /// Undoes it: on return no ring has any of it. Nothing is in flight on it.
    pub(super) fn undo(self) {
        self.enough.store(true, Ordering::Relaxed);
        if self.thread.is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that pins a guest's memory has panicked");
        }
        for reactor in 0..self.link.reactors() {
            // Not answered by a target that is stopping, whose rings go whole.
            let _ = self.link.ask(reactor, |reply| Mail::Unpin(self.areas.clone(), reply));
        }
    }
}

fn bring_in(link: &Link, area: &Arc<SharedMemory>, enough: &AtomicBool) {
    for start in (0..area.len()).step_by(SLICE) {
        if enough.load(Ordering::Relaxed) {
            return;
        }
        let slice = start..area.len().min(start + SLICE);
        if let Err(error) = area.populate(slice.clone()) {
            tracing::warn!(%error, "memory of a guest cannot be brought in: the rest of it is used by its addresses, at some cost an operation");
            return;
        }
        for reactor in 0..link.reactors() {
            link.send(reactor, Mail::Pin(Arc::clone(area), slice.clone()));
        }
    }
}
