//! Admission, on reactor 0: from a client that asks to queues that are served.
//!
//! ```text
//! offered --admitted by the registry--> fencing --former associations fenced--> dealing --all served--> open
//!     \--refused                            \------------------ dead ------------------------------------/--> dismissed
//! ```
//! The client is told "welcome" once every queue is polled. Until the fences of its host's former associations have passed,
//! nothing is (history C11).

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use ringway_reactor::io::Instant;
use ringway_reactor::shared::{MemoryTable, SharedMemory};
use ringway_shm_ring::door::{Offer, bye};
use ringway_shm_ring::message::{Hello, Message as Word, Polling as Wanted, Reason, VolumeInfo};

use super::{ClientMemory, Connection, Mail, Seat, ShmTransport, TransportEvent};
use crate::controller::association::{Association, HostIdentity, OnRecord};
use crate::directory::{Directory, volume_nqn};
use crate::export::Polling;
use crate::ids::{AssociationId, VolumeId};
use crate::limits::{REQUEST_BYTES_MAX, WRITE_ZEROES_BYTES_MAX};
use crate::node::message::Message;
use crate::volume::{Lease, VolumeRecord, split_lease};
use crate::wire::completion::NvmeStatus;

/// How far a client has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its host's former associations are being fenced.
    Fencing,
    /// It is to be the volume's one writer: that has to be on record before it writes.
    Recording,
    /// So many of its queues are not yet served.
    Dealing { left: u16 },
    /// It was told welcome.
    Open,
}

/// A client that has an association.
#[derive(Debug)]
pub(super) struct Admitted {
    offer: Offer,
    connection: Arc<Connection>,
    volume: VolumeId,
    told: VolumeInfo,
    stage: Stage,
    /// It asks to be the one writer.
    writer: bool,
}

fn info(directory: &Directory, record: &VolumeRecord) -> VolumeInfo {
    VolumeInfo {
        size: record.size,
        block_bytes: record.lba_bytes,
        request_bytes_max: REQUEST_BYTES_MAX,
        write_zeroes_bytes_max: WRITE_ZEROES_BYTES_MAX,
        read_only: directory.is_write_protected(record),
    }
}

fn polling(wanted: Wanted) -> Polling {
    match wanted {
        Wanted::Adaptive => Polling::Adaptive,
        Wanted::Interrupt => Polling::Interrupt,
        Wanted::Busy => Polling::Busy,
    }
}

fn table(hello: &Hello, memory: &Arc<SharedMemory>) -> Arc<MemoryTable> {
    let areas = vec![Arc::clone(memory)];
    if hello.zeroes_itself { MemoryTable::of_peer_that_zeroes(areas) } else { MemoryTable::new(areas) }
}

impl ShmTransport {
    /// A client asks to be let in.
    pub(super) fn admit(&mut self, offer: Offer, now: Instant, out: &mut Vec<TransportEvent>) {
        match self.attach(&offer.hello, now) {
            Ok((association, volume, told)) => {
                let hello = &offer.hello;
                let connection = Arc::new(Connection {
                    number: offer.number,
                    association,
                    line: Arc::clone(&offer.line),
                    table: table(hello, &offer.memory),
                    layout: hello.layout,
                    generation: hello.generation,
                    polling: polling(hello.polling),
                    pid: offer.line.peer_pid(),
                    queues: AtomicUsize::new(usize::from(hello.layout.queues())),
                });
                let writer = split_lease(&offer.hello.volume).1.is_some();
                let admitted = Admitted { offer, connection, volume, told, stage: Stage::Fencing, writer };
                self.admitted.insert(admitted.offer.number, admitted);
                self.await_fences(out);
            }
            Err((reason, text)) => {
                tracing::warn!(
                    pid = offer.line.peer_pid(),
                    host = offer.hello.host_nqn,
                    volume = offer.hello.volume,
                    "a client of shared memory is refused: {text}"
                );
                offer.refuse(reason, &text);
            }
        }
    }

    fn attach(
        &self,
        hello: &Hello,
        now: Instant,
    ) -> Result<(Arc<Association>, VolumeId, VolumeInfo), (Reason, String)> {
        if self.draining {
            return Err((Reason::Stopping, "the target is stopping".into()));
        }
        let (name, lease) = split_lease(&hello.volume);
        let missing =
            || (Reason::NoVolume, format!("there is no volume {name}; `ringway volume list` shows what there is"));
        let entry = self.directory.by_name(name).ok_or_else(missing)?;
        let subsystem = self.directory.find_subsystem(&volume_nqn(&entry.record)).ok_or_else(missing)?;
        let host = HostIdentity { nqn: hello.host_nqn.clone(), id: hello.host_id };
        let association =
            self.registry.attach_host(host, (subsystem, lease), &self.directory, now).map_err(|refusal| {
                if refusal.status.is(NvmeStatus::CONNECT_INVALID_HOST) {
                    let text = format!("host {} is not on the list of volume {name}", hello.host_nqn);
                    (Reason::Denied, text)
                } else if refusal.status.is(NvmeStatus::RESERVATION_CONFLICT) {
                    let text = format!("volume {name} has another writer, or had one meanwhile");
                    // Who was it before has nothing to wait for: what it would send again is older than what was written since.
                    (if lease == Some(Lease::Resumed) { Reason::Denied } else { Reason::Busy }, text)
                } else if entry.record.exclusive {
                    (Reason::Busy, format!("volume {name} is exclusive and another host has it"))
                } else {
                    (Reason::Limit, "the target has as many associations as it takes".into())
                }
            })?;
        Ok((association, entry.record.id, info(&self.directory, &entry.record)))
    }

