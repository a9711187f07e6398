//! The backend: snapshots as objects, in a folder or in a store that speaks S3.
//!
//! ```text
//! source  what a sync reads, what a restore writes      names     what each object is called
//! sync    snapshot -> packs, maps, manifest             frame     the first bytes of each, checked before anything is believed
//! reader  any block of a snapshot, by its manifest      pack      blocks
//! restore a volume from that                            manifest  where each block lies
//! collect what is needed no more; rewrite what is hardly  store     five operations, and errors by what can be done about them
//! clones  what a volume here looks through to there
//! remote  tries again, reads back, limits speed         url       where the store is, and who we are there
//! ```
//!
//! Nothing here is on the way of a client's request, and nothing here touches a reactor: it runs on a thread of its own.

pub mod api;
pub mod clones;
pub mod collect;
pub mod frame;
pub mod manifest;
pub mod maps;
pub mod names;
pub mod pack;
pub mod reader;
pub mod remote;
pub mod restore;
pub mod rewrite;
pub mod service;
pub mod settings;
pub mod source;
mod steps;
pub mod store;
pub mod sync;
pub mod url;

#[cfg(test)]
mod faulty;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod real_tests;
#[cfg(test)]
mod s3_server;
#[cfg(test)]
mod tests;
