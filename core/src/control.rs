//! What a front end (HTTP, command line, admin command of a vendor) may ask of a running node, and what it answers.
//!
//! Requests are typed and checked for shape here; what needs knowledge of the pool is checked by the node. Each call is
//! answered exactly once: [`ControlCall::reply`] is consumed by answering, and a call that is dropped unanswered tells
//! its caller that the node is going away.

mod error;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::backend::api::{BackendAnswer, BackendRequest};
use crate::event::{EventList, EventQuery};
use crate::export::{ExportAdd, ExportInfo};
use crate::ids::{Epoch, ExportId, ShardId, VolumeId};
use crate::limits::VOLUME_BYTES_MAX;
pub use crate::shard::ChangedRange;
use crate::snapshot::asked::{DiffQuery, SnapshotCreate, SnapshotInfo, VolumeClone};
use crate::stream::{StreamInfo, StreamRequest, StreamStepped};
use crate::volume::{VolumeRecord, check_name};
pub use error::{ControlError, ControlErrorKind};

/// Anything that takes control calls: the running node, or a stand-in in a test. Called from any thread; never blocks.
pub trait ControlPort: Send + Sync {
    /// Takes a call over; its answer arrives through [`ControlCall::reply`], on any thread.
    fn control(&self, call: ControlCall);
}

/// One request and the way back to who asked.
pub struct ControlCall {
    /// What is asked.
    pub request: ControlRequest,
    reply: Option<Reply>,
}

/// Takes the answer; runs on the thread that answers, so it must not block.
pub type Reply = Box<dyn FnOnce(Result<ControlAnswer, ControlError>) + Send>;

impl ControlCall {
    /// A call whose answer goes to `reply`.
    pub fn new(
        request: ControlRequest,
        reply: impl FnOnce(Result<ControlAnswer, ControlError>) + Send + 'static,
    ) -> ControlCall {
        ControlCall { request, reply: Some(Box::new(reply)) }
    }

    /// Takes the call apart, for a node that answers later.
    #[must_use]
    pub fn into_parts(mut self) -> (ControlRequest, Reply) {
        let reply = self.reply.take().expect("a call that is not yet answered has its reply");
        (self.request.clone(), reply)
    }

    /// Answers and ends the call.
    pub fn answer(mut self, answer: Result<ControlAnswer, ControlError>) {
        let reply = self.reply.take().expect("a call that is not yet answered has its reply");
        reply(answer);
    }
}

impl Drop for ControlCall {
    fn drop(&mut self) {
        if let Some(reply) = self.reply.take() {
            reply(Err(ControlError::new(
                ControlErrorKind::Unavailable,
                "the target is stopping and no longer answers",
            )));
        }
    }
}

impl fmt::Debug for ControlCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ControlCall({:?})", self.request)
    }
}

