//! The transport on the simulated fabric, before a volume that is a vector of bytes.

mod hostile;
mod served;

use std::sync::atomic::{AtomicBool, Ordering};

use ringway_rdma::sim::{EndpointId, Fabric, SimConfig};
use ringway_reactor::io::Wait;
use ringway_reactor::sim::{SimIo, World, WorldConfig};

use super::*;
use crate::host::{ControllerKind, Event as HostEvent, Host, HostConfig, HostRequest, Outcome};
use crate::ids::{RequestId, VolumeId};
use crate::request::{Command, Request};
use crate::transport::testing::{VOLUME_BYTES, directory, execute, record};

/// Whether the devices of [`Target::without_devices`] have come.
type Coming = Arc<AtomicBool>;

/// Time that passes in a turn in which nothing is due.
const STEP_NS: u64 = 20_000;

/// A target whose volume is memory: requests end in the order in which they came.
struct Target {
    io: SimIo,
    transport: RdmaTransport,
    endpoint: EndpointId,
    events: Vec<TransportEvent>,
    store: Vec<u8>,
    registry: Arc<Registry>,
    addr: SocketAddr,
    /// Requests that are held back until told otherwise.
    held: Vec<(RequestId, Request)>,
    hold: bool,
    fences: Vec<AssociationId>,
    attaching: Vec<VolumeId>,
    /// Where it has said that it listens, for discovery.
    ports: Vec<Vec<SocketAddr>>,
}

impl Target {
    fn new(world: &World, fabric: &Fabric) -> Target {
        let io = world.outside();
        let registry = Arc::new(Registry::default());
        let config = TransportConfig::new(0, 1, io.buffers().bytes());
        let (verbs, endpoint) = fabric.endpoint(io.buffers(), None, None);
        let volumes = directory(1, record());
        let mut transport = RdmaTransport::new(config, Arc::clone(&registry), volumes, Some(verbs), Vec::new());
        let addr = transport.listen("10.0.0.1:4420".parse().unwrap()).unwrap();
        Self::of(io, transport, endpoint, registry, addr)
    }

    /// One that was started on a machine without devices, which come when `coming` is filled.
    fn without_devices(world: &World, fabric: &Fabric, coming: &Coming) -> Target {
        let io = world.outside();
        let registry = Arc::new(Registry::default());
        let config = TransportConfig::new(0, 1, io.buffers().bytes());
        let (verbs, endpoint) = fabric.endpoint(io.buffers(), None, None);
        let volumes = directory(1, record());
        let mut transport = RdmaTransport::new(config, Arc::clone(&registry), volumes, None, Vec::new());
        let (mut verbs, coming) = (Some(verbs), Arc::clone(coming));
        transport.expect_devices(Box::new(move || coming.load(Ordering::Relaxed).then(|| verbs.take()).flatten()));
        let addr: SocketAddr = "10.0.0.1:4420".parse().unwrap();
        transport.listen(addr).unwrap_err();
        Self::of(io, transport, endpoint, registry, addr)
    }

    fn of(
        io: SimIo,
        transport: RdmaTransport,
        endpoint: EndpointId,
        registry: Arc<Registry>,
        addr: SocketAddr,
    ) -> Target {
        Target {
            io,
            transport,
            endpoint,
            events: Vec::new(),
            store: vec![0; VOLUME_BYTES],
            registry,
            addr,
            held: Vec::new(),
            hold: false,
            fences: Vec::new(),
            attaching: Vec::new(),
            ports: Vec::new(),
        }
    }

    /// One turn of the reactor that this stands for.
    fn turn(&mut self) {
        let until = self.transport.next_deadline().min(self.io.now().plus_ns(STEP_NS));
        self.io.poll(Wait::Until(until), &mut Vec::new());
        self.transport.tick(&mut self.io, &mut self.events);
        self.transport.pull(&mut self.io, &mut self.events);
        let mut events = std::mem::take(&mut self.events);
        for event in events.drain(..) {
            match event {
                TransportEvent::Request { id, request } => self.held.push((id, request)),
                TransportEvent::AssociationDead(association) => self.fences.push(association),
                TransportEvent::Attached { volume } => self.attaching.push(volume),
                TransportEvent::Mail { message: Message::RdmaPorts(ports), .. } => self.ports.push(ports),
                TransportEvent::Handover { .. } | TransportEvent::Mail { .. } => panic!("there is one reactor"),
            }
        }
        self.events = events;
        for volume in std::mem::take(&mut self.attaching) {
            let hosts = self.registry.attached_hosts(volume).into_iter().collect();
            let writer = self.registry.writer(volume);
            self.registry.set_on_record(volume, &hosts, writer.as_ref(), true);
        }
        if !self.hold {
            for (id, request) in std::mem::take(&mut self.held) {
                let done = execute(&mut self.store, id, request);
                self.transport.on_done(&mut self.io, done, &mut self.events);
            }
            for association in std::mem::take(&mut self.fences) {
                self.transport.kill_association(&mut self.io, association, &mut self.events);
                self.registry.fenced(association);
            }
        }
        self.transport.flush();
    }
}

