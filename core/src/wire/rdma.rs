//! What NVMe/RDMA says in the private data of its connections (NVMe RDMA transport specification 1.0, section 3.1, "rdma"
//! below): the host's CM_REQ, the controller's answer with CM_REP or CM_REJ.
//!
//! A connection carries more private data than was given to it, padded with zeros by whoever is below: what is behind the structure
//! counts for nothing. The structures of the host and of the controller that accepts have 32 bytes, that of a refusal 4.

use std::fmt;

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::fabrics::CNTLID_DYNAMIC;

/// The format of private data that there is (RECFMT).
pub const RECORD_FORMAT: u16 = 0;
/// Entries of the longest admin queue (base 3.3.1.1: 4096; Linux asks for 32).
pub const ADMIN_ENTRIES_MAX: u16 = 128;

/// What a host asks with (rdma figure 5, RDMA_CM_REQUEST).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct CmRequest {
    /// `0-1` RECFMT.
    pub record_format: U16,
    /// `2-3` QID: the queue that this connection will be; its Connect says the same.
    pub queue_id: U16,
    /// `4-5` HRQSIZE: entries of the host's receive queue, which is how many responses may be on their way.
    pub host_receives: U16,
    /// `6-7` HSQSIZE: entries of the submission queue, minus one.
    pub host_sends: U16,
    /// `8-9` CNTLID: of an I/O queue the controller's, or 0 of a host that does not say; of an admin queue 0.
    pub controller_id: U16,
    /// `10-31` Reserved.
    pub reserved: [u8; 22],
}

/// What a controller accepts with (rdma figure 6, RDMA_CM_ACCEPT).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct CmAccept {
    /// `0-1` RECFMT.
    pub record_format: U16,
    /// `2-3` CRQSIZE: entries of the controller's receive queue: how many commands it can take.
    pub controller_receives: U16,
    /// `4-31` Reserved.
    pub reserved: [u8; 28],
}

/// What a controller refuses with (rdma figure 7, RDMA_CM_REJECT).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
pub struct CmReject {
    /// `0-1` RECFMT.
    pub record_format: U16,
    /// `2-3` STS: a [`CmStatus`].
    pub status: U16,
}

const _: () = assert!(size_of::<CmRequest>() == 32);
const _: () = assert!(size_of::<CmAccept>() == 32);
const _: () = assert!(size_of::<CmReject>() == 4);

/// Why a controller refuses a connection (rdma figure 11).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum CmStatus {
    /// The private data is too short.
    InvalidLength = 0x01,
    /// RECFMT.
    InvalidRecordFormat = 0x02,
    /// QID.
    InvalidQueueId = 0x03,
    /// HSQSIZE.
    InvalidHostSends = 0x04,
    /// HRQSIZE.
    InvalidHostReceives = 0x05,
    /// There is no room for another queue.
    NoResources = 0x06,
    /// The host takes no RDMA READ, without which it could not write.
    InvalidReadsTaken = 0x07,
    /// The host's own RDMA READs.
    InvalidReadsMade = 0x08,
    /// CNTLID.
    InvalidControllerId = 0x09,
}

impl CmStatus {
    const ALL: [CmStatus; 9] = [
        CmStatus::InvalidLength,
        CmStatus::InvalidRecordFormat,
        CmStatus::InvalidQueueId,
        CmStatus::InvalidHostSends,
        CmStatus::InvalidHostReceives,
        CmStatus::NoResources,
        CmStatus::InvalidReadsTaken,
        CmStatus::InvalidReadsMade,
        CmStatus::InvalidControllerId,
    ];

    /// The status with this code.
    #[must_use]
    pub fn of(code: u16) -> Option<CmStatus> {
        CmStatus::ALL.into_iter().find(|&status| status as u16 == code)
    }
}

impl fmt::Display for CmStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CmStatus::InvalidLength => "private data of a wrong length",
            CmStatus::InvalidRecordFormat => "private data of an unknown format",
            CmStatus::InvalidQueueId => "a queue number that cannot be",
            CmStatus::InvalidHostSends => "a submission queue of a size that cannot be",
            CmStatus::InvalidHostReceives => "a receive queue of a size that cannot be",
            CmStatus::NoResources => "no room for another queue",
            CmStatus::InvalidReadsTaken => "no RDMA READ taken",
            CmStatus::InvalidReadsMade => "RDMA READs that are too many",
            CmStatus::InvalidControllerId => "no such controller",
        })
    }
}

/// The checked wish of a host for a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueWish {
    /// 0 is an admin queue.
    pub queue_id: u16,
    /// Entries of the submission queue; commands outstanding at most.
    pub entries: u16,
    /// Responses that may be on their way.
    pub responses: u16,
    /// The controller that an I/O queue is for, where the host says.
    pub controller_id: Option<u16>,
}

impl CmRequest {
    /// A host's request for queue `queue_id` of `entries` entries; of an I/O queue for which controller.
    #[must_use]
    pub fn new(queue_id: u16, entries: u16, controller_id: u16) -> CmRequest {
        CmRequest {
            record_format: RECORD_FORMAT.into(),
            queue_id: queue_id.into(),
            host_receives: entries.into(),
            host_sends: (entries - 1).into(),
            controller_id: if queue_id == 0 { 0 } else { controller_id }.into(),
            reserved: [0; 22],
        }
    }

