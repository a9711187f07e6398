//! Everything that breaks a queue pair: it alone goes, and all it had comes back.

use super::*;

/// Every error that a completion can bring.
const ALL: [WorkError; 14] = [
    WorkError::Flushed,
    WorkError::LocalLength,
    WorkError::LocalOperation,
    WorkError::LocalProtection,
    WorkError::LocalAccess,
    WorkError::BadResponse,
    WorkError::RemoteInvalid,
    WorkError::RemoteAccess,
    WorkError::RemoteOperation,
    WorkError::RetryExceeded,
    WorkError::RnrExceeded,
    WorkError::RemoteAborted,
    WorkError::Fatal,
    WorkError::Other(21),
];

#[test]
fn every_error_completion_ends_its_queue_pair_and_no_other() {
    for error in ALL {
        let mut two = Two::new(Fabric::new(11));
        let broken = two.connect();
        let whole = two.connect();
        let lent = two.host.verbs.lend(broken.0, two.buf(4096, 1)).unwrap();
        two.fabric.fail_next(two.target.id, broken.1, error);
        let mut works: Vec<u64> =
            (0..3).map(|_| two.target.post(broken.1, Work::Read { buf: two.buf(512, 0), from: lent.remote })).collect();
        works.push(two.target.post(broken.1, Work::Send { buf: two.buf(16, 1), invalidate: None }));
        two.settle();
        assert_eq!(two.target.result(works[0]), Some(&Err(error)));
        assert!(works[1..].iter().all(|&token| two.target.result(token) == Some(&Err(WorkError::Flushed))), "{error}");
        let why = if error == WorkError::Flushed { Ending::Fatal } else { Ending::Work(error) };
        assert_eq!(two.target.ending(broken.1), Some(why));
        assert!(two.target.is_gone(broken.1) && two.host.is_gone(broken.0), "{error}");
        let alive = two.target.post(whole.1, Work::Send { buf: two.buf(16, 1), invalidate: None });
        two.settle();
        assert_eq!(two.target.result(alive), Some(&Ok(16)), "{error}");
        drop(two.host.verbs.withdraw(lent));
        two.end(&[broken, whole]);
    }
}

#[test]
fn memory_that_was_not_lent_is_not_read_or_written() {
    type Wrong = fn(Remote) -> Remote;
    let wrong: [Wrong; 4] = [
        |remote| Remote { key: remote.key + 1, ..remote },
        |remote| Remote { address: remote.address + 1, ..remote },
        |remote| Remote { address: remote.address - 1, ..remote },
        |remote| Remote { address: u64::MAX - 100, ..remote },
    ];
    for wrong in wrong {
        for write in [false, true] {
            let mut two = Two::new(Fabric::new(12));
            let (host, target) = two.connect();
            let lent = two.host.verbs.lend(host, two.buf(512, 1)).unwrap();
            let (buf, at) = (two.buf(512, 2), wrong(lent.remote));
            let work = if write { Work::Write { data: buf.into(), to: at } } else { Work::Read { buf, from: at } };
            let token = two.target.post(target, work);
            two.settle();
            assert_eq!(two.target.result(token), Some(&Err(WorkError::RemoteAccess)));
            assert!(two.target.is_gone(target) && two.host.is_gone(host));
            assert_eq!(*two.host.verbs.withdraw(lent), [1; 512]);
            two.end(&[(host, target)]);
        }
    }
}

#[test]
fn memory_that_was_withdrawn_or_invalidated_is_not_read_any_more() {
    for invalidate in [false, true] {
        let mut two = Two::new(Fabric::new(13));
        let (host, target) = two.connect();
        let lent = two.host.verbs.lend(host, two.buf(512, 1)).unwrap();
        let remote = lent.remote;
        let kept = if invalidate {
            two.target.post(target, Work::Send { buf: two.buf(16, 0), invalidate: Some(remote.key) });
            Some(lent)
        } else {
            drop(two.host.verbs.withdraw(lent));
            None
        };
        let token = two.target.post(target, Work::Read { buf: two.buf(512, 0), from: remote });
        two.settle();
        assert_eq!(two.target.result(token), Some(&Err(WorkError::RemoteAccess)));
        kept.into_iter().for_each(|lent| drop(two.host.verbs.withdraw(lent)));
        two.end(&[(host, target)]);
    }
}

