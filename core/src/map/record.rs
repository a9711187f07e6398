//! Records: each change of the map, as the journal and the crash log carry it.
//!
//! A record is absolute (the whole version after the change) and frees explicitly what it unmaps, so that the bitmap needs no
//! look at the map to be replayed. On disk: 8 bytes of header, then the fields of its kind; lengths are multiples of 8.
//!
//! ```text
//! 0 kind u8 | 1 flags u8 (bit 0: must understand) | 2 length u16, header included | 4 volume u32
//! Set       8 cluster u32 | 12 states u32 | 16 birth u64 | 24 place u64 | 32 freed place u64            40 bytes
//! Drop      8 cluster u32 | 12 zero u32   | 16 birth u64 | 24 freed place u64                           32 bytes
//! DropRange 8 range u32   | 12 count u32  | 16 freed places u64 * count                            16 + 8n bytes
//! Free      8 count u32   | 12 zero u32   | 16 places u64 * count                                  16 + 8n bytes
//! Seal      8 cut u64                                                                               16 bytes
//! Release   8 slab u32    | 12 zero u32                                                            16 bytes
//! ```

use thiserror::Error;

use super::version::{Version, checked};
use crate::ids::{Epoch, VolumeId};
use crate::limits::CLUSTERS_PER_RANGE;
use crate::space::{Geometry, Place, SlabId};

/// Places that one record may free: keeps it below [`RECORD_BYTES_MAX`].
pub const FREED_MAX: usize = 500;
/// Bytes of the longest record: no group and no crash log needs room for more at once.
pub const RECORD_BYTES_MAX: usize = 16 + 8 * FREED_MAX;

const _: () = assert!(RECORD_BYTES_MAX <= u16::MAX as usize);

const MUST_UNDERSTAND: u8 = 1;
const SET: u8 = 1;
const DROP: u8 = 2;
const DROP_RANGE: u8 = 3;
const FREE: u8 = 4;
const SEAL: u8 = 5;
const RELEASE: u8 = 6;

/// One change of one shard's map.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// The version born at `version.birth` of this cluster is now `version`, whether it was there before or not.
    Set {
        /// Whose.
        volume: VolumeId,
        /// The cluster among those of this volume on this shard.
        cluster: u32,
        /// All of it.
        version: Version,
        /// What the version's place was, if the change unmapped it.
        freed: Place,
    },
    /// The version born at `birth` of this cluster is gone.
    Drop {
        /// Whose.
        volume: VolumeId,
        /// The cluster among those of this volume on this shard.
        cluster: u32,
        /// Which version.
        birth: Epoch,
        /// Its place, or [`Place::NONE`].
        freed: Place,
    },
    /// Every version of every cluster of this node is gone.
    DropRange {
        /// Whose.
        volume: VolumeId,
        /// The node's number.
        range: u32,
        /// Every place they had; at most [`FREED_MAX`].
        freed: Vec<Place>,
    },
    /// These places are free, and no version names them any more.
    Free {
        /// At most [`FREED_MAX`].
        places: Vec<Place>,
    },
    /// What the volume was at this cut will not change any more on this shard: a snapshot may come to be.
    Seal {
        /// Whose.
        volume: VolumeId,
        /// The cut.
        cut: Epoch,
    },
    /// Nothing of this shard is in this slab any more: the pool may have it back. What earlier records say of it stays true.
    Release {
        /// Which.
        slab: SlabId,
    },
}

/// Why bytes are no record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum BadRecord {
    /// The length does not fit its kind or the bytes there are.
    #[error("record of kind {kind} has length {length}, {left} bytes are left")]
    Length {
        /// As found.
        kind: u8,
        /// As found.
        length: usize,
        /// Bytes from its start to the end.
        left: usize,
    },
    /// A field has a value that cannot be.
    #[error("record of kind {kind} has an impossible {field}")]
    Field {
        /// As found.
        kind: u8,
        /// Which.
        field: &'static str,
    },
    /// A kind of a later version that must not be skipped.
    #[error("record kind {kind} is of a later version of Ringway and may not be skipped")]
    Unknown {
        /// As found.
        kind: u8,
    },
}

/// A record from the disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decoded {
    /// One of ours.
    Record(Record),
    /// Of a kind that a later version has and that may be skipped.
    Skipped,
}

impl Record {
    /// The volume it is about, if it is about one.
    #[must_use]
    pub fn volume(&self) -> Option<VolumeId> {
        match *self {
            Record::Set { volume, .. }
            | Record::Drop { volume, .. }
            | Record::DropRange { volume, .. }
            | Record::Seal { volume, .. } => Some(volume),
            Record::Free { .. } | Record::Release { .. } => None,
        }
    }

