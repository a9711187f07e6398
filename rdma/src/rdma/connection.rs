//! Connections by librdmacm: a channel of events for each reactor, and the identifiers of listeners and connections.
//!
//! Who keeps what: an identifier belongs to its [`Id`] from when librdmacm reports or makes it until that is dropped, which destroys
//! its queue pair at once; the identifier itself ends on a thread for that ([`Last`]), since the kernel may have it wait for messages on
//! their way to a peer, on a broken device for ever. Events are copied and acknowledged before anything is done about them. An
//! identifier's `context` is the number that its owner knows it by; 0 is nobody yet.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4, SocketAddrV6};
use std::os::fd::BorrowedFd;
use std::ptr::{self, NonNull};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, OnceLock};
use std::thread;

use rdma_mummy_sys as sys;
use sys::rdma_cm_event_type as kind;

use super::Unavailable;
use super::device::Opened;
use crate::verbs::QueueSpec;

/// How long looking up an address or a route may take, milliseconds.
const RESOLVE_MS: i32 = 3_000;
/// Connections that wait to be looked at, for each listener.
const BACKLOG: i32 = 1024;
/// How often a message is sent again to a peer that does not answer: the most that can be said.
const RETRIES: u8 = 7;
/// How often the peer is to send again what finds no receive: for ever, which it decides itself.
const NOT_READY_RETRIES: u8 = 7;

/// Why a connection was refused, as the protocol counts reasons: the private data say more.
const REASON_CONSUMER: i32 = 28;
/// Nobody listens.
const REASON_SERVICE: i32 = 8;

/// A queue of events of one reactor.
pub(super) struct Channel(Arc<OpenChannel>);

/// It stays open while there are identifiers whose events go there.
#[derive(Debug)]
struct OpenChannel(NonNull<sys::rdma_event_channel>);

// SAFETY: a channel is a descriptor in a structure that nobody changes; what is done with it are calls of the kernel.
unsafe impl Send for OpenChannel {}
// SAFETY: as above.
unsafe impl Sync for OpenChannel {}

/// What an event says, without what belongs to librdmacm.
#[derive(Debug)]
pub(super) struct CmEvent {
    /// Whom it concerns, as [`Id::set_owner`] has set it; the listener, for a request.
    pub(super) owner: u64,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    AddressResolved,
    RouteResolved,
    NotResolved(io::Error),
    Request { id: Id, private: Vec<u8>, peer_reads_in: u8, peer_reads_out: u8 },
    Unreachable(io::Error),
    Rejected { reason: i32, private: Vec<u8> },
    Established { private: Vec<u8>, reads_out: u8 },
    Disconnected,
    DeviceGone,
    AddressChanged,
}

impl What {
    /// Whether a refusal carries the peer's own words.
    pub(super) fn is_consumer(reason: i32) -> bool {
        reason == REASON_CONSUMER
    }

    pub(super) fn is_nobody(reason: i32) -> bool {
        reason == REASON_SERVICE
    }
}

impl Channel {
    pub(super) fn open() -> Result<Channel, Unavailable> {
        // SAFETY: makes a channel or returns null.
        let channel = unsafe { sys::rdma_create_event_channel() };
        let Some(channel) = NonNull::new(channel) else {
            let why = io::Error::last_os_error();
            return Err(match why.raw_os_error() {
                Some(libc::EOPNOTSUPP) => Unavailable::NotInstalled,
                Some(libc::ENODEV) => Unavailable::NoDevice,
                Some(libc::ENOENT) => Unavailable::NoConnectionModule,
                Some(libc::EACCES | libc::EPERM) => Unavailable::NoPermission(why),
                _ => Unavailable::System { what: "rdma_create_event_channel", why },
            });
        };
        let channel = Channel(Arc::new(OpenChannel(channel)));
        set_non_blocking(channel.fd()).map_err(|why| Unavailable::System { what: "an event channel", why })?;
        Ok(channel)
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel, and its descriptor, are there until this is dropped, which is borrowed.
        unsafe { BorrowedFd::borrow_raw(self.0.0.as_ref().fd) }
    }

