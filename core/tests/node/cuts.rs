//! C1 and C2 on the product's own code: clients that know of each other write one thing after the other, over shards and volumes,
//! while snapshots are cut. Each snapshot has to be a state that an observer could have seen.

use std::collections::BTreeMap;

use ringway_core::control::ControlAnswer;
use ringway_core::ids::{AssociationId, RequestId, VolumeId};
use ringway_core::request::{Command, Request, Status};
use ringway_core::snapshot::asked::{Patience, SnapshotInfo};

use crate::rig::{BLOCK, MIB, Pending, Setup, Target};
use crate::snapshots::creation;
use crate::soak;

const CLIENTS: usize = 3;
const SECTOR: usize = 512;

/// A client's writes, numbered from 1; number `k` goes to place `k % places`.
struct Client {
    places: Vec<(usize, u64)>,
    number: u64,
    in_flight: Option<RequestId>,
}

/// What a write says: its number, and the writes of each client that its own client knew to be done.
fn payload(number: u64, knows: &[u64]) -> Vec<u8> {
    let mut bytes = vec![0; SECTOR];
    for (word, value) in bytes.chunks_exact_mut(8).zip([number].iter().chain(knows)) {
        word.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

fn words(bytes: &[u8]) -> Vec<u64> {
    bytes.chunks_exact(8).take(1 + CLIENTS).map(|word| u64::from_le_bytes(word.try_into().unwrap())).collect()
}

struct World {
    target: Target,
    volumes: [VolumeId; 2],
    clients: Vec<Client>,
    acknowledged: [u64; CLIENTS],
    pending: Vec<Pending>,
}

impl World {
    fn new(seed: u64) -> World {
        let setup =
            Setup { reactors: 1 + seed as usize % 3, shards: 4, mailbox: 1 + seed as usize % 8, ..Setup::default() };
        let mut target = Target::new(seed, setup);
        let volumes = ["a", "b"].map(|name| target.create(name, 8 * MIB).id);
        // Sectors of shared blocks, and of blocks of their own, on every shard of both volumes.
        let clients = (0..CLIENTS as u64).map(|c| Client {
            places: (0..6).map(|p| (p as usize % 2, p * MIB + (p % 3) * BLOCK + c * SECTOR as u64)).collect(),
            number: 0,
            in_flight: None,
        });
        World { volumes, clients: clients.collect(), acknowledged: [0; CLIENTS], pending: Vec::new(), target }
    }

    /// Who has nothing under way writes on.
    fn issue(&mut self) {
        for n in 0..CLIENTS {
            let client = &mut self.clients[n];
            if client.in_flight.is_some() {
                continue;
            }
            client.number += 1;
            let (volume, offset) = client.places[client.number as usize % client.places.len()];
            let bytes = payload(client.number, &self.acknowledged);
            let data = Some(self.target.buf(&bytes).into());
            let request = Request {
                association: AssociationId(1),
                volume: self.volumes[volume],
                command: Command::Write { fua: false },
                offset,
                len: SECTOR as u32,
                data,
            };
            let reactor = self.target.world.pick(self.target.reactors.len());
            self.clients[n].in_flight = Some(self.target.submit(reactor, request));
        }
    }

    fn collect(&mut self) {
        for (n, client) in self.clients.iter_mut().enumerate() {
            let ended = client.in_flight.and_then(|id| self.target.done.remove(&id));
            if let Some(done) = ended {
                assert_eq!(done.status, Status::Success);
                client.in_flight = None;
                self.acknowledged[n] = client.number;
            }
        }
    }

    /// Checks that a snapshot holds of each client a number of first writes and nothing behind, and with each write whatever
    /// its client knew of. Returns how many.
    fn check(&mut self, made: &[SnapshotInfo], context: &str) -> Vec<u64> {
        let mut held = Vec::new();
        let mut known = Vec::new();
        for n in 0..CLIENTS {
            let places = self.clients[n].places.clone();
            let mut found = BTreeMap::new();
            for (place, &(volume, offset)) in places.iter().enumerate() {
                let bytes = self.target.read(made[volume].id, offset, SECTOR).unwrap();
                found.insert(place, words(&bytes));
            }
            let last = found.values().max_by_key(|words| words[0]).expect("there are places").clone();
            let count = places.len() as u64;
            for (place, words) in found {
                // The newest write to this place among the first `last`.
                let wanted = (0..=last[0]).rev().take(count as usize).find(|k| k % count == place as u64 && *k > 0);
                assert_eq!(
                    words[0],
                    wanted.unwrap_or(0),
                    "{context}: client {n}, place {place}, of {} writes",
                    last[0]
                );
            }
            held.push(last[0]);
            known.push(last[1..].to_vec());
        }
        for (n, known) in known.iter().enumerate() {
            for (other, &number) in known.iter().enumerate().filter(|&(other, _)| other != n) {
                assert!(
                    held[other] >= number,
                    "{context}: client {n} knew {number} of {other}, which has {}",
                    held[other]
                );
            }
        }
        held
    }
}

fn run(seed: u64, snapshots: usize) -> usize {
    let mut world = World::new(seed);
    let mut made: Vec<Vec<SnapshotInfo>> = Vec::new();
    let mut asked = 0;
    while made.len() < snapshots {
        world.issue();
        if world.pending.len() < 2 && asked < snapshots && world.target.world.pick(4) == 0 {
            let pending = world.target.ask(creation(&["a", "b"], &format!("s{asked}"), Patience::Forever));
            world.pending.push(pending);
            asked += 1;
        }
        let turns = 1 + world.target.world.pick(30) as u64;
        world.target.run(turns, |_| false);
        world.collect();
        world.pending.retain(|pending| match pending.lock().unwrap().take() {
            None => true,
            Some(Ok(ControlAnswer::Snapshots(infos))) => {
                made.push(infos);
                false
            }
            Some(other) => panic!("seed {seed}: {other:?}"),
        });
    }
    let mut within = 0;
    let before: Vec<_> = made.iter().map(|made| world.check(made, &format!("seed {seed}"))).collect();
    for held in &before {
        within += usize::from(held.iter().zip(&world.acknowledged).any(|(held, &all)| *held > 0 && *held < all));
    }
    // What was answered is durable, whatever was flushed.
    world.target = world.target.power_loss();
    for (made, before) in made.iter().zip(before) {
        assert_eq!(world.check(made, &format!("seed {seed} after power loss")), before);
    }
    within
}

#[test]
fn c1_c2_each_snapshot_under_load_is_a_state_that_somebody_could_have_seen() {
    let within: usize = (0..24).map(|seed| run(seed, 4)).sum();
    assert!(within > 20, "{within} snapshots were cut in the middle of writing");
}

#[test]
fn soak_c1_c2_each_snapshot_under_load_is_a_state_that_somebody_could_have_seen() {
    for seed in soak::seeds(4) {
        run(seed.wrapping_mul(7919), 6);
    }
}
