//! Streams of a whole target: to their end, through errors, kills and crashes, beside guests that write; and what is told of them.

use std::collections::BTreeSet;

use ringway_core::control::{ControlAnswer, ControlError, ControlErrorKind, ControlRequest};
use ringway_core::event::{Event, EventKind, EventQuery};
use ringway_core::ids::VolumeId;
use ringway_core::request::{Command, Status};
use ringway_core::snapshot::asked::{DiffQuery, VolumeClone};
use ringway_core::stream::{OnError, StreamInfo, StreamRequest, StreamStart, StreamStatus, StreamStepped};
use ringway_reactor::sim::{CrashPoint, DiskConfig};

use crate::rig::{BLOCK, MIB, Pending, Setup, Target};
use crate::snapshots::{listed, remove, roll_back, snapshot};
use crate::space::PIECE;

/// Stripes of the parent that have data.
const STRIPES: [u64; 6] = [0, 1, 2, 7, 20, 39];

fn clone_of(target: &mut Target, snapshot: &str, name: &str) -> VolumeId {
    let (snapshot, name) = (snapshot.to_owned(), name.to_owned());
    let clone = VolumeClone { snapshot, name, exclusive: false, allowed_hosts: vec![] };
    match target.call(ControlRequest::VolumeClone(clone)) {
        Ok(ControlAnswer::Volume(made)) => made.id,
        other => panic!("no clone: {other:?}"),
    }
}

fn on(volume: &str) -> StreamStart {
    StreamStart { volume: volume.into(), speed: None, on_error: OnError::Report }
}

fn call(target: &mut Target, request: StreamRequest) -> Result<ControlAnswer, ControlError> {
    target.call(ControlRequest::Stream(request))
}

fn start(target: &mut Target, start: StreamStart) -> StreamInfo {
    shown(call(target, StreamRequest::Start(start)))
}

fn shown(answer: Result<ControlAnswer, ControlError>) -> StreamInfo {
    match answer {
        Ok(ControlAnswer::Stream(info)) => info,
        other => panic!("no stream: {other:?}"),
    }
}

fn info(target: &mut Target, volume: &str) -> Result<StreamInfo, ControlError> {
    call(target, StreamRequest::Info { volume: volume.into() }).map(|answer| shown(Ok(answer)))
}

fn events(target: &mut Target, since: u64) -> Vec<Event> {
    match target.call(ControlRequest::Events(EventQuery { since: Some(since), wait_ms: 0 })) {
        Ok(ControlAnswer::Events(list)) => list.events,
        other => panic!("no events: {other:?}"),
    }
}

/// The last events of streams: kinds and jobs.
fn ends(target: &mut Target) -> Vec<(EventKind, u64)> {
    let ended = events(target, 0).into_iter().filter(|event| event.kind.ends_a_stream());
    ended.map(|event| (event.kind, event.job.map_or(0, |job| job.0))).collect()
}

/// Waits for the end of a stream of a clone.
fn finish(target: &mut Target, volume: &str) {
    for _ in 0..2_000 {
        if info(target, volume).is_err() {
            return;
        }
        target.pass_ns(10_000_000);
    }
    panic!("{:?}", info(target, volume));
}

fn parent(target: &mut Target, volume: &str) -> Option<String> {
    target.volumes().into_iter().find(|info| info.name == volume).expect("it is there").parent
}

/// `vm1` with data in some stripes and a snapshot `a`, and a clone `vm2` of that.
fn family(seed: u64, setup: Setup) -> (Target, VolumeId) {
    let mut target = Target::new(seed, setup);
    let volume = target.create("vm1", 40 * MIB).id;
    for stripe in STRIPES {
        assert_eq!(target.write(volume, stripe * MIB, &[1; 65536 + 8192]), Status::Success);
    }
    snapshot(&mut target, "vm1", "a");
    let clone = clone_of(&mut target, "vm1@a", "vm2");
    (target, clone)
}

