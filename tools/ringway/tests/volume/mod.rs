//! A volume attached by our own host, one request at a time: what a guest would see.

#![expect(unreachable_pub, reason = "a module of test binaries")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ringway_core::host::{Event, Host, HostConfig, HostRequest, Outcome};
use ringway_core::request::Command;
use ringway_reactor::buf::{Buf, BufPool, BufPoolConfig};
use ringway_reactor::io::{Io, Wait};
use ringway_reactor::uring::{UringConfig, UringIo};

/// Longer than a restart, or than a command on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// An attached volume. Its connection comes back by itself.
pub struct Volume {
    io: UringIo,
    host: Host,
    pub reconnects: usize,
}

impl Volume {
    /// Attaches volume `name` at `tcp://ADDR:PORT`.
    pub fn attach(listener: &str, name: &str) -> Volume {
        let addr: SocketAddr = listener.strip_prefix("tcp://").unwrap().parse().unwrap();
        let pool = BufPool::leak(&BufPoolConfig { classes: vec![(4096, 64), (256 << 10, 16)] }, 0);
        let mut io = UringIo::new(&UringConfig::new(vec![pool], 0)).unwrap();
        let mut host = Host::new(HostConfig::new(addr, format!("nqn.2026-11.io.ringway:{name}")));
        host.start(&mut io);
        let mut volume = Volume { io, host, reconnects: 0 };
        while !matches!(volume.event(), Event::Ready(Some(_))) {}
        volume
    }

    /// The next thing that the host tells.
    fn event(&mut self) -> Event {
        let give_up = Instant::now() + PATIENCE;
        let mut completions = Vec::new();
        loop {
            if let Some(event) = self.host.next_event() {
                match &event {
                    Event::Reconnected { .. } => self.reconnects += 1,
                    Event::Failed(error) => panic!("the host gave up: {error}"),
                    _ => {}
                }
                return event;
            }
            assert!(Instant::now() < give_up, "nothing has happened for {PATIENCE:?}");
            let until = self.io.now().plus_ns(50_000_000).min(self.host.next_deadline());
            self.io.poll(Wait::Until(until), &mut completions);
            for completion in completions.drain(..) {
                self.host.on_completion(&mut self.io, completion);
            }
            self.host.turn(&mut self.io);
        }
    }

    fn run(&mut self, command: Command, offset: u64, len: u32, buf: Option<Buf>) -> (Outcome, Option<Buf>) {
        self.host.submit(&mut self.io, HostRequest { user: 1, command, offset, len, buf }).unwrap();
        loop {
            if let Event::Completed(completed) = self.event() {
                return (completed.outcome, completed.buf);
            }
        }
    }

    pub fn write(&mut self, offset: u64, bytes: &[u8]) -> Outcome {
        let mut buf = self.io.buffers().get(bytes.len()).unwrap();
        buf.copy_from_slice(bytes);
        self.run(Command::Write { fua: false }, offset, bytes.len() as u32, Some(buf)).0
    }

    pub fn read(&mut self, offset: u64, len: usize) -> Vec<u8> {
        let buf = self.io.buffers().get(len).unwrap();
        let (outcome, buf) = self.run(Command::Read, offset, len as u32, Some(buf));
        assert_eq!(outcome, Outcome::Success);
        buf.unwrap().to_vec()
    }

    pub fn flush(&mut self) -> Outcome {
        self.run(Command::Flush, 0, 0, None).0
    }
}
