//! What the tests of transports share: a volume that is a vector of bytes.

use std::sync::Arc;

use uuid::Uuid;

use crate::directory::{Directory, DirectoryParts, SpaceLevel, VolumeEntry};
use crate::ids::{RequestId, ShardId, VolumeId};
use crate::request::{Command, Done, Request, Status};
use crate::volume::VolumeRecord;

/// Bytes of the volume.
pub(super) const VOLUME_BYTES: usize = 8 << 20;

pub(super) fn record() -> VolumeRecord {
    VolumeRecord {
        id: VolumeId(7),
        name: "vm1".into(),
        uuid: Uuid::from_u128(7),
        size: VOLUME_BYTES as u64,
        lba_bytes: 512,
        shards: vec![ShardId(0)],
        created_unix_s: 0,
        exclusive: false,
        allowed_hosts: Vec::new(),
        cuts: Vec::new(),
        dead: Vec::new(),
        view: None,
        parent: None,
    }
}

pub(super) fn directory(version: u64, record: VolumeRecord) -> Arc<Directory> {
    Arc::new(Directory::new(DirectoryParts {
        version,
        volumes: vec![VolumeEntry { record: Arc::new(record), fault: None }],
        pending: Vec::new(),
        erasing: Vec::new(),
        space: SpaceLevel::Below80,
        read_only: false,
        insecure: true,
        ports: Vec::new(),
    }))
}

/// Does at once to `store` what a request says.
pub(super) fn execute(store: &mut [u8], id: RequestId, mut request: Request) -> Done {
    let (offset, len) = (request.offset as usize, request.len as usize);
    let mut status = Status::Success;
    let range = offset..offset + len;
    match request.command {
        Command::Read => request.data.as_mut().unwrap().copy_from(0, &store[range]),
        Command::Write { .. } => request.data.as_ref().unwrap().copy_to(0, &mut store[range]),
        Command::WriteZeroes { .. } | Command::Deallocate => store[range].fill(0),
        Command::Flush => {}
        Command::Compare => {
            if !request.data.as_ref().unwrap().equals(0, &store[range]) {
                status = Status::CompareFailure;
            }
        }
        Command::CompareAndWrite { .. } => {
            let both = request.data.as_ref().unwrap().bytes();
            let (compare, write) = both.split_at(len);
            if store[range.clone()] == *compare {
                store[range].copy_from_slice(write);
            } else {
                status = Status::CompareFailure;
            }
        }
    }
    Done { id, status, data: request.data }
}
