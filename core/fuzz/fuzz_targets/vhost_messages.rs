//! A front end that says anything, to a whole target with a null volume: its connection ends or goes on, and the target serves the next.
//!
//! The input is messages, one after the other, of any length; each comes with as many descriptors as the byte before it says: memory for
//! even places, an eventfd for odd ones.
#![no_main]

use std::io::{IoSlice, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{LazyLock, mpsc};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use ringway_core::control::{ControlAnswer, ControlCall, ControlRequest, VolumeCreate};
use ringway_core::export::{ExportAdd, ExportKind};
use ringway_core::target::{PoolSpec, RunningTarget, TargetConfig, start};
use ringway_reactor::event::EventFd;
use ringway_reactor::shared::SharedMemory;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};

struct Served {
    _target: RunningTarget,
    socket: PathBuf,
    memory: OwnedFd,
    event: EventFd,
}

static SERVED: LazyLock<Served> = LazyLock::new(|| {
    let runtime = std::env::temp_dir().join(format!("ringway-fuzz-{}", std::process::id()));
    std::fs::create_dir_all(&runtime).expect("a folder");
    let mut config = TargetConfig::new(PoolSpec::Null(1 << 30), vec![0]);
    config.runtime = runtime;
    let target = start(config, &mut |_| {}).expect("a target");
    let call = |request| {
        let (sender, receiver) = mpsc::channel();
        target.control().control(ControlCall::new(request, move |answer| drop(sender.send(answer))));
        receiver.recv().expect("an answer").expect("a good one")
    };
    let create = VolumeCreate {
        name: "v".into(),
        size: 64 << 20,
        lba_bytes: 512,
        shards: None,
        exclusive: false,
        allowed_hosts: Vec::new(),
    };
    call(ControlRequest::VolumeCreate(create));
    let ControlAnswer::Export(export) = call(ControlRequest::ExportAdd(ExportAdd::new(ExportKind::VhostUser, "v"))) else {
        panic!("no export");
    };
    let (memory, _) = SharedMemory::create("guest", 1 << 20).expect("memory");
    Served { _target: target, socket: export.socket, memory, event: EventFd::new().expect("an event") }
});

fn send(stream: &UnixStream, bytes: &[u8], descriptors: usize) -> bool {
    let fds: Vec<_> = (0..descriptors)
        .map(|nth| if nth % 2 == 0 { SERVED.memory.as_fd() } else { SERVED.event.as_fd() })
        .collect();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
    }
    rustix::net::sendmsg(stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL).is_ok()
}

fuzz_target!(|bytes: &[u8]| {
    let mut rest = bytes;
    let stream = UnixStream::connect(&SERVED.socket).expect("the target serves");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a timeout");
    // Each message: descriptors, length of its body, code, flags, body.
    while let [descriptors, len, code, flags, more @ ..] = rest {
        let (body, next) = more.split_at(usize::from(*len).min(more.len()));
        rest = next;
        let mut message = Vec::with_capacity(12 + body.len());
        for word in [u32::from(*code), u32::from(*flags), body.len() as u32] {
            message.extend(word.to_ne_bytes());
        }
        message.extend(body);
        if !send(&stream, &message, usize::from(*descriptors % 9)) {
            break;
        }
    }
    // Its end is seen; whatever it has answered is of no interest.
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let mut answers = [0; 4096];
    loop {
        match (&stream).read(&mut answers) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => panic!("the target does not let go"),
            Err(_) => break,
        }
    }
});