    fn as_ptr(&self) -> *mut sys::rdma_event_channel {
        self.0.0.as_ptr()
    }

    /// The next event, if there is one.
    pub(super) fn next(&mut self) -> Option<CmEvent> {
        loop {
            let mut event = ptr::null_mut();
            // SAFETY: the channel is alive; `event` is filled with one that is ours until it is acknowledged.
            if unsafe { sys::rdma_get_cm_event(self.as_ptr(), &raw mut event) } != 0 {
                return None;
            }
            // SAFETY: just given, and not yet acknowledged; the identifiers in it are alive: to destroy one waits until its events are
            // acknowledged, and that of a request is new.
            let copied = unsafe { copy(&*event, &self.0) };
            // SAFETY: acknowledged once; nothing of it is used any more.
            unsafe { sys::rdma_ack_cm_event(event) };
            if let Some(copied) = copied {
                return Some(copied);
            }
        }
    }
}

impl Drop for OpenChannel {
    fn drop(&mut self) {
        // SAFETY: its identifiers were destroyed before: each holds it.
        unsafe { sys::rdma_destroy_event_channel(self.0.as_ptr()) };
    }
}

/// Copies an event. `None` for what nobody has to do anything about.
///
/// # Safety
/// The event is not acknowledged, and its identifiers are alive.
unsafe fn copy(event: &sys::rdma_cm_event, channel: &Arc<OpenChannel>) -> Option<CmEvent> {
    let failure = || io::Error::from_raw_os_error(event.status.saturating_abs());
    // SAFETY: connections of stream type use this part of the union in every event.
    let parameters = unsafe { &event.param.conn };
    let private = || match parameters.private_data.is_null() {
        true => Vec::new(),
        // SAFETY: so many bytes, until the event is acknowledged.
        false => unsafe {
            std::slice::from_raw_parts(parameters.private_data.cast::<u8>(), usize::from(parameters.private_data_len))
        }
        .to_vec(),
    };
    let what = match event.event {
        kind::RDMA_CM_EVENT_ADDR_RESOLVED => What::AddressResolved,
        kind::RDMA_CM_EVENT_ROUTE_RESOLVED => What::RouteResolved,
        kind::RDMA_CM_EVENT_ADDR_ERROR | kind::RDMA_CM_EVENT_ROUTE_ERROR => What::NotResolved(failure()),
        kind::RDMA_CM_EVENT_CONNECT_REQUEST => {
            let id = Id { id: NonNull::new(event.id)?, channel: Arc::clone(channel), listens: false };
            id.set_owner(0);
            let (reads_in, reads_out) = (parameters.initiator_depth, parameters.responder_resources);
            What::Request { id, private: private(), peer_reads_in: reads_in, peer_reads_out: reads_out }
        }
        kind::RDMA_CM_EVENT_CONNECT_ERROR | kind::RDMA_CM_EVENT_UNREACHABLE => What::Unreachable(failure()),
        kind::RDMA_CM_EVENT_REJECTED => What::Rejected { reason: event.status, private: private() },
        kind::RDMA_CM_EVENT_ESTABLISHED => {
            What::Established { private: private(), reads_out: parameters.initiator_depth }
        }
        kind::RDMA_CM_EVENT_DISCONNECTED => What::Disconnected,
        kind::RDMA_CM_EVENT_DEVICE_REMOVAL => What::DeviceGone,
        kind::RDMA_CM_EVENT_ADDR_CHANGE => What::AddressChanged,
        _ => return None,
    };
    let id = if let What::Request { .. } = what { event.listen_id } else { event.id };
    // SAFETY: as the caller says.
    let owner = unsafe { (*id).context } as u64;
    Some(CmEvent { owner, what })
}

