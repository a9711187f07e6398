//! The control side of one connection: what its front end has set up, and which rings run.
//!
//! A ring runs if it is enabled and has an address, a size and a kick. Whatever changes under running rings is changed while they
//! are stopped: stop (the reactor answers when nothing is in flight), change, start anew where it stopped. So an answer to the
//! front end means that nothing of the old is in use any more.
//!
//! Invariant: a ring that runs has its number here, and its base is only known once it has stopped.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;

use ringway_reactor::event::EventFd;
use ringway_reactor::shared::SharedMemory;
use ringway_shm_ring::virtqueue::{
    DirtyLog, GuestMemory, InflightRegion, RING_ENTRIES_MAX, RingConfig, UsedLog, inflight_bytes,
};
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight, VhostUserLog,
    VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};

use super::blk::{self, ConfigSpace, feature};
use super::cache_mode::CacheMode;
use super::mail::{DeviceState, Mail, RingId, RingSetup, Stopped};
use super::mapping::{Mapped, map_file, map_region};
use super::pinning::Pinning;
use super::server::Link;
use crate::export::Export;
use crate::node::interest::Interest;

/// Entries of a ring at most: as QEMU has it.
const ENTRIES_MAX: u32 = 1024;
/// Memory regions of a guest at most. QEMU has one a memory slot.
const SLOTS_MAX: u64 = 256;

const _: () = assert!(ENTRIES_MAX <= RING_ENTRIES_MAX as u32);

/// Where a ring is, in the front end's addresses.
#[derive(Clone, Copy)]
struct Addresses {
    desc: u64,
    driver: u64,
    device: u64,
    /// Guest address that stands for the device's part in the log, where it is logged.
    log: Option<u64>,
}

/// A ring that was started.
struct Running {
    id: RingId,
    /// Its reactor looks for its work as the export says.
    _interest: Interest,
}

#[derive(Default)]
struct Vring {
    size: u16,
    addresses: Option<Addresses>,
    base: u32,
    /// `Some(None)`: it is polled, the driver has no kick.
    kick: Option<Option<Arc<EventFd>>>,
    call: Option<Arc<EventFd>>,
    error: Option<Arc<EventFd>>,
    enabled: bool,
    running: Option<Running>,
}

/// Memory for requests in flight.
struct InflightMemory {
    memory: Arc<SharedMemory>,
    start: usize,
    len: usize,
    queues: u16,
    entries: u16,
}

/// What one front end has set up.
pub(super) struct Device {
    link: Arc<Link>,
    state: Arc<DeviceState>,
    queues: u16,
    pin_guest: bool,
    cache_mode: CacheMode,
    /// A ring has run.
    has_run: bool,
    first_reactor: usize,
    offered: u64,
    features: u64,
    pub(super) protocol: u64,
    mapped: Vec<Mapped>,
    memory: Option<Arc<GuestMemory>>,
    pinning: Option<Pinning>,
    vrings: Vec<Vring>,
    inflight: Option<InflightMemory>,
    log: Option<Arc<DirtyLog>>,
}

/// An answer that a front end gets as "no", with the reason in our log.
fn refused(why: impl std::fmt::Display) -> Error {
    Error::ReqHandlerError(io::Error::other(why.to_string()))
}

impl Device {
    pub(super) fn new(
        link: Arc<Link>,
        state: Arc<DeviceState>,
        export: &Export,
        cache_mode: CacheMode,
        first_reactor: usize,
    ) -> Device {
        let queues = export.queues;
        Device {
            offered: blk::features(state.read_only),
            link,
            state,
            queues,
            pin_guest: export.pin_guest,
            cache_mode,
            has_run: false,
            first_reactor,
            features: 0,
            protocol: 0,
            mapped: Vec::new(),
            memory: None,
            pinning: None,
            vrings: (0..queues).map(|_| Vring::default()).collect(),
            inflight: None,
            log: None,
        }
    }

    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    fn vring(&mut self, index: u32) -> Result<&mut Vring> {
        let queues = self.queues;
        let wanted = self.vrings.get_mut(index as usize);
        wanted.ok_or_else(|| refused(format!("queue {index}: the export has {queues}")))
    }