    /// The place it maps, if it maps one.
    #[must_use]
    pub fn used(&self) -> Option<Place> {
        match self {
            Record::Set { version, .. } if version.place.is_some() => Some(version.place),
            _ => None,
        }
    }

    /// The places it frees. Replay marks these free, then [`Record::used`] used.
    #[must_use]
    pub fn freed(&self) -> &[Place] {
        match self {
            Record::Set { freed, .. } | Record::Drop { freed, .. } if freed.is_some() => std::slice::from_ref(freed),
            Record::Set { .. } | Record::Drop { .. } | Record::Seal { .. } | Record::Release { .. } => &[],
            Record::DropRange { freed, .. } => freed,
            Record::Free { places } => places,
        }
    }

    /// Makes it free nothing: what it unmaps stays in use.
    pub fn keep_freed(&mut self) {
        match self {
            Record::Set { freed, .. } | Record::Drop { freed, .. } => *freed = Place::NONE,
            Record::DropRange { freed, .. } | Record::Free { places: freed } => freed.clear(),
            Record::Seal { .. } | Record::Release { .. } => {}
        }
    }

    /// Bytes of its encoding.
    #[must_use]
    pub fn encoded_len(&self) -> usize {
        match self {
            Record::Set { .. } => 40,
            Record::Drop { .. } => 32,
            Record::DropRange { freed: places, .. } | Record::Free { places } => 16 + 8 * places.len(),
            Record::Seal { .. } | Record::Release { .. } => 16,
        }
    }

    /// Appends its encoding.
    ///
    /// # Panics
    /// If it has more than [`FREED_MAX`] places, or a version that is not sound: such a record must never be durable.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let volume = self.volume().map_or(0, |volume| volume.0);
        let mut start = |kind: u8| {
            out.extend([kind, MUST_UNDERSTAND]);
            out.extend((self.encoded_len() as u16).to_le_bytes());
            out.extend(volume.to_le_bytes());
        };
        match self {
            Record::Set { cluster, version, freed, .. } => {
                assert!(version.is_sound(), "{version:?}");
                assert!(freed.is_none() || *freed != version.place, "{freed:?} is freed and mapped by one record");
                start(SET);
                out.extend(cluster.to_le_bytes());
                out.extend(version.states.raw().to_le_bytes());
                out.extend(version.birth.0.to_le_bytes());
                out.extend(version.place.raw().to_le_bytes());
                out.extend(freed.raw().to_le_bytes());
            }
            Record::Drop { cluster, birth, freed, .. } => {
                start(DROP);
                out.extend(cluster.to_le_bytes());
                out.extend([0; 4]);
                out.extend(birth.0.to_le_bytes());
                out.extend(freed.raw().to_le_bytes());
            }
            Record::DropRange { range, freed, .. } => {
                start(DROP_RANGE);
                out.extend(range.to_le_bytes());
                encode_places(freed, out);
            }
            Record::Free { places } => {
                start(FREE);
                encode_places_first(places, out);
            }
            Record::Seal { cut, .. } => {
                start(SEAL);
                out.extend(cut.0.to_le_bytes());
            }
            Record::Release { slab } => {
                start(RELEASE);
                out.extend(slab.0.to_le_bytes());
                out.extend([0; 4]);
            }
        }
    }

    /// The record at the start of `bytes` and its length. Every place is checked to lie in a slab of the pool.
    pub fn decode(bytes: &[u8], geometry: &Geometry) -> Result<(Decoded, usize), BadRecord> {
        let Some(&[kind, flags, low, high]) = bytes.first_chunk() else {
            return Err(BadRecord::Length { kind: 0, length: 0, left: bytes.len() });
        };
        let length = usize::from(u16::from_le_bytes([low, high]));
        let bad_length = BadRecord::Length { kind, length, left: bytes.len() };
        if length < 8 || length % 8 != 0 || length > bytes.len() {
            return Err(bad_length);
        }
        let body = Fields { kind, bytes: &bytes[..length], geometry };
        let volume = VolumeId(body.u32(4));
        let record = match kind {
            SET if length == 40 => body.set(volume)?,
            DROP if length == 32 => Record::Drop {
                volume: body.some(volume)?,
                cluster: body.u32(8),
                birth: Epoch(body.u64(16)),
                freed: body.place(24)?,
            },
            DROP_RANGE if length >= 16 => {
                if body.u32(8) > u32::MAX / CLUSTERS_PER_RANGE {
                    return Err(BadRecord::Field { kind, field: "range" });
                }
                Record::DropRange { volume: body.some(volume)?, range: body.u32(8), freed: body.places(12)? }
            }
            FREE if length >= 16 => Record::Free { places: body.places(8)? },
            SEAL if length == 16 => Record::Seal { volume: body.some(volume)?, cut: Epoch(body.u64(8)) },
            RELEASE if length == 16 => Record::Release { slab: body.slab(8)? },
            SET | DROP | DROP_RANGE | FREE | SEAL | RELEASE => return Err(bad_length),
            _ if flags & MUST_UNDERSTAND == 0 => return Ok((Decoded::Skipped, length)),
            _ => return Err(BadRecord::Unknown { kind }),
        };
        Ok((Decoded::Record(record), length))
    }
}

