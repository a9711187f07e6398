//! Which part of the volume a run touches, and its oracle.

use ringway_core::host::Namespace;

use super::LoadError;
use super::config::LoadConfig;
use super::oracle::{Identity, Oracle};

/// Blocks of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Region {
    /// First byte.
    pub(super) start: u64,
    /// Operations' blocks.
    pub(super) blocks: u64,
    /// Verified units of a block.
    pub(super) units_per_block: u64,
}

impl Region {
    /// The region that `config` asks for, inside the volume.
    pub(super) fn of(config: &LoadConfig, namespace: &Namespace) -> Result<Self, LoadError> {
        let bad = |why: String| Err(LoadError::Config(why));
        let block = u64::from(config.block_bytes);
        if !config.block_bytes.is_multiple_of(namespace.lba_bytes) {
            return bad(format!(
                "block size {block} is not a multiple of the volume's logical block, {}",
                namespace.lba_bytes
            ));
        }
        if config.block_bytes > namespace.request_bytes_max {
            return bad(format!("block size {block} is over what the target takes, {}", namespace.request_bytes_max));
        }
        let left = namespace.size.saturating_sub(config.region_start);
        let bytes = config.region_bytes.unwrap_or(left);
        if bytes > left {
            let (start, size) = (config.region_start, namespace.size);
            return bad(format!("a region of {bytes} bytes from {start} on ends beyond the volume of {size} bytes"));
        }
        if bytes < block {
            return bad(format!("a region of {bytes} bytes holds no block of {block}"));
        }
        let units_per_block = block / u64::from(config.unit_bytes());
        Ok(Self { start: config.region_start, blocks: bytes / block, units_per_block })
    }

    /// The oracle of a verified run: new, or what an earlier run left.
    pub(super) fn oracle(
        &self,
        config: &LoadConfig,
        namespace: &Namespace,
        seed: u64,
    ) -> Result<Option<Oracle>, LoadError> {
        if !config.verify.enabled {
            return Ok(None);
        }
        let identity = Identity {
            volume: namespace.uuid,
            writer: seed ^ std::time::UNIX_EPOCH.elapsed().map_or(0, |t| t.as_nanos() as u64),
            start: self.start,
            unit_bytes: config.unit_bytes(),
            units: self.blocks * self.units_per_block,
            fresh: config.verify.fresh,
        };
        if identity.units > u64::from(u32::MAX) {
            return Err(LoadError::Config(format!(
                "{} units cannot be verified; choose a smaller region",
                identity.units
            )));
        }
        let oracle = match &config.verify.oracle {
            None => Oracle::in_memory(identity),
            Some(path) if config.verify.resume => {
                let oracle = Oracle::open(path)?;
                let found = *oracle.identity();
                if (found.volume, found.start, found.unit_bytes, found.units)
                    != (identity.volume, identity.start, identity.unit_bytes, identity.units)
                {
                    return Err(LoadError::Config(format!(
                        "{} is about {} units of {} bytes from {} of volume {}; this run is about {} of {} from {} of {}",
                        path.display(),
                        found.units,
                        found.unit_bytes,
                        found.start,
                        found.volume,
                        identity.units,
                        identity.unit_bytes,
                        identity.start,
                        identity.volume
                    )));
                }
                oracle
            }
            Some(path) => Oracle::create(path, identity)
                .map_err(|error| LoadError::Config(format!("oracle file {}: {error}", path.display())))?,
        };
        Ok(Some(oracle))
    }
}
