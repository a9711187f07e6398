//! Reads of a clone beside reads of a plain volume: over one snapshot and over a chain of them, before and after it was populated.

use ringway_core::host::Target;

use super::super::{Bar, Failed, Goal, Options, Side, interleave, polled_load};
use super::{DEPTH, Place, run_clean};
use crate::load::{Limit, LoadConfig, Mix, Silent};

/// Of each volume.
const VOLUME_BYTES: u64 = 256 << 20;
/// Blocks that each clone of a chain has of its own: a thirty-second of all.
const OWN_BLOCKS: u64 = VOLUME_BYTES / 4096 / 32;
/// Snapshots below a clone.
const CHAINS: [u32; 2] = [1, 16];

pub(in crate::bars) fn run(options: &Options) -> Result<Vec<Bar>, Failed> {
    // In memory: a device would be the bound of both, and nothing would show.
    let place = Place::start(options, "mem:3GiB", &[])?;
    let plain = place.filled("plain", VOLUME_BYTES)?;
    let mut bars = Vec::new();
    for chain in CHAINS {
        let (name, clone) = cloned(&place, chain)?;
        let beside = |what: &str, goal: Option<Goal>| {
            interleave(
                format!("4 KiB random reads of a clone of depth {chain}, {what}, beside a plain volume"),
                goal,
                options.pairs,
                || Ok(Side::from(&polled_load(options, &clone, DEPTH, Mix::READ, place.target.pid())?)),
                || Ok(Side::from(&polled_load(options, &plain, DEPTH, Mix::READ, place.target.pid())?)),
            )
        };
        bars.push(beside("not populated", None)?);
        place.target.command(&["stream", "start", &name, "--follow"])?;
        place.settle()?;
        bars.push(beside("populated", Some(Goal::AtLeast(0.95)))?);
    }
    place.stop()?;
    Ok(bars)
}

/// A clone over so many snapshots, of which each clone below wrote some blocks of its own.
fn cloned(place: &Place, chain: u32) -> Result<(String, Target), Failed> {
    let mut below = format!("base{chain}");
    place.filled(&below, VOLUME_BYTES)?;
    for depth in 1..=chain {
        place.snapshot_made(&below, "s")?;
        let name = format!("clone{chain}-{depth}");
        let body = serde_json::json!({"snapshot": format!("{below}@s"), "name": name});
        place.control.call("POST", "/v1/clones", Some(&body))?;
        let mut config = LoadConfig::new(place.target.volume(&name)?);
        (config.mix, config.limit) = (Mix::WRITE, Some(Limit::Operations(OWN_BLOCKS)));
        run_clean(&config, &mut Silent)?;
        below = name;
    }
    let target = place.target.volume(&below)?;
    Ok((below, target))
}
