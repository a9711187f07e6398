//! UNIX sockets that clients of this machine connect to: one thread accepts for all of them and hands each connection on.
//!
//! [`bind`] makes a socket ready on the caller's thread, so that what speaks against it is told where it was asked for;
//! [`Remote::listen`] then begins to accept. A socket is bound under a name of its own, gets its mode and group, and only
//! then the name that clients look for: it never exists with other permissions than asked. What an earlier process left behind
//! is replaced only when nobody listens there; what is no socket is never touched, and a name that is a link is never followed.
//!
//! Invariant: a socket's file is removed when it is closed, and only if it is still the one that was made here.

use std::fs::{self, DirBuilder, Metadata};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use ringway_reactor::event::EventFd;
use ringway_reactor::socket_path::SocketPath;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;
pub use rustix::net::SocketType;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, accept_with, connect, listen, socket_with};

use crate::control::{ControlError, ControlErrorKind};

/// Connections that wait to be accepted; more are refused by the kernel, and tried again by their clients.
const BACKLOG: i32 = 128;
/// After an accept failed for want of descriptors or memory, nobody accepts for so long, nanoseconds.
const PAUSE_NS: i64 = 100_000_000;
/// Connections accepted from one socket before the others have their turn.
const ACCEPTS_MAX: usize = 16;

/// Who may connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketAccess {
    /// Permission bits.
    pub mode: u32,
    /// Group, if not the daemon's own.
    pub group: Option<u32>,
}

impl Default for SocketAccess {
    /// The daemon's user alone.
    fn default() -> Self {
        Self { mode: 0o600, group: None }
    }
}

/// Takes connections over. Runs on the thread that accepts: it passes them on and does not wait.
pub type Accept = Box<dyn FnMut(OwnedFd) + Send>;

/// A socket with its name and permissions, or a port, not yet accepted from. A socket's file is removed on drop.
#[derive(Debug)]
pub struct Bound {
    listener: OwnedFd,
    path: PathBuf,
    /// Device and inode of the file; a port has none.
    file: Option<(u64, u64)>,
}

impl Bound {
    /// A listening port, by the name that its exports know it by.
    pub(super) fn port(listener: OwnedFd, name: PathBuf) -> Bound {
        Bound { listener, path: name, file: None }
    }

    /// The path by which clients find it, or a port's name.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        let Some(file) = self.file else { return };
        let still_ours = fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == file);
        if still_ours && let Err(error) = fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a socket could not be removed");
        }
    }
}

/// Makes a listening socket at `path`, which must be free or left behind by a process that is gone.
pub fn bind(path: &Path, kind: SocketType, access: SocketAccess) -> Result<Bound, ControlError> {
    make_room(path, kind)?;
    let failed = |doing: &str, error: io::Error| refused(path, doing, &error);
    // In the same folder, so that a rename brings it to its place.
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let folder = path.parent().unwrap_or(Path::new("/"));
    let fresh = folder.join(format!(".ringway-{}-{number}", std::process::id()));
    let short = SocketPath::of(&fresh).map_err(|error| failed("open the folder of", error))?;
    let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)
        .map_err(|errno| failed("make", errno.into()))?;
    let address = SocketAddrUnix::new(short.as_path()).map_err(|errno| failed("name", errno.into()))?;
    rustix::net::bind(&socket, &address).map_err(|errno| failed("bind", errno.into()))?;
    match finish(&socket, &fresh, path, access) {
        Ok(file) => Ok(Bound { listener: socket, path: path.to_owned(), file: Some(file) }),
        Err((doing, error)) => {
            // Nobody knows its name.
            let _ = fs::remove_file(&fresh);
            Err(failed(doing, error))
        }
    }
}

