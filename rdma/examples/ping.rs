//! Two reactors' worth of verbs against each other over a real device: `ping ADDRESS [ROUNDS]`, where the address is the device's.
//!
//! A host lends memory and sends a message about it; the target reads it, writes it back changed, and answers. Then what must be
//! refused is tried. Everything has a deadline; whatever goes wrong ends the program with status 1. It prints what it counted.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant as Clock};

use ringway_rdma::rdma::Rdma;
use ringway_rdma::verbs::{Event, QpId, QueueSpec, Remote, Verbs, Work, WorkError};
use ringway_reactor::buf::{Buf, BufPool, BufPoolConfig};
use ringway_reactor::event::EventFd;
use ringway_reactor::io::Instant;

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Outcome<T> = Result<T, Failure>;

const SPEC: QueueSpec = QueueSpec { receives: 16, sends: 32, reads_out: 4, reads_in: 4 };
const BYTES: usize = 64 << 10;
/// Nothing takes this long, even under emulation.
const LIMIT: Duration = Duration::from_secs(60);

/// One side.
struct Side {
    verbs: Box<dyn Verbs>,
    bell: Arc<EventFd>,
    events: Vec<Event>,
    pool: &'static BufPool,
    start: Clock,
    /// Works posted and not come back.
    out: usize,
    sleeps: u64,
}

impl Side {
    fn new(rdma: &Rdma, pool: &'static BufPool) -> Outcome<Side> {
        let verbs = rdma.endpoint()?;
        let bell = verbs.bell().ok_or("a real device has a bell")?;
        Ok(Side { verbs, bell, events: Vec::new(), pool, start: Clock::now(), out: 0, sleeps: 0 })
    }

    fn post(&mut self, qp: QpId, token: u64, work: Work) {
        self.out += 1;
        self.verbs.post(qp, token, work);
    }

    fn receive(&mut self, qp: QpId) -> Outcome<()> {
        let mut head = self.buf(4096)?;
        head.truncate(64);
        let data = Some(self.buf(4096)?);
        self.post(qp, 0, Work::Receive { head, data });
        Ok(())
    }

    fn buf(&self, len: usize) -> Outcome<Buf> {
        self.pool.get(len).ok_or_else(|| "the pool is empty: something leaks".into())
    }

    /// Waits for an event, asleep on the bell while there is none.
    fn wait(&mut self, what: &str, wanted: impl Fn(&Event) -> bool) -> Outcome<Event> {
        let until = Clock::now() + LIMIT;
        loop {
            if let Some(place) = self.events.iter().position(&wanted) {
                return Ok(self.events.remove(place));
            }
            if Clock::now() > until {
                return Err(format!("{what}: not within {LIMIT:?}; there is {:?}", self.events).into());
            }
            let before = self.events.len();
            let now = Instant(self.start.elapsed().as_nanos() as u64);
            self.verbs.poll(now, &mut self.events);
            let done = self.events[before..].iter().filter(|event| matches!(event, Event::Done { .. })).count();
            self.out = self.out.checked_sub(done).ok_or("a work came back twice")?;
            if self.events.len() == before && self.verbs.arm() {
                self.sleeps += 1;
                if self.bell.wait(50_000_000)? {
                    self.verbs.rang();
                }
            }
        }
    }

    fn done(&mut self, what: &str, qp: QpId, token: u64) -> Outcome<(Work, Result<u32, WorkError>)> {
        let of = |event: &Event| matches!(event, Event::Done { qp: q, token: t, .. } if *q == qp && *t == token);
        match self.wait(what, of)? {
            Event::Done { work, result, .. } => Ok((work, result)),
            _ => unreachable!("asked for"),
        }
    }

    fn well_done(&mut self, what: &str, qp: QpId, token: u64) -> Outcome<Work> {
        let (work, result) = self.done(what, qp, token)?;
        result.map_err(|error| format!("{what}: {error}"))?;
        Ok(work)
    }

    fn message(&mut self, what: &str, qp: QpId) -> Outcome<Buf> {
        match self.well_done(what, qp, 0)? {
            Work::Receive { head, .. } => Ok(head),
            work => Err(format!("{what}: {work:?}").into()),
        }
    }

