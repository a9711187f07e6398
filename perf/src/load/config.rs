//! What a load run does: read off the command line, a TOML file or a test, checked before anything is touched.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;
use std::time::Duration;

use ringway_core::host::Target;
use ringway_core::limits::REQUEST_BYTES_MAX;
use serde::{Deserialize, Serialize};

use super::oracle::Promise;

/// The order of offsets.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pattern {
    /// Ascending, wrapping at the end of the region.
    Sequential,
    /// Ascending, every so many blocks: one small write in each cluster, say.
    Stride(u64),
    /// Uniform.
    Random,
    /// Zipf with this exponent (0.5 to 2 are usual); the hot blocks are scattered over the region.
    Zipf(f64),
}

impl std::str::FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "seq" | "sequential" => Ok(Pattern::Sequential),
            "rand" | "random" => Ok(Pattern::Random),
            "zipf" => Ok(Pattern::Zipf(1.1)),
            _ if text.starts_with("stride:") => match text["stride:".len()..].parse() {
                Ok(blocks) if blocks > 0 => Ok(Pattern::Stride(blocks)),
                _ => Err(format!("stride in {text:?} is not a number of blocks")),
            },
            _ => match text.strip_prefix("zipf:").map(str::parse::<f64>) {
                Some(Ok(theta)) if theta > 0.0 && theta.is_finite() => Ok(Pattern::Zipf(theta)),
                _ => Err(format!("pattern {text:?} is not one of seq, stride:BLOCKS, rand, zipf, zipf:EXPONENT")),
            },
        }
    }
}

/// Relative weights of the operations.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mix {
    /// Reads.
    pub read: u32,
    /// Writes.
    pub write: u32,
    /// Writes that are on stable storage when they complete.
    pub write_fua: u32,
    /// Deallocate: the blocks then read as zeros.
    pub trim: u32,
    /// Write zeroes.
    pub zeroes: u32,
    /// Flushes.
    pub flush: u32,
}

impl Mix {
    /// Nothing but reads.
    pub const READ: Mix = Mix { read: 1, write: 0, write_fua: 0, trim: 0, zeroes: 0, flush: 0 };
    /// Nothing but writes.
    pub const WRITE: Mix = Mix { read: 0, write: 1, write_fua: 0, trim: 0, zeroes: 0, flush: 0 };

    /// The sum of the weights.
    #[must_use]
    pub fn total(&self) -> u32 {
        self.read + self.write + self.write_fua + self.trim + self.zeroes + self.flush
    }

    /// Whether anything but reads is asked for.
    #[must_use]
    pub fn changes_data(&self) -> bool {
        self.write + self.write_fua + self.trim + self.zeroes > 0
    }
}

/// `read=70,write=29,flush=1`; a name alone weighs 1.
impl std::str::FromStr for Mix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut mix = Mix::default();
        for part in text.split(',') {
            let (name, weight) = part.split_once('=').unwrap_or((part, "1"));
            let weight = weight.parse::<u32>().ok().filter(|&w| w <= 1_000_000);
            let weight = weight.ok_or_else(|| format!("weight in {part:?} is not a number up to 1000000"))?;
            let field = match name.trim() {
                "read" => &mut mix.read,
                "write" => &mut mix.write,
                "fua" => &mut mix.write_fua,
                "trim" => &mut mix.trim,
                "zeroes" => &mut mix.zeroes,
                "flush" => &mut mix.flush,
                other => {
                    return Err(format!("operation {other:?} is not one of read, write, fua, trim, zeroes, flush"));
                }
            };
            *field = weight;
        }
        if mix.total() == 0 {
            return Err(format!("mix {text:?} asks for no operation"));
        }
        Ok(mix)
    }
}

/// When a run ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// After this time.
    Time(Duration),
    /// After this many operations.
    Operations(u64),
}

/// What to check.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verify {
    /// Stamp what is written and check what is read.
    pub enabled: bool,
    /// Keep the promises in this file, so that they outlive a kill of the generator; with [`Verify::resume`] go on from it.
    pub oracle: Option<PathBuf>,
    /// Take the promises of an earlier run from [`Verify::oracle`] instead of starting anew.
    pub resume: bool,
    /// The region held nothing but zeros: then anything else before the first write is a fault too.
    pub fresh: bool,
    /// Read the whole region after the load.
    pub sweep: Option<Promise>,
}

/// One run of the load generator.
#[derive(Clone, Debug)]
pub struct LoadConfig {
    /// What to load.
    pub target: Target,
    /// `shm.sock` of the target of this machine, for `shm:` targets.
    pub shm_socket: Option<PathBuf>,
    /// How offsets follow each other.
    pub pattern: Pattern,
    /// What is done.
    pub mix: Mix,
    /// Bytes of one operation.
    pub block_bytes: u32,
    /// Operations in flight.
    pub depth: u32,
    /// I/O queues (connections).
    pub queues: u16,
    /// When to stop; `None` only sweeps ([`Verify::sweep`]).
    pub limit: Option<Limit>,
    /// Operations a second at most.
    pub rate: Option<u64>,
    /// First byte of the region.
    pub region_start: u64,
    /// Bytes of the region; `None` is up to the volume's end.
    pub region_bytes: Option<u64>,
    /// Seed of offsets and operations; a fresh one where `None`, and in the report either way.
    pub seed: Option<u64>,
    /// What to check.
    pub verify: Verify,
    /// Spin instead of sleeping: lower latency, a whole core.
    pub polling: bool,
    /// Run on this core.
    pub core: Option<usize>,
    /// Header digests on the wire.
    pub header_digest: bool,
    /// Data digests on the wire.
    pub data_digest: bool,
    /// Who we are to the target; `None` makes one up for this run.
    pub host_nqn: Option<String>,
    /// The target's process, for its CPU time; 0 while unknown. Shared, since a restarted target has another one.
    pub target_pid: Arc<AtomicU32>,
    /// For how long to try to reconnect before the run fails.
    pub reconnect_for: Duration,
    /// After this long without an answer the connection is given up and made anew.
    pub command_timeout: Duration,
}