/// Permissions, then ears, then its name: whoever finds it is let in or not as asked, and is heard.
fn finish(
    socket: &OwnedFd,
    fresh: &Path,
    path: &Path,
    access: SocketAccess,
) -> Result<(u64, u64), (&'static str, io::Error)> {
    // The group first: a change of owner may take bits away.
    if let Some(group) = access.group {
        chown(fresh, None, Some(group)).map_err(|error| ("give its group to", error))?;
    }
    fs::set_permissions(fresh, fs::Permissions::from_mode(access.mode))
        .map_err(|error| ("set the permissions of", error))?;
    listen(socket, BACKLOG).map_err(|errno| ("listen on", errno.into()))?;
    let made = fs::symlink_metadata(fresh).map_err(|error| ("look at", error))?;
    renameat_with(CWD, fresh, CWD, path, RenameFlags::NOREPLACE).map_err(|errno| ("name", errno.into()))?;
    Ok((made.dev(), made.ino()))
}

/// Makes sure that nothing is at `path`: a socket that nobody listens on is removed, anything else is left alone.
fn make_room(path: &Path, kind: SocketType) -> Result<(), ControlError> {
    let found = match fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(refused(path, "look at", &error)),
    };
    if !found.file_type().is_socket() {
        return Err(ControlError::new(
            ControlErrorKind::Exists,
            format!(
                "{} is {}; it is left alone: name another path, or remove it yourself",
                path.display(),
                what_it_is(&found)
            ),
        ));
    }
    if somebody_listens(path, kind).map_err(|error| refused(path, "ask", &error))? {
        return Err(ControlError::new(
            ControlErrorKind::Busy,
            format!("somebody listens on {} already; stop that program, or name another path", path.display()),
        ));
    }
    tracing::info!(path = %path.display(), "a socket that nobody listens on is replaced");
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(refused(path, "remove the old", &error)),
        _ => Ok(()),
    }
}

fn what_it_is(found: &Metadata) -> &'static str {
    let kind = found.file_type();
    if kind.is_symlink() {
        "a symbolic link, which is not followed"
    } else if kind.is_dir() {
        "a folder"
    } else {
        "no socket"
    }
}

/// Whether a process answers there.
pub(super) fn somebody_listens(path: &Path, kind: SocketType) -> io::Result<bool> {
    let socket = socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    match connect(&socket, &SocketAddrUnix::new(SocketPath::of(path)?.as_path())?) {
        // A full backlog is somebody's; a socket of another type has an owner too.
        Ok(()) | Err(Errno::AGAIN | Errno::PROTOTYPE) => Ok(true),
        Err(Errno::CONNREFUSED | Errno::NOENT) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn refused(path: &Path, doing: &str, error: &io::Error) -> ControlError {
    let kind = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ControlErrorKind::NotFound,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ControlErrorKind::Denied,
        io::ErrorKind::AlreadyExists | io::ErrorKind::AddrInUse => ControlErrorKind::Busy,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ControlErrorKind::NoSpace,
        _ => ControlErrorKind::Internal,
    };
    ControlError::new(kind, format!("cannot {doing} the socket {}: {error}", path.display()))
}

/// Makes a folder below the runtime folder, open to those who may open that.
pub fn make_folder(path: &Path) -> Result<(), ControlError> {
    match DirBuilder::new().mode(0o755).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(refused(path, "make the folder of", &error)),
        _ => Ok(()),
    }
}

/// A socket that is accepted from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketNumber(u64);

enum Command {
    Listen(SocketNumber, Bound, Accept),
    Close(SocketNumber),
    Run(Box<dyn FnOnce() + Send>),
    Discard(Bound),
    Stop,
}

/// The thread that accepts. Dropped, it closes every socket.
#[derive(Debug)]
pub struct UnixSockets {
    remote: Remote,
    thread: Option<JoinHandle<()>>,
}

/// Tells the thread that accepts what to do; for any thread, and it waits for nothing.
#[derive(Clone, Debug)]
pub struct Remote {
    commands: Sender<Command>,
    bell: Arc<EventFd>,
    next: Arc<AtomicU64>,
}

impl Remote {
    /// Begins to accept.
    #[must_use]
    pub fn listen(&self, bound: Bound, accept: Accept) -> SocketNumber {
        let number = SocketNumber(self.next.fetch_add(1, Ordering::Relaxed));
        self.tell(Command::Listen(number, bound, accept));
        number
    }