    fn established(&mut self, qp: QpId) -> Outcome<()> {
        let about = |event: &Event| matches!(event, Event::Established { qp: q, .. } | Event::Refused { qp: q, .. } if *q == qp);
        match self.wait("a connection", about)? {
            Event::Established { .. } => Ok(()),
            event => Err(format!("{event:?}").into()),
        }
    }

    /// Ends a queue pair: everything comes back.
    fn end(&mut self, qp: QpId) -> Outcome<()> {
        self.verbs.disconnect(qp);
        self.wait("a queue pair gone", |event| matches!(event, Event::Gone { qp: q } if *q == qp))?;
        self.events.retain(|event| match event {
            Event::Done { qp: q, .. } | Event::Disconnected { qp: q, .. } => *q != qp,
            _ => true,
        });
        Ok(())
    }

    /// What has to hold when everything is over.
    fn finish(mut self, name: &str) -> Outcome<()> {
        self.events.clear();
        println!("{name}: {} sleeps, {:?}", self.sleeps, self.verbs.total());
        if self.out != 0 {
            return Err(format!("{name}: {} works did not come back", self.out).into());
        }
        drop(self.verbs);
        match self.pool.in_use() {
            0 => Ok(()),
            leaked => Err(format!("{name}: {leaked} buffers leak").into()),
        }
    }
}

/// What a message of this program says: where to read, and where to write.
fn write_message(head: &mut [u8], from: Remote, to: Remote) {
    for (at, remote) in [(0, from), (16, to)] {
        head[at..at + 8].copy_from_slice(&remote.address.to_le_bytes());
        head[at + 8..at + 12].copy_from_slice(&remote.key.to_le_bytes());
    }
}

fn read_message(head: &[u8], at: usize) -> Outcome<Remote> {
    let address = u64::from_le_bytes(head[at..at + 8].try_into()?);
    let key = u32::from_le_bytes(head[at + 8..at + 12].try_into()?);
    Ok(Remote { address, key })
}

fn target(mut side: Side, at: SocketAddr, rounds: usize, ready: &mpsc::Sender<SocketAddr>) -> Outcome<()> {
    let (listener, at) = side.verbs.listen(at)?;
    ready.send(at)?;
    // A good connection, and one on which the host does what it may not.
    for good in [true, false] {
        let Event::Request(request) = side.wait("a request", |event| matches!(event, Event::Request(_)))? else {
            unreachable!("asked for");
        };
        if !request.private.starts_with(b"ping") {
            return Err(format!("private data {:?}", request.private).into());
        }
        println!("target: {request:?}, takes {} reads", request.peer_reads_in);
        let qp = side.verbs.accept(request, &SPEC, b"pong")?;
        for _ in 0..SPEC.receives {
            side.receive(qp)?;
        }
        if !good {
            side.established(qp)?;
            side.wait("the host's connection gone", |event| matches!(event, Event::Gone { qp: q } if *q == qp))?;
            side.events.clear();
            continue;
        }
        for round in 0..rounds {
            let head = side.message("a message", qp)?;
            side.receive(qp)?;
            let (from, to) = (read_message(&head, 0)?, read_message(&head, 16)?);
            side.post(qp, 1, Work::Read { buf: side.pool.get(BYTES).ok_or("the pool is empty")?, from });
            let Work::Read { mut buf, .. } = side.well_done("a read", qp, 1)? else { return Err("no read".into()) };
            if buf.iter().any(|&byte| byte != round as u8) {
                return Err(format!("round {round}: what was read is not what was lent").into());
            }
            buf.iter_mut().for_each(|byte| *byte ^= 0xff);
            side.post(qp, 2, Work::Write { data: buf.into(), to });
            let mut answer = side.buf(64)?;
            answer.truncate(16);
            side.post(qp, 3, Work::Send { buf: answer, invalidate: None });
            side.well_done("a write", qp, 2)?;
            side.well_done("an answer", qp, 3)?;
        }
        side.wait("the host's leaving", |event| matches!(event, Event::Gone { qp: q } if *q == qp))?;
        side.events.clear();
    }
    side.verbs.close_listener(listener);
    side.finish("target")
}