/// Who takes a volume back to a snapshot, and so whose associations with it may end by that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RollbackBy {
    /// Nobody's.
    Anybody,
    /// Those of the host with this identifier: the caller is that one, has nothing in flight, and comes back by itself.
    Holder([u8; 16]),
    /// Everybody's: what hosts have open ends.
    Force,
}

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlRequest {
    /// Makes a volume; answered with [`ControlAnswer::Volume`] once its record is durable.
    VolumeCreate(VolumeCreate),
    /// All volumes by name; answered with [`ControlAnswer::Volumes`].
    VolumeList,
    /// One volume; answered with [`ControlAnswer::Volume`].
    VolumeShow { name: String },
    /// Grows a volume; a smaller size is [`ControlErrorKind::Invalid`], the same size changes nothing. Attached hosts are
    /// told. Answered with [`ControlAnswer::Volume`].
    VolumeResize { name: String, size: u64 },
    /// Gives a volume another name, under which hosts attach from then on. Answered with [`ControlAnswer::Volume`].
    VolumeRename { name: String, to: String },
    /// Removes a volume and frees its space; [`ControlErrorKind::Busy`] while a host is attached, unless `force`.
    /// Answered with [`ControlAnswer::Done`].
    VolumeRemove { name: String, force: bool },
    /// Replaces the hosts that may attach; an empty list means any host where the listener allows that. Answered with
    /// [`ControlAnswer::Volume`].
    VolumeSetHosts { name: String, hosts: Vec<String> },
    /// The pool's devices, space and state; answered with [`ControlAnswer::Pool`].
    PoolShow,
    /// Adds space: a file made in the pool's directory, or another block device. Answered with [`ControlAnswer::Grown`] once
    /// every shard may use it; [`ControlAnswer::Pool`] has its progress meanwhile.
    PoolGrow(PoolGrow),
    /// Gives a volume a socket of its own; answered with [`ControlAnswer::Export`] once its record is durable and clients can
    /// connect.
    ExportAdd(ExportAdd),
    /// All exports by volume and socket; answered with [`ControlAnswer::Exports`].
    ExportList,
    /// Takes an export away, from those too who are connected. Answered with [`ControlAnswer::Done`].
    ExportRemove { id: ExportId },
    /// Cuts volumes, all at once; answered with [`ControlAnswer::Snapshots`] when they are synced, or with
    /// [`ControlErrorKind::TimedOut`] at the deadline, and then nothing is left of them.
    SnapshotCreate(SnapshotCreate),
    /// The snapshots of a volume, or of all, those that are being made included, by volume and cut; answered with
    /// [`ControlAnswer::Snapshots`].
    SnapshotList { volume: Option<String> },
    /// One snapshot, `VOLUME@NAME`; answered with [`ControlAnswer::Snapshots`].
    SnapshotShow { name: String },
    /// Removes a snapshot, or gives up one that is being made. [`ControlErrorKind::Busy`] while a host is attached to it, unless
    /// `force`; [`ControlErrorKind::Needed`] while a clone lies over it. Answered with [`ControlAnswer::Done`].
    SnapshotRemove { name: String, force: bool },
    /// Takes a volume back to a snapshot and drops the later ones. [`ControlErrorKind::Busy`] while a host is attached whose
    /// associations may not end by it; [`ControlErrorKind::Needed`] while a clone lies over a later one. Answered with
    /// [`ControlAnswer::Volume`].
    SnapshotRollback { name: String, by: RollbackBy },
    /// Makes a volume over a snapshot; answered with [`ControlAnswer::Volume`].
    VolumeClone(VolumeClone),
    /// About the backend; answered with [`ControlAnswer::Backend`], and for a restore with [`ControlAnswer::Volume`].
    Backend(BackendRequest),
    /// The running target: listeners, cores, connections; answered with [`ControlAnswer::Target`].
    TargetShow,
    /// Which blocks of a volume or a snapshot may differ from what it held at a cut, stretch by stretch; answered with
    /// [`ControlAnswer::Changed`].
    Changed(ChangedQuery),
    /// What has changed between two snapshots of a volume, or one and now, by name, stretch by stretch; answered with
    /// [`ControlAnswer::Changed`].
    SnapshotDiff(DiffQuery),
    /// About making clones independent; answered with [`ControlAnswer::Stream`], [`ControlAnswer::Streams`],
    /// [`ControlAnswer::Stepped`] or [`ControlAnswer::Done`].
    Stream(StreamRequest),
    /// What has happened; answered with [`ControlAnswer::Events`].
    Events(EventQuery),
    /// Copies the next stretch of what a clone has from its parent; answered with [`ControlAnswer::Filled`].
    Fill(FillStep),
    /// What each snapshot of a volume alone keeps from being free, stretch by stretch; answered with
    /// [`ControlAnswer::SnapshotSpace`].
    SnapshotSpace(HeldQuery),
    /// Makes everything acknowledged so far durable (a checkpoint of every shard); answered with [`ControlAnswer::Done`].
    Sync,
}

