//! A client of network block devices that says anything, to a whole target with a null volume: its connection ends or goes on, what it is
//! answered is framed as the protocol says, and the target serves the next.
//!
//! The first byte of the input is flags: 1, negotiate a transmission first (2, with structured replies and `base:allocation`; 4, by
//! EXPORT_NAME). What follows are pieces:
//! ```text
//! 0..=63     option of this number:   length u8 | data
//! 64..=127   request of this kind - 64: flags u8 | offset u16 (512s) | length u16 (16s)  | as much data, where it is a write
//! 128..=255  bytes as they are:       length u8 | bytes
//! ```
#![no_main]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{LazyLock, mpsc};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use ringway_core::control::{ControlAnswer, ControlCall, ControlRequest, VolumeCreate};
use ringway_core::export::{ExportAdd, ExportKind};
use ringway_core::target::{PoolSpec, RunningTarget, TargetConfig, start};
use ringway_core::transport::nbd::negotiate::ALLOCATION;
use ringway_core::transport::nbd::wire::{Asked, Kind, OPTION_MAGIC};

/// What a connection that is left has to end within.
const PATIENCE: Duration = Duration::from_secs(8);
const SIMPLE_REPLY: u32 = 0x6744_6698;
const STRUCTURED_REPLY: u32 = 0x668e_33ef;

struct Served {
    _target: RunningTarget,
    socket: PathBuf,
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
        size: 16 << 20,
        lba_bytes: 512,
        shards: None,
        exclusive: false,
        allowed_hosts: Vec::new(),
    };
    call(ControlRequest::VolumeCreate(create));
    let ControlAnswer::Export(export) = call(ControlRequest::ExportAdd(ExportAdd::new(ExportKind::Nbd, "v"))) else {
        panic!("no export");
    };
    Served { _target: target, socket: export.socket }
});

fn option(number: u32, data: &[u8], out: &mut Vec<u8>) {
    out.extend(OPTION_MAGIC.to_be_bytes());
    out.extend(number.to_be_bytes());
    out.extend((data.len() as u32).to_be_bytes());
    out.extend(data);
}

/// What is said up to the transmission.
fn negotiation(flags: u8, out: &mut Vec<u8>) {
    out.extend(3u32.to_be_bytes());
    if flags & 2 != 0 {
        option(8, b"", out);
        let mut query = [&1u32.to_be_bytes()[..], b"v", &1u32.to_be_bytes()].concat();
        query.extend((ALLOCATION.len() as u32).to_be_bytes());
        query.extend(ALLOCATION.as_bytes());
        option(10, &query, out);
    }
    if flags & 4 != 0 {
        option(1, b"v", out);
    } else {
        option(7, &[&1u32.to_be_bytes()[..], b"v", &0u16.to_be_bytes()].concat(), out);
    }
}

/// The next piece of the input, as it is sent; what is left of it.
fn piece<'a>(bytes: &'a [u8], cookie: u64, out: &mut Vec<u8>) -> Option<&'a [u8]> {
    match bytes {
        [number @ 0..=63, len, more @ ..] | [number @ 128..=255, len, more @ ..] => {
            let (data, rest) = more.split_at(usize::from(*len).min(more.len()));
            if *number < 64 { option(u32::from(*number), data, out) } else { out.extend(data) }
            Some(rest)
        }
        [kind, flags, o0, o1, l0, l1, rest @ ..] => {
            let kind = u16::from(*kind) - 64;
            let offset = u64::from(u16::from_be_bytes([*o0, *o1])) * 512;
            let len = u32::from(u16::from_be_bytes([*l0, *l1])) * 16;
            let asked = Asked { kind: Kind::Unknown(kind), flags: u16::from(*flags), cookie, offset, len };
            out.extend(asked.encode(kind));
            if kind == 1 {
                out.resize(out.len() + len as usize, *flags);
            }
            Some(rest)
        }
        _ => None,
    }
}

