//! Virtual machines' disks as one kind of export.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::exports::ServeExport;
use crate::export::Export;
use crate::ids::ExportId;
use crate::transport::VhostServer;

impl ServeExport for VhostServer {
    fn connected(&self, export: &Arc<Export>, connection: OwnedFd) {
        self.connect(export, connection);
    }

    fn removed(&self, export: ExportId) {
        self.end(export);
    }

    fn connections(&self, export: ExportId) -> u32 {
        u32::from(self.is_serving(export))
    }
}