fn encode_places(places: &[Place], out: &mut Vec<u8>) {
    assert!(places.len() <= FREED_MAX, "{} places in one record", places.len());
    out.extend((places.len() as u32).to_le_bytes());
    out.extend(places.iter().flat_map(|place| place.raw().to_le_bytes()));
}

fn encode_places_first(places: &[Place], out: &mut Vec<u8>) {
    assert!(places.len() <= FREED_MAX, "{} places in one record", places.len());
    out.extend((places.len() as u32).to_le_bytes());
    out.extend([0; 4]);
    out.extend(places.iter().flat_map(|place| place.raw().to_le_bytes()));
}

/// A record whose length has been checked.
struct Fields<'a> {
    kind: u8,
    bytes: &'a [u8],
    geometry: &'a Geometry,
}

impl Fields<'_> {
    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.bytes[at..at + 4].try_into().expect("four bytes"))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.bytes[at..at + 8].try_into().expect("eight bytes"))
    }

    fn bad(&self, field: &'static str) -> BadRecord {
        BadRecord::Field { kind: self.kind, field }
    }

    fn some(&self, volume: VolumeId) -> Result<VolumeId, BadRecord> {
        if volume.0 == 0 { Err(self.bad("volume")) } else { Ok(volume) }
    }

    fn set(&self, volume: VolumeId) -> Result<Record, BadRecord> {
        let version = checked(self.u64(16), self.u64(24), self.u32(12), self.geometry).ok_or(self.bad("version"))?;
        let freed = self.place(32)?;
        if freed.is_some() && freed == version.place {
            return Err(self.bad("freed place"));
        }
        Ok(Record::Set { volume: self.some(volume)?, cluster: self.u32(8), version, freed })
    }

    fn slab(&self, at: usize) -> Result<SlabId, BadRecord> {
        let slab = SlabId(self.u32(at));
        if self.geometry.has_slab(slab) { Ok(slab) } else { Err(self.bad("slab")) }
    }

    fn place(&self, at: usize) -> Result<Place, BadRecord> {
        let place = Place::from_raw(self.u64(at));
        if place.is_some() && !self.geometry.holds(place) {
            return Err(self.bad("place"));
        }
        Ok(place)
    }

    /// The places from byte 16 on, counted at `count_at`.
    fn places(&self, count_at: usize) -> Result<Vec<Place>, BadRecord> {
        let count = self.u32(count_at) as usize;
        if count > FREED_MAX || self.bytes.len() != 16 + 8 * count {
            return Err(self.bad("count"));
        }
        (0..count)
            .map(|n| self.place(16 + 8 * n))
            .map(|place| place.and_then(|place| if place.is_none() { Err(self.bad("place")) } else { Ok(place) }))
            .collect()
    }
}

/// The records in a group's body, in order; stops after the first bad one.
#[derive(Debug)]
pub struct Records<'a> {
    bytes: &'a [u8],
    geometry: &'a Geometry,
}

impl<'a> Records<'a> {
    /// The records that `bytes` consist of.
    #[must_use]
    pub fn new(bytes: &'a [u8], geometry: &'a Geometry) -> Records<'a> {
        Records { bytes, geometry }
    }
}

