//! A target with exports.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use ringway_core::control::{ControlAnswer, ControlCall, ControlError, ControlRequest, VolumeCreate};
use ringway_core::export::{ExportAdd, ExportInfo, ExportKind};
use ringway_core::metrics::Metrics;
use ringway_core::target::{Allocation, FormatOptions, PoolSpec, RunningTarget, TargetConfig, start};
use ringway_reactor::pin::allowed_cores;
use tempfile::TempDir;

use super::vm::MIB;

/// A target of one or two reactors with a pool in memory.
pub(crate) struct Rig {
    target: Option<RunningTarget>,
    pub(crate) dir: TempDir,
}

impl Rig {
    pub(crate) fn new() -> Rig {
        Rig::of(PoolSpec::Memory(512 * MIB))
    }

    /// With a pool on a file system: its devices are read and written by the ring.
    pub(crate) fn on_disk() -> Rig {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        Rig::at(PoolSpec::Path(dir.path().join("pool")), dir)
    }

    pub(crate) fn of(pool: PoolSpec) -> Rig {
        Rig::at(pool, tempfile::tempdir().unwrap())
    }

    fn at(pool: PoolSpec, dir: TempDir) -> Rig {
        let mut cores = allowed_cores().unwrap();
        cores.truncate(2);
        let config = TargetConfig {
            runtime: dir.path().to_owned(),
            buffer_bytes: 8 << 20,
            format: Some(FormatOptions {
                size: matches!(pool, PoolSpec::Path(_)).then_some(512 * MIB),
                allocation: Allocation::Sparse,
                ..FormatOptions::default()
            }),
            ..TargetConfig::new(pool, cores)
        };
        let target = start(config, &mut |_| {}).unwrap_or_else(|error| panic!("{error}"));
        Rig { target: Some(target), dir }
    }

    pub(crate) fn call(&self, request: ControlRequest) -> Result<ControlAnswer, ControlError> {
        let (sender, receiver) = mpsc::channel();
        let target = self.target.as_ref().unwrap();
        target.control().control(ControlCall::new(request, move |answer| sender.send(answer).unwrap()));
        receiver.recv_timeout(Duration::from_secs(20)).expect("every call is answered")
    }

    pub(crate) fn metrics(&self) -> Arc<Metrics> {
        self.target.as_ref().unwrap().metrics()
    }

    pub(crate) fn volume(&self, name: &str, size: u64) {
        let create = VolumeCreate {
            name: name.into(),
            size,
            lba_bytes: 512,
            shards: None,
            exclusive: false,
            allowed_hosts: Vec::new(),
        };
        self.call(ControlRequest::VolumeCreate(create)).unwrap();
    }

    pub(crate) fn export(&self, volume: &str, change: impl FnOnce(&mut ExportAdd)) -> ExportInfo {
        let mut add = ExportAdd::new(ExportKind::VhostUser, volume);
        add.queues = 4;
        change(&mut add);
        match self.call(ControlRequest::ExportAdd(add)) {
            Ok(ControlAnswer::Export(info)) => info,
            other => panic!("{other:?}"),
        }
    }

    /// A volume with an export of its own; returns the export's socket.
    pub(crate) fn disk(&self, name: &str, size: u64) -> PathBuf {
        self.volume(name, size);
        self.export(name, |_| {}).socket
    }

    /// Bytes that went through buffers so far. Counters are copied now and then.
    pub(crate) fn bytes_copied(&self) -> u64 {
        std::thread::sleep(Duration::from_millis(300));
        self.metrics().reactors.iter().map(|reactor| reactor.bytes_copied.get()).sum()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if let Some(target) = self.target.take() {
            target.shutdown();
            let stopped = target.join();
            if !std::thread::panicking() {
                stopped.unwrap();
            }
        }
    }
}

pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(len)
    .collect()
}

pub(crate) fn eventually(what: &str, mut test: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !test() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
