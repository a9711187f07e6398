//! Of a pool that this process serves: the device is made ready on a thread of its own, the rest is the catalog owner's
//! (`node/owner/growing.rs`).
//!
//! The pool's own devices are not touched here: what is to be known of them comes with the request.

use std::path::PathBuf;
use std::thread;

use ringway_reactor::files::{Access, OpenFile, Progress};
use ringway_reactor::io::NewFile;
use ringway_reactor::mailbox::Injector;
use ringway_reactor::pin::run_on;

use super::{Addition, Newcomer, Site, folder_of};
use crate::control::{Allocate, ControlError, PoolGrow};
use crate::node::message::Message;
use crate::node::owner::{NewDevices, Prepared, Wanted};
use crate::pool::{Joining, Superblock};
use crate::target::config::{Allocation, PoolSpec};
use crate::target::devices::{file_in, setup_ring};
use crate::target::error::StartError;

/// Gets devices ready for the pool that a target serves.
pub(in crate::target) struct Grower {
    spec: PoolSpec,
    injector: Injector<Message>,
    /// Those without a reactor: writing a file must not take a reactor's time.
    cores: Vec<usize>,
}

impl Grower {
    pub(in crate::target) fn new(spec: PoolSpec, injector: Injector<Message>, cores: Vec<usize>) -> Grower {
        Grower { spec, injector, cores }
    }
}

impl NewDevices for Grower {
    fn prepare(&mut self, wanted: Wanted) -> Result<(), ControlError> {
        let addition = addition(&wanted.grow);
        let folder = folder_of(&self.spec, &addition)?;
        if let Addition::File { size, .. } = &addition {
            wanted.joining.check_size(*size).map_err(StartError::from)?;
        }
        let (spec, injector, cores) = (self.spec.clone(), self.injector.clone(), self.cores.clone());
        let work = move || {
            // The thread starts on the core of the reactor that made it.
            if let Err(error) = run_on(&cores) {
                tracing::warn!(%error, "a growth takes the time of a reactor's core");
            }
            let prepared = prepare(&spec, folder, &addition, &wanted);
            injector.send(Message::Prepared(prepared.map(Box::new).map_err(ControlError::from)));
        };
        let thread = thread::Builder::new().name("ringway-grow".to_owned()).spawn(work);
        let failed = |source| StartError::System { what: "cannot start a thread".to_owned(), source };
        thread.map(drop).map_err(|source| failed(source).into())
    }
}

/// Of a target whose pool ends with it.
pub(in crate::target) struct NeverGrows(pub(in crate::target) PoolSpec);

impl NewDevices for NeverGrows {
    fn prepare(&mut self, wanted: Wanted) -> Result<(), ControlError> {
        folder_of(&self.0, &addition(&wanted.grow))?;
        Err(ControlError::invalid("this target's pool cannot grow"))
    }
}

/// The device, with its superblocks and its name durable.
fn prepare(
    spec: &PoolSpec,
    folder: Option<PathBuf>,
    addition: &Addition,
    wanted: &Wanted,
) -> Result<Prepared, StartError> {
    let mut progress = |progress: &Progress| match progress {
        Progress::Writing { done, total } => wanted.progress.set(*done, *total),
        Progress::Waiting { .. } => tracing::warn!("{progress}"),
    };
    let joining = &wanted.joining;
    let known = wanted.paths.iter().map(PathBuf::from).collect();
    let mut site = Site { folder, known, left_over: Vec::new() };
    site.left_over = left_over(&site, joining, &mut progress)?;
    let newcomer = site.obtain(addition, joining, &mut progress)?;
    let written = write(&site, joining, &newcomer, addition);
    let (superblock, named) = written.inspect_err(|_| newcomer.discard())?;
    Ok(Prepared {
        superblock,
        info: newcomer.file.info(),
        serve: site.spec(spec, &newcomer).to_string(),
        path: std::path::absolute(&named).unwrap_or(named),
        file: NewFile::Os(newcomer.file),
    })
}

fn write(
    site: &Site,
    joining: &Joining,
    newcomer: &Newcomer,
    addition: &Addition,
) -> Result<(Superblock, PathBuf), StartError> {
    let superblock = joining
        .prepare(&mut setup_ring(&behind(joining, std::slice::from_ref(&newcomer.file)))?, &addition.options())?;
    Ok((superblock, site.name(newcomer)?))
}

/// Files in the place of the pool's devices, so that those that follow have the numbers that they will have.
fn behind(joining: &Joining, files: &[OpenFile]) -> Vec<OpenFile> {
    let devices = (0..joining.number()).map(|_| OpenFile::null(0));
    devices.chain(files.iter().cloned()).collect()
}

/// What earlier attempts left in the directory; anything else with such a name is refused.
fn left_over(site: &Site, joining: &Joining, progress: &mut dyn FnMut(&Progress)) -> Result<Vec<PathBuf>, StartError> {
    let Some(folder) = &site.folder else { return Ok(Vec::new()) };
    let paths: Vec<PathBuf> =
        (site.known.len()..).map(|number| file_in(folder, number)).take_while(|path| path.exists()).collect();
    let files = paths.iter().map(|path| OpenFile::open(path, Access::ReadWrite, progress));
    let files = files.collect::<Result<Vec<_>, _>>()?;
    joining.check_left_over(&mut setup_ring(&behind(joining, &files))?)?;
    Ok(paths)
}

fn addition(grow: &PoolGrow) -> Addition {
    match (&grow.device, grow.size) {
        (Some(path), _) => Addition::Device { path: path.clone(), force: grow.force },
        (None, size) => {
            Addition::File { size: size.expect("the request was checked"), allocation: grow.allocate.into() }
        }
    }
}

impl From<Allocate> for Allocation {
    fn from(allocate: Allocate) -> Allocation {
        match allocate {
            Allocate::Written => Allocation::Written,
            Allocate::Reserved => Allocation::Reserved,
            Allocate::Sparse => Allocation::Sparse,
        }
    }
}
