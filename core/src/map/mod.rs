//! The extent map: what a volume's clusters are made of, now and at each epoch that a view may ask for.
//!
//! A cluster has versions, newest first; each says of its sixteen blocks whether it holds data, hides what is below with
//! zeros, or says nothing. 128 consecutive clusters of a volume on a shard are one node; a node is what is loaded, changed,
//! written (copy-on-write) and forgotten. Every change is a [`Record`], and a record is absolute: applying it twice, or after a
//! later one and then that one again, ends the same.

mod node;
mod page;
mod record;
mod states;
mod table;
mod tidy;
mod version;
mod view;
mod views;

pub use node::{Applied, MapNode, NodeKey};
pub use page::{BadPage, PAGE_BYTES, decode_node, encode_node};
pub use record::{BadRecord, Decoded, FREED_MAX, RECORD_BYTES_MAX, Record, Records};
pub use states::{BlockState, BlockStates, ones};
pub use table::{NodePages, PageRef, PageTable};
pub use tidy::{Tidy, filled, tidy};
pub use version::Version;
pub use view::{Segment, Segments, Source, View};
pub use views::{Need, Needs, Views};
