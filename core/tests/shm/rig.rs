//! A target with its socket in a folder of its own, and what tests ask of it.

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use ringway_core::control::{ControlAnswer, ControlCall, ControlError, ControlRequest, VolumeCreate, VolumeInfo};
use ringway_core::target::{PoolSpec, RunningTarget, TargetConfig, start};
use ringway_reactor::pin::allowed_cores;
use ringway_shm_ring::client::{Client, ConnectOptions, Host};

pub(crate) const MIB: u64 = 1 << 20;

/// What a target of these tests is started with.
pub(crate) fn config(pool: PoolSpec, runtime: &Path) -> TargetConfig {
    let mut cores = allowed_cores().unwrap();
    cores.truncate(2);
    TargetConfig { runtime: runtime.to_owned(), buffer_bytes: 8 << 20, shm: true, ..TargetConfig::new(pool, cores) }
}

pub(crate) fn serve(config: TargetConfig) -> RunningTarget {
    start(config, &mut |_| {}).unwrap_or_else(|error| panic!("{error}"))
}

pub(crate) fn call(target: &RunningTarget, request: ControlRequest) -> Result<ControlAnswer, ControlError> {
    let (sender, receiver) = mpsc::channel();
    target.control().control(ControlCall::new(request, move |answer| sender.send(answer).unwrap()));
    receiver.recv_timeout(Duration::from_secs(20)).expect("every call is answered")
}

pub(crate) fn volume(name: &str, size: u64) -> VolumeCreate {
    VolumeCreate { name: name.into(), size, lba_bytes: 512, shards: None, exclusive: false, allowed_hosts: Vec::new() }
}

pub(crate) fn create(target: &RunningTarget, create: VolumeCreate) -> VolumeInfo {
    match call(target, ControlRequest::VolumeCreate(create)) {
        Ok(ControlAnswer::Volume(volume)) => volume,
        other => panic!("{other:?}"),
    }
}

pub(crate) fn stop(target: RunningTarget) {
    target.shutdown();
    target.join().unwrap();
}

/// How a client of `folder` connects to `volume`, as host `number`.
pub(crate) fn options(folder: &Path, volume: &str, number: u8) -> ConnectOptions {
    let id = [number; 16];
    ConnectOptions {
        host: Host { nqn: Host::nqn_of(id), id },
        data_bytes: 16 * MIB,
        patience: Duration::from_secs(20),
        ..ConnectOptions::new(folder.join("shm.sock"), volume)
    }
}

pub(crate) fn connect(folder: &Path, volume: &str) -> Client {
    Client::connect(options(folder, volume, 1)).unwrap_or_else(|error| panic!("{error}"))
}

/// Bytes that say where they belong.
pub(crate) fn pattern(offset: u64, len: usize, seed: u64) -> Vec<u8> {
    let word = |at: u64| (at ^ seed.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
    (0..len as u64 / 8).flat_map(|nth| word(offset + nth * 8).to_le_bytes()).collect()
}
