//! Clusters cut into sixteen 4 KiB pages, for map pages.
//!
//! Which pages are used is never on disk: the page table says it, and at open every page it names is marked here.

use std::collections::{BTreeMap, BTreeSet};

use super::place::{CLASS_CLUSTER, CLASS_PAGE, Place};
use crate::limits::{BLOCK, CLUSTER};

const PAGES: u32 = (CLUSTER / BLOCK) as u32;
const ALL: u16 = u16::MAX;
const _: () = assert!(PAGES == u16::BITS);

#[derive(Debug, Default)]
pub(super) struct PageClusters {
    /// Cluster to its pages in use; never 0.
    used: BTreeMap<Place, u16>,
    /// Clusters with a page to give.
    open: BTreeSet<Place>,
}

/// The cluster that holds `page`, and which of its pages that is. Clusters are aligned to their size on the device.
fn split(page: Place) -> (Place, u32) {
    assert!(page.class() == CLASS_PAGE && page.is_some(), "{page:?} is no page");
    let nth = (page.offset() % CLUSTER / BLOCK) as u32;
    (Place::new(page.device(), CLASS_CLUSTER, page.offset() / CLUSTER * CLUSTER), nth)
}

impl PageClusters {
    pub(super) fn alloc(&mut self) -> Option<Place> {
        let cluster = *self.open.first()?;
        let mask = self.used.get_mut(&cluster).expect("an open cluster has a mask");
        let nth = mask.trailing_ones();
        assert!(nth < PAGES, "an open cluster has a free page");
        *mask |= 1 << nth;
        if *mask == ALL {
            self.open.remove(&cluster);
        }
        Some(cluster.page(nth))
    }

    /// Takes a cluster over and gives its first page.
    pub(super) fn add(&mut self, cluster: Place) -> Place {
        assert!(self.used.insert(cluster, 1).is_none(), "{cluster:?} is a page cluster already");
        self.open.insert(cluster);
        cluster.page(0)
    }

    /// Marks a page that the page table names; whether its cluster is new here, `None` if the page was marked before.
    pub(super) fn mark(&mut self, page: Place) -> Option<(Place, bool)> {
        let (cluster, nth) = split(page);
        let mask = self.used.entry(cluster).or_insert(0);
        let new = *mask == 0;
        if *mask & 1 << nth != 0 {
            return None;
        }
        *mask |= 1 << nth;
        if *mask == ALL {
            self.open.remove(&cluster);
        } else {
            self.open.insert(cluster);
        }
        Some((cluster, new))
    }

    /// The cluster of `page`, and whether the page is not in use.
    pub(super) fn looks_free(&self, page: Place) -> (Place, bool) {
        let (cluster, nth) = split(page);
        (cluster, self.used.get(&cluster).is_none_or(|mask| mask & 1 << nth == 0))
    }

    /// Gives a page back; returns the cluster if that was its last.
    pub(super) fn free(&mut self, page: Place) -> Option<Place> {
        let (cluster, nth) = split(page);
        let mask = self.used.get_mut(&cluster).expect("a page in use lies in a page cluster");
        assert!(*mask & 1 << nth != 0, "page {page:?} was free already");
        *mask &= !(1 << nth);
        if *mask == 0 {
            self.used.remove(&cluster);
            self.open.remove(&cluster);
            return Some(cluster);
        }
        self.open.insert(cluster);
        None
    }

    pub(super) fn contains_cluster(&self, cluster: Place) -> bool {
        self.used.contains_key(&cluster)
    }

    pub(super) fn clusters(&self) -> impl Iterator<Item = Place> {
        self.used.keys().copied()
    }

    pub(super) fn cluster_count(&self) -> usize {
        self.used.len()
    }

    pub(super) fn pages_in_use(&self) -> u64 {
        self.used.values().map(|mask| u64::from(mask.count_ones())).sum()
    }
}
