//! The store as the rest of the backend uses it: operations that try again, with back-off, until they succeed, cannot succeed,
//! or are called off by dropping their future; puts that are read back; a limit on what is sent.

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use thiserror::Error;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use uuid::Uuid;

use super::frame::{Corrupt, Decoded, decode, encode};
use super::names::Object;
use super::store::{Each, Objects, StoreError, StoreErrorKind};

/// The wait before the second try; each further one is twice as long, up to the longest.
const BACK_OFF_FIRST: Duration = Duration::from_millis(50);
const BACK_OFF_LONGEST: Duration = Duration::from_secs(5);
/// One try has ended by then; the client below has a limit of its own, a disk has not.
const TRY_TIMEOUT: Duration = Duration::from_secs(90);
/// A try that has no answer by then is trouble that is told, though it goes on.
const SLOW: Duration = Duration::from_secs(1);
/// Credentials that are refused so often in a row are wrong, and not only too new for one of the store's servers.
const DENIALS_MAX: u32 = 3;
/// What was put is read back in pieces of this size.
const READ_BACK_BYTES: u64 = 2 << 20;
/// What is read back differently so often is not what was put.
const READ_BACK_TRIES: u32 = 3;
/// The largest small object: a manifest's root for the largest volume fits.
const SMALL_BYTES_MAX: u64 = 32 << 20;

/// Why something of the backend's failed for good.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RemoteError {
    /// The store.
    #[error("{0}")]
    Store(#[from] StoreError),
    /// The store answered, and what it answered is wrong.
    #[error("the backend's object {name} is damaged: {why}")]
    Corrupt { name: String, why: Corrupt },
    /// What was put reads back as something else.
    #[error("the backend does not keep what is put there: {0} reads back as something else")]
    NotKept(String),
}

impl RemoteError {
    /// Whether the store says that the object is not there.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        matches!(self, RemoteError::Store(error) if error.kind == StoreErrorKind::Missing)
    }
}

/// What went wrong last, for those who ask why it takes so long. Cleared by success.
#[derive(Debug, Default)]
pub struct Trouble {
    last: Mutex<Option<String>>,
    retries: AtomicU64,
}

impl Trouble {
    fn met(&self, error: &StoreError) {
        self.says(&error.to_string());
    }

    fn says(&self, why: &str) {
        self.retries.fetch_add(1, Ordering::Relaxed);
        *self.last.lock() = Some(why.to_owned());
    }

    fn waits(&self, what: &str) {
        *self.last.lock() = Some(format!("no answer about {what} for {} s and more", SLOW.as_secs()));
    }

    pub(super) fn over(&self) {
        *self.last.lock() = None;
    }

    /// Why the last try failed, while none has succeeded since.
    #[must_use]
    pub fn last(&self) -> Option<String> {
        self.last.lock().clone()
    }

    /// Tries that failed and were followed by another.
    #[must_use]
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }
}

/// Bytes a second that all jobs together send.
#[derive(Debug)]
pub struct SpeedLimit {
    /// 0: none.
    bytes_per_s: AtomicU64,
    next: Mutex<Option<Instant>>,
}

impl SpeedLimit {
    /// At most so many bytes a second; 0 is no limit.
    #[must_use]
    pub fn new(bytes_per_s: u64) -> Self {
        Self { bytes_per_s: AtomicU64::new(bytes_per_s), next: Mutex::new(None) }
    }

    /// Another limit from the next object on.
    pub fn set(&self, bytes_per_s: u64) {
        self.bytes_per_s.store(bytes_per_s, Ordering::Relaxed);
        *self.next.lock() = None;
    }

    /// Waits until so many bytes may go.
    pub async fn take(&self, bytes: u64) {
        let speed = self.bytes_per_s.load(Ordering::Relaxed);
        if speed == 0 {
            return;
        }
        let start = {
            let mut next = self.next.lock();
            let start = next.unwrap_or_else(Instant::now).max(Instant::now());
            *next = Some(start + Duration::from_secs_f64(bytes as f64 / speed as f64));
            start
        };
        sleep_until(start).await;
    }
}