    /// Checks private data. `queues_max` is the highest queue number, `entries_max` the most entries of an I/O queue.
    pub fn check(private: &[u8], queues_max: u16, entries_max: u16) -> Result<QueueWish, CmStatus> {
        let (request, _) = CmRequest::read_from_prefix(private).map_err(|_| CmStatus::InvalidLength)?;
        if request.record_format.get() != RECORD_FORMAT {
            return Err(CmStatus::InvalidRecordFormat);
        }
        let queue_id = request.queue_id.get();
        if queue_id > queues_max {
            return Err(CmStatus::InvalidQueueId);
        }
        let most = if queue_id == 0 { ADMIN_ENTRIES_MAX.min(entries_max) } else { entries_max };
        let entries = request.host_sends.get().saturating_add(1);
        if !(2..=most).contains(&entries) {
            return Err(CmStatus::InvalidHostSends);
        }
        let responses = request.host_receives.get();
        if responses == 0 {
            return Err(CmStatus::InvalidHostReceives);
        }
        let controller_id = match request.controller_id.get() {
            0 | CNTLID_DYNAMIC => None,
            _ if queue_id == 0 => return Err(CmStatus::InvalidControllerId),
            id => Some(id),
        };
        Ok(QueueWish { queue_id, entries, responses, controller_id })
    }
}

impl CmAccept {
    /// A controller's answer: so many commands can be taken.
    #[must_use]
    pub fn new(controller_receives: u16) -> CmAccept {
        CmAccept { controller_receives: controller_receives.into(), ..CmAccept::default() }
    }

    /// How many commands the controller can take, by its private data; `None` for data that no controller sends.
    #[must_use]
    pub fn check(private: &[u8]) -> Option<u16> {
        let (accept, _) = CmAccept::read_from_prefix(private).ok()?;
        let fits = accept.record_format.get() == RECORD_FORMAT && accept.controller_receives.get() > 0;
        fits.then(|| accept.controller_receives.get())
    }
}

impl CmReject {
    /// A controller's refusal.
    #[must_use]
    pub fn new(status: CmStatus) -> CmReject {
        CmReject { record_format: RECORD_FORMAT.into(), status: (status as u16).into() }
    }

    /// Why a controller has refused, by its private data, as far as that says.
    #[must_use]
    pub fn check(private: &[u8]) -> Option<CmStatus> {
        let (reject, _) = CmReject::read_from_prefix(private).ok()?;
        if reject.record_format.get() != RECORD_FORMAT {
            return None;
        }
        CmStatus::of(reject.status.get())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn check(private: &[u8]) -> Result<QueueWish, CmStatus> {
        CmRequest::check(private, 128, 256)
    }

    #[test]
    fn what_a_host_asks_for_is_what_the_target_reads_whatever_padding_follows() {
        let request = CmRequest::new(3, 128, 7);
        let mut padded = request.as_bytes().to_vec();
        padded.resize(56, 0);
        let wish = QueueWish { queue_id: 3, entries: 128, responses: 128, controller_id: Some(7) };
        assert_eq!(check(&padded), Ok(wish));
        let admin = CmRequest::new(0, 32, 9);
        assert_eq!(check(admin.as_bytes()).map(|wish| (wish.queue_id, wish.controller_id)), Ok((0, None)));
    }

    #[test]
    fn private_data_as_linux_sends_it_is_taken() {
        // An I/O queue 2 of 128 entries: hrqsize is 128, hsqsize 127.
        let mut bytes = [0; 56];
        bytes[..8].copy_from_slice(&[0, 0, 2, 0, 128, 0, 127, 0]);
        let wish = QueueWish { queue_id: 2, entries: 128, responses: 128, controller_id: None };
        assert_eq!(check(&bytes), Ok(wish));
    }

    #[test]
    fn each_wrong_field_has_its_own_status() {
        let with = |at: usize, value: u16| {
            let mut bytes = CmRequest::new(1, 128, 1).as_bytes().to_vec();
            bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
            check(&bytes)
        };
        assert_eq!(check(&[0; 31]), Err(CmStatus::InvalidLength));
        assert_eq!(with(0, 1), Err(CmStatus::InvalidRecordFormat));
        assert_eq!(with(2, 129), Err(CmStatus::InvalidQueueId));
        assert_eq!(with(4, 0), Err(CmStatus::InvalidHostReceives));
        assert_eq!(with(6, 0), Err(CmStatus::InvalidHostSends));
        assert_eq!(with(6, 256), Err(CmStatus::InvalidHostSends));
        assert_eq!(with(6, 0xFFFF), Err(CmStatus::InvalidHostSends));
        assert!(with(6, 255).is_ok());
        let mut admin = CmRequest::new(0, 32, 0);
        admin.controller_id = 5.into();
        assert_eq!(check(admin.as_bytes()), Err(CmStatus::InvalidControllerId));
        admin = CmRequest::new(0, ADMIN_ENTRIES_MAX + 1, 0);
        assert_eq!(check(admin.as_bytes()), Err(CmStatus::InvalidHostSends));
    }

    #[test]
    fn answers_say_what_they_were_made_of() {
        assert_eq!(CmAccept::check(CmAccept::new(64).as_bytes()), Some(64));
        assert_eq!(CmAccept::check(&[0; 32]), None);
        assert_eq!(CmAccept::check(&[0, 0, 1]), None);
        for status in CmStatus::ALL {
            assert_eq!(CmReject::check(CmReject::new(status).as_bytes()), Some(status));
        }
        assert_eq!(CmReject::check(&[0; 4]), None);
        assert_eq!(CmReject::check(&[]), None);
    }

    proptest! {
        #[test]
        fn any_private_data_is_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(wish) = check(&bytes) {
                prop_assert!(wish.queue_id <= 128 && (2..=256).contains(&wish.entries) && wish.responses > 0);
            }
            let _ = (CmAccept::check(&bytes), CmReject::check(&bytes));
        }
    }
}
