//! Who submitted an operation, in the top byte of its token; and who submitted a request, in the top bit of its number.

/// A shard; see [`crate::shard::TokenBase`].
pub const SHARD: u8 = 0;
/// The TCP transport.
pub const TCP: u8 = 1;
/// A barrier of the device in the low half.
pub const BARRIER: u8 = 2;
/// The catalog.
pub const CATALOG: u8 = 3;

/// Set in the numbers of requests that came from a connection.
pub const FROM_TRANSPORT: u64 = 1 << 63;