/// An identifier of librdmacm: a listener or a connection, with its queue pair if it has one.
#[derive(Debug)]
pub(super) struct Id {
    id: NonNull<sys::rdma_cm_id>,
    channel: Arc<OpenChannel>,
    listens: bool,
}

// SAFETY: an identifier may be used on any thread, by one at a time, as `&mut` sees to. Its channel's thread reads its context alone,
// which is written before anything else can happen to it.
unsafe impl Send for Id {}

impl Id {
    pub(super) fn new(channel: &Channel, owner: u64) -> io::Result<Id> {
        let mut id = ptr::null_mut();
        let space = sys::rdma_port_space::RDMA_PS_TCP;
        // SAFETY: the channel is alive, and its identifiers hold it.
        let failed = unsafe { sys::rdma_create_id(channel.as_ptr(), &raw mut id, owner as *mut _, space) };
        let id = NonNull::new(id).filter(|_| failed == 0).ok_or_else(io::Error::last_os_error)?;
        Ok(Id { id, channel: Arc::clone(&channel.0), listens: false })
    }

    fn get(&self) -> &sys::rdma_cm_id {
        // SAFETY: alive until this is dropped.
        unsafe { self.id.as_ref() }
    }

    pub(super) fn set_owner(&self, owner: u64) {
        // SAFETY: alive, and the field is ours alone to use.
        unsafe { (*self.id.as_ptr()).context = owner as *mut _ };
    }

    /// The device, once it is known.
    pub(super) fn verbs(&self) -> Option<Opened> {
        NonNull::new(self.get().verbs).map(Opened)
    }

    pub(super) fn queue_pair(&self) -> Option<NonNull<sys::ibv_qp>> {
        NonNull::new(self.get().qp)
    }

    /// Our address.
    pub(super) fn local(&self) -> SocketAddr {
        // SAFETY: the union is as large as the largest address, and all of its bytes are initialised.
        address(unsafe { &self.get().route.addr.src_addr_union.src_storage })
    }

    /// The peer's.
    pub(super) fn peer(&self) -> SocketAddr {
        // SAFETY: as above.
        address(unsafe { &self.get().route.addr.dst_addr_union.dst_storage })
    }

    /// Moves its events to another channel.
    pub(super) fn move_to(&mut self, channel: &Channel) -> io::Result<()> {
        if Arc::ptr_eq(&self.channel, &channel.0) {
            return Ok(());
        }
        // SAFETY: both are alive; events that were read from the old channel are acknowledged at once, so that this does not wait.
        result(unsafe { sys::rdma_migrate_id(self.id.as_ptr(), channel.as_ptr()) })?;
        self.channel = Arc::clone(&channel.0);
        Ok(())
    }

    /// Listens; returns the address it got.
    pub(super) fn listen(&mut self, addr: SocketAddr) -> io::Result<SocketAddr> {
        let mut raw = RawAddress::of(addr);
        // SAFETY: the address is valid for the call.
        result(unsafe { sys::rdma_bind_addr(self.id.as_ptr(), raw.as_mut_ptr()) })?;
        // SAFETY: alive.
        result(unsafe { sys::rdma_listen(self.id.as_ptr(), BACKLOG) })?;
        self.listens = true;
        Ok(self.local())
    }

    pub(super) fn resolve_address(&mut self, to: SocketAddr) -> io::Result<()> {
        let mut raw = RawAddress::of(to);
        // SAFETY: the address is valid for the call, and copied by it.
        result(unsafe { sys::rdma_resolve_addr(self.id.as_ptr(), ptr::null_mut(), raw.as_mut_ptr(), RESOLVE_MS) })
    }

    pub(super) fn resolve_route(&mut self) -> io::Result<()> {
        // SAFETY: alive.
        result(unsafe { sys::rdma_resolve_route(self.id.as_ptr(), RESOLVE_MS) })
    }

