//! What the backend asks of a store: five operations on whole objects, and errors sorted by what can be done about them.
//!
//! [`ObjectStore`]s of the `object_store` crate are one implementation; the tests bring one that fails in every way.

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, GetResultPayload, ObjectStore, PutMode, PutOptions, PutPayload};
use thiserror::Error;

/// What can be done about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StoreErrorKind {
    /// There is no such object.
    Missing,
    /// There is one already.
    Exists,
    /// The store refuses who we are, or what we may do.
    Denied,
    /// The bucket, or the folder, is not there.
    NoBucket,
    /// The store has no space.
    Full,
    /// The store does not know the operation.
    Unsupported,
    /// Whatever may be better later: no answer, a broken connection, an overloaded server.
    Busy,
}

/// A failed operation.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{what}: {why}")]
pub struct StoreError {
    /// To match on.
    pub kind: StoreErrorKind,
    /// What was tried.
    pub what: String,
    /// What the store said.
    pub why: String,
}

impl StoreError {
    /// An error of this kind.
    pub fn new(kind: StoreErrorKind, what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { kind, what: what.into(), why: why.into() }
    }

    /// Whether trying again may help.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self.kind, StoreErrorKind::Full | StoreErrorKind::Busy | StoreErrorKind::Denied)
    }
}

/// The future of one operation.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Told of each object in a listing: its name and its bytes.
pub type Each<'a> = &'a mut (dyn FnMut(&str, u64) + Send);

/// A store of objects. Names are relative to the prefix in its URL.
pub trait Objects: fmt::Debug + Send + Sync {
    /// Puts an object that must not be there yet.
    fn create<'a>(&'a self, name: &'a str, parts: &'a [Bytes]) -> Answer<'a, ()>;
    /// At most the bytes of `range`; fewer where the object ends.
    fn get<'a>(&'a self, name: &'a str, range: Range<u64>) -> Answer<'a, Bytes>;
    /// Every object whose name begins with `prefix` and a slash.
    fn list<'a>(&'a self, prefix: &'a str, each: Each<'a>) -> Answer<'a, ()>;
    /// Deletes an object; one that is not there is deleted.
    fn delete<'a>(&'a self, name: &'a str) -> Answer<'a, ()>;
}

/// An [`ObjectStore`] below a prefix.
#[derive(Debug)]
pub struct RealObjects {
    store: Arc<dyn ObjectStore>,
    prefix: Path,
    /// How the place is called in messages.
    label: String,
}

impl RealObjects {
    /// Objects below `prefix` of `store`.
    pub fn new(store: Arc<dyn ObjectStore>, prefix: Path, label: String) -> Self {
        Self { store, prefix, label }
    }

    fn path(&self, name: &str) -> Path {
        self.prefix.parts().chain(name.split('/').map(Into::into)).collect()
    }

    fn failed(&self, verb: &str, name: &str, error: &object_store::Error) -> StoreError {
        let (kind, why) = sort(error);
        StoreError::new(kind, format!("cannot {verb} {}/{name}", self.label), why)
    }
}

impl Objects for RealObjects {
    fn create<'a>(&'a self, name: &'a str, parts: &'a [Bytes]) -> Answer<'a, ()> {
        Box::pin(async move {
            let payload: PutPayload = parts.iter().cloned().collect();
            let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
            match self.store.put_opts(&self.path(name), payload, options).await {
                Ok(_) => Ok(()),
                Err(error) => Err(self.failed("put", name, &error)),
            }
        })
    }

    fn get<'a>(&'a self, name: &'a str, range: Range<u64>) -> Answer<'a, Bytes> {
        Box::pin(async move {
            let wanted = (range.end - range.start) as usize;
            let failed = |error| self.failed("get", name, &error);
            let options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
            let found = self.store.get_opts(&self.path(name), options).await.map_err(failed)?;
            if matches!(found.payload, GetResultPayload::File(..)) {
                // No longer than the range. As a stream it would come 8 KiB at a time, each by way of another thread.
                return found.bytes().await.map_err(failed);
            }
            let mut stream = found.into_stream();
            let mut bytes = Vec::with_capacity(wanted.min(1 << 20));
            while let Some(piece) = stream.next().await {
                let piece = piece.map_err(failed)?;
                // A store that sends more than was asked for does not fill our memory.
                let room = wanted - bytes.len();
                bytes.extend_from_slice(&piece[..piece.len().min(room)]);
                if room <= piece.len() {
                    break;
                }
            }
            Ok(bytes.into())
        })
    }

    fn list<'a>(&'a self, prefix: &'a str, each: Each<'a>) -> Answer<'a, ()> {
        Box::pin(async move {
            let below = if prefix.is_empty() { self.prefix.clone() } else { self.path(prefix) };
            let mut objects = self.store.list(Some(&below));
            while let Some(object) = objects.next().await {
                let object = object.map_err(|error| self.failed("list", prefix, &error))?;
                let own: Vec<_> = self.prefix.parts().collect();
                let name: Vec<_> =
                    object.location.parts().skip(own.len()).map(|part| part.as_ref().to_owned()).collect();
                each(&name.join("/"), object.size);
            }
            Ok(())
        })
    }

    fn delete<'a>(&'a self, name: &'a str) -> Answer<'a, ()> {
        Box::pin(async move {
            use object_store::ObjectStoreExt;
            match self.store.delete(&self.path(name)).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
                Err(error) => Err(self.failed("delete", name, &error)),
            }
        })
    }
}

/// What an error of the store means. Servers say some things only in words.
fn sort(error: &object_store::Error) -> (StoreErrorKind, String) {
    let mut why = error.to_string();
    let mut source = std::error::Error::source(error);
    let mut io = None;
    while let Some(cause) = source {
        if let Some(found) = cause.downcast_ref::<std::io::Error>() {
            io = Some(found.kind());
        }
        let more = cause.to_string();
        if !why.contains(&more) {
            why = format!("{why}: {more}");
        }
        source = cause.source();
    }
    let says = |words: &[&str]| words.iter().any(|word| why.contains(word));
    let kind = if says(&["NoSuchBucket"]) {
        StoreErrorKind::NoBucket
    } else if matches!(io, Some(std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded))
        || says(&["QuotaExceeded", "XMinioStorageFull", "507 Insufficient Storage"])
    {
        StoreErrorKind::Full
    } else if matches!(io, Some(std::io::ErrorKind::PermissionDenied | std::io::ErrorKind::ReadOnlyFilesystem))
        || says(&["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "403 Forbidden", "NotSignedUp"])
    {
        StoreErrorKind::Denied
    } else {
        match error {
            object_store::Error::NotFound { .. } => StoreErrorKind::Missing,
            object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. } => {
                StoreErrorKind::Exists
            }
            object_store::Error::PermissionDenied { .. } | object_store::Error::Unauthenticated { .. } => {
                StoreErrorKind::Denied
            }
            object_store::Error::NotSupported { .. } | object_store::Error::NotImplemented { .. } => {
                StoreErrorKind::Unsupported
            }
            _ => StoreErrorKind::Busy,
        }
    };
    (kind, one_line(&why))
}

/// Servers answer in XML over many lines; a message to an operator is one, and not endless.
fn one_line(text: &str) -> String {
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(400) {
        line.truncate(end);
        line.push('…');
    }
    line
}