    /// Deals out the queues of clients whose hosts have nothing left from before.
    pub(super) fn await_fences(&mut self, out: &mut Vec<TransportEvent>) {
        let mut refused = Vec::new();
        for admitted in self.admitted.values_mut() {
            let association = &admitted.connection.association;
            if admitted.stage == Stage::Fencing && self.registry.unfenced(association).is_empty() && admitted.writer {
                admitted.stage = Stage::Recording;
                out.push(TransportEvent::Attached { volume: admitted.volume });
            }
            match (admitted.stage, association.on_record()) {
                (Stage::Fencing, _) if !admitted.writer && self.registry.unfenced(association).is_empty() => {}
                (Stage::Recording, OnRecord::Yes) => {}
                (Stage::Recording, OnRecord::Never) => {
                    refused.push(admitted.offer.number);
                    continue;
                }
                _ => continue,
            }
            admitted.stage = Stage::Dealing { left: admitted.offer.hello.layout.queues() };
            for to in 0..self.config.reactors {
                let mail = Mail::Register(ClientMemory(Arc::clone(&admitted.connection)));
                out.push(TransportEvent::Mail { to, message: Message::Shm(mail) });
            }
            for (index, bells) in (0..).zip(&admitted.offer.bells) {
                let seat = Seat { connection: Arc::clone(&admitted.connection), index, bells: bells.clone() };
                let to = self.next_reactor;
                self.next_reactor = (to + 1) % self.config.reactors;
                out.push(TransportEvent::Mail { to, message: Message::Shm(Mail::Serve(Box::new(seat))) });
            }
        }
        for number in refused {
            tracing::error!("a client of shared memory is refused: that it is the one writer cannot be put on record");
            if let Some(admitted) = self.admitted.remove(&number) {
                self.end(&admitted, out);
                admitted.offer.refuse(Reason::Internal, "that it is the one writer cannot be put on record");
            }
        }
    }

    /// Whether somebody waits for a fence or a record, whose ends are no events here.
    pub(super) fn awaits_fence(&self) -> bool {
        self.admitted.values().any(|admitted| matches!(admitted.stage, Stage::Fencing | Stage::Recording))
    }

    /// A queue of this client is served.
    pub(super) fn serving(&mut self, number: u64, out: &mut Vec<TransportEvent>) {
        // Dismissed meanwhile: its queues go with the fence.
        let Some(admitted) = self.admitted.get_mut(&number) else { return };
        let Stage::Dealing { left } = &mut admitted.stage else { unreachable!("a queue is served once") };
        *left -= 1;
        if *left > 0 {
            return;
        }
        admitted.stage = Stage::Open;
        match admitted.offer.welcome(admitted.told) {
            Ok(()) => out.push(TransportEvent::Attached { volume: admitted.volume }),
            Err(error) => {
                tracing::warn!(%error, "a client of shared memory could not be told that it is attached");
                // The door's thread sees the end of the line.
                admitted.offer.line.shut_down();
            }
        }
    }

    /// The client's socket is closed.
    pub(super) fn gone(&mut self, number: u64, out: &mut Vec<TransportEvent>) {
        if let Some(admitted) = self.admitted.remove(&number) {
            self.end(&admitted, out);
        }
    }

    fn end(&self, admitted: &Admitted, out: &mut Vec<TransportEvent>) {
        let association = &admitted.connection.association;
        if self.registry.end(association) {
            out.push(TransportEvent::AssociationDead(association.id));
        }
    }

    /// The association is dead, by whoever's will.
    pub(super) fn dismiss(&mut self, association: AssociationId) {
        let of_it = |admitted: &Admitted| admitted.connection.association.id == association;
        let numbers: Vec<u64> =
            self.admitted.iter().filter(|(_, admitted)| of_it(admitted)).map(|(&number, _)| number).collect();
        for admitted in numbers.iter().filter_map(|number| self.admitted.remove(number)) {
            match admitted.stage {
                Stage::Open => bye(&admitted.offer.line, Reason::Ended, "the target has ended the association"),
                _ => admitted.offer.refuse(Reason::Ended, "the target has ended the association"),
            }
        }
    }

    /// The target stops: those who wait are sent away.
    pub(super) fn turn_away(&mut self) {
        self.admitted.retain(|_, admitted| {
            let stays = admitted.stage == Stage::Open;
            if !stays {
                admitted.offer.refuse(Reason::Stopping, "the target is stopping");
            }
            stays
        });
    }

    /// The volumes changed.
    pub fn on_directory(&mut self, directory: &Arc<Directory>, out: &mut Vec<TransportEvent>) {
        self.directory = Arc::clone(directory);
        let mut ended = Vec::new();
        for (&number, admitted) in &mut self.admitted {
            let host = &admitted.connection.association.host.nqn;
            let record = directory.volume(admitted.volume).filter(|record| directory.may_attach(record, host, true));
            let Some(record) = record else {
                ended.push(number);
                continue;
            };
            let now = info(directory, record);
            if now != admitted.told {
                admitted.told = now;
                if admitted.stage == Stage::Open {
                    // A client that reads none of its messages goes without this one.
                    let _ = admitted.offer.line.send(&Word::Changed(now), &[]);
                }
            }
        }
        for number in ended {
            let admitted = self.admitted.remove(&number).expect("found above");
            bye(&admitted.offer.line, Reason::Ended, "the volume is gone, or this host may not attach it any more");
            self.end(&admitted, out);
        }
    }
}
