//! The pool, as the backend's thread reaches it: by the queues that front ends use.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::backend::source::{Change, Changes, Pull, Sink, Source, SourceError};
use crate::control::{
    ChangedBlocks, ChangedQuery, ControlAnswer, ControlCall, ControlError, ControlErrorKind, ControlPort,
    ControlRequest,
};
use crate::ids::{Epoch, VolumeId};
use crate::node::inside::InsideCall;
use crate::request::{Command, Status};

/// Takes a request; called from any thread, never blocks.
pub type InsidePort = Arc<dyn Fn(InsideCall) + Send + Sync>;

/// See the module's description.
pub(super) struct PoolAccess {
    control: Arc<dyn ControlPort>,
    inside: InsidePort,
}

impl PoolAccess {
    pub(super) fn new(control: Arc<dyn ControlPort>, inside: InsidePort) -> Self {
        Self { control, inside }
    }

    /// A control call, and its answer.
    pub(super) async fn ask(&self, request: ControlRequest) -> Result<ControlAnswer, ControlError> {
        let (tell, told) = oneshot::channel();
        self.control.control(ControlCall::new(request, move |answer| drop(tell.send(answer))));
        told.await.unwrap_or_else(|_| Err(ControlError::new(ControlErrorKind::Unavailable, "the target is stopping")))
    }

    /// A request, and what it read.
    async fn run(
        &self,
        volume: VolumeId,
        command: Command,
        offset: u64,
        len: u32,
        data: Bytes,
    ) -> Result<Bytes, SourceError> {
        let (tell, told) = oneshot::channel();
        let reply = Box::new(move |status, data| drop(tell.send((status, data))));
        (self.inside)(InsideCall { volume, command, offset, len, data, reply });
        match told.await {
            Ok((Status::Success, data)) => Ok(data.into()),
            Ok((status @ (Status::BackendUnavailable | Status::Busy), _)) => {
                Err(SourceError::Later(why(status).to_owned()))
            }
            Ok((status, _)) => Err(SourceError::Failed(why(status).to_owned())),
            Err(_) => Err(SourceError::Failed("the target is stopping".to_owned())),
        }
    }
}

fn why(status: Status) -> &'static str {
    match status {
        Status::CapacityExceeded => "the pool has no space left",
        Status::UnrecoveredRead => "a device failed a read",
        Status::WriteFault => "a device failed a write",
        Status::BackendUnavailable => "what it looks through to could not be fetched from its backend",
        Status::Busy => "too much waits for its backend",
        Status::VolumeFaulted => "the volume is faulted",
        Status::VolumeGone => "it is gone",
        Status::WriteProtected => "it takes no writes",
        Status::Aborted => "the target is stopping",
        _ => "the request was refused",
    }
}

impl Source for PoolAccess {
    fn changed(&self, snapshot: VolumeId, after: Option<Epoch>, cursor: u64) -> Pull<'_, Changes> {
        Box::pin(async move {
            let query = ChangedQuery { volume: snapshot, after, cursor };
            match self.ask(ControlRequest::Changed(query)).await {
                Ok(ControlAnswer::Changed(ChangedBlocks { ranges, next })) => {
                    let ranges = ranges.into_iter();
                    let ranges = ranges.map(|range| Change { offset: range.offset, len: range.len, data: range.data });
                    Ok(Changes { ranges: ranges.collect(), next })
                }
                Ok(other) => Err(SourceError::Failed(format!("the owner answered {other:?}"))),
                // The cut that the base was made of is not kept any more.
                Err(error) if after.is_some() && error.kind == ControlErrorKind::Invalid => Err(SourceError::BaseGone),
                // What it looks through to is away.
                Err(error) if error.kind == ControlErrorKind::Unavailable => Err(SourceError::Later(error.message)),
                Err(error) => Err(SourceError::Failed(error.message)),
            }
        })
    }

    fn read(&self, snapshot: VolumeId, offset: u64, len: u32) -> Pull<'_, Bytes> {
        Box::pin(self.run(snapshot, Command::Read, offset, len, Bytes::new()))
    }
}

impl Sink for PoolAccess {
    fn write(&self, volume: VolumeId, offset: u64, data: Bytes) -> Pull<'_, ()> {
        Box::pin(async move {
            let len = data.len() as u32;
            self.run(volume, Command::Write { fua: false }, offset, len, data).await.map(drop)
        })
    }

    fn flush(&self, volume: VolumeId) -> Pull<'_, ()> {
        Box::pin(async move { self.run(volume, Command::Flush, 0, 0, Bytes::new()).await.map(drop) })
    }
}
