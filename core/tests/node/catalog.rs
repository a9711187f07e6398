//! What exists: through control calls, over restarts, crashes and damage.

use std::collections::BTreeMap;

use ringway_core::catalog::COPY_BYTES;
use ringway_core::control::{ControlAnswer, ControlErrorKind, ControlRequest};
use ringway_core::export::{ExportAdd, ExportInfo, ExportKind, Polling};
use ringway_core::ids::ExportId;
use ringway_core::pool;
use ringway_core::request::Status;
use ringway_reactor::sim::{CrashPoint, DiskId, Ended, Fault, OpKind};

use crate::rig::{MIB, Setup, Target, creation, volume};

#[test]
fn volumes_are_made_grown_renamed_shared_and_removed_and_stay_so() {
    let mut target = Target::new(1, Setup::default());
    let a = target.create("a", 8 * MIB);
    assert_eq!((a.size, a.shards.len(), a.nqn.as_str()), (8 * MIB, 3, "nqn.2026-11.io.ringway:a"));
    let host = "nqn.2014-08.org.nvmexpress:uuid:11111111-2222-3333-4444-555555555555".to_owned();
    for (request, size, name, hosts) in [
        (ControlRequest::VolumeResize { name: "a".into(), size: 16 * MIB }, 16 * MIB, "a", 0),
        (ControlRequest::VolumeResize { name: "a".into(), size: 16 * MIB }, 16 * MIB, "a", 0),
        (ControlRequest::VolumeRename { name: "a".into(), to: "b".into() }, 16 * MIB, "b", 0),
        (ControlRequest::VolumeSetHosts { name: "b".into(), hosts: vec![host] }, 16 * MIB, "b", 1),
    ] {
        let now = volume(target.call(request).unwrap());
        assert_eq!((now.id, now.size, now.name.as_str(), now.allowed_hosts.len()), (a.id, size, name, hosts));
    }
    assert_eq!(target.write(a.id, 15 * MIB, &[5; 4096]), Status::Success);
    target.create("gone", MIB);
    assert_eq!(
        target.call(ControlRequest::VolumeRemove { name: "gone".into(), force: false }),
        Ok(ControlAnswer::Done)
    );
    let before = target.volumes();
    assert_eq!(before.len(), 1);
    let mut target = target.restart();
    assert_eq!(target.volumes(), before);
    assert_eq!(target.read(a.id, 15 * MIB, 4096), Ok(vec![5; 4096]));
}

#[test]
fn calls_that_cannot_be_are_refused_by_kind() {
    let mut target = Target::new(2, Setup::default());
    target.create("a", 8 * MIB);
    target.create("b", 8 * MIB);
    let name = || "a".to_owned();
    for (request, kind) in [
        (ControlRequest::VolumeCreate(creation("a", MIB, None)), ControlErrorKind::Exists),
        (ControlRequest::VolumeCreate(creation("c", MIB, Some(vec![3]))), ControlErrorKind::Invalid),
        (ControlRequest::VolumeCreate(creation("c", 100, None)), ControlErrorKind::Invalid),
        (ControlRequest::VolumeResize { name: name(), size: MIB }, ControlErrorKind::Invalid),
        (ControlRequest::VolumeRename { name: name(), to: "b".into() }, ControlErrorKind::Exists),
        (ControlRequest::VolumeRename { name: name(), to: ":".into() }, ControlErrorKind::Invalid),
        (ControlRequest::VolumeShow { name: "nope".into() }, ControlErrorKind::NotFound),
        (ControlRequest::VolumeRemove { name: "nope".into(), force: true }, ControlErrorKind::NotFound),
        (ControlRequest::VolumeSetHosts { name: name(), hosts: vec!["x".into()] }, ControlErrorKind::Invalid),
    ] {
        let error = target.call(request.clone()).unwrap_err();
        assert_eq!(error.kind, kind, "{request:?}: {error}");
    }
    assert_eq!(target.call(ControlRequest::Sync), Ok(ControlAnswer::Done));
    target.stop();
}