    fn reactor_of(&self, index: usize) -> usize {
        (self.first_reactor + index) % self.link.reactors()
    }

    /// Sends to a reactor and waits for its answer.
    fn ask<T>(&self, reactor: usize, mail: impl FnOnce(mpsc::Sender<T>) -> Mail) -> Result<T> {
        self.link.ask(reactor, mail).ok_or_else(|| refused("the target is stopping"))
    }

    // ---- rings

    /// Starts ring `index` if it has all it needs.
    fn start(&mut self, index: usize) -> Result<()> {
        let Some(memory) = self.memory.clone() else { return Ok(()) };
        let vring = &self.vrings[index];
        let (Some(addresses), Some(kick)) = (vring.addresses, vring.kick.clone()) else { return Ok(()) };
        if !vring.enabled || vring.size == 0 || vring.running.is_some() {
            return Ok(());
        }
        let config = self.ring_config(&memory, vring, addresses)?;
        let log = self.log.clone().filter(|_| self.has(feature::LOG_ALL));
        let used_log = log.clone().zip(addresses.log).map(|(log, device)| UsedLog {
            log,
            ring: if config.packed { config.desc } else { device },
            device,
        });
        let id = self.link.next_ring();
        let setup = RingSetup {
            id,
            number: index as u16,
            config,
            memory,
            inflight: self.inflight_of(index)?,
            log,
            used_log,
            kick,
            call: vring.call.clone(),
            error: vring.error.clone(),
            device: Arc::clone(&self.state),
        };
        self.ask(self.reactor_of(index), |reply| Mail::Start(Box::new(setup), reply))?.map_err(refused)?;
        let interest = self.link.interest(self.reactor_of(index), self.state.polling);
        self.vrings[index].running = Some(Running { id, _interest: interest });
        self.has_run = true;
        Ok(())
    }

    fn ring_config(&self, memory: &GuestMemory, vring: &Vring, at: Addresses) -> Result<RingConfig> {
        let (packed, entries) = (self.has(feature::RING_PACKED), u64::from(vring.size));
        let (driver_bytes, device_bytes) = if packed { (4, 4) } else { (6 + 2 * entries, 6 + 8 * entries) };
        let guest = |user, len| memory.guest_of_user(user, len).map_err(|why| refused(format!("a ring's part: {why}")));
        Ok(RingConfig {
            size: vring.size,
            desc: guest(at.desc, entries * 16)?,
            driver: guest(at.driver, driver_bytes)?,
            device: guest(at.device, device_bytes)?,
            packed,
            event_idx: self.has(feature::EVENT_IDX),
            indirect: self.has(feature::INDIRECT_DESC),
            base: vring.base,
        })
    }

    fn inflight_of(&self, index: usize) -> Result<Option<InflightRegion>> {
        let Some(inflight) = &self.inflight else { return Ok(None) };
        if index >= usize::from(inflight.queues) {
            return Ok(None);
        }
        let packed = self.has(feature::RING_PACKED);
        let stride = inflight_bytes(packed, inflight.entries);
        if stride * usize::from(inflight.queues) > inflight.len {
            return Err(refused("the memory for requests in flight is too small for its queues"));
        }
        let at = inflight.start + index * stride;
        Ok(Some(InflightRegion::new(Arc::clone(&inflight.memory), at, packed, inflight.entries)))
    }

    /// Stops ring `index` if it runs; it is known afterwards where it goes on.
    fn stop(&mut self, index: usize, abandon: bool) -> Result<()> {
        let Some(Running { id: ring, .. }) = self.vrings[index].running.take() else { return Ok(()) };
        let Stopped { base } = self.ask(self.reactor_of(index), |reply| Mail::Stop { ring, abandon, reply })?;
        self.vrings[index].base = base;
        Ok(())
    }

