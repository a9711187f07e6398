//! A store that fails in every way that stores fail, and the same way again for the same seed.
//!
//! Operations take simulated time. Before it takes effect, or after it has, an operation may fail; deletes are done late, and so out
//! of order, or are lost; what was given up by its caller may still land; reads may lie.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::sleep;

use super::store::{Answer, Each, Objects, StoreError, StoreErrorKind};

/// How often things go wrong, in thousandths.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Faults {
    /// An operation fails and has done nothing.
    pub(super) fails: u32,
    /// An operation fails and has been done, or will be done later.
    pub(super) lies_about_failing: u32,
    /// A delete succeeds and is never done.
    pub(super) loses_deletes: u32,
    /// A read returns other bytes.
    pub(super) reads_wrong: u32,
    /// Milliseconds that an operation takes at most.
    pub(super) latency_ms: u64,
    /// Milliseconds after which a delete is done at the latest.
    pub(super) delete_ms: u64,
    /// Every operation is refused so.
    pub(super) refuses: Option<StoreErrorKind>,
    /// Puts of more than this in all are refused for lack of space.
    pub(super) space: Option<u64>,
}

#[derive(Debug)]
struct State {
    objects: BTreeMap<String, Bytes>,
    rng: StdRng,
    faults: Faults,
    /// Names that were ever there.
    created: BTreeMap<String, u32>,
}

/// See above. Clones are the same store.
#[derive(Clone, Debug)]
pub(super) struct Faulty(Arc<Mutex<State>>);

impl Faulty {
    pub(super) fn new(seed: u64) -> Faulty {
        Faulty(Arc::new(Mutex::new(State {
            objects: BTreeMap::new(),
            rng: StdRng::seed_from_u64(seed),
            faults: Faults::default(),
            created: BTreeMap::new(),
        })))
    }

    pub(super) fn set(&self, faults: Faults) {
        self.0.lock().faults = faults;
    }

    /// What is there now.
    pub(super) fn names(&self) -> Vec<String> {
        self.0.lock().objects.keys().cloned().collect()
    }

    /// Changes a byte of an object for good.
    pub(super) fn spoil(&self, name: &str, at: usize) {
        let mut state = self.0.lock();
        let object = state.objects.get_mut(name).expect("it is there");
        let mut bytes = object.to_vec();
        let at = at % bytes.len();
        bytes[at] ^= 0x40;
        *object = bytes.into();
    }

    pub(super) fn remove(&self, name: &str) {
        self.0.lock().objects.remove(name).expect("it is there");
    }

    fn roll(&self, per_mille: u32) -> bool {
        self.0.lock().rng.random_range(0..1000) < per_mille
    }

    /// What every operation does first: it takes time, and may be refused or fail, having done nothing.
    async fn begin(&self, what: &str) -> Result<Faults, StoreError> {
        let ms = {
            let mut state = self.0.lock();
            let most = state.faults.latency_ms;
            state.rng.random_range(0..=most)
        };
        sleep(Duration::from_millis(ms)).await;
        let faults = self.0.lock().faults;
        match faults.refuses {
            Some(kind) => Err(StoreError::new(kind, what, "refused by the test")),
            None if self.roll(faults.fails) => Err(broken(what)),
            None => Ok(faults),
        }
    }

    fn store(&self, name: &str, bytes: Bytes) -> Result<(), StoreError> {
        let mut state = self.0.lock();
        if state.objects.contains_key(name) {
            return Err(StoreError::new(StoreErrorKind::Exists, name, "it is there"));
        }
        let used: usize = state.objects.values().map(Bytes::len).sum();
        if state.faults.space.is_some_and(|space| (used + bytes.len()) as u64 > space) {
            return Err(StoreError::new(StoreErrorKind::Full, name, "no space left"));
        }
        *state.created.entry(name.to_owned()).or_default() += 1;
        state.objects.insert(name.to_owned(), bytes);
        Ok(())
    }
}

/// A failure that may pass.
fn broken(what: &str) -> StoreError {
    StoreError::new(StoreErrorKind::Busy, what, "connection reset by the test")
}

impl Objects for Faulty {
    fn create<'a>(&'a self, name: &'a str, parts: &'a [Bytes]) -> Answer<'a, ()> {
        Box::pin(async move {
            let faults = self.begin(name).await?;
            let bytes: Bytes = parts.concat().into();
            if self.roll(faults.lies_about_failing) {
                // It lands when nobody waits for it any more, or at once.
                let (store, name) = (self.clone(), name.to_owned());
                let late = Duration::from_millis(self.0.lock().rng.random_range(0..=2 * faults.latency_ms));
                let what = name.clone();
                tokio::spawn(async move {
                    sleep(late).await;
                    drop(store.store(&name, bytes));
                });
                return Err(broken(&what));
            }
            self.store(name, bytes)
        })
    }

    fn get<'a>(&'a self, name: &'a str, range: Range<u64>) -> Answer<'a, Bytes> {
        Box::pin(async move {
            let faults = self.begin(name).await?;
            let found = self.0.lock().objects.get(name).cloned();
            let found = found.ok_or_else(|| StoreError::new(StoreErrorKind::Missing, name, "not there"))?;
            assert!(
                range.start < found.len() as u64,
                "{name}: a range that begins behind the end is an error on real stores"
            );
            let got = found.slice(range.start as usize..(range.end as usize).min(found.len()));
            if self.roll(faults.reads_wrong) {
                let mut wrong = got.to_vec();
                let at = self.0.lock().rng.random_range(0..wrong.len());
                match at % 3 {
                    0 => wrong.truncate(at),
                    _ => wrong[at] ^= 1 << (at % 8),
                }
                return Ok(wrong.into());
            }
            Ok(got)
        })
    }

    fn list<'a>(&'a self, prefix: &'a str, each: Each<'a>) -> Answer<'a, ()> {
        Box::pin(async move {
            self.begin(prefix).await?;
            let state = self.0.lock();
            for (name, bytes) in &state.objects {
                if prefix.is_empty() || name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('/')) {
                    each(name, bytes.len() as u64);
                }
            }
            Ok(())
        })
    }

    fn delete<'a>(&'a self, name: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            let faults = self.begin(name).await?;
            if self.roll(faults.loses_deletes) {
                return Ok(());
            }
            let late = self.0.lock().rng.random_range(0..=faults.delete_ms);
            let (store, name) = (self.clone(), name.to_owned());
            if late == 0 {
                store.0.lock().objects.remove(&name);
            } else {
                tokio::spawn(async move {
                    sleep(Duration::from_millis(late)).await;
                    store.0.lock().objects.remove(&name);
                });
            }
            Ok(())
        })
    }
}
