//! Fused commands: Compare and Write, sent one right behind the other, that become one request (base 3.4.2, nvm 3.1.1).
//!
//! The halves find each other when the second comes; the pair runs once the data of both is here. A half that the other does not follow,
//! or does not precede, ends alone. How a transport keeps its slots and how data reaches them is its own affair: it lends them as [`Half`].

use ringway_reactor::buf::Buf;
use ringway_reactor::io::Io;
use slab::Slab;

use crate::controller::io::{IoCommand, IoWork, fuse};
use crate::controller::status;
use crate::directory::Directory;
use crate::ids::VolumeId;
use crate::request::{Command, Status};
use crate::transport::work::Work;
use crate::wire::command::Fuse;
use crate::wire::completion::NvmeStatus;

/// A command's slot, as far as pairing goes.
pub(super) trait Half {
    fn work(&self) -> &Work;
    fn work_mut(&mut self) -> &mut Work;
    /// How it ends, if that was decided before all of its data was here.
    fn verdict(&mut self) -> &mut Option<NvmeStatus>;
    /// Its data, once all of it is here and it waits for the other half.
    fn data(&self) -> Option<&Buf>;
}

/// How a half whose data is here goes on.
#[derive(Debug)]
pub(super) enum Next {
    /// With the other half's data, or the other half.
    Wait,
    /// By itself, with this status: it has no other half.
    EndAlone(NvmeStatus),
    /// Both end: that in slot `first` and the other, each with its status.
    End { first: usize, statuses: (NvmeStatus, NvmeStatus) },
    /// As one request, on the data of both (see [`gather`]); its answer is due in slot `first`.
    Run { first: usize, second: usize, volume: VolumeId, command: Command, range: (u64, u32) },
}

fn half<S: Half>(commands: &Slab<S>, index: usize) -> Option<(&IoCommand, Option<usize>)> {
    match commands.get(index)?.work() {
        Work::Fused { io, partner } => Some((io, *partner)),
        _ => None,
    }
}

/// A command has come, into slot `index`: joins it with the first half in `waiting`, if there is one. Returns that half if it stays alone
/// and has to end, as [`Next::EndAlone`] says, once its data is here.
pub(super) fn pair<S: Half>(
    commands: &mut Slab<S>,
    waiting: &mut Option<usize>,
    index: usize,
    directory: &Directory,
) -> Option<usize> {
    let first = waiting.take().filter(|&first| matches!(half(commands, first), Some((_, None))));
    let fused = half(commands, index).map(|(io, _)| io.fuse);
    if let (Some(first), Some(Fuse::Second)) = (first, fused) {
        join(commands, first, index, directory);
        return None;
    }
    match fused {
        None => {}
        Some(Fuse::First) => *waiting = Some(index),
        Some(_) => *commands[index].verdict() = Some(NvmeStatus::ABORTED_MISSING_FUSED.dnr()),
    }
    if let Some(first) = first {
        *commands[first].verdict() = Some(NvmeStatus::ABORTED_MISSING_FUSED.dnr());
    }
    first
}

fn join<S: Half>(commands: &mut Slab<S>, first: usize, second: usize, directory: &Directory) {
    let verdict = match request_of(commands, first, second, directory) {
        Some(fused) => fused.err(),
        None => Some(NvmeStatus::INVALID_NAMESPACE_OR_FORMAT.dnr()),
    };
    for (slot, other) in [(first, second), (second, first)] {
        let slot = &mut commands[slot];
        *slot.verdict() = slot.verdict().or(verdict);
        if let Work::Fused { partner, .. } = slot.work_mut() {
            *partner = Some(other);
        }
    }
}

/// What the halves come to, or why they do not; `None` if their volume is gone.
fn request_of<S: Half>(
    commands: &Slab<S>,
    first: usize,
    second: usize,
    directory: &Directory,
) -> Option<Result<IoWork, NvmeStatus>> {
    let (first, _) = half(commands, first)?;
    let (second, _) = half(commands, second)?;
    Some(fuse(first, second, directory.volume(first.volume)?))
}

/// How the half in slot `index` goes on, whose data is here or that was left alone.
pub(super) fn next<S: Half>(commands: &mut Slab<S>, index: usize, directory: &Directory) -> Next {
    let Some((io, partner)) = half(commands, index) else { unreachable!("only halves come here") };
    let (is_first, volume) = (io.fuse == Fuse::First, io.volume);
    let here = |index: usize| commands[index].data().is_some();
    let Some(other) = partner else {
        let is_here = here(index);
        return commands[index].verdict().filter(|_| is_here).map_or(Next::Wait, Next::EndAlone);
    };
    if !here(index) || !here(other) {
        return Next::Wait;
    }
    let (first, second) = if is_first { (index, other) } else { (other, index) };
    if let Some(status) = commands[first].verdict().or(*commands[second].verdict()) {
        return Next::End { first, statuses: (status, NvmeStatus::ABORTED_FAILED_FUSED.dnr()) };
    }
    match request_of(commands, first, second, directory) {
        Some(Ok(IoWork::Request { command, offset, len })) => {
            Next::Run { first, second, volume, command, range: (offset, len) }
        }
        _ => Next::End { first, statuses: status::of_fused(Status::VolumeGone) },
    }
}

/// One buffer with the data of both halves: what is compared, then what is written. `None` while there is no buffer.
pub(super) fn gather<S: Half, I: Io>(io: &mut I, commands: &Slab<S>, first: usize, second: usize) -> Option<Buf> {
    let (Some(compare), Some(write)) = (commands[first].data(), commands[second].data()) else {
        unreachable!("a pair that runs has its data");
    };
    let mut both = io.buffers().get(compare.len() + write.len())?;
    let (front, back) = both.split_at_mut(compare.len());
    front.copy_from_slice(compare);
    back.copy_from_slice(write);
    Some(both)
}

/// The other half of a pair that was joined.
pub(super) fn second_of<S: Half>(commands: &Slab<S>, first: usize) -> usize {
    half(commands, first).and_then(|(_, partner)| partner).expect("a pair that ended has two halves")
}