    /// Changes something under ring `index`.
    fn change(&mut self, index: u32, change: impl FnOnce(&mut Vring)) -> Result<()> {
        self.vring(index)?;
        let index = index as usize;
        self.stop(index, false)?;
        change(&mut self.vrings[index]);
        self.start(index)
    }

    /// Changes something under all rings. Those that cannot go on with it stay stopped until a later change lets them.
    fn change_all<T>(&mut self, change: impl FnOnce(&mut Device) -> Result<T>) -> Result<T> {
        for index in 0..self.vrings.len() {
            self.stop(index, false)?;
        }
        let outcome = change(self);
        for index in 0..self.vrings.len() {
            if let Err(error) = self.start(index) {
                tracing::warn!(export = self.state.name, index, %error, "a ring stays stopped");
            }
        }
        outcome
    }

    /// The front end is gone: nothing of its guest is touched any more when this returns.
    pub(super) fn close(&mut self) {
        if self.has_run && self.vrings.iter().all(|vring| vring.running.is_none()) {
            // Its guest has ended in order: the next one begins anew.
            self.cache_mode.note(true);
        }
        for index in 0..self.vrings.len() {
            // The target is stopping, then, and has ended them itself.
            let _ = self.stop(index, true);
        }
        self.unpin();
    }

    // ---- memory

    /// Replaces the table. Rings are stopped.
    fn set_memory(&mut self, mapped: Vec<Mapped>) -> Result<()> {
        let regions = mapped.iter().flat_map(|mapped| mapped.regions.iter().cloned()).collect();
        let memory = GuestMemory::new(regions).map_err(refused)?;
        self.unpin();
        self.mapped = mapped;
        self.memory = Some(Arc::new(memory));
        if self.pin_guest {
            let areas = self.mapped.iter().flat_map(|m| m.regions.iter().map(|r| Arc::clone(&r.memory))).collect();
            self.pinning = Some(Pinning::start(&self.link, areas));
        }
        Ok(())
    }

    fn unpin(&mut self) {
        if let Some(pinning) = self.pinning.take() {
            pinning.undo();
        }
    }
}

/// An eventfd that came with a message; where there is none, there is none.
fn event(file: Option<File>) -> Result<Option<Arc<EventFd>>> {
    file.map(|file| EventFd::from_peer(OwnedFd::from(file)).map(Arc::new)).transpose().map_err(refused)
}