#[test]
fn c9_a_clone_with_snapshots_is_streamed_and_its_parent_can_go_and_every_view_reads_as_before() {
    let (mut target, clone) = family(1, Setup::default());
    assert_eq!(target.write(clone, 4096, &[2; 4096]), Status::Success);
    let id = target.request(clone, Command::Deallocate, 7 * MIB, 65536, None);
    assert_eq!(target.wait(id).status, Status::Success);
    let inner = snapshot(&mut target, "vm2", "s").id;
    assert_eq!(target.write(clone, 8192, &[3; 4096]), Status::Success);
    let started = start(&mut target, on("vm2"));
    assert_eq!((started.parent.as_deref(), started.end, started.id), (Some("vm1@a"), 40 * MIB, clone));
    finish(&mut target, "vm2");
    assert_eq!(parent(&mut target, "vm2"), None);
    assert_eq!(ends(&mut target), [(EventKind::StreamCompleted, started.job.0)]);
    assert_eq!(remove(&mut target, "vm1@a"), Ok(ControlAnswer::Done));
    target.call(ControlRequest::VolumeRemove { name: "vm1".into(), force: false }).unwrap();
    target.pass_ns(5_000_000_000);
    let mut target = target.power_loss();
    let expect = |live: bool| {
        let mut bytes = vec![1; 16384];
        bytes[4096..8192].fill(2);
        if live {
            bytes[8192..12288].fill(3);
        }
        bytes
    };
    assert_eq!(target.read(inner, 0, 16384), Ok(expect(false)));
    assert_eq!(target.read(clone, 0, 16384), Ok(expect(true)));
    for volume in [inner, clone] {
        assert_eq!(target.read(volume, 7 * MIB, 65536), Ok(vec![0; 65536]), "what was discarded stays away");
        assert_eq!(target.read(volume, 7 * MIB + 65536, 8192), Ok(vec![1; 8192]));
        assert_eq!(target.read(volume, 39 * MIB, 65536), Ok(vec![1; 65536]));
    }
    assert!(roll_back(&mut target, "vm2@s", false).is_ok());
    assert_eq!(target.read(clone, 0, 16384), Ok(expect(false)));
    assert_eq!(ends(&mut target).len(), 1);
}

#[test]
fn c9_a_clone_of_a_clone_reads_on_when_the_one_between_is_streamed_and_what_both_came_from_is_gone() {
    let (mut target, clone) = family(2, Setup::default());
    assert_eq!(target.write(clone, 4096, &[2; 4096]), Status::Success);
    snapshot(&mut target, "vm2", "s");
    let grandchild = clone_of(&mut target, "vm2@s", "vm3");
    assert_eq!(target.write(clone, 0, &[4; 4096]), Status::Success);
    start(&mut target, on("vm2"));
    finish(&mut target, "vm2");
    assert_eq!(remove(&mut target, "vm1@a"), Ok(ControlAnswer::Done));
    target.pass_ns(3_000_000_000);
    let expected = [[1; 4096], [2; 4096], [1; 4096]].concat();
    assert_eq!(target.read(grandchild, 0, 12288), Ok(expected));
    assert_eq!(remove(&mut target, "vm2@s").unwrap_err().kind, ControlErrorKind::Needed);
    start(&mut target, on("vm3"));
    finish(&mut target, "vm3");
    assert_eq!(remove(&mut target, "vm2@s"), Ok(ControlAnswer::Done));
    assert_eq!(target.read(grandchild, 39 * MIB, 4096), Ok(vec![1; 4096]));
}