/// A volume to be made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeCreate {
    /// See [`check_name`].
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// 512 or 4096.
    #[serde(default = "lba_bytes_default")]
    pub lba_bytes: u32,
    /// The shards that hold it, in stripe order; none: all of them.
    #[serde(default)]
    pub shards: Option<Vec<ShardId>>,
    /// One writer at a time.
    #[serde(default)]
    pub exclusive: bool,
    /// Host NQNs that may attach.
    #[serde(default)]
    pub allowed_hosts: Vec<String>,
}

/// Virtual machines boot from 512.
fn lba_bytes_default() -> u32 {
    512
}

impl VolumeCreate {
    /// What can be told without knowing the pool.
    pub fn check(&self) -> Result<(), ControlError> {
        check_name(&self.name).map_err(|bad| ControlError::invalid(bad.to_string()))?;
        if self.lba_bytes != 512 && self.lba_bytes != 4096 {
            return Err(ControlError::invalid(format!(
                "logical block size {} is not supported; it is 512 or 4096 bytes",
                self.lba_bytes
            )));
        }
        check_volume_size(self.size, self.lba_bytes)?;
        if let Some(shards) = &self.shards {
            let distinct: std::collections::BTreeSet<_> = shards.iter().collect();
            if shards.is_empty() || distinct.len() != shards.len() {
                return Err(ControlError::invalid(
                    "the list of shards is empty or names one twice; name each at most once",
                ));
            }
        }
        self.allowed_hosts.iter().try_for_each(|nqn| check_host_nqn(nqn))
    }
}

/// Checks a volume's size: whole logical blocks, not empty, not over the largest.
pub fn check_volume_size(size: u64, lba_bytes: u32) -> Result<(), ControlError> {
    if size == 0 || size > VOLUME_BYTES_MAX {
        return Err(ControlError::invalid(format!(
            "size {size} bytes is out of range; a volume has {lba_bytes} bytes to {VOLUME_BYTES_MAX} bytes (64 TiB)"
        )));
    }
    if !size.is_multiple_of(u64::from(lba_bytes)) {
        let below = size / u64::from(lba_bytes) * u64::from(lba_bytes);
        return Err(ControlError::invalid(format!(
            "size {size} bytes is not a multiple of the logical block size {lba_bytes}; the nearest are {below} and {}",
            below + u64::from(lba_bytes)
        )));
    }
    Ok(())
}

/// Checks a host's NQN (NVMe base specification 2.0, section 4.5): at most 223 bytes, `nqn.` with a date.
pub fn check_host_nqn(nqn: &str) -> Result<(), ControlError> {
    let date = nqn.strip_prefix("nqn.").and_then(|rest| rest.split_once('.')).map(|(date, _)| date.as_bytes());
    let dated = date.is_some_and(|d| {
        d.len() == 7 && d[4] == b'-' && d[..4].iter().all(u8::is_ascii_digit) && d[5..].iter().all(u8::is_ascii_digit)
    });
    if nqn.len() > 223 || !dated || !nqn.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(ControlError::invalid(format!(
            "host NQN {nqn:?} is not one; it looks like nqn.2014-08.org.nvmexpress:uuid:… (see /etc/nvme/hostnqn on the \
             host) and has at most 223 printable bytes"
        )));
    }
    Ok(())
}

/// Space to be added.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PoolGrow {
    /// A block device; none: another file in the pool's directory.
    #[serde(default)]
    pub device: Option<PathBuf>,
    /// Bytes of the new file; a block device is taken whole.
    #[serde(default)]
    pub size: Option<u64>,
    /// How the space of the new file is obtained.
    #[serde(default)]
    pub allocate: Allocate,
    /// Take the block device whatever is on it.
    #[serde(default)]
    pub force: bool,
}

impl PoolGrow {
    /// What can be told without knowing the pool.
    pub fn check(&self) -> Result<(), ControlError> {
        match (&self.device, self.size) {
            (None, None) => {
                Err(ControlError::invalid("neither a size nor a device is given; a pool grows by one of them"))
            }
            (Some(_), Some(_)) => {
                Err(ControlError::invalid("a block device is taken whole; give a size or a device, not both"))
            }
            (None, Some(_)) if self.force => {
                Err(ControlError::invalid("force is for a block device; a new file overwrites nothing"))
            }
            _ => Ok(()),
        }
    }
}

