//! Event descriptors (eventfd) by which two processes wake each other.
//!
//! The other side holds the same open file description: it may fill the counter or make it blocking at any moment. So a reactor
//! signals and waits through its ring alone ([`crate::io::Op::Signal`], [`crate::io::Op::WaitEvent`]), where nothing blocks;
//! [`EventFd::signal`] is for a thread that may.
//!
//! A *watched* descriptor is anything else that can be polled ([`EventFd::watch`]): it is signalled as long as it is readable, and
//! whoever reads it resets it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};
use rustix::io::Errno;

/// One eventfd, ours or a peer's; or a descriptor that is watched.
#[derive(Debug)]
pub struct EventFd {
    fd: OwnedFd,
    watched: bool,
}

impl EventFd {
    /// A new one, not signalled.
    pub fn new() -> io::Result<EventFd> {
        let fd = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(EventFd { fd, watched: false })
    }

    /// Any descriptor that can be polled. It is signalled while it is readable; waiting for it does not read it.
    #[must_use]
    pub fn watch(fd: OwnedFd) -> EventFd {
        EventFd { fd, watched: true }
    }

    /// Whether it is of [`EventFd::watch`].
    #[must_use]
    pub fn is_watched(&self) -> bool {
        self.watched
    }

    /// A descriptor that a peer has sent. Refuses what is no eventfd: a pipe, a file or a socket would make a wait on it end at
    /// once for ever, or never.
    pub fn from_peer(fd: OwnedFd) -> io::Result<EventFd> {
        let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&fd));
        let what = std::fs::read_link(&link)?;
        if what.as_os_str() != "anon_inode:[eventfd]" {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("the descriptor is {}, where an eventfd is wanted", what.display()),
            ));
        }
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(EventFd { fd, watched: false })
    }

    /// Wakes whoever waits. A counter that is full wakes as well, so that this is no error.
    pub fn signal(&self) -> io::Result<()> {
        match rustix::io::write(&self.fd, &1u64.to_ne_bytes()) {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Resets it, unless it is watched; whether it was signalled.
    pub fn take(&self) -> io::Result<bool> {
        if self.watched {
            return match rustix::event::poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&Timespec::default())) {
                Ok(ready) => Ok(ready > 0),
                Err(Errno::INTR) => Ok(false),
                Err(errno) => Err(errno.into()),
            };
        }
        let mut count = [0; 8];
        match rustix::io::read(&self.fd, &mut count) {
            Ok(_) => Ok(true),
            Err(Errno::AGAIN) => Ok(false),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Sleeps until it is signalled, and resets it, at most for `timeout_ns`; whether it was.
    pub fn wait(&self, timeout_ns: u64) -> io::Result<bool> {
        let timeout =
            Timespec { tv_sec: (timeout_ns / 1_000_000_000) as i64, tv_nsec: (timeout_ns % 1_000_000_000) as _ };
        match rustix::event::poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], Some(&timeout)) {
            Ok(0) | Err(Errno::INTR) => Ok(false),
            Ok(_) => self.take(),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Another descriptor of the same event, to be sent to a peer or kept.
    pub fn try_clone(&self) -> io::Result<EventFd> {
        Ok(EventFd { fd: self.fd.try_clone()?, watched: self.watched })
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_is_seen_once() {
        let event = EventFd::new().unwrap();
        let peer = EventFd::from_peer(event.try_clone().unwrap().fd).unwrap();
        assert!(!event.take().unwrap());
        peer.signal().unwrap();
        peer.signal().unwrap();
        assert!(event.wait(1_000_000_000).unwrap());
        assert!(!event.wait(1_000).unwrap());
    }

    #[test]
    fn a_watched_descriptor_is_signalled_until_somebody_reads_it() {
        let (ours, peer) = std::os::unix::net::UnixStream::pair().unwrap();
        let ours = EventFd::watch(ours.into());
        assert!(!ours.take().unwrap());
        rustix::io::write(&peer, b"x").unwrap();
        assert!(ours.take().unwrap() && ours.take().unwrap() && ours.wait(1).unwrap());
        rustix::io::read(&ours, &mut [0; 1]).unwrap();
        assert!(!ours.take().unwrap());
    }

    #[test]
    fn what_is_no_eventfd_is_refused_by_its_kind() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let error = EventFd::from_peer(file.into()).unwrap_err();
        assert!(error.to_string().contains("/dev/null"), "{error}");
    }

    #[test]
    fn a_full_counter_is_no_error() {
        let event = EventFd::new().unwrap();
        rustix::io::write(&event, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        event.signal().unwrap();
        assert!(event.take().unwrap());
    }
}
