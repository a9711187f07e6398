//! What to do next so that a cluster has no more versions than its views need.
//!
//! A version that no view needs goes. Two neighbours that the same views see become one: the blocks of the one that has fewer to
//! move are copied to the place of the other. Each step leaves every view as it is, and so does a crash after each of its
//! records; doing a step again does nothing.
//!
//! The cluster must be at rest: no write to it on its way.

use super::states::{BlockState, BlockStates};
use super::version::Version;
use super::views::Views;

/// The next step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tidy {
    /// Nothing is left to do.
    Clean,
    /// No view needs this version.
    Drop(Version),
    /// Copy `blocks` from the place of `gone` to that of `kept`, the same blocks of the cluster; then `kept` is as said here, and
    /// `gone` goes. Without blocks there is nothing to copy.
    Merge {
        /// As it is afterwards.
        kept: Version,
        /// As it is now.
        gone: Version,
        /// Bits 0 to 15.
        blocks: u16,
    },
}

/// The next step for a cluster whose versions are `chain`, newest first.
#[must_use]
pub fn tidy(chain: &[Version], views: &Views) -> Tidy {
    let needs = views.needs(chain);
    // Newest first: zeros are needed as long as something under them is there to be hidden, so what is below goes before them.
    let unneeded = chain.iter().zip(&needs.versions).rev().find(|(_, need)| need.blocks == 0);
    if let Some((&version, _)) = unneeded {
        return Tidy::Drop(version);
    }
    for pair in chain.windows(2) {
        let (newer, older) = (pair[0], pair[1]);
        if views.seeing(newer.birth) == views.seeing(older.birth) {
            return merge(newer, older);
        }
    }
    Tidy::Clean
}

/// One version of two that the same views see.
fn merge(newer: Version, older: Version) -> Tidy {
    let fallen_through = newer.states.blocks(BlockState::Absent);
    let (old_data, old_zero) = (older.states.blocks(BlockState::Data), older.states.blocks(BlockState::Zero));
    let down = newer.states.blocks(BlockState::Data);
    let up = old_data & fallen_through;
    let states = newer.states.with_bits(up, BlockState::Data).with_bits(old_zero & fallen_through, BlockState::Zero);
    let to_newer = if newer.place.is_some() || up == 0 { up.count_ones() } else { u32::MAX };
    let to_older = if older.place.is_some() || down == 0 { down.count_ones() } else { u32::MAX };
    if to_newer <= to_older {
        Tidy::Merge { kept: Version { states, ..newer }, gone: older, blocks: up }
    } else {
        Tidy::Merge { kept: Version { states, ..older }, gone: newer, blocks: down }
    }
}

/// The version full: blocks in `copied` are data, all others that it left open are zeros.
#[must_use]
pub fn filled(version: Version, copied: u16) -> Version {
    let open = version.states.blocks(BlockState::Absent);
    let states: BlockStates =
        version.states.with_bits(open & copied, BlockState::Data).with_bits(open & !copied, BlockState::Zero);
    Version { states, ..version }
}

#[cfg(test)]
#[path = "tidy_tests.rs"]
mod tests;
