//! Sockets that volumes have without being asked for: while a target serves, `vhost/VOLUME.sock` of each volume listens below the
//! runtime folder. They are in no catalog: they come with their volume, change their name with it, and go with it.
//!
//! ```text
//! volumes changed, exports changed --> the thread that accepts: compares what listens with what should, opens and closes
//! ```
//! Not for a snapshot; not for a volume with a list of hosts, since a virtual machine is none of them; not where an export has that socket; not beyond
//! [`VOLUME_SOCKETS_MAX`]. An export by name serves those.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::exports::Shared;
use super::unix::{SocketNumber, SocketType, bind, make_folder, somebody_listens};
use crate::directory::{Directory, VolumeEntry};
use crate::export::{EXPORT_QUEUES_DEFAULT, Export, ExportKind, Polling, check_socket_path, file_name};
use crate::ids::{ExportId, VolumeId};
use crate::limits::VOLUME_SOCKETS_MAX;

/// Numbers of exports that are in no catalog start here: the catalog counts from 1.
const NUMBERS_FROM: u32 = 1 << 31;

/// A volume's own socket.
#[derive(Debug)]
pub(super) struct Listening {
    export: Arc<Export>,
    number: SocketNumber,
}

/// Those that listen, and those that cannot: each is told once.
#[derive(Debug, Default)]
pub(super) struct OnDemand {
    listening: BTreeMap<VolumeId, Listening>,
    failed: BTreeSet<PathBuf>,
    /// Paths that an export is about to take.
    pub(super) claimed: BTreeSet<PathBuf>,
    swept: bool,
}

impl OnDemand {
    /// Whose socket has this path.
    pub(super) fn socket_at(&self, path: &Path) -> Option<SocketNumber> {
        self.listening.values().find(|one| one.export.socket == path).map(|one| one.number)
    }

    /// It is another's now.
    pub(super) fn forget(&mut self, path: &Path) {
        self.listening.retain(|_, one| one.export.socket != path);
    }
}

fn export_of(volume: VolumeId, socket: PathBuf) -> Arc<Export> {
    Arc::new(Export {
        id: ExportId(NUMBERS_FROM | volume.0),
        kind: ExportKind::VhostUser,
        volume,
        socket,
        queues: EXPORT_QUEUES_DEFAULT,
        polling: Polling::default(),
        pin_guest: false,
        read_only: false,
    })
}

impl Shared {
    fn folder(&self) -> PathBuf {
        self.runtime.join(ExportKind::VhostUser.folder())
    }

    /// Which volume should have which socket.
    fn wanted(&self, directory: &Directory, claimed: &BTreeSet<PathBuf>) -> BTreeMap<VolumeId, PathBuf> {
        let folder = self.folder();
        let taken: BTreeSet<PathBuf> = self.open().values().map(|open| open.export.socket.clone()).collect();
        let socket = |entry: &VolumeEntry| {
            let path = folder.join(format!("{}.sock", file_name(&entry.record.name)));
            let is_free = !taken.contains(&path) && !claimed.contains(&path);
            let is_for_all = entry.record.allowed_hosts.is_empty() && !entry.record.is_snapshot();
            (is_for_all && is_free && check_socket_path(&path).is_ok()).then_some((entry.record.id, path))
        };
        directory.volumes().iter().filter_map(socket).take(VOLUME_SOCKETS_MAX).collect()
    }

    /// Opens and closes sockets until they are those of the volumes. On the thread that accepts alone.
    pub(super) fn follow_volumes(&self) {
        let Some(volumes) = &self.volumes else { return };
        let directory = volumes.directory();
        let mut on_demand = self.on_demand();
        let on_demand = &mut *on_demand;
        let wanted = self.wanted(&directory, &on_demand.claimed);
        if !std::mem::replace(&mut on_demand.swept, true) {
            self.sweep(&wanted);
        }
        on_demand.listening.retain(|volume, one| {
            let stays = wanted.get(volume) == Some(&one.export.socket);
            if !stays {
                self.remote.close(one.number);
            }
            if directory.volume(*volume).is_none() {
                self.end(&one.export);
            }
            stays
        });
        on_demand.failed.retain(|path| wanted.values().any(|wanted| wanted == path));
        for (volume, path) in wanted {
            if on_demand.listening.contains_key(&volume) {
                continue;
            }
            let made = make_folder(&self.folder()).and_then(|()| bind(&path, SocketType::STREAM, self.access));
            match made {
                Ok(bound) => {
                    on_demand.failed.remove(&path);
                    let export = export_of(volume, path);
                    let number = self.listen(&export, bound);
                    on_demand.listening.insert(volume, Listening { export, number });
                }
                Err(error) => {
                    if on_demand.failed.insert(path) {
                        tracing::warn!(volume = %volume, %error, "a volume has no socket of its own");
                    }
                }
            }
        }
    }

    /// Removes what a killed target has left of volumes that are gone. Whatever is no socket, or somebody's, stays.
    fn sweep(&self, wanted: &BTreeMap<VolumeId, PathBuf>) {
        let Ok(entries) = fs::read_dir(self.folder()) else { return };
        for path in entries.filter_map(|entry| Some(entry.ok()?.path())) {
            let is_ours = path.extension().is_some_and(|extension| extension == "sock")
                && !wanted.values().any(|wanted| *wanted == path)
                && !self.open().values().any(|open| open.export.socket == path);
            let is_left = || {
                fs::symlink_metadata(&path).is_ok_and(|found| found.file_type().is_socket())
                    && matches!(somebody_listens(&path, SocketType::STREAM), Ok(false))
            };
            if is_ours && is_left() {
                tracing::info!(path = %path.display(), "the socket of a volume that is gone is removed");
                // Gone by itself, or not ours to remove.
                let _ = fs::remove_file(&path);
            }
        }
    }
}