impl VhostUserBackendReqHandlerMut for Device {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset_device()
    }

    fn reset_device(&mut self) -> Result<()> {
        for index in 0..self.vrings.len() {
            self.stop(index, false)?;
            let enabled = !self.has(feature::PROTOCOL_FEATURES);
            self.vrings[index] = Vring { enabled, ..Vring::default() };
        }
        self.inflight = None;
        self.cache_mode.note(true);
        self.state.write_back.store(blk::is_write_back(self.features, true), Ordering::Relaxed);
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(self.offered)
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        let unknown = features & !self.offered;
        if unknown != 0 {
            return Err(refused(format!("features {unknown:#x} were not offered")));
        }
        if features == self.features {
            return Ok(());
        }
        self.change_all(|device| {
            let first = device.features == 0;
            let changed = device.features ^ features;
            device.features = features;
            if changed & (feature::FLUSH | feature::CONFIG_WCE) != 0 || first {
                let configured = device.cache_mode.is_write_back();
                device.state.write_back.store(blk::is_write_back(features, configured), Ordering::Relaxed);
            }
            // Without the protocol features nobody says that they are enabled.
            if !device.has(feature::PROTOCOL_FEATURES) {
                device.vrings.iter_mut().for_each(|vring| vring.enabled = true);
            }
            Ok(())
        })
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _: Option<bool>,
    ) -> Result<Option<Vec<vhost::VhostUserMemoryRegionBase>>> {
        let mut mapped = Vec::new();
        for (region, file) in regions.iter().zip(&files) {
            mapped.push(map_region(region, file).map_err(refused)?);
        }
        self.change_all(|device| device.set_memory(mapped))?;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, num: u32) -> Result<()> {
        let packed = self.has(feature::RING_PACKED);
        if num == 0 || num > ENTRIES_MAX || !(packed || num.is_power_of_two()) {
            return Err(refused(format!(
                "queue {index}: a ring of {num} entries; it has a power of two up to {ENTRIES_MAX}, packed any number up to that"
            )));
        }
        self.change(index, |vring| vring.size = num as u16)
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        flags: VhostUserVringAddrFlags,
        descriptor: u64,
        used: u64,
        available: u64,
        log: u64,
    ) -> Result<()> {
        let log = flags.contains(VhostUserVringAddrFlags::VHOST_VRING_F_LOG).then_some(log);
        let addresses = Addresses { desc: descriptor, driver: available, device: used, log };
        self.change(index, |vring| vring.addresses = Some(addresses))
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.change(index, |vring| vring.base = base)
    }

    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.vring(index)?;
        self.stop(index as usize, false)?;
        // It is stopped until it gets a kick again.
        let vring = self.vring(index)?;
        vring.kick = None;
        vring.call = None;
        Ok(VhostUserVringState::new(index, vring.base))
    }

    fn set_vring_kick(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let kick = event(fd)?;
        self.change(index.into(), |vring| vring.kick = Some(kick))
    }

    fn set_vring_call(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let call = event(fd)?;
        let vring = self.vring(index.into())?;
        vring.call.clone_from(&call);
        // Drivers mask and unmask interrupts while they work: nothing is stopped for it.
        let Some(&Running { id: ring, .. }) = vring.running.as_ref() else { return Ok(()) };
        self.ask(self.reactor_of(index.into()), |reply| Mail::SetCall { ring, call, reply })
    }

    fn set_vring_err(&mut self, index: u8, fd: Option<File>) -> Result<()> {
        let error = event(fd)?;
        self.change(index.into(), |vring| vring.error = error)
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        use VhostUserProtocolFeatures as P;
        Ok(P::MQ
            | P::CONFIG
            | P::CONFIGURE_MEM_SLOTS
            | P::REPLY_ACK
            | P::INFLIGHT_SHMFD
            | P::BACKEND_REQ
            | P::LOG_SHMFD
            | P::RESET_DEVICE)
    }

    fn set_protocol_features(&mut self, features: u64) -> Result<()> {
        let unknown = features & !self.get_protocol_features()?.bits();
        if unknown != 0 {
            return Err(refused(format!("protocol features {unknown:#x} were not offered")));
        }
        self.protocol = features;
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(self.queues.into())
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        if self.vring(index)?.enabled == enable {
            return Ok(());
        }
        self.change(index, |vring| vring.enabled = enable)
    }

    fn get_config(&mut self, offset: u32, size: u32, _: VhostUserConfigFlags) -> Result<Vec<u8>> {
        let record = self.link.volume(self.state.volume).ok_or_else(|| refused("its volume is gone"))?;
        Ok(ConfigSpace::of(&record, self.queues, self.state.is_write_back()).read(offset, size))
    }

    fn set_config(&mut self, offset: u32, buf: &[u8], _: VhostUserConfigFlags) -> Result<()> {
        match (offset, buf) {
            (blk::WRITEBACK_OFFSET, &[value @ (0 | 1)]) if self.has(feature::CONFIG_WCE) => {
                self.cache_mode.note(value == 1);
                self.state.write_back.store(value == 1, Ordering::Relaxed);
                Ok(())
            }
            _ => Err(refused(format!(
                "{} bytes at offset {offset} of the configuration: only the byte at {}, the write cache, can be written, as 0 or 1",
                buf.len(),
                blk::WRITEBACK_OFFSET
            ))),
        }
    }

    fn get_inflight_fd(&mut self, wanted: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        let (queues, entries) = (wanted.num_queues, wanted.queue_size);
        if queues == 0 || queues > self.queues || entries == 0 || u32::from(entries) > ENTRIES_MAX {
            return Err(refused(format!("requests in flight of {queues} queues of {entries} entries")));
        }
        let len = usize::from(queues) * inflight_bytes(self.has(feature::RING_PACKED), entries);
        let (fd, _) = SharedMemory::create("ringway-inflight", len).map_err(refused)?;
        Ok((VhostUserInflight::new(len as u64, 0, queues, entries), File::from(fd)))
    }

    fn set_inflight_fd(&mut self, inflight: &VhostUserInflight, file: File) -> Result<()> {
        let &VhostUserInflight { mmap_size, mmap_offset, num_queues: queues, queue_size: entries } = inflight;
        if queues > self.queues || u32::from(entries) > ENTRIES_MAX {
            return Err(refused(format!("requests in flight of {queues} queues of {entries} entries")));
        }
        let (memory, start) = map_file(&file, mmap_offset, mmap_size).map_err(refused)?;
        if !start.is_multiple_of(64) {
            return Err(refused(format!(
                "the memory for requests in flight starts at {mmap_offset}, no multiple of 64"
            )));
        }
        let inflight = InflightMemory { memory, start, len: mmap_size as usize, queues, entries };
        self.change_all(|device| {
            device.inflight = Some(inflight);
            Ok(())
        })
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Ok(SLOTS_MAX)
    }

    fn add_mem_region(
        &mut self,
        region: &VhostUserSingleMemoryRegion,
        fd: File,
        _: Option<bool>,
    ) -> Result<Option<vhost::VhostUserMemoryRegionBase>> {
        if self.mapped.len() as u64 >= SLOTS_MAX {
            return Err(refused(format!("more than {SLOTS_MAX} memory regions")));
        }
        let added = map_region(region, &fd).map_err(refused)?;
        self.change_all(|device| {
            let mapped = device.mapped.iter().cloned().chain([added]).collect();
            device.set_memory(mapped)
        })?;
        Ok(None)
    }

    fn remove_mem_region(&mut self, region: &VhostUserSingleMemoryRegion) -> Result<()> {
        let (guest, len, user) = (region.guest_phys_addr, region.memory_size, region.user_addr);
        let at = self.mapped.iter().position(|mapped| (mapped.guest, mapped.len, mapped.user) == (guest, len, user));
        let at = at.ok_or_else(|| refused(format!("no memory region of {len:#x} bytes at {guest:#x} to remove")))?;
        self.change_all(|device| {
            let mut mapped = device.mapped.clone();
            mapped.remove(at);
            device.set_memory(mapped)
        })
    }

    fn set_log_base(&mut self, log: &VhostUserLog, file: File) -> Result<()> {
        let (memory, start) = map_file(&file, log.mmap_offset, log.mmap_size).map_err(refused)?;
        if !start.is_multiple_of(8) {
            return Err(refused(format!("the log starts at {}, no multiple of 8", log.mmap_offset)));
        }
        let log = Arc::new(DirtyLog::new(memory, start, log.mmap_size as usize));
        self.change_all(|device| {
            device.log = Some(log);
            Ok(())
        })
    }

    fn set_gpu_socket(&mut self, _: GpuBackend) -> Result<()> {
        Err(refused("a disk has no display"))
    }

    fn get_shared_object(&mut self, _: VhostUserSharedMsg) -> Result<File> {
        Err(refused("a disk shares no objects"))
    }

    fn set_device_state_fd(
        &mut self,
        _: VhostTransferStateDirection,
        _: VhostTransferStatePhase,
        _: File,
    ) -> Result<Option<File>> {
        Err(refused("a disk's state is all in its rings"))
    }

    fn check_device_state(&mut self) -> Result<()> {
        Err(refused("a disk's state is all in its rings"))
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Err(refused("a disk has no memory of its own"))
    }
}
