//! A target on this machine: real files, threads, rings and ports.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use ringway_core::control::{
    ControlAnswer, ControlCall, ControlError, ControlErrorKind, ControlRequest, VolumeCreate, VolumeInfo,
};
use ringway_core::target::{
    Allocation, FormatOptions, PoolSpec, RunningTarget, StartError, TargetConfig, format, start,
};
use ringway_reactor::pin::allowed_cores;

const MIB: u64 = 1 << 20;

fn options() -> FormatOptions {
    FormatOptions { size: Some(96 * MIB), shards: Some(2), allocation: Allocation::Sparse, ..FormatOptions::default() }
}

fn config(pool: PoolSpec, runtime: &Path) -> TargetConfig {
    let mut cores = allowed_cores().unwrap();
    cores.truncate(2);
    TargetConfig {
        listeners: vec!["127.0.0.1:0".parse().unwrap()],
        runtime: runtime.to_owned(),
        crash_log: Some(runtime.to_owned()),
        buffer_bytes: 8 << 20,
        ..TargetConfig::new(pool, cores)
    }
}

fn serve(config: TargetConfig) -> RunningTarget {
    start(config, &mut |_| {}).unwrap_or_else(|error| panic!("{error}"))
}

fn refused(config: TargetConfig) -> StartError {
    match start(config, &mut |_| {}) {
        Ok(_) => panic!("it started"),
        Err(error) => error,
    }
}

fn call(target: &RunningTarget, request: ControlRequest) -> Result<ControlAnswer, ControlError> {
    let (sender, receiver) = mpsc::channel();
    target.control().control(ControlCall::new(request, move |answer| sender.send(answer).unwrap()));
    receiver.recv_timeout(Duration::from_secs(20)).expect("every call is answered")
}

fn create(target: &RunningTarget, name: &str) -> VolumeInfo {
    let create = VolumeCreate {
        name: name.into(),
        size: 64 * MIB,
        lba_bytes: 512,
        shards: None,
        exclusive: false,
        allowed_hosts: Vec::new(),
    };
    match call(target, ControlRequest::VolumeCreate(create)) {
        Ok(ControlAnswer::Volume(volume)) => volume,
        other => panic!("{other:?}"),
    }
}

fn stop(target: RunningTarget) {
    target.shutdown();
    target.join().unwrap();
}

#[test]
fn a_pool_is_formatted_served_stopped_and_served_again_with_its_volumes() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let pool = PoolSpec::Path(dir.path().join("pool"));
    let missing = refused(config(pool.clone(), dir.path()));
    assert_eq!(missing.kind(), ControlErrorKind::NotFound);
    format(&pool, &options(), &mut |_| {}).unwrap();
    let again = format(&pool, &options(), &mut |_| {}).unwrap_err();
    assert_eq!(again.kind(), ControlErrorKind::Exists);

    let target = serve(config(pool.clone(), dir.path()));
    let made = create(&target, "vm1");
    let addr = target.listeners()[0];
    assert_ne!(addr.port(), 0);
    drop(TcpStream::connect(addr).unwrap());
    assert_eq!(call(&target, ControlRequest::Sync), Ok(ControlAnswer::Done));
    stop(target);

    let target = serve(config(pool, dir.path()));
    assert_eq!(call(&target, ControlRequest::VolumeList), Ok(ControlAnswer::Volumes(vec![made])));
    let Ok(ControlAnswer::Pool(shown)) = call(&target, ControlRequest::PoolShow) else { panic!() };
    assert_eq!((shown.shards, shown.volumes, shown.read_only), (2, 1, None));
    stop(target);
}

#[test]
fn a_port_in_use_is_named_and_leaves_the_pool_as_it_was() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let pool = PoolSpec::Path(dir.path().join("pool"));
    format(&pool, &options(), &mut |_| {}).unwrap();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr: SocketAddr = taken.local_addr().unwrap();
    let error = refused(TargetConfig { listeners: vec![addr], ..config(pool.clone(), dir.path()) });
    assert_eq!(error.kind(), ControlErrorKind::Busy);
    assert!(error.to_string().contains(&addr.to_string()), "{error}");
    stop(serve(config(pool, dir.path())));
}

#[test]
fn cores_that_are_not_there_and_pools_that_are_none_are_refused() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let memory = || PoolSpec::Memory(64 * MIB);
    let error = refused(TargetConfig { cores: vec![4000], ..config(memory(), dir.path()) });
    assert_eq!(error.kind(), ControlErrorKind::Denied);
    assert_eq!(
        refused(TargetConfig { cores: vec![], ..config(memory(), dir.path()) }).kind(),
        ControlErrorKind::Invalid
    );
    let small = refused(config(PoolSpec::Memory(MIB), dir.path()));
    assert_eq!(small.kind(), ControlErrorKind::Invalid);
    let foreign = dir.path().join("foreign");
    std::fs::write(&foreign, vec![0x5A; 32 << 20]).unwrap();
    assert_eq!(refused(config(PoolSpec::Path(foreign), dir.path())).kind(), ControlErrorKind::Corrupt);
}

#[test]
fn memory_and_null_pools_are_served_without_a_file() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    for pool in [PoolSpec::Memory(128 * MIB), PoolSpec::Null(1 << 40)] {
        let target = serve(config(pool.clone(), dir.path()));
        create(&target, "vm1");
        let Ok(ControlAnswer::Pool(shown)) = call(&target, ControlRequest::PoolShow) else { panic!() };
        if let PoolSpec::Null(bytes) = pool {
            assert!(shown.size > bytes / 100 * 99, "{shown:?}");
        }
        stop(target);
    }
}

#[test]
fn calls_that_cannot_be_are_answered_with_what_would_be_right() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let target = serve(config(PoolSpec::Memory(128 * MIB), dir.path()));
    let error = call(&target, ControlRequest::VolumeShow { name: "nope".into() }).unwrap_err();
    assert_eq!(error.kind, ControlErrorKind::NotFound);
    target.shutdown();
    target.shutdown();
    target.join().unwrap();
}
