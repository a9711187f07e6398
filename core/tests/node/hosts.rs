//! Hosts that live while their target does not: our own host against the whole target, over a simulated network whose connections
//! break, delay and overtake each other, with kills, power losses and restarts of the target between.
//!
//! What is held: every command ends exactly once, whatever was sent again (C11, I3); nothing acknowledged is lost, and what an
//! association that is dead still had on its way lands before what its host sends next or not at all (C11); after the machine has
//! failed, no flush of a host that was attached succeeds before one has failed (C3).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::ops::Range;
use std::time::Duration;

use ringway_core::control::{ControlAnswer, ControlRequest};
use ringway_core::host::{Completed, ControllerKind, Event, Host, HostConfig, HostRequest, Outcome, Reconnect};
use ringway_core::ids::VolumeId;
use ringway_core::request::Command;
use ringway_reactor::io::{Io, Wait};
use ringway_reactor::sim::{DiskConfig, Rng, SimIo, World, WorldConfig};
use uuid::Uuid;

use crate::rig::model::{End, Model, Snapshot, Value};
use crate::rig::{BLOCK, MIB, Setup, Target, creation};

const ADDR: &str = "127.0.0.1:4420";
const VOLUME: u64 = 8 * MIB;
const DEPTH: usize = 10;

enum Flying {
    Write { blocks: Range<u64>, durable: bool },
    Swap { block: u64 },
    Read { first: u64 },
    Flush { snapshot: Snapshot },
}

/// Whether the machine has failed under a host that has not been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Untold {
    No,
    /// It was about to attach.
    Maybe,
    Yes,
    /// It has been told, and may be told again: by what was on its way, or because its answer could have been lost.
    Said,
}

/// One host with a volume.
struct Guest {
    io: SimIo,
    host: Host,
    volume: VolumeId,
    /// It has been attached once, so it is on record.
    attached: bool,
    untold: Untold,
    /// The machine has failed since it was connected: what still arrives was said before, and this holds for the next connection.
    failed: Option<Untold>,
    flying: BTreeMap<u64, Flying>,
    next: u64,
    ended: u64,
    reconnects: u64,
    told: u64,
    /// Flushes that succeeded after it was told.
    given: u64,
    unknown: u64,
}

impl Guest {
    fn new(world: &World, name: &str, volume: VolumeId, number: u128, digests: bool) -> Guest {
        let addr: SocketAddr = ADDR.parse().unwrap();
        let host_id = Uuid::from_u128(number);
        let config = HostConfig {
            host_id,
            host_nqn: format!("nqn.2014-08.org.nvmexpress:uuid:{host_id}"),
            controller: ControllerKind::Io { queues: 2, depth: 8 },
            header_digest: digests,
            data_digest: digests,
            reconnect: Reconnect {
                wait_for_target: Duration::from_secs(600),
                most: Duration::from_millis(200),
                ..Reconnect::default()
            },
            ..HostConfig::new(addr, format!("nqn.2026-11.io.ringway:{name}"))
        };
        let mut io = world.outside();
        let mut host = Host::new(config);
        host.start(&mut io);
        Guest {
            io,
            host,
            volume,
            attached: false,
            untold: Untold::No,
            failed: None,
            flying: BTreeMap::new(),
            next: 0,
            ended: 0,
            reconnects: 0,
            told: 0,
            given: 0,
            unknown: 0,
        }
    }

    fn turn(&mut self, model: &mut Model) -> Result<(), String> {
        let mut completions = Vec::new();
        self.io.poll(Wait::Until(self.host.next_deadline()), &mut completions);
        for completion in completions {
            self.host.on_completion(&mut self.io, completion);
        }
        self.host.turn(&mut self.io);
        while let Some(event) = self.host.next_event() {
            match event {
                Event::Ready(_) => {
                    self.attached = true;
                    self.untold = self.failed.take().unwrap_or(self.untold);
                }
                Event::Reconnected { .. } => {
                    self.reconnects += 1;
                    self.untold = self.failed.take().unwrap_or(self.untold);
                }
                Event::Completed(completed) => self.judge(completed, model)?,
                Event::Failed(error) => return Err(format!("a host gave up: {error}")),
                Event::Lost(_) | Event::Resized(_) | Event::Closed => {}
            }
        }
        Ok(())
    }