#[test]
fn a_stream_has_one_job_a_volume_and_bad_requests_say_what_would_be_right() {
    let (mut target, _) = family(3, Setup::default());
    let slow = StreamStart { speed: Some(1), ..on("vm2") };
    let job = start(&mut target, slow.clone()).job;
    let abort = |volume: &str| StreamRequest::Abort { volume: volume.into() };
    let resume = |volume: &str| StreamRequest::Resume { volume: volume.into() };
    let step = |volume: &str, cursor| StreamRequest::Step { volume: volume.into(), cursor };
    for (request, kind, says) in [
        (StreamRequest::Start(slow), ControlErrorKind::Busy, "stream info vm2"),
        (StreamRequest::Start(on("vm1")), ControlErrorKind::Invalid, "is no clone"),
        (StreamRequest::Start(on("vm1@a")), ControlErrorKind::Invalid, "is a snapshot"),
        (StreamRequest::Start(on("vm9")), ControlErrorKind::NotFound, "vm9"),
        (StreamRequest::Start(on("a:b")), ControlErrorKind::Invalid, "not allowed"),
        (step("vm2", 0), ControlErrorKind::Busy, "stream abort vm2"),
        (abort("vm1"), ControlErrorKind::NotFound, "is not being streamed"),
        (resume("vm2"), ControlErrorKind::Invalid, "is not paused"),
        (StreamRequest::Info { volume: "vm1".into() }, ControlErrorKind::NotFound, "is not being streamed"),
    ] {
        let error = call(&mut target, request.clone()).expect_err("it is refused");
        assert!(error.kind == kind && error.message.contains(says), "{request:?}: {error:?}");
    }
    let removal = |force| ControlRequest::VolumeRemove { name: "vm2".into(), force };
    assert_eq!(target.call(removal(false)).unwrap_err().kind, ControlErrorKind::Busy, "remove while streaming");
    assert_eq!(remove(&mut target, "vm1@a").unwrap_err().kind, ControlErrorKind::Needed);
    assert_eq!(call(&mut target, abort("vm2")), Ok(ControlAnswer::Done));
    assert_eq!(parent(&mut target, "vm2").as_deref(), Some("vm1@a"), "the link stays");
    let again = start(&mut target, StreamStart { speed: Some(1), ..on("vm2") }).job;
    assert!(again > job);
    assert_eq!(target.call(removal(true)), Ok(ControlAnswer::Done));
    let cancelled = |job: u64| (EventKind::StreamCancelled, job);
    assert_eq!(ends(&mut target), [cancelled(job.0), cancelled(again.0)]);
    let beyond = call(&mut target, step("vm1", 0));
    assert_eq!(beyond, Ok(ControlAnswer::Stepped(StreamStepped { cursor: 40 * MIB, end: 40 * MIB, copied: 0 })));
}

#[test]
fn a_limit_on_speed_holds_and_another_one_counts_at_once() {
    let (mut target, _) = family(4, Setup::default());
    start(&mut target, StreamStart { speed: Some(64 << 10), ..on("vm2") });
    target.pass_ns(3_000_000_000);
    let slow = info(&mut target, "vm2").expect("it goes on");
    // A stretch copies a cluster of each shard at least, and is paid for afterwards.
    assert!((64 << 10..=(3 + 3) * (64 << 10)).contains(&slow.copied), "{slow:?}");
    assert_eq!((slow.status, slow.speed), (StreamStatus::Running, Some(64 << 10)));
    let faster = StreamRequest::SetSpeed { volume: "vm2".into(), speed: None };
    assert_eq!(shown(call(&mut target, faster)).speed, None);
    target.pass_ns(1_000_000_000);
    assert!(info(&mut target, "vm2").is_err(), "it is done");
    let told = events(&mut target, 0).pop().expect("there are events");
    assert_eq!((told.kind, told.bytes), (EventKind::StreamCompleted, Some(6 * (65536 + 8192))));
}

fn flushed(mut target: Target, volume: VolumeId) -> Target {
    assert_eq!(target.flush(volume), Status::Success);
    target
}

