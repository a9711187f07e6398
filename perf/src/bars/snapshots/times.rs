//! How long a snapshot takes, step by step, and how late a missed deadline is answered.

use std::sync::Mutex;
use std::time::Duration;

use serde_json::{Value, json};

use super::super::{Bar, Failed, Goal, Options, Side, median};
use super::{DEPTH, Place, meanwhile, quantile, random_writes, run_clean, window};
use crate::cpu;
use crate::load::{Limit, LoadConfig, Mix, Pattern, Silent};

/// Of the volume that is cut.
const VOLUME_BYTES: u64 = 512 << 20;
/// Clusters that change before each snapshot that is stored in a backend.
const CHANGED: u64 = 1000;
/// Blocks of 4 KiB in a cluster.
const BLOCKS_PER_CLUSTER: u64 = 16;
/// Between two commands.
const PERIOD: Duration = Duration::from_millis(20);
/// Deadlines that are missed in each run, at the least.
const MISSES_MIN: usize = 20;

pub(in crate::bars) fn run(options: &Options) -> Result<Vec<Bar>, Failed> {
    let place = Place::on_disk(options, 4 << 30)?;
    let mut bars = to_cut(options, &place)?;
    bars.extend(missed(options, &place)?);
    bars.extend(to_synced(options, &place)?);
    place.stop()?;
    Ok(bars)
}

/// A step of a snapshot's making, as the target says; milliseconds.
fn step_ms(info: &Value, step: &str) -> Result<f64, Failed> {
    let us = info["times"][step].as_u64().ok_or_else(|| format!("the snapshot does not say its {step}: {info}"))?;
    Ok(us as f64 / 1000.0)
}

/// The two ends of what was measured, each held to the same bound if there is one.
fn both_ends(name: &str, figures: &[f64], bound: Option<f64>, steal_percent: Option<f64>) -> Vec<Bar> {
    let bar = |(quantile_name, of): (&str, f64)| Bar {
        name: format!("{name}, {quantile_name}"),
        unit: "ms",
        ours: quantile(figures, of),
        peer: None,
        ratio: None,
        goal: bound.map(Goal::AtMost),
        client_cpu_ns: None,
        target_cpu_ns: None,
        peer_cpu_ns: None,
        samples: figures.iter().map(|&figure| (figure, None)).collect(),
        steal_percent,
    };
    [("p50", 0.5), ("p99", 0.99)].map(bar).into()
}

/// From the command to the cut, and to the answer, while a client writes as fast as it can.
fn to_cut(options: &Options, place: &Place) -> Result<Vec<Bar>, Failed> {
    let volume = place.filled("cut", VOLUME_BYTES)?;
    let figures = Mutex::new((Vec::new(), Vec::new()));
    let steal = cpu::steal();
    let each = |_| {
        let (info, took) = place.snapshot_made("cut", "s")?;
        let mut figures = figures.lock().expect("nobody panics with it");
        figures.0.push(step_ms(&info, "cut_us")?);
        figures.1.push(took.as_secs_f64() * 1000.0);
        place.remove_snapshot("cut", "s")
    };
    let time = window(options);
    meanwhile(options, PERIOD, each, || random_writes(options, place, &volume, time, &mut Silent))?;
    let steal_percent = cpu::steal_percent(steal, cpu::steal());
    place.remove_volume("cut")?;
    let (cut, answer) = figures.into_inner().expect("nobody panicked with it");
    let mut bars = both_ends("snapshot under writes, command to cut", &cut, Some(1.0), steal_percent);
    bars.extend(both_ends("snapshot under writes, command to answer, no backend", &answer, None, steal_percent));
    Ok(bars)
}