    /// A command has ended: once.
    fn judge(&mut self, completed: Completed, model: &mut Model) -> Result<(), String> {
        let user = completed.user;
        let flying = self.flying.remove(&user).ok_or(format!("command {user} ended twice"))?;
        self.ended += 1;
        let volume = self.volume;
        let outcome = completed.outcome;
        let failed = |what: &str| Err(format!("{what} of volume {volume} ended with {outcome:?}"));
        let told = matches!(outcome, Outcome::Failed(status) if status.to_string().contains("WRITE_FAULT"));
        match flying {
            Flying::Write { blocks, durable } => {
                if durable && (told || outcome.is_success()) {
                    self.promise(told)?;
                } else if !outcome.is_success() {
                    return failed("a write");
                }
                // Acknowledged before the machine failed and covered by nothing: it may be gone.
                let holds = durable || self.failed.is_none();
                model.written(volume, blocks, outcome.is_success() && holds, durable);
            }
            Flying::Swap { block } => {
                // It is not sent again: nobody knows whether it was done.
                let unknown = outcome == Outcome::Unknown;
                self.unknown += u64::from(unknown);
                if !unknown && !outcome.is_success() {
                    return failed("a compare and write of the very content");
                }
                model.written(volume, block..block + 1, outcome.is_success() && self.failed.is_none(), false);
            }
            Flying::Read { first } => {
                if !outcome.is_success() {
                    return failed("a read");
                }
                let bytes = completed.buf.expect("a read's buffer");
                if self.failed.is_some() {
                    // What was read may be gone.
                    let blocks = first..first + bytes.len() as u64 / BLOCK;
                    model.written(volume, blocks, false, false);
                } else {
                    model.check(volume, first, &bytes, End::None)?;
                }
            }
            Flying::Flush { snapshot } => {
                if !told && !outcome.is_success() {
                    return failed("a flush");
                }
                self.promise(told)?;
                if !told {
                    model.flushed(volume, &snapshot);
                }
            }
        }
        Ok(())
    }

    /// A flush, or a write that asks for as much, was answered: with success, or by telling what has happened.
    fn promise(&mut self, told: bool) -> Result<(), String> {
        match (self.untold, told) {
            (Untold::Yes, false) => Err("a flush succeeds although the machine has failed and nobody was told".into()),
            (Untold::No, true) => Err("a flush fails and nothing has happened".into()),
            (_, true) => {
                self.told += 1;
                self.untold = Untold::Said;
                Ok(())
            }
            (_, false) => {
                self.given += u64::from(self.untold == Untold::Said);
                Ok(())
            }
        }
    }

