//! A volume attached by our own host, for copying: submit, and reap with the buffers coming back.

use ringway_core::control::ControlErrorKind;
use ringway_core::host::{
    Completed, ControllerKind, Event, Host, HostConfig, HostError, HostErrorKind, HostRequest, Namespace, Outcome,
};
use ringway_core::limits::REQUEST_BYTES_MAX;
use ringway_core::request::Command;
use ringway_core::wire::completion::NvmeStatus;
use ringway_reactor::buf::{Buf, BufPool, BufPoolConfig};
use ringway_reactor::io::{Completion, Io, Wait};
use ringway_reactor::uring::{UringConfig, UringIo};

use crate::failure::Failure;

/// Requests in flight: enough to keep the wire busy, few enough for 8 MiB of locked memory.
const DEPTH: usize = 16;
/// The longest wait before the host's own timers are looked at.
const TURN_NS: u64 = 100_000_000;

/// What is done with the data of a read, given its offset.
pub(crate) type Keep<'a> = &'a mut dyn FnMut(u64, &[u8]) -> Result<(), Failure>;

/// An attached volume.
pub(crate) struct Attached {
    io: UringIo,
    host: Host,
    namespace: Namespace,
    completions: Vec<Completion>,
    in_flight: usize,
}

impl Attached {
    /// Attaches; fails when the target does not take us.
    pub(crate) fn connect(mut config: HostConfig) -> Result<Attached, Failure> {
        config.controller = ControllerKind::Io { queues: 1, depth: DEPTH as u16 + 1 };
        let classes = vec![(4096, 64), (REQUEST_BYTES_MAX as usize, DEPTH + 4)];
        let pool = BufPool::leak(&BufPoolConfig { classes }, 0);
        let mut io = UringIo::new(&UringConfig::new(vec![pool], 0))
            .map_err(|error| Failure::internal(format!("cannot set up a ring: {error}")))?;
        let mut host = Host::new(config);
        host.start(&mut io);
        let mut completions = Vec::new();
        let namespace = loop {
            turn(&mut io, &mut host, &mut completions);
            match host.next_event() {
                Some(Event::Ready(Some(namespace))) => break namespace,
                Some(Event::Ready(None)) => {
                    return Err(Failure::internal("the target gave a volume without a namespace"));
                }
                // What has not stood yet is not waited for: the daemon has just told us this address.
                Some(Event::Lost(error) | Event::Failed(error)) => return Err(host_failure(&error)),
                _ => {}
            }
        };
        Ok(Attached { io, host, namespace, completions, in_flight: 0 })
    }

    pub(crate) fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    /// A buffer of `len` bytes; where all are in flight it waits for one, giving what ends meanwhile to `keep`.
    pub(crate) fn buffer(&mut self, len: usize, keep: Keep<'_>) -> Result<Buf, Failure> {
        loop {
            if self.in_flight < DEPTH
                && let Some(buf) = self.io.buffers().get(len)
            {
                return Ok(buf);
            }
            self.turn(keep)?;
        }
    }

    /// Sends a read or a write of all of `buf`.
    pub(crate) fn submit(&mut self, command: Command, offset: u64, buf: Buf) -> Result<(), Failure> {
        let len = buf.len() as u32;
        self.send(HostRequest { user: offset, command, offset, len, buf: Some(buf) })
    }

    /// Makes everything written so far durable.
    pub(crate) fn flush(&mut self) -> Result<(), Failure> {
        self.send(HostRequest { user: 0, command: Command::Flush, offset: 0, len: 0, buf: None })?;
        self.finish(&mut |_, _| Ok(()))
    }

    /// Waits for all that is in flight.
    pub(crate) fn finish(&mut self, keep: Keep<'_>) -> Result<(), Failure> {
        while self.in_flight > 0 {
            self.turn(keep)?;
        }
        Ok(())
    }

    fn send(&mut self, request: HostRequest) -> Result<(), Failure> {
        self.host.submit(&mut self.io, request).map_err(|(_, error)| host_failure(&error))?;
        self.in_flight += 1;
        Ok(())
    }

    fn turn(&mut self, keep: Keep<'_>) -> Result<(), Failure> {
        turn(&mut self.io, &mut self.host, &mut self.completions);
        while let Some(event) = self.host.next_event() {
            match event {
                Event::Completed(completed) => {
                    self.in_flight -= 1;
                    end(&completed, keep)?;
                }
                Event::Failed(error) => return Err(host_failure(&error)),
                // The host comes back by itself and sends again what was in flight.
                Event::Lost(error) => tracing::warn!(%error, "the connection broke"),
                _ => {}
            }
        }
        Ok(())
    }
}

fn turn(io: &mut UringIo, host: &mut Host, completions: &mut Vec<Completion>) {
    let until = io.now().plus_ns(TURN_NS).min(host.next_deadline());
    io.poll(Wait::Until(until), completions);
    for completion in completions.drain(..) {
        host.on_completion(io, completion);
    }
    host.turn(io);
}

fn end(completed: &Completed, keep: Keep<'_>) -> Result<(), Failure> {
    match completed.outcome {
        Outcome::Success => match &completed.buf {
            Some(buf) => keep(completed.user, buf),
            None => Ok(()),
        },
        Outcome::Failed(status) => {
            let full = status.is(NvmeStatus::CAPACITY_EXCEEDED);
            let kind = if full { ControlErrorKind::NoSpace } else { ControlErrorKind::Internal };
            let at = completed.user;
            Err(Failure::new(kind, format!("the target failed a request at byte {at}: {status}")))
        }
        Outcome::Unknown | Outcome::Gone => {
            Err(Failure::new(ControlErrorKind::Unavailable, "the target went away in the middle of the copy"))
        }
    }
}

/// A host's error with the exit code of its kind.
pub(crate) fn host_failure(error: &HostError) -> Failure {
    let kind = match error.kind {
        HostErrorKind::NoSuchVolume => ControlErrorKind::NotFound,
        HostErrorKind::NotAllowed => ControlErrorKind::Denied,
        HostErrorKind::Refused | HostErrorKind::Disconnected | HostErrorKind::TimedOut | HostErrorKind::Closed => {
            ControlErrorKind::Unavailable
        }
        HostErrorKind::Busy => ControlErrorKind::Busy,
        HostErrorKind::Invalid => ControlErrorKind::Invalid,
        HostErrorKind::Digest | HostErrorKind::Protocol | HostErrorKind::Controller | HostErrorKind::Local => {
            ControlErrorKind::Internal
        }
    };
    Failure::new(kind, error.to_string())
}