#[test]
fn guests_that_write_meanwhile_win_and_see_every_write_of_theirs() {
    for seed in 0..8 {
        let (mut target, clone) = family(100 + seed, Setup::default());
        start(&mut target, StreamStart { speed: Some(2 << 20), ..on("vm2") });
        let mut expected: Vec<(u64, u8)> = Vec::new();
        for n in 0..60u8 {
            let place = STRIPES[target.world.pick(STRIPES.len())] * MIB + target.world.pick(18) as u64 * BLOCK;
            assert_eq!(target.write(clone, place, &[100 + n; 4096]), Status::Success);
            expected.retain(|&(at, _)| at != place);
            expected.push((place, 100 + n));
            if n % 8 == 0 {
                target.pass_ns(20_000_000);
            }
        }
        finish(&mut target, "vm2");
        remove(&mut target, "vm1@a").unwrap();
        target.pass_ns(2_000_000_000);
        let mut target = if seed % 2 == 0 { target.kill() } else { flushed(target, clone).power_loss() };
        for stripe in STRIPES {
            for block in 0..18 {
                let place = stripe * MIB + block * BLOCK;
                let value = expected.iter().find(|(at, _)| *at == place).map_or(1, |&(_, value)| value);
                assert_eq!(target.read(clone, place, 4096), Ok(vec![value; 4096]), "seed {seed}, {stripe}, {block}");
            }
        }
    }
}

#[test]
fn increments_lead_to_the_end_from_wherever_they_begin() {
    let (mut target, clone) = family(5, Setup { shards: 1, ..Setup::default() });
    let step = |cursor| StreamRequest::Step { volume: "vm2".into(), cursor };
    let refused = call(&mut target, step(40 * MIB)).unwrap_err();
    assert!(refused.kind == ControlErrorKind::Invalid && refused.message.contains("begin at 0"), "{refused}");
    // The last one first: what lies before it is filled too before the link goes.
    let (mut cursor, mut cursors) = (0, Vec::new());
    for first in [32 * MIB, 0] {
        if first == 0 && parent(&mut target, "vm2").is_none() {
            break;
        }
        cursor = first;
        while cursor < 40 * MIB {
            let Ok(ControlAnswer::Stepped(stepped)) = call(&mut target, step(cursor)) else { panic!("no step") };
            assert!(stepped.cursor > cursor && stepped.end == 40 * MIB, "{stepped:?}");
            cursors.push(stepped.cursor);
            cursor = stepped.cursor;
        }
    }
    assert_eq!((cursor, parent(&mut target, "vm2")), (40 * MIB, None), "{cursors:?}");
    remove(&mut target, "vm1@a").unwrap();
    let mut target = target.power_loss();
    for stripe in STRIPES {
        assert_eq!(target.read(clone, stripe * MIB, 65536), Ok(vec![1; 65536]));
    }
    assert_eq!(ends(&mut target), [(EventKind::StreamCompleted, 0)], "an increment is no job");
}

#[test]
fn increments_go_stretch_by_stretch() {
    let (mut target, _) = family(6, Setup { shards: 1, ..Setup::default() });
    let (mut cursor, mut steps, mut copied) = (0, 0, 0);
    while cursor < 40 * MIB {
        let request = StreamRequest::Step { volume: "vm2".into(), cursor };
        let Ok(ControlAnswer::Stepped(stepped)) = call(&mut target, request) else { panic!("no step at {cursor}") };
        assert_eq!(parent(&mut target, "vm2").is_none(), stepped.cursor == stepped.end);
        (cursor, steps, copied) = (stepped.cursor, steps + 1, copied + stepped.copied);
    }
    assert!(steps >= 3, "{steps} steps for stripes in four stretches");
    assert_eq!(copied, 6 * (65536 + 8192));
}