    /// Accepts no more from it, and removes its file. Connections that were accepted stay.
    pub fn close(&self, number: SocketNumber) {
        self.tell(Command::Close(number));
    }

    /// Takes a socket back that was never accepted from; its file is removed.
    pub fn discard(&self, bound: Bound) {
        self.tell(Command::Discard(bound));
    }

    /// Calls this on the thread that accepts, after all that it was told before. Nobody is accepted meanwhile: it is to be short.
    /// Dropped uncalled if that thread has ended.
    pub fn run(&self, call: impl FnOnce() + Send + 'static) {
        self.tell(Command::Run(Box::new(call)));
    }

    /// Closes every socket.
    pub fn close_all(&self) {
        self.tell(Command::Stop);
    }

    fn tell(&self, command: Command) {
        // A thread that has ended has closed everything.
        if self.commands.send(command).is_ok() {
            // It cannot fail for a reason that would not end the process: the descriptor is ours and does not block.
            let _ = self.bell.signal();
        }
    }
}

impl UnixSockets {
    /// Starts the thread.
    pub fn start() -> io::Result<UnixSockets> {
        let bell = Arc::new(EventFd::new()?);
        let (commands, received) = channel();
        let listening = Listening { bell: Arc::clone(&bell), received, sockets: Vec::new() };
        let thread = thread::Builder::new().name("ringway-unix".to_owned()).spawn(move || listening.run())?;
        Ok(UnixSockets { remote: Remote { commands, bell, next: Arc::default() }, thread: Some(thread) })
    }

    /// For whoever opens and closes sockets.
    #[must_use]
    pub fn remote(&self) -> Remote {
        self.remote.clone()
    }
}

