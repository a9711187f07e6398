//! Reading what a target's discovery service lists.
//!
//! The header first, then the records in parts, then the header again: if the log's generation changed meanwhile, the parts
//! may be of two logs and are read anew (base 5.16.1.23).

use ringway_rdma::verbs::Verbs;
use ringway_reactor::buf::Buf;
use ringway_reactor::io::{Completion, Instant, Io, Token};
use zerocopy::FromBytes;

use super::api::{AdminRequest, Completed, ControllerKind, Event, HostConfig, Outcome};
use super::association::Host;
use super::error::{HostError, HostErrorKind};
use crate::wire::DISCOVERY_NQN;
use crate::wire::command::Sqe;
use crate::wire::log_page::{DiscoveryEntry, DiscoveryHeader, SUBTYPE_NVM, TransportType, page};

/// Bytes of one read: a page of four records.
const PART_BYTES: usize = 4096;
const HEADER_BYTES: usize = size_of::<DiscoveryHeader>();
const ENTRY_BYTES: usize = size_of::<DiscoveryEntry>();
/// Records of the longest log that is read: a target that says more is not believed.
const RECORDS_MAX: u64 = 1 << 16;
/// So often the log may change while it is read.
const RESTARTS_MAX: u32 = 8;

/// One subsystem, and where it is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovered {
    /// The subsystem's name.
    pub subsystem_nqn: String,
    /// The address to connect to.
    pub address: String,
    /// The port, as the target writes it.
    pub port: String,
    /// Over what; `None` for what this program does not know.
    pub transport: Option<TransportType>,
    /// A subsystem with volumes; otherwise another discovery service.
    pub has_volumes: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Connecting,
    Header,
    Records { generation: u64, total: u64 },
    HeaderAgain { generation: u64 },
    Closing,
}

/// Reads a discovery log. Driven like a [`Host`]: completions in, a turn a tick, the result out once.
#[derive(Debug)]
pub struct DiscoveryReader {
    host: Host,
    step: Step,
    found: Vec<Discovered>,
    read: u64,
    restarts: u32,
    result: Option<Result<Vec<Discovered>, HostError>>,
}

/// The configuration for a discovery service at the same address.
fn discovery(config: HostConfig) -> HostConfig {
    HostConfig { subsystem_nqn: DISCOVERY_NQN.to_owned(), controller: ControllerKind::Discovery, ..config }
}

impl DiscoveryReader {
    /// A reader of the discovery service at the address in `config`, whose subsystem and controller are set here.
    #[must_use]
    pub fn new(config: HostConfig) -> Self {
        Self::with(Host::new(discovery(config)))
    }

    /// Likewise, over RDMA.
    #[must_use]
    pub fn over_rdma(config: HostConfig, verbs: Box<dyn Verbs>) -> Self {
        Self::with(Host::over_rdma(discovery(config), verbs))
    }

    fn with(host: Host) -> Self {
        Self { host, step: Step::Connecting, found: Vec::new(), read: 0, restarts: 0, result: None }
    }

    /// Begins.
    pub fn start<I: Io>(&mut self, io: &mut I) {
        self.host.start(io);
    }

    /// Whether an operation's completion is this reader's.
    #[must_use]
    pub fn owns(&self, token: Token) -> bool {
        self.host.owns(token)
    }

    /// Takes an operation's completion.
    pub fn on_completion<I: Io>(&mut self, io: &mut I, completion: Completion) {
        self.host.on_completion(io, completion);
    }

    /// When [`DiscoveryReader::turn`] has to run although nothing arrives.
    #[must_use]
    pub fn next_deadline(&self) -> Instant {
        self.host.next_deadline()
    }

    /// Goes on. The result comes once, when nothing of the reader is left in the ring.
    pub fn turn<I: Io>(&mut self, io: &mut I) -> Option<Result<Vec<Discovered>, HostError>> {
        self.host.turn(io);
        while let Some(event) = self.host.next_event() {
            match event {
                Event::Ready(_) => self.read_header(io, Step::Header),
                Event::Completed(completed) => self.on_completed(io, completed),
                Event::Lost(error) | Event::Failed(error) => self.end(io, Err(error)),
                Event::Reconnected { .. } | Event::Resized(_) | Event::Closed => {}
            }
        }
        self.host.flush(io);
        if self.host.is_over() { self.result.take() } else { None }
    }