/// Takes replies off the front; the cookies of those that ended a request well or badly.
fn replies(mut bytes: &[u8], reads: impl Fn(u64) -> Option<u32>) -> Vec<u64> {
    let mut ended = Vec::new();
    let word = |bytes: &[u8], at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    while bytes.len() >= 20 || (bytes.len() >= 16 && word(bytes, 0) == SIMPLE_REPLY) {
        let (header, length) = if word(bytes, 0) == SIMPLE_REPLY {
            let cookie = u64::from_be_bytes(bytes[8..16].try_into().expect("eight bytes"));
            ended.push(cookie);
            let data = if word(bytes, 4) == 0 { reads(cookie).expect("it answers a request") } else { 0 };
            (16, data as usize)
        } else {
            assert_eq!(word(bytes, 0), STRUCTURED_REPLY, "a reply begins as one");
            if bytes[5] & 1 != 0 {
                ended.push(u64::from_be_bytes(bytes[8..16].try_into().expect("eight bytes")));
            }
            (20, word(bytes, 16) as usize)
        };
        // What comes after the end of the client's patience is cut anywhere.
        let Some(rest) = bytes.get(header + length..) else { break };
        bytes = rest;
    }
    ended
}

fuzz_target!(|bytes: &[u8]| {
    let Some((&flags, mut rest)) = bytes.split_first() else { return };
    let transmits = flags & 1 != 0;
    let mut said = Vec::new();
    if transmits {
        negotiation(flags, &mut said);
    }
    // Replies can be told apart as long as nothing but requests was said.
    let (mut only_requests, mut asked, mut is_over) = (transmits, Vec::new(), false);
    while let Some(next) = piece(rest, asked.len() as u64, &mut said) {
        let is_request = (64..128).contains(&rest[0]);
        only_requests &= is_request;
        // With flags that it cannot have it is refused, and nothing ends.
        is_over |= rest[0] == 64 + 2 && rest[1] & !1 == 0;
        if is_request && !is_over {
            // With structured replies a simple one never has data.
            let is_read = rest[0] == 64 && flags & 2 == 0;
            let len = u32::from(u16::from_be_bytes([rest[4], rest[5]])) * 16;
            asked.push(if is_read { len } else { 0 });
        }
        rest = next;
        if said.len() > 4 << 20 {
            break;
        }
    }
    let stream = UnixStream::connect(&SERVED.socket).expect("the target serves");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
    let answers = std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut answers, mut from) = (Vec::new(), &stream);
            match from.read_to_end(&mut answers) {
                Ok(_) => {}
                // It had no more to say to this client.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {}
                Err(error) => panic!("the connection does not end: {error}"),
            }
            answers
        });
        // It may end the connection at any byte.
        let _ = (&stream).write_all(&said);
        let _ = stream.shutdown(Shutdown::Write);
        reader.join().expect("its words are above")
    });
    assert!(answers.starts_with(b"NBDMAGICIHAVEOPT"), "it greets whoever comes");
    if !only_requests || answers.len() < 18 {
        return;
    }
    let Some(start) = transmission(&answers[18..], flags) else { return };
    let mut ended = replies(start, |cookie| asked.get(cookie as usize).copied());
    let count = ended.len();
    ended.sort_unstable();
    ended.dedup();
    assert_eq!(ended.len(), count, "a request is answered once");
});

/// What follows the answers of the negotiation.
fn transmission(mut answers: &[u8], flags: u8) -> Option<&[u8]> {
    // Structured replies, the context and its end, and the export with its end, unless that comes without a header.
    let options = if flags & 2 != 0 { 3 } else { 0 } + if flags & 4 != 0 { 0 } else { 2 };
    for _ in 0..options {
        let len = u32::from_be_bytes(answers.get(16..20)?.try_into().ok()?) as usize;
        answers = answers.get(20 + len..)?;
    }
    if flags & 4 != 0 { answers.get(10..) } else { Some(answers) }
}