#[test]
fn h2_what_exists_is_known_as_long_as_one_copy_of_the_catalog_is_whole() {
    for copy in 0..2 {
        let mut target = Target::new(3, Setup::default());
        target.create("a", 8 * MIB);
        target.create("b", 8 * MIB);
        let before = target.volumes();
        target.stop();
        let Target { world, setup, reactors, .. } = target;
        drop(reactors);
        let layout = pool::inspect(&mut world.io()).unwrap().layout;
        world.rot(DiskId(0), layout.catalog[copy], COPY_BYTES as u64);
        let mut target = Target::open(world, setup);
        assert_eq!(target.volumes(), before);
        // It was repaired: now the other one may rot.
        target.create("c", MIB);
        let before = target.volumes();
        target.stop();
        let Target { world, setup, reactors, .. } = target;
        drop(reactors);
        world.rot(DiskId(0), layout.catalog[1 - copy], COPY_BYTES as u64);
        assert_eq!(Target::open(world, setup).volumes(), before);
    }
}

#[test]
fn h2_an_answered_call_outlives_every_crash_and_an_unanswered_one_is_whole_or_not_at_all() {
    for seed in 0..40 {
        let mut target = Target::new(seed, Setup::default());
        let mut rng = target.world.rng();
        let mut names: BTreeMap<String, u64> = BTreeMap::new();
        target.world.crash_after(CrashPoint::Submitted(1 + rng.below(60)));
        let (mut name, mut size) = (String::new(), 0);
        for n in 0..60 {
            (name, size) = (format!("v{n}"), (1 + rng.below(8)) * MIB);
            let pending = target.ask(ControlRequest::VolumeCreate(creation(&name, size, None)));
            let ended = target.run(1_000_000, |_| pending.lock().unwrap().is_some());
            if ended == Ended::Crashed {
                break;
            }
            assert!(matches!(*pending.lock().unwrap(), Some(Ok(_))), "seed {seed}");
            names.insert(name.clone(), size);
        }
        let mut target = if rng.one_in(2) { target.kill() } else { target.power_loss() };
        let found: BTreeMap<_, _> = target.volumes().into_iter().map(|volume| (volume.name, volume.size)).collect();
        if found != names {
            names.insert(name, size);
            assert_eq!(found, names, "seed {seed}");
        }
        let ids: std::collections::BTreeSet<_> = target.volumes().iter().map(|volume| volume.id).collect();
        let next = target.create("next", MIB).id;
        assert!(ids.iter().all(|&id| id < next), "seed {seed}: ids only grow");
    }
}

#[test]
fn a_removal_that_a_crash_interrupts_is_finished_by_the_next_process() {
    for seed in 0..12 {
        let mut target = Target::new(seed, Setup::default());
        let id = target.create("gone", 16 * MIB).id;
        for stripe in 0..16 {
            assert_eq!(target.write(id, stripe * MIB, &[1; 64 << 10]), Status::Success);
        }
        assert_eq!(target.flush(id), Status::Success);
        target.call(ControlRequest::VolumeRemove { name: "gone".into(), force: false }).unwrap();
        let turns = target.world.pick(400) as u64;
        target.run(turns, |_| false);
        let mut target = if seed % 2 == 0 { target.kill() } else { target.power_loss() };
        assert!(target.volumes().is_empty());
        target.pass_ns(5_000_000_000);
        assert_eq!(target.pool().used, 0, "seed {seed}");
        let mut target = target.restart();
        assert_eq!(target.pool().used, 0, "seed {seed}: it stays so");
        target.stop();
    }
}

#[test]
fn c14_a_change_whose_writing_failed_is_void_and_others_go_on() {
    for nth in 1..=2 {
        let mut target = Target::new(20 + nth, Setup::default());
        target.create("a", 8 * MIB);
        target.pass_ns(1_000_000_000);
        target.world.inject(DiskId(0), OpKind::Write, nth, Fault::Error);
        let error = target.call(ControlRequest::VolumeCreate(creation("b", MIB, None))).unwrap_err();
        assert_eq!(error.kind, ControlErrorKind::Internal, "{error}");
        target.create("c", MIB);
        assert_eq!(target.pool().read_only, None);
        let mut target = target.power_loss();
        let names: Vec<_> = target.volumes().into_iter().map(|volume| volume.name).collect();
        assert_eq!(names, ["a", "c"]);
    }
}