/// How the space of a pool's file is obtained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Allocate {
    /// Written once: no later write has to allocate in the file system.
    #[default]
    Written,
    /// Reserved in the file system, not written.
    Reserved,
    /// Neither: the file system may be full when a write comes.
    Sparse,
}

/// A pool that has grown.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolGrown {
    /// The device that joined.
    pub device: String,
    /// How the pool is named from now on, when it is started again.
    pub serve: String,
    /// The pool.
    pub uuid: Uuid,
    /// Bytes that volumes can use in all.
    pub size: u64,
    /// Devices that it has now.
    pub devices: u16,
    /// Shards, fixed at format.
    pub shards: u16,
    /// Bytes of a slab.
    pub slab_bytes: u64,
}

/// Asks for changed blocks. With a snapshot's id what it shows, with a volume's what that holds by the time of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChangedQuery {
    /// Whose.
    pub volume: VolumeId,
    /// Since this cut of the same volume, which must still be kept; none: everything that is there as data.
    pub after: Option<Epoch>,
    /// Where to go on: 0, then [`ChangedBlocks::next`].
    pub cursor: u64,
}

/// Ranges of one stretch of a volume, from the cursor up to `next`. What is not listed has not changed, or, asked without a cut,
/// reads as zeros. A block may be listed that has not changed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChangedBlocks {
    /// Ascending.
    pub ranges: Vec<ChangedRange>,
    /// Where to go on; none: this was the end.
    pub next: Option<u64>,
}

impl ChangedBlocks {
    /// Asked without a cut, from `offset` on: how many bytes have data or are a hole, in turn, as far as this tells, at most `len` bytes in
    /// `max` extents.
    #[must_use]
    pub fn extents(&self, offset: u64, len: u64, max: usize) -> Vec<(u64, bool)> {
        let known = self.next.filter(|&next| next > offset).unwrap_or(u64::MAX);
        let end = offset.saturating_add(len).min(known);
        let mut found: Vec<(u64, bool)> = Vec::new();
        let mut at = offset;
        let mut add = |found: &mut Vec<(u64, bool)>, to: u64, data: bool| {
            if to > at {
                match found.last_mut() {
                    Some((last, same)) if *same == data => *last += to - at,
                    _ => found.push((to - at, data)),
                }
                at = to;
            }
        };
        for &ChangedRange { offset: from, len, .. } in self.ranges.iter().filter(|range| range.data) {
            if from >= end || found.len() > max {
                break;
            }
            add(&mut found, from.min(end), false);
            add(&mut found, (from + len).min(end), true);
        }
        add(&mut found, end, false);
        found.truncate(max);
        found
    }
}

/// Asks for the next step of filling a clone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FillStep {
    /// The clone.
    pub volume: VolumeId,
    /// Where to go on: 0, then [`Filled::next`].
    pub cursor: u64,
}

/// A stretch is filled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Filled {
    /// Where to go on; none: no view of the clone has anything from the parent any more. After a flush of the clone the link can go.
    pub next: Option<u64>,
    /// Bytes copied by this step.
    pub copied: u64,
}

/// Asks for the space that snapshots keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldQuery {
    /// The volume that was cut.
    pub volume: VolumeId,
    /// Where to go on: 0, then [`SnapshotSpace::next`].
    pub cursor: u64,
}

/// Space of one stretch of a volume; to be added up over all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotSpace {
    /// By cut, bytes of clusters that would be free if it alone went.
    pub unique: Vec<(Epoch, u64)>,
    /// Where to go on; none: this was the end.
    pub next: Option<u64>,
}

/// A growth that is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GrowthInfo {
    /// Bytes of the new file written so far.
    pub written: u64,
    /// Of so many; 0 while that is not known, and where nothing has to be written.
    pub total: u64,
}

