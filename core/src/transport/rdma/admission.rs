//! Who is let in, and which reactor serves it.

use ringway_rdma::verbs::{ConnectRequest, Device, QueueSpec};
use ringway_reactor::io::Io;
use zerocopy::IntoBytes;

use super::connection::{Connection, SENDS_PER_ENTRY};
use super::{RdmaTransport, TransportEvent, handover};
use crate::limits::{IN_CAPSULE_BYTES_RDMA, IO_QUEUES_MAX, QUEUE_ENTRIES_MAX};
use crate::wire::rdma::{CmAccept, CmReject, CmRequest, CmStatus, QueueWish};

/// RDMA READs of one queue pair at a time, where host and device take as many.
const READS_OUT_MAX: u8 = 16;
/// Works that the send queue must have room for: those of one answer, and reads.
const SENDS_MIN: u32 = 8;
/// Of a reactor's buffers, the part that may lie ready for capsules: the rest is for commands.
const RECEIVE_SHARE: usize = 4;

/// Deals connections out: in turn among the reactors near the card, among all where none is known to be. I/O queues have turns of their
/// own: hosts with one each would else have all of them on every second reactor.
#[derive(Debug)]
pub(super) struct Spread {
    numa: Vec<Option<u16>>,
    /// Connections dealt to each: others, and I/O queues.
    dealt: [Vec<u64>; 2],
}

impl Spread {
    pub(super) fn new(reactors: usize, mut numa: Vec<Option<u16>>) -> Spread {
        numa.resize(reactors, None);
        Spread { numa, dealt: [vec![0; reactors], vec![0; reactors]] }
    }

    /// The reactor of the next connection over a card at memory node `numa`.
    pub(super) fn next(&mut self, numa: Option<u16>, is_io: bool) -> usize {
        let dealt = &mut self.dealt[usize::from(is_io)];
        let near = |&reactor: &usize| numa.is_some() && self.numa[reactor] == numa;
        let all = 0..self.numa.len();
        let any_near = all.clone().any(|reactor| near(&reactor));
        let to = all
            .filter(|reactor| !any_near || near(reactor))
            .min_by_key(|&reactor| dealt[reactor])
            .expect("there is a reactor");
        dealt[to] += 1;
        to
    }
}

/// Bytes of the buffers that lie ready for the capsules of a queue: in a slot of the pool for each one's data.
pub(super) fn receive_bytes(wish: &QueueWish) -> usize {
    if wish.queue_id == 0 { 0 } else { usize::from(wish.entries) * IN_CAPSULE_BYTES_RDMA as usize }
}

impl RdmaTransport {
    /// A host wants to connect: some reactor serves it.
    pub(super) fn deal<I: Io>(&mut self, io: &mut I, request: ConnectRequest, out: &mut Vec<TransportEvent>) {
        // What is wrong with it is said by whoever serves it.
        let wish = CmRequest::check(&request.private, IO_QUEUES_MAX, QUEUE_ENTRIES_MAX);
        let to = self.spread.next(request.numa, wish.is_ok_and(|wish| wish.queue_id > 0));
        if to == self.config.reactor {
            self.serve(io, request, out);
        } else {
            out.push(handover(to, request));
        }
    }

    /// Something of another reactor's for this one.
    pub fn on_mail<I: Io>(&mut self, io: &mut I, mail: super::Mail, out: &mut Vec<TransportEvent>) {
        match mail {
            super::Mail::Serve(request) => self.serve(io, *request, out),
        }
    }

    fn serve<I: Io>(&mut self, io: &mut I, request: ConnectRequest, out: &mut Vec<TransportEvent>) {
        let peer = request.peer;
        // Devices may have come between two looks.
        self.find_devices();
        match self.admit(io, &request) {
            Ok((connection, spec)) => self.accept(io, request, *connection, spec, out),
            Err(status) => {
                tracing::warn!(%peer, %status, "an RDMA connection is refused");
                if status != CmStatus::NoResources {
                    self.stats.terminated += 1;
                }
                if let Some(verbs) = &mut self.verbs {
                    verbs.reject(request, CmReject::new(status).as_bytes());
                }
            }
        }
    }

