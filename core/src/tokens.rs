//! Who submitted an operation, in the top byte of its token; and who submitted a request, in the top byte of its number.

use ringway_reactor::io::Token;

use crate::ids::RequestId;

/// A shard; see [`crate::shard::TokenBase`].
pub const SHARD: u8 = 0;
/// The TCP transport.
pub const TCP: u8 = 1;
/// A barrier of the device in the low half.
pub const BARRIER: u8 = 2;
/// The catalog.
pub const CATALOG: u8 = 3;

/// The transport of native rings.
pub const SHM: u8 = 4;
/// The transport of virtqueues.
pub const VHOST: u8 = 5;
/// The RDMA transport.
pub const RDMA: u8 = 7;
/// The transport of network block devices.
pub const NBD: u8 = 8;

/// The token of an operation that a transport of `kind` submits: which of its operations, on which of its connections or queues.
#[inline]
#[must_use]
pub fn operation(kind: u8, what: u8, index: usize) -> Token {
    Token(u64::from(kind) << 56 | u64::from(what) << 48 | index as u64)
}

/// What and index of [`operation`].
#[inline]
#[must_use]
pub fn parse(token: Token) -> (u8, usize) {
    ((token.0 >> 48) as u8, token.0 as u32 as usize)
}

/// A number for one connection or queue of a transport of `kind`, which counts them itself.
#[must_use]
pub fn connection(kind: u8, number: u64) -> u64 {
    (u64::from(kind) << 44 | number) & ((1 << 48) - 1)
}

/// Set in the numbers of requests that came from a connection.
pub const FROM_TRANSPORT: u64 = 1 << 63;

const INDEX_BITS: u32 = 24;

/// The number of a request that a transport of `kind` makes: of which of its connections or queues, and in which slot.
#[must_use]
pub fn request(kind: u8, index: usize, slot: usize) -> RequestId {
    assert!(index < 1 << INDEX_BITS, "connections of a reactor are fewer");
    RequestId(FROM_TRANSPORT | u64::from(kind) << (32 + INDEX_BITS) | (index as u64) << 32 | slot as u64)
}

/// Which kind of transport made it.
#[must_use]
pub fn request_kind(id: RequestId) -> u8 {
    (id.0 >> (32 + INDEX_BITS)) as u8 & 0x3F
}

/// Index and slot.
#[must_use]
pub fn request_place(id: RequestId) -> (usize, usize) {
    ((id.0 >> 32) as usize & ((1 << INDEX_BITS) - 1), id.0 as u32 as usize)
}