    /// Makes its queue pair.
    ///
    /// # Safety
    /// The domain and the completion queues that `attributes` names are of the identifier's device and outlive the queue pair.
    pub(super) unsafe fn make_queue_pair(
        &mut self,
        domain: *mut sys::ibv_pd,
        attributes: &mut sys::ibv_qp_init_attr,
    ) -> io::Result<()> {
        // SAFETY: as the caller says.
        result(unsafe { sys::rdma_create_qp(self.id.as_ptr(), domain, attributes) })
    }

    pub(super) fn connect(&mut self, spec: &QueueSpec, private: &[u8]) -> io::Result<()> {
        let mut parameters = parameters(spec, private);
        // SAFETY: the private data outlive the call, which copies them.
        result(unsafe { sys::rdma_connect(self.id.as_ptr(), &raw mut parameters) })
    }

    pub(super) fn accept(&mut self, spec: &QueueSpec, private: &[u8]) -> io::Result<()> {
        let mut parameters = parameters(spec, private);
        // SAFETY: as above.
        result(unsafe { sys::rdma_accept(self.id.as_ptr(), &raw mut parameters) })
    }

    pub(super) fn reject(&mut self, private: &[u8]) -> io::Result<()> {
        // SAFETY: as above.
        result(unsafe { sys::rdma_reject(self.id.as_ptr(), private.as_ptr().cast(), private.len() as u8) })
    }

    /// Tells the peer, and has all that is posted flushed.
    pub(super) fn break_off(&mut self) {
        let Some(qp) = self.queue_pair() else { return };
        // Fails where it is not connected, or no longer: nobody is to be told then.
        // SAFETY: alive, with a queue pair and thus a device.
        unsafe { sys::rdma_disconnect(self.id.as_ptr()) };
        // SAFETY: all-zero is a valid value of this plain structure.
        let mut attributes: sys::ibv_qp_attr = unsafe { std::mem::zeroed() };
        attributes.qp_state = sys::ibv_qp_state::IBV_QPS_ERR;
        // SAFETY: the queue pair is alive; only its state is looked at.
        let failed = unsafe {
            sys::ibv_modify_qp(qp.as_ptr(), &raw mut attributes, sys::ibv_qp_attr_mask::IBV_QP_STATE.0 as i32)
        };
        if failed != 0 {
            let why = io::Error::from_raw_os_error(failed);
            tracing::debug!("a queue pair does not go to its error state, and is destroyed as it is: {why}");
        }
    }
}

impl Drop for Id {
    fn drop(&mut self) {
        if self.queue_pair().is_some() {
            // SAFETY: alive; afterwards the device reads and writes nothing that was posted to it.
            unsafe { sys::rdma_destroy_qp(self.id.as_ptr()) };
        }
        let last = Last { id: self.id, _channel: Arc::clone(&self.channel) };
        // The port of a listener is to be free at once, and it has nothing on its way.
        if self.listens { drop(last) } else { last.end_elsewhere() }
    }
}

/// An identifier without a queue pair, which is destroyed when this is dropped. A request that was not answered is refused by that.
struct Last {
    id: NonNull<sys::rdma_cm_id>,
    /// It is used for that.
    _channel: Arc<OpenChannel>,
}

// SAFETY: it has one owner, who destroys it, and that may be any thread.
unsafe impl Send for Last {}

impl Last {
    /// Destroys it without having a reactor wait.
    fn end_elsewhere(self) {
        static ENDS: OnceLock<Option<Sender<Last>>> = OnceLock::new();
        let ends = ENDS.get_or_init(|| {
            let (sender, ends) = mpsc::channel::<Last>();
            let thread = thread::Builder::new().name("rdma-farewell".to_owned());
            thread.spawn(move || ends.into_iter().for_each(drop)).ok().map(|_| sender)
        });
        match ends {
            // The thread lives as long as the process; were it gone, the identifier would come back and be destroyed here.
            Some(ends) => drop(ends.send(self)),
            None => drop(self),
        }
    }
}