    fn submit(&mut self, model: &mut Model, rng: &mut Rng) {
        if self.flying.len() >= DEPTH || !self.host.is_ready() && !self.attached {
            return;
        }
        let (flying, command, offset, len, bytes) = match rng.below(16) {
            0 => (Flying::Flush { snapshot: model.flush(self.volume) }, Command::Flush, 0, 0, None),
            kind => {
                let stripe = rng.below(VOLUME / MIB - 1) * (MIB / BLOCK);
                let first = stripe + if rng.one_in(4) { MIB / BLOCK - 2 } else { rng.below(12) };
                let blocks = first..first + if kind == 1 { 1 } else { 1 + rng.below(6) };
                if !model.begin(self.volume, blocks.clone()) {
                    return;
                }
                let (offset, len) = (first * BLOCK, ((blocks.end - first) * BLOCK) as u32);
                let certain = model.certain(self.volume, first);
                match (kind, certain) {
                    (1, Some(before)) => {
                        let mut both = block_of(before);
                        both.extend(model.write(self.volume, blocks, false));
                        let command = Command::CompareAndWrite { fua: false };
                        (Flying::Swap { block: first }, command, offset, len, Some(both))
                    }
                    (2..6, _) => (Flying::Read { first }, Command::Read, offset, len, Some(vec![0xEE; len as usize])),
                    (6, _) => {
                        model.write(self.volume, blocks.clone(), true);
                        let command = Command::WriteZeroes { fua: false, deallocate: true };
                        (Flying::Write { blocks, durable: false }, command, offset, len, None)
                    }
                    _ => {
                        let bytes = model.write(self.volume, blocks.clone(), false);
                        let durable = kind == 7;
                        let command = Command::Write { fua: durable };
                        (Flying::Write { blocks, durable }, command, offset, len, Some(bytes))
                    }
                }
            }
        };
        let buf = bytes.map(|bytes| {
            let mut buf = self.io.buffers().get(bytes.len()).expect("a buffer for the test");
            buf.copy_from_slice(&bytes);
            buf
        });
        self.next += 1;
        self.flying.insert(self.next, flying);
        let request = HostRequest { user: self.next, command, offset, len, buf };
        self.host.submit(&mut self.io, request).map_err(|(_, error)| error).expect("a host takes what it can keep");
    }
}

fn block_of(value: Value) -> Vec<u8> {
    value.to_le_bytes().repeat(BLOCK as usize / 8)
}

struct Net {
    target: Option<Target>,
    guests: Vec<Guest>,
    model: Model,
    rng: Rng,
}

impl Net {
    fn new(seed: u64) -> Net {
        let setup = Setup {
            disks: vec![DiskConfig { size: 96 * MIB, ..DiskConfig::default() }],
            reactors: 1 + seed as usize % 3,
            listen: Some(ADDR.parse().unwrap()),
            net: WorldConfig {
                network_ns: 5_000..2_000_000,
                break_per_segment: [0, 300, 3000][seed as usize % 3],
                ..WorldConfig::default()
            },
            ..Setup::default()
        };
        let mut target = Target::new(seed, setup);
        let mut volumes = Vec::new();
        for name in ["vm1", "vm2"] {
            let mut create = creation(name, VOLUME, None);
            create.lba_bytes = 4096;
            let Ok(ControlAnswer::Volume(made)) = target.call(ControlRequest::VolumeCreate(create)) else { panic!() };
            volumes.push((name, made.id));
        }
        let world = target.world.clone();
        // Two hosts share a volume.
        let of = [volumes[0], volumes[1], volumes[1]].into_iter().enumerate();
        let guests = of.map(|(n, (name, id))| Guest::new(&world, name, id, 77 + n as u128, n == 1)).collect();
        Net { target: Some(target), guests, model: Model::default(), rng: world.rng() }
    }

    fn target(&mut self) -> &mut Target {
        self.target.as_mut().expect("it runs")
    }

    /// One turn of somebody.
    fn turn(&mut self) -> Result<(), String> {
        let target = self.target.as_mut().expect("it runs");
        let reactors = target.reactors.len();
        let next = target.world.pick(reactors + self.guests.len());
        if next < reactors {
            target.reactors[next].turn(true);
            return Ok(());
        }
        self.guests[next - reactors].turn(&mut self.model)
    }

    fn run(&mut self, turns: u64) -> Result<(), String> {
        for _ in 0..turns {
            if self.rng.one_in(6) {
                let guest = self.rng.below(self.guests.len() as u64) as usize;
                self.guests[guest].submit(&mut self.model, &mut self.rng);
            }
            self.turn()?;
        }
        Ok(())
    }

    /// Everything in flight ends.
    fn settle(&mut self) -> Result<(), String> {
        for _ in 0..3_000_000 {
            if self.guests.iter().all(|guest| guest.flying.is_empty()) {
                return Ok(());
            }
            self.turn()?;
        }
        let left: Vec<_> = self.guests.iter().map(|guest| guest.flying.len()).collect();
        Err(format!("commands do not end: {left:?}"))
    }