/// How long one task goes on trying, and who is told meanwhile.
#[derive(Clone, Debug)]
pub struct Patience {
    /// None: until it is called off.
    pub until: Option<Instant>,
    /// The longest that one operation is tried without success; none: as long as there is time.
    pub longest: Option<Duration>,
    /// Who is told.
    pub trouble: Arc<Trouble>,
}

impl Patience {
    /// Tries for so long.
    #[must_use]
    pub fn of(time: Duration) -> Self {
        Self { until: Some(Instant::now() + time), longest: None, trouble: Arc::default() }
    }

    /// Tries until it is called off.
    #[must_use]
    pub fn endless(trouble: Arc<Trouble>) -> Self {
        Self { until: None, longest: None, trouble }
    }

    /// Runs `op` until it succeeds, cannot succeed, or time is up.
    async fn persist<T, F>(&self, what: &str, mut op: impl FnMut() -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, StoreError>>,
    {
        let (mut wait, mut denials) = (BACK_OFF_FIRST, 0);
        let until = self.longest.map(|longest| Instant::now() + longest).into_iter().chain(self.until).min();
        for attempt in 0_u32.. {
            let error = match self.one_try(what, op(), until).await {
                Ok(value) => {
                    self.trouble.over();
                    return Ok(value);
                }
                Err(error) => error,
            };
            denials += u32::from(error.kind == StoreErrorKind::Denied);
            let delay = wait.mul_f64(jitter(what, attempt));
            let late = until.is_some_and(|until| Instant::now() + delay >= until);
            if !error.may_pass() || denials >= DENIALS_MAX || late {
                return Err(error);
            }
            tracing::debug!(%error, attempt, "the backend failed; trying again");
            self.trouble.met(&error);
            sleep(delay).await;
            wait = (wait * 2).min(BACK_OFF_LONGEST);
        }
        unreachable!("attempts do not run out")
    }
}

impl Patience {
    /// Waits before what failed is tried again, for the `nth` time after this; false if there is no time left for that.
    pub(super) async fn waits_after(&self, why: &str, nth: u32) -> bool {
        let wait = BACK_OFF_FIRST.saturating_mul(1 << nth.min(10)).min(BACK_OFF_LONGEST).mul_f64(jitter(why, nth));
        if self.until.is_some_and(|until| Instant::now() + wait >= until) {
            return false;
        }
        self.trouble.says(why);
        sleep(wait).await;
        true
    }

    /// One try ends, whatever hangs: after the longest time that any takes, or when there is no time left for another.
    async fn one_try<T>(
        &self,
        what: &str,
        op: impl Future<Output = Result<T, StoreError>>,
        until: Option<Instant>,
    ) -> Result<T, StoreError> {
        let left = until.map_or(TRY_TIMEOUT, |until| until.saturating_duration_since(Instant::now()));
        let limit = left.min(TRY_TIMEOUT);
        let mut op = pin!(timeout(limit, op));
        let outcome = tokio::select! {
            outcome = &mut op => outcome,
            () = sleep(SLOW) => {
                self.trouble.waits(what);
                op.await
            }
        };
        outcome.unwrap_or_else(|_| {
            let why = format!("no answer within {:.1} s", limit.as_secs_f64());
            Err(StoreError::new(StoreErrorKind::Busy, format!("cannot reach {what}"), why))
        })
    }
}

/// Between a half and one: those who failed together do not come back together.
fn jitter(what: &str, attempt: u32) -> f64 {
    let noise = crc32c::crc32c_append(attempt, what.as_bytes());
    0.5 + f64::from(noise) / f64::from(u32::MAX) / 2.0
}

/// One pool's view of the store.
#[derive(Clone)]
pub struct Remote {
    objects: Arc<dyn Objects>,
    /// The pool whose objects these are.
    pub pool: Uuid,
    /// Shared by all that send.
    pub speed: Arc<SpeedLimit>,
    /// Bytes sent and read.
    pub traffic: Arc<Traffic>,
}

/// What went over the wire.
#[derive(Debug, Default)]
pub struct Traffic {
    pub sent: AtomicU64,
    pub read: AtomicU64,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Remote({:?}, pool {})", self.objects, self.pool)
    }
}