impl Drop for UnixSockets {
    fn drop(&mut self) {
        self.remote.tell(Command::Stop);
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

struct Listening {
    bell: Arc<EventFd>,
    received: Receiver<Command>,
    sockets: Vec<(SocketNumber, Bound, Accept)>,
}

impl Listening {
    fn run(mut self) {
        let mut ready = Vec::new();
        loop {
            let mut waiting: Vec<PollFd<'_>> = vec![PollFd::new(&self.bell, PollFlags::IN)];
            waiting.extend(self.sockets.iter().map(|(_, bound, _)| PollFd::new(&bound.listener, PollFlags::IN)));
            match poll(&mut waiting, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => {
                    tracing::error!(%errno, "the thread that accepts cannot wait: no further client connects");
                    return;
                }
            }
            ready.clear();
            ready.extend(waiting[1..].iter().map(|one| !one.revents().is_empty()));
            let rung = !waiting[0].revents().is_empty();
            drop(waiting);
            let paused = ready.iter().enumerate().any(|(at, &ready)| ready && !self.accept(at));
            if rung && !self.obey() {
                return;
            }
            if paused {
                self.pause();
            }
        }
    }

    /// Takes what waits on one socket. `false` when the process can take no more for now.
    fn accept(&mut self, at: usize) -> bool {
        let (_, bound, accept) = &mut self.sockets[at];
        for _ in 0..ACCEPTS_MAX {
            match accept_with(&bound.listener, SocketFlags::CLOEXEC) {
                Ok(connection) => accept(connection),
                Err(Errno::WOULDBLOCK) => return true,
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(errno) => {
                    tracing::warn!(path = %bound.path.display(), %errno, "a client cannot be accepted now");
                    return false;
                }
            }
        }
        true
    }

    /// Does what it was told. `false` to end.
    fn obey(&mut self) -> bool {
        let _ = self.bell.take();
        while let Ok(command) = self.received.try_recv() {
            match command {
                Command::Listen(number, bound, accept) => self.sockets.push((number, bound, accept)),
                Command::Discard(bound) => drop(bound),
                Command::Close(number) => self.sockets.retain(|(of, ..)| *of != number),
                Command::Run(call) => call(),
                Command::Stop => return false,
            }
        }
        true
    }

    /// Gives up the rest of a moment; only the bell ends it earlier.
    fn pause(&self) {
        let moment = Timespec { tv_sec: 0, tv_nsec: PAUSE_NS };
        let _ = poll(&mut [PollFd::from_borrowed_fd(self.bell.as_fd(), PollFlags::IN)], Some(&moment));
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::fs::symlink;
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::time::Duration;

    use super::*;

    fn stream(path: &Path) -> Result<Bound, ControlError> {
        bind(path, SocketType::STREAM, SocketAccess::default())
    }

    #[test]
    fn clients_of_every_socket_are_handed_on_and_a_closed_one_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let sockets = UnixSockets::start().unwrap();
        let (sender, receiver) = channel();
        let paths = ["a", "b"].map(|name| dir.path().join(name));
        let numbers = paths.each_ref().map(|path| {
            let (sender, name) = (sender.clone(), path.clone());
            sockets.remote().listen(
                stream(path).unwrap(),
                Box::new(move |connection| sender.send((name.clone(), UnixStream::from(connection))).unwrap()),
            )
        });
        for path in &paths {
            let mut client = UnixStream::connect(path).unwrap();
            client.write_all(b"x").unwrap();
            let (to, mut taken) = receiver.recv_timeout(Duration::from_secs(10)).unwrap();
            let mut byte = [0];
            taken.read_exact(&mut byte).unwrap();
            assert_eq!((&to, byte), (path, *b"x"));
        }
        sockets.remote().close(numbers[0]);
        while paths[0].exists() {
            thread::yield_now();
        }
        UnixStream::connect(&paths[1]).unwrap();
        drop(sockets);
        assert!(!paths[1].exists(), "a socket outlived its daemon");
    }

    #[test]
    fn a_socket_has_the_mode_that_was_asked_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let group = fs::metadata(dir.path()).unwrap().gid();
        let bound = bind(&path, SocketType::SEQPACKET, SocketAccess { mode: 0o660, group: Some(group) }).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
        assert_eq!((bound.path(), fs::read_dir(dir.path()).unwrap().count()), (path.as_path(), 1));
    }

    #[test]
    fn what_is_there_is_replaced_only_if_it_is_a_socket_that_nobody_listens_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        // A process that was killed leaves this.
        drop(UnixListener::bind(&path).unwrap());
        let bound = stream(&path).unwrap();
        for kind in [SocketType::STREAM, SocketType::SEQPACKET] {
            let busy = bind(&path, kind, SocketAccess::default()).unwrap_err();
            assert!(busy.kind == ControlErrorKind::Busy && busy.message.contains("listens"), "{busy}");
        }
        drop(bound);
        assert!(!path.exists());

        let kept = dir.path().join("kept");
        fs::write(&kept, "data").unwrap();
        symlink(&kept, &path).unwrap();
        for (at, says) in [(&path, "symbolic link"), (&kept, "no socket"), (&dir.path().to_owned(), "a folder")] {
            let error = stream(at).unwrap_err();
            assert!(error.kind == ControlErrorKind::Exists && error.message.contains(says), "{error}");
        }
        assert_eq!(fs::read(&kept).unwrap(), b"data");
        let dangling = dir.path().join("dangling");
        symlink(dir.path().join("nowhere"), &dangling).unwrap();
        assert!(stream(&dangling).unwrap_err().message.contains("symbolic link"));
    }

    #[test]
    fn what_took_the_place_of_a_socket_is_not_removed_with_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let bound = stream(&path).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "somebody else's").unwrap();
        drop(bound);
        assert!(path.exists());
    }

    fn dir_of(len: usize) -> tempfile::TempDir {
        tempfile::Builder::new().prefix(&"d".repeat(len)).tempdir().unwrap()
    }

    #[test]
    fn a_path_that_leads_nowhere_is_refused_and_one_that_is_long_is_not() {
        let error = stream(Path::new("/no/such/folder/s")).unwrap_err();
        assert!(error.kind == ControlErrorKind::NotFound && error.message.contains("/no/such/folder/s"), "{error}");
        let folder = dir_of(150);
        let path = folder.path().join("s");
        let _bound = stream(&path).unwrap();
        assert!(stream(&path).unwrap_err().message.contains("somebody listens"));
        UnixStream::connect(SocketPath::of(&path).unwrap().as_path()).unwrap();
    }
}