/// Deadlines too short to be met: how late their answers are, and what that does to writes.
fn missed(options: &Options, place: &Place) -> Result<Vec<Bar>, Failed> {
    let volume = place.filled("late", VOLUME_BYTES)?;
    let late = Mutex::new(Vec::new());
    // As short as it has to be for this machine.
    let timeout_ms = Mutex::new(1.0_f64);
    let each = |_| {
        let mut timeout_ms = timeout_ms.lock().expect("nobody panics with it");
        let answer = place.snapshot("late", "s", *timeout_ms)?;
        match answer.status {
            504 => {
                late.lock().expect("nobody panics with it").push(answer.took.as_secs_f64() * 1000.0 - *timeout_ms);
                Ok(())
            }
            201 => {
                *timeout_ms *= 0.9;
                place.remove_snapshot("late", "s")
            }
            status => Err(format!("a snapshot ended with {status} {}", answer.body).into()),
        }
    };
    let time = window(options);
    let alone = || random_writes(options, place, &volume, time, &mut Silent);
    alone()?;
    let steal = cpu::steal();
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    let side = |us: f64| Side { figure: us, ..Side::default() };
    for pair in 0..options.pairs {
        for turn in 0..2 {
            if (pair + turn) % 2 == 0 {
                ours.push(side(meanwhile(options, PERIOD, each, alone)?.operations[0].latency.p999_us));
            } else {
                peer.push(side(alone()?.operations[0].latency.p999_us));
            }
        }
    }
    let steal_percent = cpu::steal_percent(steal, cpu::steal());
    place.remove_volume("late")?;
    let late = late.into_inner().expect("nobody panicked with it");
    if late.len() < MISSES_MIN {
        return Err(format!("only {} deadlines were missed; the run is too short to tell", late.len()).into());
    }
    let mut bars = both_ends("missed deadline to answer, under writes", &late, Some(1.0), steal_percent);
    let name = format!("4 KiB random writes at depth {DEPTH}, 50 missed deadlines a second beside none: p99.9");
    let tail = Bar::beside(name, Some(Goal::AtMost(1.1)), &ours, &peer);
    bars.push(Bar { unit: "us", steal_percent, ..tail });
    Ok(bars)
}

/// From the cut to where the snapshot exists, stored in a backend of files that has nothing else to do.
fn to_synced(options: &Options, place: &Place) -> Result<Vec<Bar>, Failed> {
    let folder = tempfile::tempdir_in(&options.dir)?;
    let url = format!("file://{}", folder.path().display());
    place.control.call("PUT", "/v1/backend", Some(&json!({"settings": {"url": url}})))?;
    let volume = place.filled("stored", VOLUME_BYTES)?;
    // The first one stores everything.
    place.snapshot_made("stored", "s0")?;
    let mut config = LoadConfig::new(volume);
    (config.mix, config.pattern) = (Mix::WRITE, Pattern::Stride(BLOCKS_PER_CLUSTER));
    config.limit = Some(Limit::Operations(CHANGED));
    let steal = cpu::steal();
    let mut figures = Vec::new();
    let mut sealed = Vec::new();
    for sample in 1..=4 * options.pairs {
        run_clean(&config, &mut Silent)?;
        let (info, _) = place.snapshot_made("stored", &format!("s{sample}"))?;
        let steps = ["sealed_us", "synced_us", "committed_us"].map(|step| step_ms(&info, step));
        let [seal, sync, commit] = steps;
        let (seal, sync, commit) = (seal?, sync?, commit?);
        sealed.push(seal);
        figures.push(seal + sync + commit);
        place.remove_snapshot("stored", &format!("s{}", sample - 1))?;
    }
    let steal_percent = cpu::steal_percent(steal, cpu::steal());
    let name = format!("cut to synced, {CHANGED} changed clusters, idle backend of files");
    let mut bars = both_ends(&name, &figures, Some(50.0), steal_percent);
    let of_it = format!("of it until every shard had sealed, median {:.1} ms", median(sealed.clone()));
    bars.extend(both_ends(&of_it, &sealed, None, steal_percent).into_iter().take(1));
    Ok(bars)
}
