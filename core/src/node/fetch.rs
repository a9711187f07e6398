//! The way of what shards want of a backend, and back.

use crate::ids::ShardId;
use crate::request::Status;
use crate::shard::{Fetch, Fetched};

/// Who fetches for shards. Called on their reactors: never blocks.
pub trait FetchPort: Send + Sync {
    /// Takes a wish over. It is answered once, by [`super::message::Message::Fetched`] to the shard's reactor.
    fn fetch(&self, shard: ShardId, fetch: Fetch);
}

/// Takes what was fetched to the reactor of the shard that wanted it. Called from any thread, never blocks.
pub type FetchReplies = std::sync::Arc<dyn Fn(ShardId, u64, Result<Fetched, Status>) + Send + Sync>;