#[test]
fn a_job_survives_any_end_of_the_process_and_keeps_its_number_its_place_and_its_limit() {
    let (target, clone) = family(7, Setup::default());
    let mut target = target;
    let begun = start(&mut target, StreamStart { speed: Some(60 << 10), on_error: OnError::Stop, ..on("vm2") });
    target.pass_ns(5_900_000_000);
    let before = info(&mut target, "vm2").expect("it goes on");
    let mut target = target.kill();
    let after = info(&mut target, "vm2").expect("it goes on");
    assert_eq!((after.job, after.speed, after.on_error), (begun.job, Some(60 << 10), OnError::Stop));
    assert!(after.cur <= before.cur && after.copied > 0, "{before:?}, {after:?}");
    let mut target = target.restart();
    assert_eq!(info(&mut target, "vm2").expect("it goes on").job, begun.job);
    let mut target = target.power_loss();
    call(&mut target, StreamRequest::SetSpeed { volume: "vm2".into(), speed: Some(0) }).unwrap();
    finish(&mut target, "vm2");
    assert_eq!(ends(&mut target), [(EventKind::StreamCompleted, begun.job.0)]);
    let mut target = target.kill();
    assert_eq!((parent(&mut target, "vm2"), ends(&mut target).len()), (None, 1));
    remove(&mut target, "vm1@a").unwrap();
    target.pass_ns(2_000_000_000);
    assert_eq!(target.read(clone, 20 * MIB, 8192), Ok(vec![1; 8192]));
}

/// A clone in a pool that has no space for it; the volume that has the rest, and its bytes.
fn short_of_space(seed: u64, on_error: OnError) -> (Target, VolumeId, u64) {
    let setup = Setup { disks: vec![DiskConfig { size: 48 * MIB, ..DiskConfig::default() }], ..Setup::default() };
    let mut target = Target::new(seed, setup);
    let volume = target.create("vm1", 16 * MIB).id;
    for stripe in 0..8 {
        for piece in 0..4 {
            assert_eq!(target.write(volume, stripe * MIB + piece * PIECE as u64, &vec![1; PIECE]), Status::Success);
        }
    }
    snapshot(&mut target, "vm1", "a");
    clone_of(&mut target, "vm1@a", "vm2");
    let big = target.create("big", 1 << 30).id;
    let written = crate::space::fill(&mut target, big, 1 << 30);
    start(&mut target, StreamStart { on_error, ..on("vm2") });
    target.pass_ns(8_000_000_000);
    (target, big, written)
}

fn make_space(target: &mut Target) {
    target.call(ControlRequest::VolumeRemove { name: "big".into(), force: true }).unwrap();
    target.pass_ns(3_000_000_000);
}

/// Everything is there after all.
fn check_whole(target: &mut Target) {
    finish(target, "vm2");
    assert_eq!(parent(target, "vm2"), None);
    let clone = target.volumes().into_iter().find(|info| info.name == "vm2").expect("it is there").id;
    for stripe in 0..8 {
        assert_eq!(target.read(clone, stripe * MIB, PIECE), Ok(vec![1; PIECE]));
    }
}

#[test]
fn without_space_a_stream_that_reports_ends_with_the_error_and_the_link_stays() {
    let (mut target, ..) = short_of_space(8, OnError::Report);
    assert_eq!(info(&mut target, "vm2").unwrap_err().kind, ControlErrorKind::NotFound);
    let last = events(&mut target, 0).into_iter().rev().find(|event| event.kind.ends_a_stream()).expect("it is over");
    assert_eq!((last.kind, last.code), (EventKind::StreamFailed, Some(ControlErrorKind::NoSpace.exit_code())));
    assert!(last.text.contains("no space"), "{last:?}");
    assert_eq!(parent(&mut target, "vm2").as_deref(), Some("vm1@a"));
    make_space(&mut target);
    start(&mut target, on("vm2"));
    check_whole(&mut target);
}

#[test]
fn without_space_a_stream_that_stops_is_paused_over_restarts_until_it_is_resumed() {
    let (mut target, ..) = short_of_space(9, OnError::Stop);
    let paused = info(&mut target, "vm2").expect("it is paused");
    assert!(paused.status == StreamStatus::Paused && paused.error.is_some(), "{paused:?}");
    make_space(&mut target);
    let mut target = target.kill();
    target.pass_ns(3_000_000_000);
    assert_eq!(info(&mut target, "vm2").expect("it is paused").status, StreamStatus::Paused);
    let resumed = shown(call(&mut target, StreamRequest::Resume { volume: "vm2".into() }));
    assert_eq!((resumed.status, resumed.error), (StreamStatus::Running, None));
    check_whole(&mut target);
    let kinds: Vec<_> = events(&mut target, paused.job.0 - 1).into_iter().map(|event| event.kind).collect();
    let expected = [
        EventKind::StreamStarted,
        EventKind::StreamPaused,
        EventKind::VolumeRemoved,
        EventKind::StreamResumed,
        EventKind::StreamCompleted,
    ];
    let of_these: Vec<_> = kinds.into_iter().filter(|kind| expected.contains(kind)).collect();
    assert_eq!(of_these, expected);
}