    fn kill(&mut self) {
        let target = self.target.take().expect("it runs");
        self.target = Some(target.kill());
    }

    fn power_loss(&mut self) {
        let target = self.target.take().expect("it runs");
        self.model.power_lost();
        for guest in &mut self.guests {
            guest.failed = Some(if guest.attached { Untold::Yes } else { Untold::Maybe });
            for flying in guest.flying.values_mut() {
                if let Flying::Flush { snapshot } = flying {
                    snapshot.clear();
                }
            }
        }
        let world = target.world.clone();
        self.target = Some(target.power_loss());
        world.quiesce();
    }

    /// Reads every block that was ever written, in the target itself.
    fn check(&mut self) -> Result<(), String> {
        let volumes: std::collections::BTreeSet<_> = self.guests.iter().map(|guest| guest.volume).collect();
        for volume in volumes {
            for block in self.model.blocks_of(volume) {
                assert!(self.model.begin(volume, block..block + 1), "nothing is in flight");
                let bytes = self.target().read(volume, block * BLOCK, BLOCK as usize);
                let bytes = bytes.map_err(|status| format!("volume {volume} block {block}: {status:?}"))?;
                self.model.check(volume, block, &bytes, End::None)?;
            }
        }
        Ok(())
    }
}

#[derive(Debug, Default)]
struct Seen {
    ended: u64,
    reconnects: u64,
    told: u64,
    unknown: u64,
}

fn run(seed: u64) -> Result<Seen, String> {
    let mut net = Net::new(seed);
    for _ in 0..6 {
        let turns = 500 + net.rng.below(4000);
        net.run(turns)?;
        match net.rng.below(5) {
            0 | 1 => net.kill(),
            2 | 3 => net.power_loss(),
            _ => net.target().world.break_connections(),
        }
        // Sometimes again before anybody is back.
        if net.rng.one_in(3) {
            let turns = net.rng.below(300);
            net.run(turns)?;
            net.kill();
        }
    }
    net.run(3000)?;
    net.settle()?;
    net.check()?;
    let seen = net.guests.iter().fold(Seen::default(), |seen, guest| Seen {
        ended: seen.ended + guest.ended,
        reconnects: seen.reconnects + guest.reconnects,
        told: seen.told + guest.told,
        unknown: seen.unknown + guest.unknown,
    });
    Ok(seen)
}

#[test]
fn c11_hosts_that_outlive_their_target_and_its_network_end_each_command_once_and_find_what_they_were_promised() {
    let mut all = Seen::default();
    for seed in 0..40 {
        let seen = run(seed).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        all.ended += seen.ended;
        all.reconnects += seen.reconnects;
        all.told += seen.told;
        all.unknown += seen.unknown;
    }
    println!("{all:?}");
    assert!(all.ended > 4000 && all.reconnects > 200 && all.told > 40 && all.unknown > 0, "{all:?}");
}

#[test]
fn c3_a_machine_that_fails_under_a_host_tells_it_and_goes_on_even_if_the_next_target_is_killed_first() {
    for kills in 0..3 {
        let mut net = Net::new(3 + 3 * kills);
        while !net.guests.iter().all(|guest| guest.attached) {
            net.turn().unwrap();
        }
        net.run(2000).unwrap();
        net.power_loss();
        for _ in 0..kills {
            for _ in 0..600 {
                net.turn().unwrap();
            }
            net.kill();
        }
        // A host whose connection went without a word notices that by a timeout.
        for _ in 0..1000 {
            net.run(1000).unwrap();
            if net.guests.iter().all(|guest| guest.given > 0) {
                break;
            }
        }
        net.settle().unwrap();
        for guest in &net.guests {
            assert!(
                guest.told > 0 && guest.given > 0,
                "{kills} kills, {} times told, then {}",
                guest.told,
                guest.given
            );
        }
    }
}
