//! What connections cost that do nothing: CPU time of all.

use std::time::Duration;

use ringway_core::directory::VOLUME_NQN_PREFIX;
use ringway_core::host::{ControllerKind, Event, Host, HostConfig, Target};
use ringway_reactor::buf::BufPoolConfig;
use ringway_reactor::io::{Completion, Io, Wait};
use ringway_reactor::uring::{UringConfig, UringIo};

use super::target::TargetProcess;
use super::{Bar, Failed, Goal, Options};
use crate::{cpu, pools};

/// One admin and one I/O connection.
pub(super) const CONNECTIONS_EACH: usize = 2;
/// 64 connections.
const ASSOCIATIONS: u16 = 32;
/// Long enough for the kernel's 10 ms accounting to tell 1 %.
const IDLE_TIME: Duration = Duration::from_secs(15);
/// What is not over by then, a keep-alive or a start, counts as idle.
const SETTLE_TIME: Duration = Duration::from_secs(2);

/// A ring of this process with associations that do nothing.
pub(super) struct Idle<'a> {
    io: UringIo,
    hosts: Vec<Host>,
    volume: &'a Target,
    // After the ring, which may still write to it.
    _buffers: pools::Rented,
}

impl<'a> Idle<'a> {
    /// For up to so many associations with `volume`.
    pub(super) fn new(volume: &'a Target, associations: u16) -> Result<Self, Failed> {
        let connections = CONNECTIONS_EACH * usize::from(associations);
        let classes = vec![(4096, 2 * connections), (16 << 10, 4 * connections), (64 << 10, 5 * connections / 2)];
        let buffers = pools::rent(BufPoolConfig { classes });
        let io = UringIo::new(&UringConfig::new(vec![buffers.pool()], 0))?;
        Ok(Self { io, hosts: Vec::new(), volume, _buffers: buffers })
    }

    /// Connects until there are so many associations, and waits until the target has calmed down.
    pub(super) fn grow_to(&mut self, associations: u16) -> Result<(), Failed> {
        let more = connect(&mut self.io, self.volume, self.hosts.len() as u16..associations)?;
        self.hosts.extend(more);
        self.wait(SETTLE_TIME);
        Ok(())
    }

    pub(super) fn wait(&mut self, time: Duration) {
        wait(&mut self.io, &mut self.hosts, time);
    }

    /// Ends all associations in good order.
    pub(super) fn close(mut self) {
        for host in &mut self.hosts {
            host.close(&mut self.io);
        }
        while !self.hosts.iter().all(Host::is_over) {
            turn(&mut self.io, &mut self.hosts, Duration::from_millis(100));
        }
    }
}

pub(super) fn run(options: &Options) -> Result<Vec<Bar>, Failed> {
    let target = TargetProcess::start(options, "null:64GiB", &[])?;
    let volume = target.create_volume("bench", "16GiB")?;
    let mut idle = Idle::new(&volume, ASSOCIATIONS)?;
    idle.grow_to(ASSOCIATIONS)?;
    let steal = cpu::steal();
    let cpu_before = cpu::of_process(target.pid()).ok_or("the target is gone")?;
    idle.wait(IDLE_TIME);
    let used = cpu::of_process(target.pid()).ok_or("the target is gone")? - cpu_before;
    let steal_percent = cpu::steal_percent(steal, cpu::steal());
    idle.close();
    target.stop()?;
    let percent = used.as_secs_f64() * 100.0 / IDLE_TIME.as_secs_f64();
    let name = "CPU with 64 idle connections".to_owned();
    Ok(vec![Bar::alone(name, "% of a core", vec![percent], Goal::AtMost(1.0), steal_percent)])
}

fn connect(io: &mut UringIo, volume: &Target, numbers: std::ops::Range<u16>) -> Result<Vec<Host>, Failed> {
    let (_, host, port) = volume.remote()?;
    let addr = format!("{host}:{port}").parse()?;
    let mut hosts: Vec<Host> = numbers
        .map(|number| {
            let mut config = HostConfig::new(addr, format!("{VOLUME_NQN_PREFIX}{}", volume.volume));
            config.controller = ControllerKind::Io { queues: 1, depth: 32 };
            config.token_space = number;
            Host::new(config)
        })
        .collect();
    hosts.iter_mut().for_each(|host| host.start(io));
    while !hosts.iter().all(Host::is_ready) {
        turn(io, &mut hosts, Duration::from_millis(100));
        for host in &mut hosts {
            if let Some(Event::Failed(error)) = host.next_event() {
                return Err(error.into());
            }
        }
    }
    Ok(hosts)
}

fn wait(io: &mut UringIo, hosts: &mut [Host], time: Duration) {
    let until = io.now_precise().plus_ns(time.as_nanos() as u64);
    while io.now() < until {
        turn(io, hosts, Duration::from_millis(500));
    }
}

fn turn(io: &mut UringIo, hosts: &mut [Host], longest: Duration) {
    let deadline = hosts.iter().map(Host::next_deadline).min().unwrap_or(io.now());
    let mut completions: Vec<Completion> = Vec::new();
    io.poll(Wait::Until(deadline.min(io.now().plus_ns(longest.as_nanos() as u64))), &mut completions);
    for completion in completions {
        if let Some(host) = hosts.iter_mut().find(|host| host.owns(completion.token)) {
            host.on_completion(io, completion);
        }
    }
    hosts.iter_mut().for_each(|host| host.turn(io));
}