#[test]
fn without_space_a_stream_that_ignores_it_tries_again_until_there_is_some() {
    let (mut target, ..) = short_of_space(10, OnError::Ignore);
    let trying = info(&mut target, "vm2").expect("it goes on");
    assert!(trying.status == StreamStatus::Retrying && trying.error.is_some(), "{trying:?}");
    make_space(&mut target);
    target.pass_ns(40_000_000_000);
    check_whole(&mut target);
    let told = events(&mut target, trying.job.0).into_iter().filter(|event| event.kind == EventKind::StreamError);
    assert_eq!(told.count(), 1, "an error is told once, however often it is met");
}

#[test]
fn a_crash_at_any_point_of_a_stream_leaves_a_clone_that_reads_right_and_one_last_event() {
    let mut outcomes = BTreeSet::new();
    for power_loss in [false, true] {
        for n in 0..40 {
            let context = format!("crash {n}, power loss {power_loss}");
            let (mut target, clone) = family(3000 + n, Setup::default());
            assert_eq!(target.write(clone, 4096, &[2; 4096]), Status::Success);
            let inner = snapshot(&mut target, "vm2", "s").id;
            assert_eq!(target.write(clone, 8192, &[3; 4096]), Status::Success);
            assert_eq!(target.flush(clone), Status::Success);
            let point = if n % 2 == 0 { CrashPoint::Submitted(n) } else { CrashPoint::Completed(n) };
            target.world.crash_after(point);
            let pending = target.ask(ControlRequest::Stream(StreamRequest::Start(on("vm2"))));
            let _ = target.run(6_000, |_| false);
            let answered = pending.lock().unwrap().clone();
            let mut target = if power_loss { target.power_loss() } else { target.kill() };
            let running = info(&mut target, "vm2").is_ok();
            let independent = parent(&mut target, "vm2").is_none();
            let last = ends(&mut target);
            assert!(!(running && independent), "{context}: a job of a volume that needs nobody");
            assert_eq!(last.len(), usize::from(independent), "{context}: {last:?}");
            assert!(running || independent || !matches!(answered, Some(Ok(_))), "{context}: what was started goes on");
            outcomes.insert((running, independent));
            if running {
                finish(&mut target, "vm2");
            }
            if running || independent {
                assert_eq!(ends(&mut target).len(), 1, "{context}");
                assert_eq!(remove(&mut target, "vm1@a"), Ok(ControlAnswer::Done), "{context}");
                target.pass_ns(2_000_000_000);
            }
            for (volume, third) in [(inner, 1), (clone, 3)] {
                let expected = [[1; 4096], [2; 4096], [third; 4096], [1; 4096]].concat();
                assert_eq!(target.read(volume, 0, 16384), Ok(expected), "{context}");
                assert_eq!(target.read(volume, 39 * MIB, 8192), Ok(vec![1; 8192]), "{context}");
            }
        }
    }
    assert_eq!(outcomes.len(), 3, "{outcomes:?}");
}

