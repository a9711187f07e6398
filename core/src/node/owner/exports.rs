//! Exports: records of which volumes have sockets of their own. Whether somebody listens there is for who opens the sockets
//! (`crate::target::exports`); the directory does not change.

use super::{Owner, Plan, Then};
use crate::catalog::CatalogRecord;
use crate::control::{ControlAnswer, ControlError, ControlErrorKind, ControlRequest, Reply};
use crate::export::{ExportAdd, ExportInfo, ExportRecord};
use crate::ids::{ExportId, VolumeId};

impl Owner {
    pub(super) fn plan_export(&self, request: &ControlRequest, reply: Reply) -> Plan {
        let planned = match request {
            ControlRequest::ExportAdd(add) => self.plan_export_add(add),
            ControlRequest::ExportRemove { id } => match self.store.state().export(*id) {
                Some(export) => Ok((CatalogRecord::ExportRemoved(export.volume, *id), None)),
                None => Err(ControlError::no_such_export(*id)),
            },
            other => unreachable!("{other:?} is not about exports"),
        };
        match planned {
            Ok((record, shown)) => Plan::Change(vec![record], Then::Exported(reply, shown)),
            Err(error) => {
                reply(Err(error));
                Plan::Nothing
            }
        }
    }

    fn plan_export_add(&self, add: &ExportAdd) -> Result<(CatalogRecord, Option<ExportId>), ControlError> {
        add.check()?;
        let state = self.store.state();
        let volume = state.volume_named(&add.volume).ok_or_else(|| ControlError::no_such_volume(&add.volume))?;
        let socket = add.socket();
        let is_in_the_way = |export: &&ExportRecord| {
            let shared = export.kind == add.kind && add.kind.shares_sockets() && export.volume != volume.record.id;
            export.socket == socket && !shared
        };
        if let Some(other) = state.exports().find(is_in_the_way) {
            return Err(self.socket_taken(other));
        }
        let id = state.next_export();
        let record = CatalogRecord::ExportAdded(ExportRecord {
            id,
            kind: add.kind,
            volume: volume.record.id,
            socket,
            queues: add.queues,
            polling: add.polling,
            pin_guest: add.pin_guest,
            read_only: add.read_only,
        });
        if !self.store.has_room(&record) {
            return Err(ControlError::new(
                ControlErrorKind::NoSpace,
                "the pool's catalog has no room for another export; remove one first",
            ));
        }
        Ok((record, Some(id)))
    }

    fn socket_taken(&self, by: &ExportRecord) -> ControlError {
        let ExportInfo { volume, id, socket, .. } = self.export_info(by);
        ControlError::new(
            ControlErrorKind::Exists,
            format!(
                "export {id} gives volume {volume:?} at {} already; remove it first, or name another socket",
                socket.display()
            ),
        )
    }

    /// Why a volume cannot be removed now, if it has exports.
    pub(super) fn check_not_exported(&self, name: &str, id: VolumeId) -> Result<(), ControlError> {
        let of = |export: &&ExportRecord| export.volume == id;
        let exports: Vec<_> = self.store.state().exports().filter(of).map(|export| self.export_info(export)).collect();
        if exports.is_empty() {
            return Ok(());
        }
        let named: Vec<_> = exports
            .iter()
            .map(|export| format!("export {} ({} at {})", export.id, export.kind.name(), export.socket.display()))
            .collect();
        Err(ControlError::new(
            ControlErrorKind::Busy,
            format!(
                "volume {name:?} has {}; remove that first: `ringway export remove {}`",
                named.join(" and "),
                exports[0].id
            ),
        ))
    }

    pub(super) fn all_exports(&self) -> Vec<ExportInfo> {
        let mut exports: Vec<_> = self.store.state().exports().map(|export| self.export_info(export)).collect();
        exports.sort_by(|a, b| (&a.volume, &a.socket).cmp(&(&b.volume, &b.socket)));
        exports
    }

    /// The answer about an export that was just made, or taken away.
    pub(super) fn answer_export(&self, id: Option<ExportId>) -> ControlAnswer {
        let export = id.and_then(|id| self.store.state().export(id));
        export.map_or(ControlAnswer::Done, |export| ControlAnswer::Export(self.export_info(export)))
    }

    fn export_info(&self, export: &ExportRecord) -> ExportInfo {
        let volume = self.store.state().volume(export.volume).expect("an export is of a live volume");
        ExportInfo::of_record(export, &volume.record.name)
    }
}