impl Iterator for Records<'_> {
    type Item = Result<Decoded, BadRecord>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.bytes.is_empty() {
            return None;
        }
        match Record::decode(self.bytes, self.geometry) {
            Ok((decoded, length)) => {
                self.bytes = &self.bytes[length..];
                Some(Ok(decoded))
            }
            Err(error) => {
                self.bytes = &[];
                Some(Err(error))
            }
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::map::BlockStates;
    use crate::space::{SlabArea, SlabId};
    use proptest::prelude::*;

    pub(crate) fn geometry() -> Geometry {
        Geometry::new(4 << 20, vec![SlabArea { start: 1 << 20, slabs: 4 }])
    }

    pub(crate) fn place() -> impl Strategy<Value = Place> {
        (0u32..4, 0u32..64).prop_map(|(slab, cluster)| geometry().place(SlabId::new(0, slab), cluster))
    }

    pub(crate) fn version() -> impl Strategy<Value = Version> {
        (1u64..20, proptest::option::of(place()), proptest::collection::vec(0u32..3, 16)).prop_map(
            |(birth, place, states)| {
                let states = states.iter().enumerate().fold(0, |raw, (block, state)| raw | state << (2 * block));
                let place = place.unwrap_or(Place::NONE);
                // Without a place, data becomes zero.
                let raw = if place.is_none() { states & !0x5555_5555 | (states & 0x5555_5555) << 1 } else { states };
                Version { birth: Epoch(birth), place, states: BlockStates::from_raw(raw).unwrap() }
            },
        )
    }

    /// Records for clusters 0..256 of volumes 1 and 2.
    pub(crate) fn record() -> impl Strategy<Value = Record> {
        let id = || ((1u32..3).prop_map(VolumeId), 0u32..256);
        prop_oneof![
            6 => (id(), version(), proptest::option::of(place())).prop_map(|((volume, cluster), version, freed)| {
                let freed = freed.filter(|&freed| freed != version.place).unwrap_or(Place::NONE);
                Record::Set { volume, cluster, version, freed }
            }),
            2 => (id(), 1u64..20, place()).prop_map(|((volume, cluster), birth, freed)| {
                Record::Drop { volume, cluster, birth: Epoch(birth), freed }
            }),
            1 => (id(), proptest::collection::vec(place(), 0..5)).prop_map(|((volume, cluster), freed)| {
                Record::DropRange { volume, range: cluster / 128, freed }
            }),
            1 => proptest::collection::vec(place(), 0..5).prop_map(|places| Record::Free { places }),
            1 => (1u32..3, 1u64..20).prop_map(|(volume, cut)| Record::Seal { volume: VolumeId(volume), cut: Epoch(cut) }),
        ]
    }

    proptest! {
        #[test]
        fn records_come_back_as_they_were_written(records in proptest::collection::vec(record(), 0..30)) {
            let mut bytes = Vec::new();
            for record in &records {
                let before = bytes.len();
                record.encode(&mut bytes);
                prop_assert_eq!(bytes.len() - before, record.encoded_len());
            }
            let back: Result<Vec<_>, _> = Records::new(&bytes, &geometry()).collect();
            prop_assert_eq!(back.unwrap(), records.into_iter().map(Decoded::Record).collect::<Vec<_>>());
        }

        #[test]
        fn hostile_bytes_give_errors_or_sound_records_and_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for decoded in Records::new(&bytes, &geometry()) {
                if let Ok(Decoded::Record(record)) = decoded {
                    prop_assert!(record.used().into_iter().chain(record.freed().iter().copied()).all(|p| geometry().holds(p)));
                }
            }
        }

        #[test]
        fn a_record_with_one_changed_byte_is_refused_or_sound(record in record(), at: prop::sample::Index, with: u8) {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            let at = at.index(bytes.len());
            bytes[at] = with;
            if let Ok((Decoded::Record(Record::Set { version, .. }), _)) = Record::decode(&bytes, &geometry()) {
                prop_assert!(version.is_sound());
            }
        }
    }

    #[test]
    fn an_unknown_kind_is_skipped_only_where_it_may_be() {
        let mut bytes = vec![0u8; 16];
        bytes[0] = 77;
        bytes[2] = 16;
        assert_eq!(Record::decode(&bytes, &geometry()), Ok((Decoded::Skipped, 16)));
        bytes[1] = MUST_UNDERSTAND;
        assert_eq!(Record::decode(&bytes, &geometry()), Err(BadRecord::Unknown { kind: 77 }));
    }

    #[test]
    fn the_longest_record_fits_its_length_field() {
        let freed = vec![geometry().place(SlabId::new(0, 0), 0); FREED_MAX];
        let mut bytes = Vec::new();
        Record::DropRange { volume: VolumeId(1), range: 0, freed }.encode(&mut bytes);
        assert_eq!(bytes.len(), RECORD_BYTES_MAX);
        assert!(Record::decode(&bytes, &geometry()).is_ok());
    }
}