#[test]
fn a_peer_that_posts_no_receives_is_given_up_after_a_while() {
    let mut two = Two::new(Fabric::new(14));
    let (host, target) = two.connect();
    let sends: Vec<u64> =
        (0..6).map(|_| two.target.post(target, Work::Send { buf: two.buf(16, 0), invalidate: None })).collect();
    two.settle();
    assert!(sends[..4].iter().all(|&token| two.target.result(token) == Some(&Ok(16))), "four receives were posted");
    assert_eq!(two.target.result(sends[4]), Some(&Err(WorkError::RnrExceeded)));
    assert_eq!(two.target.result(sends[5]), Some(&Err(WorkError::Flushed)));
    let total = two.target.verbs.total();
    assert_eq!((total.rnr_exceeded, total.failed - total.flushed, total.credits), (1, 1, 0));
    two.end(&[(host, target)]);
}

#[test]
fn a_message_longer_than_its_receive_ends_both_sides() {
    let mut two = Two::new(Fabric::new(15));
    let (host, target) = two.connect();
    let token = two.host.post(host, Work::Send { buf: two.buf(8192, 0), invalidate: None });
    two.settle();
    assert_eq!(two.host.result(token), Some(&Err(WorkError::RemoteInvalid)));
    assert_eq!(two.target.result(1), Some(&Err(WorkError::LocalLength)));
    assert_eq!(two.target.ending(target), Some(Ending::Work(WorkError::LocalLength)));
    two.end(&[(host, target)]);
}

#[test]
fn a_peer_that_falls_silent_with_reads_outstanding_costs_its_own_queue_pair() {
    let mut two = Two::new(Fabric::new(16));
    let (host, target) = two.connect();
    let lent = two.host.verbs.lend(host, two.buf(4096, 1)).unwrap();
    two.fabric.silence(two.host.id);
    let reads: Vec<u64> =
        (0..6).map(|_| two.target.post(target, Work::Read { buf: two.buf(512, 0), from: lent.remote })).collect();
    two.settle();
    assert_eq!(two.target.result(reads[0]), Some(&Err(WorkError::RetryExceeded)));
    assert!(reads[1..].iter().all(|&token| two.target.result(token) == Some(&Err(WorkError::Flushed))));
    assert!(two.target.is_gone(target));
    drop(two.host.verbs.withdraw(lent));
    two.end(&[(host, target)]);
}

#[test]
fn a_device_that_is_pulled_out_ends_its_queue_pairs_and_serves_again_when_it_is_back() {
    let mut two = Two::new(Fabric::new(17));
    let pairs = [two.connect(), two.connect()];
    two.fabric.remove_device(two.target.id);
    two.settle();
    assert!(two.target.has(|event| matches!(event, Event::DeviceGone { .. })));
    assert!(two.target.has(|event| matches!(event, Event::ListenerLost { .. })));
    for (host, target) in pairs {
        assert_eq!(two.target.ending(target), Some(Ending::DeviceGone));
        assert!(two.target.is_gone(target) && two.host.is_gone(host));
    }
    assert!(two.target.verbs.listen(two.at).is_err());
    two.fabric.return_device(two.target.id);
    two.settle();
    assert!(two.target.has(|event| matches!(event, Event::DeviceAdded { .. })));
    (two.listener, two.at) = two.target.verbs.listen(two.at).unwrap();
    two.host.events.clear();
    two.target.events.clear();
    let (host, target) = two.connect();
    two.end(&[(host, target)]);
}

#[test]
fn a_buffer_of_a_pool_that_is_not_registered_is_refused_and_comes_back() {
    let mut two = Two::new(Fabric::new(18));
    let (host, target) = two.connect();
    let stranger = BufPool::leak(&BufPoolConfig { classes: vec![(4096, 4)] }, 0);
    let (buf, error) = two.host.verbs.lend(host, stranger.get(64).unwrap()).unwrap_err();
    assert_eq!(error, VerbsError::NotRegistered);
    let token = two.host.post(host, Work::Send { buf, invalidate: None });
    two.settle();
    assert_eq!(two.host.result(token), Some(&Err(WorkError::LocalProtection)));
    two.end(&[(host, target)]);
    assert_eq!(stranger.in_use(), 0);
}

#[test]
fn an_endpoint_that_is_dropped_with_everything_in_flight_frees_every_buffer() {
    let mut two = Two::new(Fabric::new(19));
    let (_, target) = two.connect();
    two.host.verbs.connect(two.at, &SPEC, b"").unwrap();
    let _waits = two.request();
    let Two { fabric, pool, host, target: mut side, mut now, .. } = two;
    drop(host);
    for _ in 0..100 {
        now += 1_000_000;
        side.poll(Instant(now));
    }
    assert_eq!(side.ending(target), Some(Ending::Peer));
    side.events.clear();
    drop(_waits);
    drop(side);
    assert_eq!((pool.in_use(), fabric.queue_pairs()), (0, 0));
}
