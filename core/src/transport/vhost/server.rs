//! The connections of all exports: who is served, who waits for whom, and what every connection needs of the target.
//!
//! One front end is served on an export at a time, by a control thread of its own. Another that comes while it is there is
//! refused; one that comes while its predecessor's requests still end waits for those, so that nothing of the old one lands after
//! what the new one does (history C11).

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread;
use std::time::Duration;

use ringway_reactor::mailbox::Injector;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::SendFlags;

use super::connection;
use super::mail::{Mail, RingId};
use crate::controller::registry::Registry;
use crate::directory::Directory;
use crate::export::{Export, Polling};
use crate::ids::{ExportId, VolumeId};
use crate::node::interest::{Interest, Interests};
use crate::node::message::Message;
use crate::volume::VolumeRecord;

/// How often a thread that waits for a reactor looks whether that has stopped.
const STOPPED_LOOK: Duration = Duration::from_millis(200);

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic elsewhere leaves these tables as they were between two statements; each of these keeps them whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What reactors and control threads share: which volumes all reactors know of.
pub struct VhostShared {
    reactors: usize,
    inner: Mutex<Inner>,
}

struct Inner {
    /// Known to every reactor.
    directory: Arc<Directory>,
    /// Known to some, by version: to how many.
    arriving: BTreeMap<u64, usize>,
    channels: Vec<Weak<ConfigChannel>>,
    /// Is to be called when there is another directory.
    listener: Option<Arc<dyn Fn() + Send + Sync>>,
}

/// How a front end is told that its disk has changed.
pub(super) struct ConfigChannel {
    volume: VolumeId,
    /// As the front end knows it.
    size: AtomicU64,
    /// What it sent for the purpose.
    socket: Mutex<Option<OwnedFd>>,
}

impl VhostShared {
    /// As the reactors are started with it.
    #[must_use]
    pub fn new(reactors: usize, directory: Arc<Directory>) -> Arc<VhostShared> {
        let inner = Inner { directory, arriving: BTreeMap::new(), channels: Vec::new(), listener: None };
        Arc::new(VhostShared { reactors, inner: Mutex::new(inner) })
    }

    /// One more reactor works with `directory`. With the last, front ends whose disks have another size now are told: none of
    /// their requests meets a reactor that knows only the old one.
    pub(super) fn published(&self, directory: &Arc<Directory>) {
        let version = directory.version();
        let mut inner = lock(&self.inner);
        let count = inner.arriving.entry(version).or_default();
        *count += 1;
        if *count < self.reactors {
            return;
        }
        inner.arriving = inner.arriving.split_off(&(version + 1));
        inner.directory = Arc::clone(directory);
        inner.channels.retain(|channel| channel.strong_count() > 0);
        let changed: Vec<_> = inner.channels.iter().filter_map(Weak::upgrade).collect();
        let listener = inner.listener.clone();
        drop(inner);
        if let Some(listener) = listener {
            listener();
        }
        for channel in changed {
            if let Some(record) = directory.volume(channel.volume)
                && channel.size.swap(record.size, Ordering::Relaxed) != record.size
            {
                channel.tell();
            }
        }
    }

    /// The volumes that every reactor knows.
    #[must_use]
    pub fn directory(&self) -> Arc<Directory> {
        Arc::clone(&lock(&self.inner).directory)
    }

    /// From now on this is called, by a reactor, when the volumes have changed. It must not wait.
    pub fn set_listener(&self, listener: impl Fn() + Send + Sync + 'static) {
        lock(&self.inner).listener = Some(Arc::new(listener));
    }

    fn volume(&self, id: VolumeId) -> Option<Arc<VolumeRecord>> {
        lock(&self.inner).directory.volume(id).cloned()
    }

    fn is_read_only(&self) -> bool {
        lock(&self.inner).directory.read_only()
    }

    fn channel(&self, record: &VolumeRecord) -> Arc<ConfigChannel> {
        let channel =
            Arc::new(ConfigChannel { volume: record.id, size: AtomicU64::new(record.size), socket: Mutex::new(None) });
        lock(&self.inner).channels.push(Arc::downgrade(&channel));
        channel
    }
}

impl ConfigChannel {
    pub(super) fn set_socket(&self, socket: OwnedFd) {
        *lock(&self.socket) = Some(socket);
    }

    /// VHOST_USER_BACKEND_CONFIG_CHANGE_MSG. A front end that does not take twelve bytes does not learn of it: nobody waits here.
    fn tell(&self) {
        let Some(socket) = &*lock(&self.socket) else { return };
        let message: Vec<u8> = [2u32, 1, 0].into_iter().flat_map(u32::to_ne_bytes).collect();
        if let Err(error) = rustix::net::send(socket, &message, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            tracing::warn!(volume = %self.volume, %error, "a front end cannot be told that its disk has changed");
        }
    }
}

/// What a control thread needs of the target.
pub(super) struct Link {
    shared: Arc<VhostShared>,
    injectors: Vec<Injector<Message>>,
    /// The reactors answer no more.
    stopped: AtomicBool,
    next_ring: AtomicU64,
    next_reactor: AtomicUsize,
    pub(super) registry: Arc<Registry>,
    interests: Arc<Interests>,
}

impl Link {
    pub(super) fn reactors(&self) -> usize {
        self.injectors.len()
    }

    pub(super) fn send(&self, reactor: usize, mail: Mail) {
        self.injectors[reactor].send(Message::Vhost(mail));
    }