    /// Checks what the host says, and that there is room.
    fn admit<I: Io>(&self, io: &mut I, request: &ConnectRequest) -> Result<(Box<Connection>, QueueSpec), CmStatus> {
        let wish = CmRequest::check(&request.private, IO_QUEUES_MAX, QUEUE_ENTRIES_MAX)?;
        if request.peer_reads_in == 0 {
            // Whatever it writes we would have to read.
            return Err(CmStatus::InvalidReadsTaken);
        }
        let full = self.draining || self.connections.len() >= self.config.connections_max;
        let room = io.buffers().bytes() / RECEIVE_SHARE;
        if full || self.receive_bytes + receive_bytes(&wish) > room {
            return Err(CmStatus::NoResources);
        }
        let devices = self.verbs.as_ref().map_or(Vec::new(), |verbs| verbs.devices());
        let device = devices.into_iter().find(|device| device.id == request.device).ok_or(CmStatus::NoResources)?;
        let spec = spec(&wish, request, &device).ok_or(CmStatus::InvalidHostSends)?;
        let number = self.last_number + 1;
        let ends = (request.local, request.peer);
        let connection = Connection::new((self.connections.vacant_key(), number), ends, wish, spec.sends, io);
        connection.map(|connection| (Box::new(connection), spec)).ok_or(CmStatus::NoResources)
    }

    fn accept<I: Io>(
        &mut self,
        io: &mut I,
        request: ConnectRequest,
        mut connection: Connection,
        spec: QueueSpec,
        out: &mut Vec<TransportEvent>,
    ) {
        let peer = request.peer;
        let answer = CmAccept::new(spec.receives as u16);
        let verbs = self.verbs.as_mut().expect("requests are of its making");
        let qp = match verbs.accept(request, &spec, answer.as_bytes()) {
            Ok(qp) => qp,
            Err(error) => {
                tracing::warn!(%peer, %error, "an RDMA connection cannot be served");
                return;
            }
        };
        connection.begin(qp);
        self.stats.accepted += 1;
        self.last_number += 1;
        self.receive_bytes += connection.receive_bytes();
        let index = self.connections.insert(connection);
        self.by_qp.insert(qp, index);
        self.with(io, out, index, |connection, cx| connection.post_receives(cx));
    }
}

/// The queue pair for a host's wish; `None` if the device has none of that size.
fn spec(wish: &QueueWish, request: &ConnectRequest, device: &Device) -> Option<QueueSpec> {
    let entries = u32::from(wish.entries);
    let sends = (entries * SENDS_PER_ENTRY).min(device.queue_entries_max);
    let fits = entries <= device.queue_entries_max && sends >= SENDS_MIN;
    let reads_out = READS_OUT_MAX.min(request.peer_reads_in).min(device.reads_out_max);
    // Hosts have nothing to read here.
    (fits && reads_out > 0).then_some(QueueSpec { receives: entries, sends, reads_out, reads_in: 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_go_in_turn_to_the_reactors_near_the_card() {
        let mut spread = Spread::new(4, vec![Some(0), Some(1), Some(0), Some(1)]);
        let dealt: Vec<_> = (0..6).map(|_| spread.next(Some(1), true)).collect();
        assert_eq!(dealt, [1, 3, 1, 3, 1, 3]);
    }

    #[test]
    fn hosts_with_one_io_queue_each_do_not_meet_on_one_reactor() {
        let mut spread = Spread::new(2, Vec::new());
        let dealt: Vec<_> = (0..4).map(|_| (spread.next(None, false), spread.next(None, true)).1).collect();
        assert_eq!(dealt, [0, 1, 0, 1]);
    }

    #[test]
    fn where_no_reactor_is_near_or_nothing_is_known_all_of_them_serve() {
        let mut spread = Spread::new(3, vec![Some(0), None]);
        let dealt: Vec<_> = [None, Some(7), None].into_iter().map(|numa| spread.next(numa, true)).collect();
        assert_eq!(dealt, [0, 1, 2]);
        assert_eq!(spread.next(Some(0), true), 0, "the only one that is near");
        assert_eq!([spread.next(None, true), spread.next(None, true)], [1, 2], "those who serve fewer are next");
    }
}