#[test]
fn a_crash_while_a_stream_is_aborted_leaves_it_running_or_cancelled_with_one_event() {
    let mut outcomes = BTreeSet::new();
    for n in 0..12 {
        let (mut target, _) = family(4000 + n, Setup::default());
        let job = start(&mut target, StreamStart { speed: Some(1), ..on("vm2") }).job.0;
        target.pass_ns(100_000_000);
        let point = if n % 2 == 0 { CrashPoint::Submitted(n / 2) } else { CrashPoint::Completed(n / 2) };
        target.world.crash_after(point);
        let pending = target.ask(ControlRequest::Stream(StreamRequest::Abort { volume: "vm2".into() }));
        let _ = target.run(3_000, |_| false);
        let answered = pending.lock().unwrap().clone();
        let mut target = target.kill();
        let running = info(&mut target, "vm2").is_ok();
        assert!(!(running && matches!(answered, Some(Ok(_)))), "crash {n}: it was answered");
        let expected = if running { vec![] } else { vec![(EventKind::StreamCancelled, job)] };
        assert_eq!(ends(&mut target), expected, "crash {n}");
        assert_eq!(parent(&mut target, "vm2").as_deref(), Some("vm1@a"));
        outcomes.insert(running);
    }
    assert_eq!(outcomes.len(), 2, "{outcomes:?}");
}

// ---- events

fn answered(pending: &Pending) -> bool {
    pending.lock().unwrap().is_some()
}

fn listen(target: &mut Target, since: u64, wait_ms: u64) -> Pending {
    target.ask(ControlRequest::Events(EventQuery { since: Some(since), wait_ms }))
}

#[test]
fn what_happens_is_told_once_in_order_with_numbers_that_go_on_over_restarts() {
    let mut target = Target::new(20, Setup::default());
    let volume = target.create("vm1", 8 * MIB).id;
    snapshot(&mut target, "vm1", "a");
    clone_of(&mut target, "vm1@a", "vm2");
    target.call(ControlRequest::VolumeResize { name: "vm1".into(), size: 16 * MIB }).unwrap();
    target.call(ControlRequest::VolumeRename { name: "vm1".into(), to: "vm3".into() }).unwrap();
    let mut target = target.kill();
    roll_back(&mut target, "vm3@a", false).unwrap();
    target.call(ControlRequest::VolumeRemove { name: "vm2".into(), force: false }).unwrap();
    remove(&mut target, "vm3@a").unwrap();
    let told = events(&mut target, 0);
    let times = told[1].text.strip_prefix("cut_us=").and_then(|rest| rest.split_once(" sealed_us="));
    assert!(times.is_some_and(|(cut, sealed)| cut.parse::<u64>().is_ok() && sealed.parse::<u64>().is_ok()), "{told:?}");
    let summary: Vec<_> = told.iter().map(|event| (event.kind, event.name.as_str(), event.text.as_str())).collect();
    let expected = [
        (EventKind::VolumeCreated, "vm1", ""),
        (EventKind::SnapshotCreated, "vm1@a", &*told[1].text),
        (EventKind::VolumeCloned, "vm2", "vm1@a"),
        (EventKind::VolumeResized, "vm1", ""),
        (EventKind::VolumeRenamed, "vm3", "vm1"),
        (EventKind::VolumeRolledBack, "vm3", "vm3@a"),
        (EventKind::VolumeRemoved, "vm2", ""),
        (EventKind::SnapshotRemoved, "vm3@a", ""),
    ];
    assert_eq!(summary, expected);
    assert_eq!(told.iter().map(|event| event.number).collect::<Vec<_>>(), (1..=8).collect::<Vec<_>>());
    assert!(told[0].volume == Some(volume) && told[0].bytes == Some(8 * MIB) && told[0].unix_s > 0);
    assert_eq!(events(&mut target, 6).iter().map(|event| event.number).collect::<Vec<_>>(), [7, 8]);
}

