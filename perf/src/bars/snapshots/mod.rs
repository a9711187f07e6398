//! What snapshots cost those who write meanwhile, how long they take, and what reading a clone costs.

mod clones;
mod overwrites;
mod qcow2;
mod times;

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use ringway_core::host::Target;
use serde_json::{Value, json};
use tempfile::TempDir;

pub(super) use self::clones::run as run_clones;
pub(super) use self::overwrites::run as run_overwrites;
pub(super) use self::times::run as run_times;
use super::control::{Answer, Control};
use super::target::TargetProcess;
use super::{Failed, Options};
use crate::cpu;
use crate::load::{self, Limit, LoadConfig, LoadReport, Mix, Pattern, Progress, Silent};

/// Writes in flight while snapshots are made.
const DEPTH: u32 = 32;
/// A fill goes in requests of this size.
const FILL_BYTES: u32 = 256 << 10;
/// What a removed snapshot held is free again within this time, or something is wrong.
const SETTLED_WITHIN: Duration = Duration::from_secs(120);

/// A target that is measured, and the way to command it.
struct Place {
    target: TargetProcess,
    control: Control,
    /// With the pool in it, where that is a folder; gone with it.
    folder: Option<TempDir>,
}

impl Place {
    /// On a pool of so many bytes in the folder that is measured.
    fn on_disk(options: &Options, bytes: u64) -> Result<Place, Failed> {
        let folder = tempfile::tempdir_in(&options.dir)?;
        let pool = folder.path().join("pool");
        let pool = pool.to_str().ok_or("the folder's name is not text")?;
        let place = Place::start(options, pool, &["--pool-size", &bytes.to_string()])?;
        Ok(Place { folder: Some(folder), ..place })
    }

    fn start(options: &Options, pool: &str, arguments: &[&str]) -> Result<Place, Failed> {
        let target = TargetProcess::start(options, pool, arguments)?;
        let control = Control::new(target.runtime().join("control.sock"));
        Ok(Place { target, control, folder: None })
    }

    /// A new volume, written to all over in order: what is written afterwards overwrites.
    fn filled(&self, name: &str, bytes: u64) -> Result<Target, Failed> {
        let volume = self.target.create_volume(name, &bytes.to_string())?;
        let mut config = LoadConfig::new(volume.clone());
        (config.mix, config.pattern, config.block_bytes) = (Mix::WRITE, Pattern::Sequential, FILL_BYTES);
        config.limit = Some(Limit::Operations(bytes / u64::from(FILL_BYTES)));
        run_clean(&config, &mut Silent)?;
        self.control.call("POST", "/v1/pool/sync", None)?;
        Ok(volume)
    }

    fn snapshot(&self, volume: &str, name: &str, timeout_ms: f64) -> Result<Answer, Failed> {
        let body = json!({"volumes": [volume], "name": name, "timeout_ms": timeout_ms});
        self.control.ask("POST", "/v1/snapshots", Some(&body))
    }

    /// One that has to come to be; what the target says about it.
    fn snapshot_made(&self, volume: &str, name: &str) -> Result<(Value, Duration), Failed> {
        let answer = self.snapshot(volume, name, 0.0)?;
        match answer.body.get(0) {
            Some(info) if answer.status < 300 => Ok((info.clone(), answer.took)),
            _ => Err(format!("snapshot {volume}@{name}: {} {}", answer.status, answer.body).into()),
        }
    }

    fn remove_snapshot(&self, volume: &str, name: &str) -> Result<(), Failed> {
        self.control.call("DELETE", &format!("/v1/snapshots/{volume}%40{name}"), None).map(drop)
    }

    fn remove_volume(&self, name: &str) -> Result<(), Failed> {
        self.control.call("DELETE", &format!("/v1/volumes/{name}?force=true"), None)?;
        self.settle()
    }

    fn used_bytes(&self) -> Result<u64, Failed> {
        let pool = self.control.call("GET", "/v1/pool", None)?;
        pool.body["used"].as_u64().ok_or_else(|| "the pool does not say what is used".into())
    }

    /// Waits until nothing comes back any more of what was removed.
    fn settle(&self) -> Result<(), Failed> {
        let begun = Instant::now();
        let mut before = self.used_bytes()?;
        let mut same = 0;
        while same < 5 {
            if begun.elapsed() > SETTLED_WITHIN {
                return Err(format!("space still comes back {SETTLED_WITHIN:?} after the last removal").into());
            }
            thread::sleep(Duration::from_millis(300));
            let now = self.used_bytes()?;
            same = if now == before { same + 1 } else { 0 };
            before = now;
        }
        Ok(())
    }

    fn stop(self) -> Result<(), Failed> {
        self.target.stop()?;
        self.folder.map_or(Ok(()), TempDir::close).map_err(Failed::from)
    }
}

/// The time of one side of a pair of writes: three times and a third what others take, ten seconds where nothing is said.
fn window(options: &Options) -> Duration {
    options.time.mul_f64(10.0 / 3.0)
}

fn run_clean(config: &LoadConfig, progress: &mut dyn Progress) -> Result<LoadReport, Failed> {
    let report = load::run(config, progress)?;
    if report.errors.is_empty() { Ok(report) } else { Err(format!("operations failed: {:?}", report.errors).into()) }
}

/// 4 KiB random writes by a polling client, for `time`.
fn random_writes(
    options: &Options,
    place: &Place,
    volume: &Target,
    time: Duration,
    progress: &mut dyn Progress,
) -> Result<LoadReport, Failed> {
    let mut config = LoadConfig::new(volume.clone());
    (config.mix, config.depth, config.polling) = (Mix::WRITE, DEPTH, true);
    config.core = Some(options.client_core);
    config.limit = Some(Limit::Time(time));
    config.target_pid.store(place.target.pid(), std::sync::atomic::Ordering::Relaxed);
    run_clean(&config, progress)
}

/// Does `each` until `work` has ended, at the beginning and then every `period`, on a thread that keeps off the target's core.
fn meanwhile<T>(
    options: &Options,
    period: Duration,
    mut each: impl FnMut(u64) -> Result<(), Failed> + Send,
    work: impl FnOnce() -> Result<T, Failed>,
) -> Result<T, Failed> {
    let (tell, over) = channel::<()>();
    thread::scope(|scope| {
        let commander = scope.spawn(move || -> Result<(), Failed> {
            cpu::pin(options.client_core)?;
            let begun = Instant::now();
            let mut count = 0;
            while goes_on(&over, begun + period.mul_f64(count as f64)) {
                each(count)?;
                count += 1;
            }
            Ok(())
        });
        let outcome = work();
        drop(tell);
        commander.join().map_err(|_| "the thread that commands panicked")??;
        outcome
    })
}

/// Waits until `at`; false if the work has ended meanwhile.
fn goes_on(over: &Receiver<()>, at: Instant) -> bool {
    let left = at.saturating_duration_since(Instant::now());
    matches!(over.recv_timeout(left), Err(RecvTimeoutError::Timeout))
}

/// A figure out of the middle or the end of many.
fn quantile(figures: &[f64], of: f64) -> f64 {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = (sorted.len() as f64 * of).ceil() as usize;
    sorted[at.clamp(1, sorted.len()) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quantile_is_one_of_the_figures() {
        let figures: Vec<f64> = (1..=100).map(f64::from).rev().collect();
        assert_eq!([0.0, 0.5, 0.99, 1.0].map(|of| quantile(&figures, of)), [1.0, 50.0, 99.0, 100.0]);
        assert_eq!(quantile(&[7.0], 0.99), 7.0);
    }
}
