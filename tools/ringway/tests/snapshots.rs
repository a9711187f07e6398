//! Snapshots by the real binary: its commands, and accounts that balance in every snapshot that is taken while money moves.

mod common;
#[expect(dead_code, reason = "the tests of these disks need more of a machine")]
#[path = "../../../core/tests/vhost/vm.rs"]
mod vm;
mod volume;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{Ended, Place};
use ringway_core::host::Outcome;
use ringway_shm_ring::client::{Client, ConnectOptions, Queue};
use vm::{OK, Vm, Wish};
use volume::Volume;

fn names(ended: Ended) -> Vec<String> {
    let json = ended.json();
    json.as_array().unwrap().iter().map(|info| info["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn snapshots_are_made_listed_shown_cloned_rolled_back_to_and_removed_by_commands() {
    let place = Place::new();
    place.format();
    let daemon = place.serve(&[]);
    for name in ["vm1", "vm2"] {
        place.run(&["volume", "create", name, "64MiB"]).ends(0);
    }
    let mut volume = Volume::attach(&daemon.listener(), "vm1");
    assert_eq!(volume.write(0, &[1; 4096]), Outcome::Success);
    assert_eq!(volume.flush(), Outcome::Success);
    let made = place.run(&["snapshot", "create", "vm1", "a", "--timeout", "20s", "--json"]).json();
    assert_eq!((made[0]["name"].as_str(), made[0]["state"].as_str()), (Some("vm1@a"), Some("synced")));
    assert_eq!(volume.write(0, &[2; 4096]), Outcome::Success);
    place.run(&["snapshot", "create", "vm1,vm2", "b", "--timeout", "20s"]).ends(0);
    place.run(&["snapshot", "create", "vm1", "c", "--no-wait"]).ends(0);
    place.run(&["snapshot", "create", "vm1", "d", "--timeout", "-1"]).ends(0);
    assert_eq!(names(place.run(&["snapshot", "list", "vm1", "--json"])), ["vm1@a", "vm1@b", "vm1@c", "vm1@d"]);
    assert_eq!(names(place.run(&["snapshot", "list", "--json"])).len(), 5);
    assert!(place.run(&["snapshot", "show", "vm1@a"]).stdout.contains("synced"));
    let mut old = Volume::attach(&daemon.listener(), "vm1@a");
    assert_eq!(old.read(0, 4096), [1; 4096]);
    assert_ne!(old.write(0, &[9; 4096]), Outcome::Success, "a snapshot is read-only");
    drop(old);
    place.run(&["volume", "clone", "vm1@a", "vm3"]).ends(0);
    let mut clone = Volume::attach(&daemon.listener(), "vm3");
    assert_eq!(clone.write(4096, &[3; 4096]), Outcome::Success);
    assert_eq!((clone.read(0, 4096), clone.read(4096, 4096)), (vec![1; 4096], vec![3; 4096]));
    place.run(&["snapshot", "remove", "vm1@a", "--force"]).fails(12, "vm3");
    place.run(&["snapshot", "rollback", "vm1@b"]).fails(8, "force");
    place.run(&["snapshot", "rollback", "vm1@b", "--force"]).ends(0);
    assert_eq!(names(place.run(&["snapshot", "list", "vm1", "--json"])), ["vm1@a", "vm1@b"]);
    assert_eq!(volume.read(0, 4096), [2; 4096], "it has come back by itself");
    place.run(&["snapshot", "remove", "vm1@b"]).ends(0);
    drop((volume, clone));
    daemon.stop().ends(0);
    let daemon = place.serve(&[]);
    assert_eq!(names(place.run(&["snapshot", "list", "--json"])), ["vm1@a", "vm2@b"]);
    daemon.stop().ends(0);
}

#[test]
fn wrong_commands_say_what_would_be_right() {
    let place = Place::new();
    place.format();
    let daemon = place.serve(&[]);
    place.run(&["volume", "create", "vm1", "16MiB"]).ends(0);
    place.run(&["snapshot", "create", "vm1", "a"]).ends(0);
    for (args, code, says) in [
        (&["snapshot", "create", "vm1", "a"][..], 4, "exists already"),
        (&["snapshot", "create", "vm1", "b/c"], 2, "A-Z a-z 0-9 . _ -"),
        (&["snapshot", "create", "vm1,vm9", "b"], 3, "vm9"),
        (&["snapshot", "create", "vm1@a", "b"], 2, "a snapshot has no snapshots"),
        (&["snapshot", "create", "vm1", "b", "--timeout", "soon"], 2, "500ms"),
        (&["snapshot", "create", "vm1", "b", "--timeout", "0.000001s"], 11, "nothing is left"),
        (&["snapshot", "create", "vm1", "b", "--timeout", "5s", "--no-wait"], 2, "cannot be used with"),
        (&["snapshot", "show", "vm1@b"], 3, "vm1@b"),
        (&["snapshot", "show", "vm1"], 2, "VOLUME@SNAPSHOT"),
        (&["snapshot", "remove", "vm9@a"], 3, "vm9"),
        (&["snapshot", "rollback", "vm1@b"], 3, "vm1@b"),
        (&["volume", "clone", "vm1@a", "vm1"], 4, "exists already"),
        (&["volume", "clone", "vm1", "vm2"], 2, "VOLUME@SNAPSHOT"),
        (&["volume", "remove", "vm1", "--force"], 12, "snapshot"),
        (&["volume", "remove", "vm1@a"], 2, "is a snapshot"),
    ] {
        place.run(args).fails(code, says);
    }
    assert_eq!(names(place.run(&["snapshot", "list", "--json"])), ["vm1@a"]);
    daemon.stop().ends(0);
}

/// Who move money at a time.
const CLERKS: u64 = 4;
const ACCOUNTS: u64 = 8;
const BALANCE: u64 = 1000;
/// Each clerk's own block of each volume, and its accounts behind it.
const CLERK_BYTES: u64 = 4 << 20;

/// A record: what it is of, and the number of the transfer that wrote it.
fn record(words: &[u64]) -> Vec<u8> {
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.resize(512, 0);
    bytes
}

fn word(bytes: &[u8], n: usize) -> u64 {
    u64::from_le_bytes(bytes[n * 8..n * 8 + 8].try_into().unwrap())
}

/// Where account `n` of a clerk is: accounts alternate between the volumes, and lie on different stripes.
fn account(clerk: u64, n: u64) -> (usize, u64) {
    ((n % 2) as usize, clerk * CLERK_BYTES + 4096 + n / 2 * (1 << 20) + n * 512)
}

/// A volume as a clerk reaches it.
enum Desk {
    Tcp(Box<Volume>),
    /// Over shared memory; the client keeps the connection.
    Ring(Queue, #[expect(dead_code, reason = "the queue lives as long as its client")] Client),
    /// As the disk of a virtual machine.
    Disk(Box<Vm>),
}

impl Desk {
    fn ring(runtime: &Path, name: &str) -> Desk {
        let client = Client::connect(ConnectOptions::new(runtime.join("shm.sock"), name)).unwrap();
        Desk::Ring(client.take_queue().expect("a client has a queue"), client)
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        match self {
            Desk::Tcp(volume) => assert_eq!(volume.write(offset, bytes), Outcome::Success),
            Desk::Ring(queue, _) => queue.write_at(offset, bytes, false).unwrap(),
            Desk::Disk(vm) => assert_eq!(vm.write(0, offset / 512, bytes), OK),
        }
    }
}

/// Moves money between its accounts for as long as it may: first the intent is written to the first volume and acknowledged, then both
/// accounts. Returns how many transfers it made.
fn clerk(mut volumes: [Desk; 2], clerk: u64, stop: &AtomicBool, moved: &AtomicU64) {
    let mut balances = [BALANCE; ACCOUNTS as usize];
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        number += 1;
        let (from, to) = (number % ACCOUNTS, (number * 5 + 3) % ACCOUNTS);
        if from == to {
            continue;
        }
        let amount = balances[from as usize].min(number % 97);
        balances[from as usize] -= amount;
        balances[to as usize] += amount;
        let (paid, got) = (balances[from as usize], balances[to as usize]);
        let intent = record(&[number, from, paid, to, got]);
        volumes[0].write(clerk * CLERK_BYTES, &intent);
        for (n, balance) in [(from, paid), (to, got)] {
            let (volume, at) = account(clerk, n);
            volumes[volume].write(at, &record(&[number, balance]));
        }
        moved.fetch_add(1, Ordering::Relaxed);
    }
}

/// The clerk's books in a snapshot: what a restart would make of them, by the last intent.
fn audit(volumes: &mut [Volume; 2], clerk: u64) -> (u64, u64) {
    let intent = volumes[0].read(clerk * CLERK_BYTES, 512);
    let number = word(&intent, 0);
    let mut sum = 0;
    for n in 0..ACCOUNTS {
        let (volume, at) = account(clerk, n);
        let found = volumes[volume].read(at, 512);
        let (by, mut balance) = (word(&found, 0), word(&found, 1));
        assert!(
            by <= number,
            "account {n} of clerk {clerk} was written by {by}, which was never intended: last is {number}"
        );
        if by == 0 {
            balance = BALANCE;
        }
        for (party, then) in [(word(&intent, 1), word(&intent, 2)), (word(&intent, 3), word(&intent, 4))] {
            if number > 0 && party == n {
                balance = then;
            }
        }
        sum += balance;
    }
    (number, sum)
}

#[test]
fn c1_c2_every_snapshot_of_two_volumes_balances_while_money_moves_over_every_transport() {
    let place = Place::new();
    place.format();
    let daemon = place.serve(&[]);
    for name in ["bank-a", "bank-b"] {
        place.run(&["volume", "create", name, "64MiB"]).ends(0);
    }
    let socket = |name: &str| {
        let export = place.run(&["export", "add", "vhost-user", name, "--json"]).json();
        PathBuf::from(export["socket"].as_str().unwrap())
    };
    let disks = ["bank-a", "bank-b"].map(socket);
    let (stop, moved) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let clerks: Vec<_> = (0..CLERKS)
        .map(|n| {
            let (listener, runtime) = (daemon.listener(), place.path("run"));
            let (stop, moved, disks) = (Arc::clone(&stop), Arc::clone(&moved), disks.clone());
            // The first by the network, the second by shared memory, the third to one volume so and to the other so; the last as a
            // virtual machine with both of them.
            let desk = move |volume: usize, name: &str| match (n, volume) {
                (0, _) | (2, 0) => Desk::Tcp(Box::new(Volume::attach(&listener, name))),
                (3, _) => Desk::Disk(Box::new(Vm::new(&disks[volume], Wish::default()))),
                _ => Desk::ring(&runtime, name),
            };
            thread::spawn(move || clerk([desk(0, "bank-a"), desk(1, "bank-b")], n, &stop, &moved))
        })
        .collect();
    let mut made = 0;
    let begun = Instant::now();
    while made < 25 {
        place.run(&["snapshot", "create", "bank-a,bank-b", &format!("s{made}"), "--timeout", "30s"]).ends(0);
        made += 1;
        thread::sleep(Duration::from_millis(100).saturating_sub(begun.elapsed() / made));
    }
    stop.store(true, Ordering::Relaxed);
    clerks.into_iter().for_each(|clerk| clerk.join().unwrap());
    let mut numbers = Vec::new();
    for n in 0..made {
        let mut volumes = ["bank-a", "bank-b"].map(|name| Volume::attach(&daemon.listener(), &format!("{name}@s{n}")));
        for clerk in 0..CLERKS {
            let (number, sum) = audit(&mut volumes, clerk);
            assert_eq!(sum, ACCOUNTS * BALANCE, "snapshot {n}, clerk {clerk}, after transfer {number}");
            numbers.push(number);
        }
    }
    let distinct: std::collections::BTreeSet<_> = numbers.iter().collect();
    println!("{} transfers, {made} snapshots", moved.load(Ordering::Relaxed));
    assert!(distinct.len() > 10, "money moved between snapshots: {numbers:?}");
    daemon.stop().ends(0);
}