#[test]
fn who_listens_is_told_when_it_happens_or_that_nothing_has() {
    let mut target = Target::new(21, Setup::default());
    target.create("vm1", 8 * MIB);
    let waiting = listen(&mut target, 1, 5_000);
    target.pass_ns(100_000_000);
    assert!(!answered(&waiting), "nothing has happened yet");
    target.create("vm2", 8 * MIB);
    target.run_until(|_| answered(&waiting));
    let Some(Ok(ControlAnswer::Events(list))) = waiting.lock().unwrap().take() else { panic!("no events") };
    assert_eq!((list.events.len(), list.events[0].name.as_str(), list.newest), (1, "vm2", 2));
    let began = target.world.now();
    let nothing = listen(&mut target, 2, 300);
    target.run_until(|_| answered(&nothing));
    assert!(target.world.now().since_ns(began) >= 300_000_000);
    let Some(Ok(ControlAnswer::Events(list))) = nothing.lock().unwrap().take() else { panic!("no events") };
    assert_eq!((list.events, list.newest), (vec![], 2));
    let future = listen(&mut target, 3, 300);
    target.run_until(|_| answered(&future));
    let Some(Err(error)) = future.lock().unwrap().take() else { panic!("it is refused") };
    assert!(error.kind == ControlErrorKind::Invalid && error.message.contains("the last one is 2"), "{error}");
    let last = listen(&mut target, 2, 60_000);
    target.stop();
    let Some(Err(error)) = last.lock().unwrap().take() else { panic!("it is told that the target stops") };
    assert_eq!(error.kind, ControlErrorKind::Unavailable);
}

#[test]
fn the_oldest_events_go_and_whoever_has_not_seen_them_can_tell() {
    let mut target = Target::new(22, Setup::default());
    target.create("vm1", 8 * MIB);
    for n in 0..300u64 {
        target.call(ControlRequest::VolumeResize { name: "vm1".into(), size: (9 + n) * MIB }).unwrap();
    }
    let mut target = target.kill();
    let Ok(ControlAnswer::Events(list)) =
        target.call(ControlRequest::Events(EventQuery { since: Some(1), wait_ms: 0 }))
    else {
        panic!("no events")
    };
    assert_eq!((list.events.len(), list.oldest, list.newest), (256, 46, 301));
    target.create("vm2", 8 * MIB);
    assert_eq!(events(&mut target, 301)[0].number, 302);
}

// ---- differences

#[test]
fn a_difference_is_asked_for_by_names() {
    let mut target = Target::new(23, Setup::default());
    let volume = target.create("vm1", 8 * MIB).id;
    target.create("vm2", 8 * MIB);
    snapshot(&mut target, "vm2", "a");
    target.write(volume, 0, &[1; 4096]);
    snapshot(&mut target, "vm1", "a");
    target.write(volume, MIB, &[2; 8192]);
    snapshot(&mut target, "vm1", "b");
    target.write(volume, 2 * MIB, &[3; 4096]);
    let diff = |from: &str, to: Option<&str>| {
        ControlRequest::SnapshotDiff(DiffQuery { from: from.into(), to: to.map(str::to_owned), cursor: 0 })
    };
    for (to, expected) in [
        (Some("vm1@b"), vec![(MIB, 8192)]),
        (Some("vm1"), vec![(MIB, 8192), (2 * MIB, 4096)]),
        (None, vec![(MIB, 8192), (2 * MIB, 4096)]),
        (Some("vm1@a"), vec![]),
    ] {
        let Ok(ControlAnswer::Changed(changed)) = target.call(diff("vm1@a", to)) else { panic!("no difference") };
        let ranges: Vec<_> = changed.ranges.iter().map(|range| (range.offset, range.len)).collect();
        assert_eq!((ranges, changed.next), (expected, None), "{to:?}");
    }
    for (from, to, kind, says) in [
        ("vm1@b", Some("vm1@a"), ControlErrorKind::Invalid, "older one first"),
        ("vm1@a", Some("vm2@a"), ControlErrorKind::Invalid, "different volumes"),
        ("vm1@a", Some("vm2"), ControlErrorKind::Invalid, "vm1"),
        ("vm1", None, ControlErrorKind::Invalid, "VOLUME@SNAPSHOT"),
        ("vm1@z", None, ControlErrorKind::NotFound, "vm1@z"),
    ] {
        let error = target.call(diff(from, to)).unwrap_err();
        assert!(error.kind == kind && error.message.contains(says), "{from} {to:?}: {error:?}");
    }
    assert_eq!(listed(&mut target), ["vm1@a", "vm1@b", "vm2@a"]);
}