/// What a node answers.
#[derive(Clone, Debug, PartialEq)]
pub enum ControlAnswer {
    /// It is done and durable.
    Done,
    /// One volume as it is now.
    Volume(VolumeInfo),
    /// All volumes, by name.
    Volumes(Vec<VolumeInfo>),
    /// The pool.
    Pool(PoolInfo),
    /// The pool has grown.
    Grown(PoolGrown),
    /// The running target.
    Target(TargetInfo),
    /// Snapshots as they are now.
    Snapshots(Vec<SnapshotInfo>),
    /// About the backend.
    Backend(BackendAnswer),
    /// One export as it is now.
    Export(ExportInfo),
    /// All exports, by volume and socket.
    Exports(Vec<ExportInfo>),
    /// What may have changed.
    Changed(ChangedBlocks),
    /// How far a clone is filled.
    Filled(Filled),
    /// What snapshots keep.
    SnapshotSpace(SnapshotSpace),
    /// One stream as it is now.
    Stream(StreamInfo),
    /// All of them, by volume.
    Streams(Vec<StreamInfo>),
    /// An increment of one is done.
    Stepped(StreamStepped),
    /// What has happened.
    Events(EventList),
}

/// A volume as seen from outside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeInfo {
    /// Never reused within its pool.
    pub id: VolumeId,
    /// Its name.
    pub name: String,
    /// What `nvme connect -n` takes.
    pub nqn: String,
    /// NGUID and UUID of its namespace.
    pub uuid: Uuid,
    /// Bytes.
    pub size: u64,
    /// 512 or 4096.
    pub lba_bytes: u32,
    /// Shards in stripe order.
    pub shards: Vec<ShardId>,
    /// Seconds since 1970, UTC.
    pub created_unix_s: u64,
    /// One writer at a time.
    pub exclusive: bool,
    /// Host NQNs that may attach; empty: any where the listener allows that.
    pub allowed_hosts: Vec<String>,
    /// Bytes of clusters it occupies in the pool.
    pub allocated: u64,
    /// Hosts attached now.
    pub attached_hosts: Vec<String>,
    /// The snapshot that it lies over, if it is a clone.
    #[serde(default)]
    pub parent: Option<String>,
    /// Why it answers no I/O, if it is faulted.
    pub fault: Option<String>,
}

impl VolumeInfo {
    /// What its record says, with nothing allocated, attached or faulted.
    #[must_use]
    pub fn of_record(record: &VolumeRecord, nqn: String) -> VolumeInfo {
        VolumeInfo {
            id: record.id,
            name: record.name.clone(),
            nqn,
            uuid: record.uuid,
            size: record.size,
            lba_bytes: record.lba_bytes,
            shards: record.shards.clone(),
            created_unix_s: record.created_unix_s,
            exclusive: record.exclusive,
            allowed_hosts: record.allowed_hosts.clone(),
            allocated: 0,
            attached_hosts: Vec::new(),
            parent: None,
            fault: None,
        }
    }
}

/// The pool as seen from outside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PoolInfo {
    /// Given at format.
    pub uuid: Uuid,
    /// Version of the format on its devices.
    pub format_version: u32,
    /// Counts openings for writing.
    pub boot_generation: u32,
    /// Shards, fixed at format.
    pub shards: u16,
    /// Bytes of a slab.
    pub slab_bytes: u64,
    /// Bytes that volumes can use in all.
    pub size: u64,
    /// Of these, bytes in use by data and maps.
    pub used: u64,
    /// Why it takes no writes, if it does not.
    pub read_only: Option<String>,
    /// Why shards of it could not be opened: volumes with stripes there are faulted, and nothing there is changed.
    #[serde(default)]
    pub dead_shards: Vec<String>,
    /// Its devices by number.
    pub devices: Vec<DeviceInfo>,
    /// Volumes in its catalog.
    pub volumes: u32,
    /// How far a growth is, while there is one.
    pub growing: Option<GrowthInfo>,
}

impl PoolInfo {
    /// Used space in percent, rounded down; 0 for an empty null pool.
    #[must_use]
    pub fn used_percent(&self) -> u64 {
        (u128::from(self.used) * 100).checked_div(u128::from(self.size)).unwrap_or(0) as u64
    }
}