#[test]
fn after_a_failed_catalog_write_that_cannot_be_made_void_nothing_is_changed_any_more_and_volumes_go_on() {
    let mut target = Target::new(5, Setup::default());
    let id = target.create("a", 8 * MIB).id;
    assert_eq!(target.write(id, 0, &[1; 4096]), Status::Success);
    assert_eq!(target.flush(id), Status::Success);
    target.pass_ns(1_000_000_000);
    target.world.inject(DiskId(0), OpKind::Write, 2, Fault::Error);
    target.world.inject(DiskId(0), OpKind::Write, 3, Fault::Error);
    for name in ["b", "c"] {
        let error = target.call(ControlRequest::VolumeCreate(creation(name, MIB, None))).unwrap_err();
        assert_eq!(error.kind, ControlErrorKind::Internal, "{error}");
    }
    assert_eq!(target.write(id, 0, &[2; 4096]), Status::Success);
    assert_eq!(target.flush(id), Status::Success);
    assert_eq!(target.read(id, 0, 4096), Ok(vec![2; 4096]));
    assert!(target.pool().read_only.is_some_and(|why| why.contains("catalog")));
}

#[test]
fn exports_are_made_listed_and_removed_and_hold_their_volume() {
    let mut target = Target::new(3, Setup::default());
    let a = target.create("a/b", 8 * MIB);
    let add = ExportAdd { queues: 4, polling: Polling::Busy, ..ExportAdd::new(ExportKind::VhostUser, "a/b") };
    let Ok(ControlAnswer::Export(made)) = target.call(ControlRequest::ExportAdd(add.clone())) else {
        panic!("it was not made")
    };
    assert_eq!((made.volume_id, made.socket.to_str()), (a.id, Some("vhost/a%2Fb.sock")));
    let elsewhere = ExportAdd { socket: Some("/vm/disk.sock".into()), ..add.clone() };
    target.call(ControlRequest::ExportAdd(elsewhere.clone())).unwrap();
    for (request, kind, says) in [
        (ControlRequest::ExportAdd(add.clone()), ControlErrorKind::Exists, "another socket"),
        (ControlRequest::ExportAdd(elsewhere), ControlErrorKind::Exists, "\"a/b\""),
        (
            ControlRequest::ExportAdd(ExportAdd { volume: "c".into(), ..add.clone() }),
            ControlErrorKind::NotFound,
            "\"c\"",
        ),
        (ControlRequest::ExportAdd(ExportAdd { queues: 0, ..add }), ControlErrorKind::Invalid, "1 to 128"),
        (ControlRequest::ExportRemove { id: ExportId(9) }, ControlErrorKind::NotFound, "export list"),
        (ControlRequest::VolumeRemove { name: "a/b".into(), force: true }, ControlErrorKind::Busy, "/vm/disk.sock"),
    ] {
        let error = target.call(request.clone()).unwrap_err();
        assert!(error.kind == kind && error.message.contains(says), "{request:?}: {error}");
    }
    target.call(ControlRequest::VolumeRename { name: "a/b".into(), to: "b".into() }).unwrap();

    let mut target = target.restart();
    let Ok(ControlAnswer::Exports(exports)) = target.call(ControlRequest::ExportList) else { panic!("no list") };
    assert_eq!(exports.len(), 2);
    // Its socket keeps its name: who is attached comes back there.
    assert_eq!(exports[1], ExportInfo { volume: "b".into(), ..made });
    for export in exports {
        assert_eq!(target.call(ControlRequest::ExportRemove { id: export.id }), Ok(ControlAnswer::Done));
    }
    target.call(ControlRequest::VolumeRemove { name: "b".into(), force: false }).unwrap();
}
