//! The page table: where each node's pages are, and what their bytes must add up to.
//!
//! In memory whole, for every node of the shard; nodes themselves are loaded on demand. About 50 bytes a node.

use std::collections::BTreeMap;

use super::node::NodeKey;
use crate::ids::VolumeId;
use crate::space::Place;

/// One page of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRef {
    /// Where it is.
    pub place: Place,
    /// Checksum of its 4096 bytes, seeded with pool, shard and the node's generation.
    pub crc: u32,
}

/// The pages of one node; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodePages {
    /// The checkpoint its pages were written for.
    pub generation: u64,
    first: PageRef,
    /// Nearly always empty, which takes no heap.
    more: Box<[PageRef]>,
}

impl NodePages {
    /// # Panics
    /// If there is no page.
    #[must_use]
    pub fn new(generation: u64, mut pages: Vec<PageRef>) -> NodePages {
        assert!(!pages.is_empty(), "a node has a page");
        let first = pages.remove(0);
        NodePages { generation, first, more: pages.into() }
    }

    /// Its pages in order.
    pub fn iter(&self) -> impl Iterator<Item = &PageRef> {
        std::iter::once(&self.first).chain(&self.more)
    }

    /// How many.
    #[expect(clippy::len_without_is_empty, reason = "a node has at least one page")]
    #[must_use]
    pub fn len(&self) -> usize {
        1 + self.more.len()
    }
}

/// Every node of a shard that has pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageTable {
    nodes: BTreeMap<NodeKey, NodePages>,
}

impl PageTable {
    /// The pages of a node; `None` where it has never been written, so has no versions on disk.
    #[must_use]
    pub fn get(&self, key: NodeKey) -> Option<&NodePages> {
        self.nodes.get(&key)
    }

    /// Replaces a node's pages; the old ones may be given back when no checkpoint that may still be chosen names them.
    pub fn insert(&mut self, key: NodeKey, pages: NodePages) -> Option<NodePages> {
        self.nodes.insert(key, pages)
    }

    /// Forgets a node that has no versions any more.
    pub fn remove(&mut self, key: NodeKey) -> Option<NodePages> {
        self.nodes.remove(&key)
    }

    /// Every node, by volume and range.
    pub fn iter(&self) -> impl Iterator<Item = (NodeKey, &NodePages)> {
        self.nodes.iter().map(|(&key, pages)| (key, pages))
    }

    /// The nodes of one volume, by range.
    pub fn of_volume(&self, volume: VolumeId) -> impl Iterator<Item = (NodeKey, &NodePages)> {
        let (first, last) = (NodeKey { volume, range: 0 }, NodeKey { volume, range: u32::MAX });
        self.nodes.range(first..=last).map(|(&key, pages)| (key, pages))
    }

    /// The first node of a volume from `range` on.
    #[must_use]
    pub fn next_of(&self, volume: VolumeId, range: u32) -> Option<NodeKey> {
        self.nodes.range(NodeKey { volume, range }..=NodeKey { volume, range: u32::MAX }).next().map(|(&key, _)| key)
    }

    /// How many nodes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether no node has pages.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }
}
