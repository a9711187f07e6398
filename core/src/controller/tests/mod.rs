//! Controllers as a host meets them, without a socket: capsules in, answers out.

mod admin;
mod connect;
mod identify;
mod io;
mod logs;
mod vendor;

use std::net::SocketAddr;
use std::sync::Arc;

use ringway_reactor::io::Instant;
use zerocopy::IntoBytes;

use super::admin::{AdminAction, AdminQueue};
use super::connect::{Path, Refusal, first_command};
use super::queue::IoQueue;
use super::registry::{Connected, Registry};
use crate::directory::tests::{parts, record};
use crate::directory::{Directory, DirectoryParts};
use crate::volume::VolumeRecord;
use crate::wire::command::Sqe;
use crate::wire::completion::NvmeStatus;
use crate::wire::fabrics::{self, CNTLID_DYNAMIC, CONNECT_DATA_BYTES, Configuration, Connect, ConnectData, Property};
use crate::wire::log_page::TransportType;
use crate::wire::sgl::Sgl;

const HOST: &str = "nqn.2014-08.org.nvmexpress:uuid:host";
const VOLUME: &str = "nqn.2026-11.io.ringway:v";
const NOW: Instant = Instant(1_000_000_000);

fn path(local: &str, peer: &str) -> Path {
    let parse = |text: &str| text.parse::<SocketAddr>().unwrap();
    Path { local: parse(local), peer: parse(peer), transport: TransportType::Tcp }
}

fn loopback() -> Path {
    path("127.0.0.1:4420", "127.0.0.1:50000")
}

/// One volume "v", 1 GiB in blocks of 512 bytes.
fn directory() -> Directory {
    Directory::new(parts([record(1, "v")]))
}

fn directory_with(change: impl FnOnce(&mut VolumeRecord)) -> Directory {
    let mut changed = record(1, "v");
    change(&mut changed);
    Directory::new(parts([changed]))
}

fn directory_of(change: impl FnOnce(&mut DirectoryParts)) -> Directory {
    let mut parts = parts([record(1, "v")]);
    change(&mut parts);
    Directory::new(parts)
}

/// A Connect with everything right; tests spoil one thing.
#[derive(Clone)]
struct Attempt {
    connect: Connect,
    data: ConnectData,
    path: Path,
}

impl Attempt {
    fn admin(nqn: &str) -> Attempt {
        let data = ConnectData::new([9; 16], CNTLID_DYNAMIC, nqn, HOST);
        Attempt { connect: Connect::new(0, 32, 5000), data, path: loopback() }
    }

    fn io(queue_id: u16, controller_id: u16) -> Attempt {
        let data = ConnectData::new([9; 16], controller_id, VOLUME, HOST);
        Attempt { connect: Connect::new(queue_id, 128, 0), data, path: loopback() }
    }

    fn with(mut self, spoil: impl FnOnce(&mut Attempt)) -> Attempt {
        spoil(&mut self);
        self
    }

    /// As it passes through a connection: the capsule first, then the registry.
    fn make(&self, registry: &Registry, directory: &Directory) -> Result<Connected, Refusal> {
        let (connect, place) = first_command(&self.connect.sqe(), CONNECT_DATA_BYTES)?;
        assert_eq!(place.len() as usize, CONNECT_DATA_BYTES);
        registry.connect(&connect, self.data.as_bytes(), self.path, directory, NOW)
    }
}

fn connect_admin(registry: &Registry, directory: &Directory, nqn: &str) -> AdminQueue {
    match Attempt::admin(nqn).make(registry, directory).unwrap() {
        Connected::Admin { queue, superseded } => {
            assert!(superseded.is_empty());
            *queue
        }
        Connected::Io(queue) => panic!("{queue:?}"),
    }
}

fn connect_io(registry: &Registry, directory: &Directory, admin: &AdminQueue, queue_id: u16) -> IoQueue {
    match Attempt::io(queue_id, admin.association().controller_id).make(registry, directory).unwrap() {
        Connected::Io(queue) => queue,
        Connected::Admin { queue, .. } => panic!("{queue:?}"),
    }
}

/// Sends one admin command. Returns status, result and data.
fn send(queue: &mut AdminQueue, sqe: &Sqe, directory: &Directory) -> (NvmeStatus, u64, Vec<u8>) {
    let action = match queue.reply_len(sqe, 0) {
        Ok(len) => {
            let mut out = vec![0xEE; len as usize];
            match queue.on_command(sqe, &mut out, directory, NOW) {
                AdminAction::SendData { result } => return (NvmeStatus::SUCCESS, result, out),
                other => other,
            }
        }
        Err(status) => queue.refuse(sqe, status, NOW),
    };
    match action {
        AdminAction::Complete { result, status } => (status, result, Vec::new()),
        other => panic!("{other:?}"),
    }
}

/// Sends a command whose data is `len` bytes.
fn fetch(queue: &mut AdminQueue, sqe: Sqe, len: u32, directory: &Directory) -> Result<Vec<u8>, NvmeStatus> {
    let (status, _, data) = send(queue, &sqe.with_data(Sgl::transport(len)), directory);
    if status.is_success() { Ok(data) } else { Err(status) }
}

fn set(queue: &mut AdminQueue, configuration: Configuration, directory: &Directory) -> NvmeStatus {
    let sqe = fabrics::property_set(Property::Configuration, u64::from(configuration.0));
    send(queue, &sqe, directory).0
}

fn csts(queue: &mut AdminQueue, directory: &Directory) -> u64 {
    send(queue, &fabrics::property_get(Property::Status), directory).1
}

/// An enabled controller of volume "v" (or of discovery), and its registry.
fn enabled(nqn: &str, directory: &Directory) -> (Arc<Registry>, AdminQueue) {
    let registry = Arc::new(Registry::default());
    let mut queue = connect_admin(&registry, directory, nqn);
    assert_eq!(set(&mut queue, Configuration::ENABLE, directory), NvmeStatus::SUCCESS);
    assert_eq!(csts(&mut queue, directory), 1);
    (registry, queue)
}