impl Drop for Last {
    fn drop(&mut self) {
        // SAFETY: destroyed once; all its events that were read are acknowledged, or just are.
        let failed = unsafe { sys::rdma_destroy_id(self.id.as_ptr()) };
        if failed != 0 {
            tracing::warn!("a connection stays: {}", io::Error::last_os_error());
        }
    }
}

fn parameters(spec: &QueueSpec, private: &[u8]) -> sys::rdma_conn_param {
    sys::rdma_conn_param {
        private_data: private.as_ptr().cast(),
        private_data_len: private.len() as u8,
        responder_resources: spec.reads_in,
        initiator_depth: spec.reads_out,
        flow_control: 1,
        retry_count: RETRIES,
        rnr_retry_count: NOT_READY_RETRIES,
        srq: 0,
        qp_num: 0,
    }
}

fn result(failed: i32) -> io::Result<()> {
    if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

pub(super) fn set_non_blocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    rustix::io::ioctl_fionbio(fd, true).map_err(io::Error::from)
}

/// An address as the kernel wants it.
#[repr(C)]
union RawAddress {
    v4: libc::sockaddr_in,
    v6: libc::sockaddr_in6,
}

impl RawAddress {
    fn of(addr: SocketAddr) -> RawAddress {
        match addr {
            SocketAddr::V4(v4) => RawAddress {
                v4: libc::sockaddr_in {
                    sin_family: libc::AF_INET as u16,
                    sin_port: v4.port().to_be(),
                    sin_addr: libc::in_addr { s_addr: u32::from_ne_bytes(v4.ip().octets()) },
                    sin_zero: [0; 8],
                },
            },
            SocketAddr::V6(v6) => RawAddress {
                v6: libc::sockaddr_in6 {
                    sin6_family: libc::AF_INET6 as u16,
                    sin6_port: v6.port().to_be(),
                    sin6_flowinfo: v6.flowinfo(),
                    sin6_addr: libc::in6_addr { s6_addr: v6.ip().octets() },
                    sin6_scope_id: v6.scope_id(),
                },
            },
        }
    }

    fn as_mut_ptr(&mut self) -> *mut libc::sockaddr {
        ptr::from_mut(self).cast()
    }
}

/// An address as the kernel gave it; the unspecified one for what is none.
fn address(raw: &libc::sockaddr_storage) -> SocketAddr {
    let at = ptr::from_ref(raw);
    match i32::from(raw.ss_family) {
        libc::AF_INET => {
            // SAFETY: the family says so, and the storage is large enough and aligned for each.
            let v4 = unsafe { &*at.cast::<libc::sockaddr_in>() };
            let ip = Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes());
            SocketAddr::V4(SocketAddrV4::new(ip, u16::from_be(v4.sin_port)))
        }
        libc::AF_INET6 => {
            // SAFETY: as above.
            let v6 = unsafe { &*at.cast::<libc::sockaddr_in6>() };
            let ip = Ipv6Addr::from(v6.sin6_addr.s6_addr);
            let port = u16::from_be(v6.sin6_port);
            SocketAddr::V6(SocketAddrV6::new(ip, port, v6.sin6_flowinfo, v6.sin6_scope_id))
        }
        _ => SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_comes_back_as_it_went() {
        for text in ["10.0.0.1:4420", "[fe80::1%3]:4420", "[2001:db8::5]:1"] {
            let addr: SocketAddr = text.parse().unwrap();
            // SAFETY: all-zero is a valid storage, into which an address is copied that is smaller.
            let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
            let raw = RawAddress::of(addr);
            // SAFETY: as above.
            unsafe { ptr::copy_nonoverlapping(&raw const raw, (&raw mut storage).cast(), 1) };
            assert_eq!(address(&storage), addr);
        }
    }
}
