//! Runs against the small scripted target of the host's tests, over real sockets and a real ring.

#[expect(dead_code, reason = "the host's tests use more of it")]
#[path = "../../../core/src/host/tests/peer.rs"]
mod peer;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use ringway_core::host::Target;
use ringway_reactor::uring::{UringConfig, UringIo};

use super::*;
use peer::{Behaviour, Peer};

/// A peer on a thread of its own; `each_turn` sees it between turns.
fn with_peer<R>(
    mut behaviour: Behaviour,
    mut each_turn: impl FnMut(&mut Peer<UringIo>) + Send,
    run: impl FnOnce(LoadConfig) -> R,
) -> R {
    behaviour.subsystem_nqn = format!("{VOLUME_NQN_PREFIX}v");
    let over = Arc::new(AtomicBool::new(false));
    let (tell, told) = std::sync::mpsc::channel();
    thread::scope(|scope| {
        let until = over.clone();
        scope.spawn(move || {
            let pool = pools::rent(pools::for_host(256, 65_536, 4));
            let io = UringIo::new(&UringConfig::new(vec![pool.pool()], 0)).unwrap();
            let mut peer = Peer::new(io, 0, behaviour);
            tell.send(peer.addr).unwrap();
            while !until.load(Ordering::Relaxed) {
                peer.turn();
                each_turn(&mut peer);
            }
        });
        let target = Target::parse(&format!("tcp://{}/v", told.recv().unwrap())).unwrap();
        let mut config = LoadConfig::new(target);
        config.limit = Some(Limit::Operations(3000));
        config.verify = Verify { enabled: true, fresh: true, sweep: Some(Promise::Acknowledged), ..Verify::default() };
        config.mix = "read=40,write=40,fua=5,trim=5,zeroes=5,flush=5".parse().unwrap();
        let result = run(config);
        over.store(true, Ordering::Relaxed);
        result
    })
}

#[test]
fn a_mixed_load_on_an_honest_target_is_clean_and_counted() {
    let report = with_peer(Behaviour::default(), |_| {}, |config| run(&config, &mut Silent).unwrap());
    assert!(report.is_clean(), "{report:?}");
    assert_eq!(report.total(), 3000);
    assert_eq!(report.operations.len(), 6);
    let verify = report.verify.unwrap();
    assert!(verify.units_checked > 1000 && verify.units_swept > 50, "{verify:?}");
}

#[test]
fn small_blocks_are_verified_by_the_sector() {
    let report = with_peer(
        Behaviour::default(),
        |_| {},
        |mut config| {
            config.block_bytes = 1536;
            config.mix = "read,write".parse().unwrap();
            run(&config, &mut Silent).unwrap()
        },
    );
    assert!(report.is_clean() && report.verify.unwrap().units_checked > 3000);
}

#[test]
fn a_target_that_loses_writes_is_found_out() {
    let mut forgot = false;
    let forget = move |peer: &mut Peer<UringIo>| {
        if !forgot && peer.executed.len() > 2000 {
            forgot = true;
            peer.disk[..1 << 20].fill(0);
        }
    };
    let report = with_peer(Behaviour::default(), forget, |config| run(&config, &mut Silent).unwrap());
    let verify = report.verify.unwrap();
    assert!(verify.lost() > 10, "{verify:?}");
    assert!(verify.examples[0].detail.contains("zeros"), "{verify:?}");
}

#[test]
fn a_target_that_swaps_blocks_is_found_out() {
    let mut swapped = false;
    let swap = move |peer: &mut Peer<UringIo>| {
        if !swapped && peer.executed.len() > 2000 {
            swapped = true;
            peer.disk.rotate_left(4096);
        }
    };
    let report = with_peer(Behaviour::default(), swap, |config| run(&config, &mut Silent).unwrap());
    assert!(report.verify.unwrap().faults["misdirected"] > 10);
}

#[test]
fn broken_connections_are_survived_and_reported() {
    let mut turns = 0;
    let cut = move |peer: &mut Peer<UringIo>| {
        turns += 1;
        if turns % 400 == 0 {
            peer.drop_all();
        }
    };
    let report = with_peer(Behaviour::default(), cut, |config| run(&config, &mut Silent).unwrap());
    assert!(report.is_clean() && report.reconnects > 0 && report.resent > 0, "{report:?}");
    assert_eq!(report.total(), 3000);
}

#[test]
fn a_rate_is_kept_and_a_run_can_be_ended_early() {
    let report = with_peer(
        Behaviour::default(),
        |_| {},
        |mut config| {
            config.limit = Some(Limit::Time(Duration::from_secs(20)));
            config.rate = Some(2000);
            let mut stop = |snapshot: &Snapshot| match snapshot.elapsed > Duration::from_millis(500) {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            };
            run(&config, &mut stop).unwrap()
        },
    );
    assert!(report.elapsed < Duration::from_secs(10) && report.is_clean());
    assert!((1000.0..=2100.0).contains(&report.iops), "{}", report.iops);
}

#[test]
fn what_the_target_refuses_is_counted_by_status() {
    let report = with_peer(
        Behaviour { fail_io: Some(0x81), ..Behaviour::default() },
        |_| {},
        |mut config| {
            config.limit = Some(Limit::Operations(50));
            config.verify = Verify::default();
            run(&config, &mut Silent).unwrap()
        },
    );
    assert_eq!((report.total(), report.errors.values().sum::<u64>()), (0, 50));
}

#[test]
fn a_region_that_the_volume_does_not_have_is_refused() {
    let error = with_peer(
        Behaviour::default(),
        |_| {},
        |mut config| {
            config.region_bytes = Some(1 << 40);
            run(&config, &mut Silent).unwrap_err()
        },
    );
    assert!(error.to_string().contains("ends beyond the volume of 2097152 bytes"), "{error}");
}

#[test]
fn a_second_run_verifies_what_the_first_was_promised() {
    let path = std::env::temp_dir().join(format!("ringway-load-{}", std::process::id()));
    let (first, second) = with_peer(
        Behaviour::default(),
        |_| {},
        |mut config| {
            config.verify.oracle = Some(path.clone());
            let first = run(&config, &mut Silent).unwrap();
            config.verify.resume = true;
            config.limit = None;
            (first, run(&config, &mut Silent).unwrap())
        },
    );
    std::fs::remove_file(&path).unwrap();
    assert!(first.is_clean() && second.is_clean());
    assert_eq!(second.total(), 0);
    assert_eq!(first.verify.unwrap().units_swept, second.verify.unwrap().units_swept);
}