impl LoadConfig {
    /// 4 KiB random reads at depth 32 for ten seconds.
    #[must_use]
    pub fn new(target: Target) -> Self {
        Self {
            target,
            shm_socket: None,
            pattern: Pattern::Random,
            mix: Mix::READ,
            block_bytes: 4096,
            depth: 32,
            queues: 1,
            limit: Some(Limit::Time(Duration::from_secs(10))),
            rate: None,
            region_start: 0,
            region_bytes: None,
            seed: None,
            verify: Verify::default(),
            polling: false,
            core: None,
            header_digest: false,
            data_digest: false,
            host_nqn: None,
            target_pid: Arc::default(),
            reconnect_for: Duration::from_secs(60),
            command_timeout: Duration::from_secs(30),
        }
    }

    /// Bytes of a verified unit.
    #[must_use]
    pub fn unit_bytes(&self) -> u32 {
        if self.block_bytes.is_multiple_of(4096) { 4096 } else { 512 }
    }

    /// What is wrong with it, before anything is touched.
    pub fn check(&self) -> Result<(), String> {
        let block = self.block_bytes;
        if block == 0 || !block.is_multiple_of(512) || block > REQUEST_BYTES_MAX {
            return Err(format!("block size {block} is not a multiple of 512 up to {REQUEST_BYTES_MAX}"));
        }
        if self.depth == 0 || self.depth > 4096 {
            return Err(format!("depth {} is not within 1 to 4096", self.depth));
        }
        if self.queues == 0 || self.queues > 64 || u32::from(self.queues) > self.depth {
            return Err(format!("{} queues are not within 1 to 64 and the depth of {}", self.queues, self.depth));
        }
        if self.mix.total() == 0 && self.limit.is_some() {
            return Err("the mix asks for no operation".into());
        }
        if !self.region_start.is_multiple_of(u64::from(block)) {
            return Err(format!("region start {} is not a multiple of the block size {block}", self.region_start));
        }
        if self.limit.is_none() && (!self.verify.enabled || self.verify.sweep.is_none()) {
            return Err("a run without a limit only verifies, and verification is off".into());
        }
        if self.verify.enabled && self.mix.trim > 0 && self.unit_bytes() != 4096 {
            return Err(format!(
                "trims of {block} bytes cannot be verified: only whole 4096-byte blocks read as zeros"
            ));
        }
        if self.verify.resume && self.verify.oracle.is_none() {
            return Err("going on from an earlier run needs its oracle file".into());
        }
        if self.rate == Some(0) {
            return Err("a rate of 0 operations a second never ends".into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixes_and_patterns_are_read_or_say_what_would_be_right() {
        let mix: Mix = "read=70,write=29,flush".parse().unwrap();
        assert_eq!((mix.read, mix.write, mix.flush, mix.total()), (70, 29, 1, 100));
        assert!("read=70,erase".parse::<Mix>().unwrap_err().contains("one of read, write"));
        assert!("read=x".parse::<Mix>().unwrap_err().contains("not a number"));
        assert!("read=0".parse::<Mix>().unwrap_err().contains("no operation"));
        assert_eq!("zipf:0.9".parse(), Ok(Pattern::Zipf(0.9)));
        assert_eq!("stride:16".parse(), Ok(Pattern::Stride(16)));
        assert!("stride:0".parse::<Pattern>().unwrap_err().contains("not a number of blocks"));
        assert!("zipf:-1".parse::<Pattern>().unwrap_err().contains("one of seq"));
    }

    #[test]
    fn what_cannot_be_done_is_refused_before_anything_is_touched() {
        let good = LoadConfig::new(Target::parse("v").unwrap());
        assert_eq!(good.check(), Ok(()));
        let refused = |change: fn(&mut LoadConfig)| {
            let mut config = good.clone();
            change(&mut config);
            config.check().unwrap_err()
        };
        assert!(refused(|c| c.block_bytes = 1000).contains("block size 1000"));
        assert!(refused(|c| c.depth = 0).contains("depth 0"));
        assert!(refused(|c| c.queues = 33).contains("33 queues"));
        assert!(refused(|c| c.region_start = 512).contains("region start 512"));
        assert!(refused(|c| c.limit = None).contains("verification is off"));
        assert!(refused(|c| c.rate = Some(0)).contains("rate"));
        assert!(refused(|c| c.verify.resume = true).contains("oracle file"));
    }
}