fn connect(side: &mut Side, at: SocketAddr) -> Outcome<QpId> {
    let qp = side.verbs.connect(at, &SPEC, b"ping")?;
    for _ in 0..SPEC.receives {
        side.receive(qp)?;
    }
    side.established(qp)?;
    Ok(qp)
}

fn host(mut side: Side, at: SocketAddr, rounds: usize) -> Outcome<()> {
    let nobody = SocketAddr::new(at.ip(), at.port() + 1);
    let qp = side.verbs.connect(nobody, &SPEC, b"ping")?;
    let Event::Refused { why, .. } = side.wait("a refusal", |event| matches!(event, Event::Refused { .. }))? else {
        unreachable!("asked for");
    };
    println!("host: nobody at {nobody}: {why}");
    side.wait("its end", |event| matches!(event, Event::Gone { qp: q } if *q == qp))?;

    let qp = connect(&mut side, at)?;
    for round in 0..rounds {
        let mut out = side.buf(BYTES)?;
        out.fill(round as u8);
        let out = side.verbs.lend(qp, out).map_err(|(_, error)| error)?;
        let mut back = side.buf(BYTES)?;
        back.fill(0);
        let back = side.verbs.lend(qp, back).map_err(|(_, error)| error)?;
        let mut head = side.buf(64)?;
        write_message(&mut head, out.remote, back.remote);
        side.post(qp, 1, Work::Send { buf: head, invalidate: None });
        side.well_done("a message", qp, 1)?;
        drop(side.message("an answer", qp)?);
        side.receive(qp)?;
        let (_, back) = (side.verbs.withdraw(out), side.verbs.withdraw(back));
        if back.iter().any(|&byte| byte != round as u8 ^ 0xff) {
            return Err(format!("round {round}: what was written is not what was sent").into());
        }
    }
    side.end(qp)?;

    let qp = connect(&mut side, at)?;
    let wrong = Remote { address: 4096, key: 0x1234_5678 };
    side.post(qp, 9, Work::Read { buf: side.pool.get(BYTES).ok_or("the pool is empty")?, from: wrong });
    let (_, result) = side.done("a read of what was not lent", qp, 9)?;
    println!("host: reading what was not lent: {result:?}");
    if result != Err(WorkError::RemoteAccess) {
        return Err(format!("reading what was not lent: {result:?}").into());
    }
    side.wait("its end", |event| matches!(event, Event::Gone { qp: q } if *q == qp))?;
    side.finish("host")
}

fn run(at: SocketAddr, rounds: usize) -> Outcome<()> {
    let config = BufPoolConfig { classes: vec![(4096, 128), (BYTES, 8)] };
    let pools = [BufPool::leak(&config, 0), BufPool::leak(&config, 1)];
    let rdma = Rdma::open(&pools)?;
    rdma.found().iter().for_each(|line| println!("{line}"));
    let (ready, started) = mpsc::channel();
    let (of_target, of_host) = (Side::new(&rdma, pools[0])?, Side::new(&rdma, pools[1])?);
    let serving = std::thread::spawn(move || target(of_target, at, rounds, &ready));
    let begun = match started.recv_timeout(LIMIT) {
        Ok(at) => host(of_host, at, rounds),
        Err(_) => Err("the target does not listen".into()),
    };
    // Both are told where both failed: the one is often the other's cause.
    let served = serving.join().map_err(|_| "the target panicked")?;
    match (begun, served) {
        (Ok(()), served) => served,
        (Err(host), Ok(())) => Err(format!("host: {host}").into()),
        (Err(host), Err(target)) => Err(format!("host: {host}\ntarget: {target}").into()),
    }
}

fn main() -> std::process::ExitCode {
    let mut arguments = std::env::args().skip(1);
    let at = arguments.next().and_then(|text| text.parse().ok());
    let rounds = arguments.next().map_or(Some(100), |text| text.parse().ok());
    let (Some(at), Some(rounds)) = (at, rounds) else {
        eprintln!("ping ADDRESS:PORT [ROUNDS]");
        return 2.into();
    };
    match run(at, rounds) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("ping: {why}");
            std::process::ExitCode::FAILURE
        }
    }
}