/// One device of a pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceInfo {
    /// Place in the pool.
    pub number: u16,
    /// Path, `mem` or `null`.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Largest aligned write that power loss leaves whole, bytes.
    pub atomic_write_unit: u32,
    /// Whether discarded space goes back to what lies below.
    pub deallocates: bool,
    /// Why it is not trusted any more (a failed barrier is sticky), if so.
    pub fault: Option<String>,
}

/// The running target as seen from outside; also the line that `ringway serve` prints when it is ready.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TargetInfo {
    /// Of the program.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// Where it listens for NVMe/TCP.
    pub listeners: Vec<SocketAddr>,
    /// Where it listens for NVMe/RDMA.
    #[serde(default)]
    pub rdma_listeners: Vec<SocketAddr>,
    /// The core of each reactor.
    pub cores: Vec<usize>,
    /// NVMe/TCP and NVMe/RDMA connections now.
    pub connections: u32,
    /// Hosts without an entry in a volume's list may attach from beyond loopback.
    pub insecure: bool,
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    fn create() -> VolumeCreate {
        VolumeCreate {
            name: "vm1".into(),
            size: 1 << 30,
            lba_bytes: 512,
            shards: None,
            exclusive: false,
            allowed_hosts: Vec::new(),
        }
    }

    #[test]
    fn a_call_that_is_dropped_tells_its_caller_that_the_target_is_going_away() {
        let (sender, receiver) = mpsc::channel();
        let call = ControlCall::new(ControlRequest::VolumeList, move |answer| sender.send(answer).unwrap());
        drop(call);
        assert_eq!(receiver.recv().unwrap().unwrap_err().kind, ControlErrorKind::Unavailable);
    }

    #[test]
    fn a_call_is_answered_exactly_once() {
        let (sender, receiver) = mpsc::channel();
        let call = ControlCall::new(ControlRequest::VolumeList, move |answer| sender.send(answer).unwrap());
        call.answer(Ok(ControlAnswer::Done));
        assert_eq!(receiver.iter().collect::<Vec<_>>(), [Ok(ControlAnswer::Done)]);
    }

    #[test]
    fn what_a_volume_cannot_be_is_refused_with_what_it_can_be() {
        assert_eq!(create().check(), Ok(()));
        for (wrong, says) in [
            (VolumeCreate { name: "a:b".into(), ..create() }, "A-Z a-z 0-9"),
            (VolumeCreate { size: 0, ..create() }, "64 TiB"),
            (VolumeCreate { size: VOLUME_BYTES_MAX + 512, ..create() }, "64 TiB"),
            (VolumeCreate { size: 1000, ..create() }, "512 and 1024"),
            (VolumeCreate { size: 512, lba_bytes: 4096, ..create() }, "multiple of the logical block size 4096"),
            (VolumeCreate { lba_bytes: 1024, ..create() }, "512 or 4096"),
            (VolumeCreate { shards: Some(vec![]), ..create() }, "shards"),
            (VolumeCreate { shards: Some(vec![ShardId(1), ShardId(1)]), ..create() }, "twice"),
            (VolumeCreate { allowed_hosts: vec!["host".into()], ..create() }, "nqn.2014-08"),
        ] {
            let error = wrong.check().unwrap_err();
            assert_eq!(error.kind, ControlErrorKind::Invalid);
            assert!(error.message.contains(says), "{error}");
        }
    }

    #[test]
    fn host_names_look_like_nqns() {
        for good in ["nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555", "nqn.2026-11.io.ringway:x"]
        {
            assert_eq!(check_host_nqn(good), Ok(()));
        }
        for bad in [
            "",
            "nqn.",
            "nqn.2014.org",
            "nqn.2014-08.a b",
            "iqn.2014-08.a",
            &format!("nqn.2014-08.{}", "x".repeat(230)),
        ] {
            assert!(check_host_nqn(bad).is_err(), "{bad}");
        }
    }
}
