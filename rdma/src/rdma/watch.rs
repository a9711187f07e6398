//! Devices that come and go while the process runs.
//!
//! librdmacm says of a device that goes to each connection on it; where there is none nobody hears, and of one that comes nobody hears
//! at all. So a thread looks at what the system lists. It opens what is new, which takes the time that locking all buffers takes,
//! beside the reactors; what is gone it marks, and rings for the reactors, each of which lets go of its own part.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::Shared;
use super::device::{self, Place};
use crate::verbs::DeviceId;

/// How long a device may be there, or gone, before that is noticed.
const EVERY: Duration = Duration::from_secs(1);

pub(super) fn start(shared: &Arc<Shared>) -> io::Result<()> {
    let shared = Arc::downgrade(shared);
    let look_around = move || {
        // One that cannot be used is tried once.
        let mut tried = HashSet::new();
        loop {
            thread::sleep(EVERY);
            let Some(shared) = shared.upgrade() else { return };
            look(&shared, &mut tried);
        }
    };
    thread::Builder::new().name("rdma-devices".to_owned()).spawn(look_around).map(drop)
}

fn look(shared: &Shared, tried: &mut HashSet<Place>) {
    let listed = device::listed();
    let mut known = HashSet::new();
    let mut gone: Vec<DeviceId> = Vec::new();
    for open in shared.devices().iter().filter_map(|known| known.open.as_ref()) {
        let Some(place) = open.place() else { continue };
        known.insert(place);
        if !listed.contains(&place) {
            gone.push(open.info().id);
        }
    }
    gone.into_iter().for_each(|id| shared.forget(id));
    let new: Vec<Place> = listed.into_iter().filter(|place| !known.contains(place) && tried.insert(*place)).collect();
    if new.is_empty() {
        return;
    }
    let all = match device::all() {
        Ok(all) => all,
        Err(why) => {
            // Another one is just going, say.
            tried.retain(|place| !new.contains(place));
            return tracing::debug!("a new RDMA device cannot be looked at yet: {why}");
        }
    };
    for verbs in all {
        match shared.of(verbs) {
            // Those that were known are among them, and those that are just going.
            Ok(_) | Err(super::Unavailable::Removed) => {}
            Err(why) => tracing::warn!("an RDMA device is not used: {why}"),
        }
    }
}