impl Remote {
    /// The objects of `pool`.
    #[must_use]
    pub fn new(objects: Arc<dyn Objects>, pool: Uuid, speed: Arc<SpeedLimit>) -> Self {
        Self { objects, pool, speed, traffic: Arc::default() }
    }

    /// The same store, seen as another pool's.
    #[must_use]
    pub fn of_pool(&self, pool: Uuid) -> Remote {
        Remote { pool, ..self.clone() }
    }

    /// Puts an object and reads it back. An object of this name that is there already is either what an earlier try has put
    /// without our hearing of it, or an error.
    pub async fn put(&self, object: Object, parts: &[Bytes], patience: &Patience) -> Result<(), RemoteError> {
        let name = object.name(self.pool);
        let bytes: u64 = parts.iter().map(|part| part.len() as u64).sum();
        self.speed.take(bytes).await;
        match patience.persist(&name, || self.objects.create(&name, parts)).await {
            Ok(()) => {}
            Err(error) if error.kind == StoreErrorKind::Exists => {}
            Err(error) => return Err(error.into()),
        }
        self.traffic.sent.fetch_add(bytes, Ordering::Relaxed);
        self.read_back(&name, parts, bytes, patience).await
    }

    async fn read_back(&self, name: &str, parts: &[Bytes], bytes: u64, patience: &Patience) -> Result<(), RemoteError> {
        let wait = BACK_OFF_FIRST;
        for attempt in 0..READ_BACK_TRIES {
            if attempt > 0 {
                sleep(wait).await;
            }
            match self.same(name, parts, bytes, patience).await {
                Ok(true) => return Ok(()),
                Ok(false) => tracing::warn!(name, attempt, "an object reads back as something else than what was put"),
                // A store may need a moment before it shows what it has taken.
                Err(error) if error.kind == StoreErrorKind::Missing && attempt + 1 < READ_BACK_TRIES => {}
                Err(error) if error.kind == StoreErrorKind::Missing => break,
                Err(error) => return Err(error.into()),
            }
        }
        Err(RemoteError::NotKept(name.to_owned()))
    }

    async fn same(&self, name: &str, parts: &[Bytes], bytes: u64, patience: &Patience) -> Result<bool, StoreError> {
        let mut at = 0;
        while at < bytes {
            // With the last piece one byte more is asked for: an object that is longer is another.
            let end = if bytes - at <= READ_BACK_BYTES { bytes + 1 } else { at + READ_BACK_BYTES };
            let wanted = (end.min(bytes) - at) as usize;
            let got = patience.persist(name, || self.objects.get(name, at..end)).await?;
            if got.len() != wanted || !equals(parts, at, &got) {
                return Ok(false);
            }
            at += wanted as u64;
        }
        Ok(true)
    }

    /// Puts a small object.
    pub async fn put_small<T: Serialize + Sync>(
        &self,
        object: Object,
        body: &T,
        patience: &Patience,
    ) -> Result<(), RemoteError> {
        self.put(object, &[encode(self.pool, object, body).into()], patience).await
    }

    /// Reads a small object.
    pub async fn get_small<T: DeserializeOwned>(&self, object: Object, patience: &Patience) -> Result<T, RemoteError> {
        let bytes = self.get(object, 0..SMALL_BYTES_MAX, patience).await?;
        let decoded: Decoded<T> = decode(self.pool, object, &bytes).map_err(|why| self.corrupt(object, why))?;
        if decoded.bytes != bytes.len() {
            return Err(self.corrupt(object, Corrupt::Nonsense("it goes on after its end")));
        }
        Ok(decoded.body)
    }

    /// Reads a part of an object; fewer bytes where it ends.
    pub async fn get(&self, object: Object, range: Range<u64>, patience: &Patience) -> Result<Bytes, RemoteError> {
        let name = object.name(self.pool);
        let bytes = patience.persist(&name, || self.objects.get(&name, range.clone())).await?;
        self.traffic.read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(bytes)
    }