/// A target, and our own host.
struct Pair {
    world: World,
    fabric: Fabric,
    target: Target,
    io: SimIo,
    host: Host,
    host_endpoint: EndpointId,
    events: Vec<HostEvent>,
}

impl Pair {
    fn connect(seed: u64) -> Pair {
        Self::connect_with(seed, SimConfig::default(), |_| {})
    }

    fn connect_with(seed: u64, sim: SimConfig, change: impl FnOnce(&mut HostConfig)) -> Pair {
        let mut pair = Self::new(seed, sim, change);
        pair.until("the connection", |event| matches!(event, HostEvent::Ready(_)));
        pair
    }

    fn new(seed: u64, sim: SimConfig, change: impl FnOnce(&mut HostConfig)) -> Pair {
        let world = World::new(seed, WorldConfig::default());
        let fabric = Fabric::with_config(seed, sim);
        let target = Target::new(&world, &fabric);
        Self::with(target, world, fabric, change)
    }

    fn with(target: Target, world: World, fabric: Fabric, change: impl FnOnce(&mut HostConfig)) -> Pair {
        let mut io = world.outside();
        let (verbs, host_endpoint) = fabric.endpoint(io.buffers(), None, None);
        let mut config = HostConfig {
            controller: ControllerKind::Io { queues: 2, depth: 16 },
            ..HostConfig::new(target.addr, "nqn.2026-11.io.ringway:vm1").rdma()
        };
        change(&mut config);
        let mut host = Host::over_rdma(config, verbs);
        host.start(&mut io);
        Pair { world, fabric, target, io, host, host_endpoint, events: Vec::new() }
    }

    fn turn(&mut self) {
        self.target.turn();
        let until = self.host.next_deadline().min(self.io.now().plus_ns(STEP_NS));
        self.io.poll(Wait::Until(until), &mut Vec::new());
        self.host.turn(&mut self.io);
        self.events.extend(self.host.events());
    }

    fn turns(&mut self, count: usize) {
        (0..count).for_each(|_| self.turn());
    }

    fn until(&mut self, what: &str, mut wanted: impl FnMut(&HostEvent) -> bool) -> HostEvent {
        for _ in 0..200_000 {
            if let Some(at) = self.events.iter().position(&mut wanted) {
                return self.events.remove(at);
            }
            self.turn();
        }
        panic!("{what} did not come; events: {:?}", self.events);
    }

    fn submit(&mut self, user: u64, command: Command, offset: u64, len: u32, data: Option<&[u8]>) {
        let bytes = if command == Command::Read { len as usize } else { data.map_or(0, <[u8]>::len) };
        let mut buf = (bytes > 0).then(|| self.io.buffers().get(bytes).expect("the test holds few buffers"));
        if let (Some(buf), Some(data)) = (&mut buf, data) {
            buf.copy_from_slice(data);
        }
        let request = HostRequest { user, command, offset, len, buf };
        self.host.submit(&mut self.io, request).map_err(|(_, error)| error).expect("the host takes it");
    }

    fn end_of(&mut self, user: u64) -> (Outcome, Vec<u8>) {
        let of = |event: &HostEvent| matches!(event, HostEvent::Completed(completed) if completed.user == user);
        let HostEvent::Completed(completed) = self.until("the end of a command", of) else { unreachable!() };
        (completed.outcome, completed.buf.map_or_else(Vec::new, |buf| buf.to_vec()))
    }

    fn done(&mut self, command: Command, offset: u64, len: u32, data: Option<&[u8]>) -> (Outcome, Vec<u8>) {
        self.submit(1, command, offset, len, data);
        self.end_of(1)
    }

    /// The host still does what a host does.
    fn still_serves(&mut self, seed: usize) {
        let data = pattern(seed, 8192);
        assert!(self.done(Command::Write { fua: false }, 1 << 20, 8192, Some(&data)).0.is_success());
        assert_eq!(self.done(Command::Read, 1 << 20, 8192, None), (Outcome::Success, data));
    }

    /// The host leaves: nothing of anybody is left at the target.
    fn leaves_nothing(mut self) {
        self.host.close(&mut self.io);
        self.until_connections(0);
        self.turns(100);
        assert_eq!(self.fabric.lent(), 0);
        let Pair { target, host, events, .. } = self;
        drop((host, events));
        // All simulated machines of a thread have one pool.
        assert_eq!(target.io.buffers().in_use(), 0);
    }

    /// Turns until so many of the target's connections are left.
    fn until_connections(&mut self, count: usize) {
        for _ in 0..200_000 {
            if self.target.transport.connections() == count {
                return;
            }
            self.turn();
        }
        panic!("{} connections are left, not {count}", self.target.transport.connections());
    }
}

fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|i| ((i * 31 + seed * 7919) >> 3) as u8).collect()
}
