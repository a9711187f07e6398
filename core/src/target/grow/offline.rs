//! Of a pool that nobody serves: its devices are locked and opened here.

use std::path::PathBuf;

use ringway_reactor::files::{FileError, OpenFile, Progress};

use super::{Addition, Newcomer, Site, folder_of};
use crate::pool::{self, Joining, OpenPool};
use crate::target::config::PoolSpec;
use crate::target::devices::{Devices, setup_ring};
use crate::target::error::StartError;

/// A pool that has grown.
#[derive(Debug)]
pub struct Grown {
    /// As it is found now.
    pub pool: OpenPool,
    /// How it is named from now on.
    pub spec: PoolSpec,
    /// The device that joined.
    pub device: PathBuf,
}

/// Adds a device to a pool that nobody serves.
pub fn grow(spec: &PoolSpec, addition: &Addition, progress: &mut dyn FnMut(&Progress)) -> Result<Grown, StartError> {
    let folder = folder_of(spec, addition)?;
    let devices = Devices::open(spec, progress).map_err(|error| served(spec, error))?;
    // Those beyond the pool's are found to be left over by this, or refused.
    let found = pool::inspect(&mut devices.setup_ring()?).map_err(|error| devices.name_missing(spec, error))?;
    let count = found.superblocks.len();
    let mut paths: Vec<PathBuf> = devices.paths.iter().map(PathBuf::from).collect();
    let left_over = paths.split_off(count);
    let site = Site { folder, known: paths, left_over };
    let mut files = devices.files;
    files.truncate(count);
    let joining = Joining::new(&found.superblocks[0], found.generation, &found.catalog);
    let newcomer = site.obtain(addition, &joining, progress)?;
    files.push(newcomer.file.clone());
    let device = join(&site, &files, &newcomer, addition).inspect_err(|_| newcomer.discard())?;
    let spec = site.spec(spec, &newcomer);
    Ok(Grown { pool: pool::inspect(&mut setup_ring(&files)?)?, spec, device })
}

/// Superblocks, the name in the directory, the catalog's record, each durable before the next. Returns the name.
fn join(site: &Site, files: &[OpenFile], newcomer: &Newcomer, addition: &Addition) -> Result<PathBuf, StartError> {
    let mut io = setup_ring(files)?;
    let growing = pool::prepare_device(&mut io, &addition.options())?;
    let named = site.name(newcomer)?;
    growing.commit(&mut io)?;
    Ok(named)
}

fn served(spec: &PoolSpec, error: StartError) -> StartError {
    match error {
        StartError::File(FileError::InUse { path, holder, waited }) => {
            let holder = format!(
                "{holder}: pool {spec} is served; `ringway pool grow` without its name asks the target that serves it to grow it"
            );
            StartError::File(FileError::InUse { path, holder, waited })
        }
        other => other,
    }
}