    /// Deletes an object, or finds it gone.
    pub async fn delete(&self, object: Object, patience: &Patience) -> Result<(), RemoteError> {
        let name = object.name(self.pool);
        Ok(patience.persist(&name, || self.objects.delete(&name)).await?)
    }

    /// The pool's objects, and their bytes. What is not ours is left out.
    pub async fn list(&self, patience: &Patience) -> Result<Vec<(Object, u64)>, RemoteError> {
        let prefix = self.pool.simple().to_string();
        let pool = self.pool;
        self.list_names(&prefix, patience, move |name| Object::of_name(name, pool)).await
    }

    /// The pool's objects of one kind.
    pub async fn list_kind(&self, kind: &str, patience: &Patience) -> Result<Vec<(Object, u64)>, RemoteError> {
        let prefix = format!("{}/{kind}", self.pool.simple());
        let pool = self.pool;
        self.list_names(&prefix, patience, move |name| Object::of_name(name, pool)).await
    }

    /// Every object of every pool below the prefix.
    pub async fn list_all(&self, patience: &Patience) -> Result<Vec<((Uuid, Object), u64)>, RemoteError> {
        self.list_names("", patience, |name| {
            let pool = Uuid::try_parse(name.split('/').next()?).ok()?;
            Object::of_name(name, pool).map(|object| (pool, object))
        })
        .await
    }

    async fn list_names<T: Send>(
        &self,
        prefix: &str,
        patience: &Patience,
        meaning: impl Fn(&str) -> Option<T> + Send + Sync,
    ) -> Result<Vec<(T, u64)>, RemoteError> {
        let found = patience.persist(prefix, || async {
            let mut found = Vec::new();
            let mut each = |name: &str, bytes: u64| found.extend(meaning(name).map(|object| (object, bytes)));
            self.list_into(prefix, &mut each).await?;
            Ok(found)
        });
        Ok(found.await?)
    }

    async fn list_into(&self, prefix: &str, each: Each<'_>) -> Result<(), StoreError> {
        match self.objects.list(prefix, each).await {
            // Nothing was put yet.
            Err(error) if error.kind == StoreErrorKind::Missing => Ok(()),
            outcome => outcome,
        }
    }

    /// An error that says which object is damaged.
    #[must_use]
    pub fn corrupt(&self, object: Object, why: Corrupt) -> RemoteError {
        RemoteError::Corrupt { name: object.name(self.pool), why }
    }
}

/// Whether `got` is what lies at `at` in `parts` put together.
fn equals(parts: &[Bytes], at: u64, got: &[u8]) -> bool {
    let (mut begin, mut left, mut skip) = (0_u64, got, at);
    for part in parts {
        let end = begin + part.len() as u64;
        if skip < end && !left.is_empty() {
            let from = (skip - begin) as usize;
            let length = left.len().min(part.len() - from);
            if part[from..from + length] != left[..length] {
                return false;
            }
            left = &left[length..];
            skip += length as u64;
        }
        begin = end;
    }
    left.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_back_is_compared_across_the_parts() {
        let parts = [Bytes::from_static(b"abc"), Bytes::from_static(b""), Bytes::from_static(b"defg")];
        for (at, got, same) in [
            (0, "abcdefg", true),
            (2, "cd", true),
            (3, "defg", true),
            (6, "g", true),
            (7, "", true),
            (2, "cx", false),
            (6, "gh", false),
            (7, "h", false),
        ] {
            assert_eq!(equals(&parts, at, got.as_bytes()), same, "{at} {got}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_speed_limit_lets_through_what_it_says() {
        let limit = SpeedLimit::new(1000);
        let start = Instant::now();
        for _ in 0..11 {
            limit.take(500).await;
        }
        assert_eq!(start.elapsed().as_secs(), 5, "the eleventh goes when ten have gone");
        limit.set(0);
        limit.take(u64::MAX).await;
        assert_eq!(start.elapsed().as_secs(), 5);
    }
}