    /// Sends to a reactor and waits for its answer. `None` if there will be none: the target has stopped.
    pub(super) fn ask<T>(&self, reactor: usize, mail: impl FnOnce(mpsc::Sender<T>) -> Mail) -> Option<T> {
        let (reply, answer) = mpsc::channel();
        self.send(reactor, mail(reply));
        loop {
            match answer.recv_timeout(STOPPED_LOOK) {
                Ok(answer) => return Some(answer),
                Err(RecvTimeoutError::Timeout) if !self.stopped.load(Ordering::Acquire) => {}
                Err(_) => return None,
            }
        }
    }

    pub(super) fn next_ring(&self) -> RingId {
        RingId(self.next_ring.fetch_add(1, Ordering::Relaxed))
    }

    /// Where a connection's first queue goes; the others follow on the reactors after it.
    pub(super) fn next_reactor(&self) -> usize {
        self.next_reactor.fetch_add(1, Ordering::Relaxed) % self.injectors.len()
    }

    /// For as long as a ring runs there.
    pub(super) fn interest(&self, reactor: usize, polling: Polling) -> Interest {
        self.interests.attach(reactor, polling)
    }

    pub(super) fn volume(&self, id: VolumeId) -> Option<Arc<VolumeRecord>> {
        self.shared.volume(id)
    }

    pub(super) fn is_read_only(&self) -> bool {
        self.shared.is_read_only()
    }

    pub(super) fn channel(&self, record: &VolumeRecord) -> Arc<ConfigChannel> {
        self.shared.channel(record)
    }
}

/// One connection, as seen by those that come after it.
struct Serving {
    socket: UnixStream,
    ended: Mutex<bool>,
    on_end: Condvar,
}

impl Serving {
    fn is_ended(&self) -> bool {
        *lock(&self.ended)
    }

    /// Whether its front end has gone, although we have not yet finished with it.
    fn is_left(&self) -> bool {
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut fds = [PollFd::new(&self.socket, PollFlags::RDHUP)];
        let polled = rustix::event::poll(&mut fds, Some(&now));
        polled.is_err() || fds[0].revents().intersects(PollFlags::RDHUP | PollFlags::HUP | PollFlags::ERR)
    }

    fn end(&self) {
        // This copy of it would keep the connection open for the other side.
        let _ = self.socket.shutdown(std::net::Shutdown::Both);
        *lock(&self.ended) = true;
        self.on_end.notify_all();
    }

    fn wait(&self) {
        let mut ended = lock(&self.ended);
        while !*ended {
            ended = self.on_end.wait(ended).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Serves vhost-user exports.
pub struct VhostServer {
    link: Arc<Link>,
    serving: Mutex<BTreeMap<ExportId, Arc<Serving>>>,
}

impl VhostServer {
    /// `injectors` lead to the reactors, in order.
    #[must_use]
    pub fn new(
        shared: Arc<VhostShared>,
        injectors: Vec<Injector<Message>>,
        registry: Arc<Registry>,
        interests: Arc<Interests>,
    ) -> VhostServer {
        let link = Link {
            shared,
            injectors,
            stopped: AtomicBool::new(false),
            next_ring: AtomicU64::new(1),
            next_reactor: AtomicUsize::new(0),
            registry,
            interests,
        };
        VhostServer { link: Arc::new(link), serving: Mutex::default() }
    }

    /// A front end has connected. Never waits.
    pub fn connect(&self, export: &Arc<Export>, socket: OwnedFd) {
        if let Err(error) = self.begin(export, UnixStream::from(socket)) {
            tracing::error!(socket = %export.socket.display(), %error, "a front end cannot be served");
        }
    }

    /// The export is gone: its connection ends.
    pub fn end(&self, export: ExportId) {
        if let Some(serving) = lock(&self.serving).remove(&export) {
            // It may be gone already.
            let _ = serving.socket.shutdown(std::net::Shutdown::Both);
        }
    }

    /// Whether a front end is attached.
    #[must_use]
    pub fn is_serving(&self, export: ExportId) -> bool {
        lock(&self.serving).get(&export).is_some_and(|serving| !serving.is_ended())
    }

    fn begin(&self, export: &Arc<Export>, socket: UnixStream) -> std::io::Result<()> {
        let mut serving = lock(&self.serving);
        let before = serving.get(&export.id).filter(|before| !before.is_ended()).cloned();
        if before.as_ref().is_some_and(|before| !before.is_left()) {
            tracing::warn!(
                socket = %export.socket.display(),
                "a second front end is refused: a disk is attached to one machine at a time"
            );
            return Ok(());
        }
        let this = Arc::new(Serving { socket: socket.try_clone()?, ended: Mutex::new(false), on_end: Condvar::new() });
        let (link, export_too, mine) = (Arc::clone(&self.link), Arc::clone(export), Arc::clone(&this));
        thread::Builder::new().name("ringway-vhost".to_owned()).spawn(move || {
            if let Some(before) = before {
                before.wait();
            }
            connection::serve(&link, &export_too, socket);
            mine.end();
        })?;
        serving.insert(export.id, this);
        Ok(())
    }
}

impl Drop for VhostServer {
    fn drop(&mut self) {
        self.link.stopped.store(true, Ordering::Release);
        for serving in lock(&self.serving).values() {
            // It may be gone already.
            let _ = serving.socket.shutdown(std::net::Shutdown::Both);
        }
    }
}
