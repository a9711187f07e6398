//! Checkpoints: what a shard is, as of a point of its journal.
//!
//! An image (page table, cluster bitmaps) is a stream of bytes cut into chunks, each in a cluster of the shard's own. The
//! checkpoint header names them with their checksums, and says where replay starts. Headers are written in turn into a ring
//! of eight blocks on device 0, each durable only after its chunks and pages are; the newest whole one counts, and the one
//! before it stays usable until the next is durable.
//!
//! Writing one: [`encode_image`] -> [`Chunks::image`] -> a cluster and a write for each -> barrier -> if there are more than
//! [`CHUNKS_MAX`], the same with [`Chunks::index`] over their references -> [`CheckpointHeader::encode`] -> durable write at
//! [`CheckpointHeader::slot`]. Reading one: [`read_ring`] -> for `level` down to 0: read `chunks`, [`join_chunks`], then
//! [`decode_index`] or, at level 0, [`decode_image`].

mod chunk;
mod header;
mod image;

pub use chunk::{BadChunk, CHUNK_BYTES_MAX, ChunkRef, Chunks, decode_index, join_chunks};
pub use header::{
    BadHeader, CHUNKS_MAX, CheckpointHeader, HEADER_BYTES, HeaderRing, RING_BYTES, RING_SLOTS, read_ring,
};
pub use image::{BadImage, Image, MappedCounts, TidiedViews, decode_image, encode_image};
