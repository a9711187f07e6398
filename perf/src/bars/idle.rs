//! What connections cost that do nothing: memory each, and CPU time of all.

use std::time::Duration;

use ringway_core::directory::VOLUME_NQN_PREFIX;
use ringway_core::host::{ControllerKind, Event, Host, HostConfig, Target};
use ringway_reactor::buf::BufPoolConfig;
use ringway_reactor::io::{Completion, Io, Wait};
use ringway_reactor::uring::{UringConfig, UringIo};

use super::target::TargetProcess;
use super::{Bar, Failed, Goal, Options};
use crate::{cpu, pools};

/// Associations of one admin and one I/O connection each: 64 connections.
const ASSOCIATIONS: u16 = 32;
/// Long enough for the kernel's 10 ms accounting to tell 1 %.
const IDLE_TIME: Duration = Duration::from_secs(15);
/// What is not over by then, a keep-alive or a start, counts as idle.
const SETTLE_TIME: Duration = Duration::from_secs(2);

pub(super) fn run(options: &Options) -> Result<Vec<Bar>, Failed> {
    let target = TargetProcess::start(options, "null:64GiB", &[])?;
    let volume = target.create_volume("bench", "16GiB")?;
    let shape = BufPoolConfig { classes: vec![(4096, 4 * ASSOCIATIONS as usize), (16 << 10, 256), (64 << 10, 160)] };
    let pool = pools::rent(shape);
    let mut io = UringIo::new(&UringConfig::new(vec![pool.pool()], 0))?;
    // One association first: what the first connection of all allocates is not the price of the others.
    let mut hosts = connect(&mut io, &volume, 0..1)?;
    wait(&mut io, &mut hosts, SETTLE_TIME);
    let before = target.resident_bytes()?;
    hosts.append(&mut connect(&mut io, &volume, 1..ASSOCIATIONS)?);
    wait(&mut io, &mut hosts, SETTLE_TIME);
    let connections = 2.0 * (f64::from(ASSOCIATIONS) - 1.0);
    let bytes_each = target.resident_bytes()?.saturating_sub(before) as f64 / connections;
    let steal = cpu::steal();
    let cpu_before = cpu::of_process(target.pid()).ok_or("the target is gone")?;
    wait(&mut io, &mut hosts, IDLE_TIME);
    let used = cpu::of_process(target.pid()).ok_or("the target is gone")? - cpu_before;
    let steal_percent = cpu::steal_percent(steal, cpu::steal());
    for host in &mut hosts {
        host.close(&mut io);
    }
    while !hosts.iter().all(Host::is_over) {
        turn(&mut io, &mut hosts, Duration::from_millis(100));
    }
    target.stop()?;
    let percent = used.as_secs_f64() * 100.0 / IDLE_TIME.as_secs_f64();
    let bar = |name: &str, unit, figure, most| {
        Bar::alone(name.to_owned(), unit, vec![figure], Goal::AtMost(most), steal_percent)
    };
    Ok(vec![
        bar("memory of an idle connection", "KiB", bytes_each / 1024.0, 32.0),
        bar("CPU with 64 idle connections", "% of a core", percent, 1.0),
    ])
}

fn connect(io: &mut UringIo, volume: &Target, numbers: std::ops::Range<u16>) -> Result<Vec<Host>, Failed> {
    let (host, port) = volume.tcp()?;
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