    fn end<I: Io>(&mut self, io: &mut I, result: Result<Vec<Discovered>, HostError>) {
        if self.step != Step::Closing {
            self.step = Step::Closing;
            self.result = Some(result);
            if !self.host.is_over() {
                self.host.close(io);
            }
        }
    }

    fn read_header<I: Io>(&mut self, io: &mut I, step: Step) {
        self.step = step;
        self.request(io, 0, HEADER_BYTES);
    }

    fn request<I: Io>(&mut self, io: &mut I, offset: u64, len: usize) {
        let Some(buf) = io.buffers().get(len) else {
            let error = HostError::new(HostErrorKind::Local, "no buffer is free for the discovery log");
            return self.end(io, Err(error));
        };
        let sqe = Sqe::get_log_page(page::DISCOVERY, 0, offset, len as u32, false);
        if self.host.submit_admin(io, AdminRequest { user: 0, sqe, buf: Some(buf) }).is_err() {
            self.end(
                io,
                Err(HostError::new(HostErrorKind::Disconnected, "the connection ended while the log was read")),
            );
        }
    }

    fn on_completed<I: Io>(&mut self, io: &mut I, completed: Completed) {
        let buf = match (completed.outcome, completed.buf) {
            (Outcome::Success, Some(buf)) => buf,
            (outcome, _) => {
                let context = format!("{}: reading the discovery log: {outcome:?}", self.host.config().name);
                return self.end(io, Err(HostError::new(HostErrorKind::Controller, context)));
            }
        };
        match self.step {
            Step::Header => self.on_header(io, &buf),
            Step::Records { generation, total } => self.on_records(io, generation, total, &buf),
            Step::HeaderAgain { generation } => {
                let (header, _) = DiscoveryHeader::ref_from_prefix(&buf).expect("a header was asked for");
                if header.generation.get() == generation {
                    let found = std::mem::take(&mut self.found);
                    return self.end(io, Ok(found));
                }
                self.restarts += 1;
                if self.restarts > RESTARTS_MAX {
                    let context = "the discovery log changes faster than it can be read";
                    return self.end(io, Err(HostError::new(HostErrorKind::Controller, context)));
                }
                self.read_header(io, Step::Header);
            }
            Step::Connecting | Step::Closing => {}
        }
    }

    fn on_header<I: Io>(&mut self, io: &mut I, buf: &Buf) {
        let (header, _) = DiscoveryHeader::ref_from_prefix(buf).expect("a header was asked for");
        let (generation, total) = (header.generation.get(), header.records.get());
        if total > RECORDS_MAX {
            let error = HostError::protocol(format!("a discovery log of {total} records is not believed"));
            return self.end(io, Err(error));
        }
        self.found.clear();
        self.read = 0;
        self.step = Step::Records { generation, total };
        self.read_on(io, generation, total);
    }

    fn read_on<I: Io>(&mut self, io: &mut I, generation: u64, total: u64) {
        if self.read == total {
            return self.read_header(io, Step::HeaderAgain { generation });
        }
        let bytes = ((total - self.read) as usize * ENTRY_BYTES).min(PART_BYTES);
        self.request(io, HEADER_BYTES as u64 + self.read * ENTRY_BYTES as u64, bytes);
    }

    fn on_records<I: Io>(&mut self, io: &mut I, generation: u64, total: u64, buf: &Buf) {
        for entry in DiscoveryEntry::read(buf) {
            self.read += 1;
            // What is not text cannot be connected to.
            if let Some((address, port, subsystem_nqn)) = entry.target() {
                self.found.push(Discovered {
                    subsystem_nqn: subsystem_nqn.to_owned(),
                    address: address.to_owned(),
                    port: port.to_owned(),
                    transport: TransportType::of(entry.trtype),
                    has_volumes: entry.subtype == SUBTYPE_NVM,
                });
            }
        }
        self.read_on(io, generation, total);
    }
}
