//! Writes while snapshots are made, and after one.

use std::ops::ControlFlow;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use super::super::{Bar, Failed, Goal, Options, Side};
use super::{Place, meanwhile, random_writes, window};
use crate::cpu;
use crate::load::{LoadReport, Silent, Snapshot};

/// Snapshots of a run with one a second that are kept; older ones go, as those of a schedule do.
pub(super) const KEPT: u64 = 6;

pub(in crate::bars) fn run(options: &Options) -> Result<Vec<Bar>, Failed> {
    let place = Place::on_disk(options, options.file_bytes / 8 * 11 + (512 << 20))?;
    let mut bars = beside_none(options, &place)?;
    bars.push(before_and_after(options, &place)?);
    place.stop()?;
    // For scale alone; QEMU 7.2's daemon does not outlive an internal snapshot under an export, and ours are worth showing then too.
    match super::qcow2::beside_none(options, options.file_bytes / 8) {
        Ok(bar) => bars.push(bar),
        Err(error) => eprintln!("left out, qcow2's internal snapshots: {error}"),
    }
    Ok(bars)
}

/// A snapshot every second beside none: operations a second, and how long the slowest thousandth takes at least.
fn beside_none(options: &Options, place: &Place) -> Result<Vec<Bar>, Failed> {
    // Each kept snapshot holds as much again: all of it is overwritten in a second or two.
    let volume = place.filled("seconds", options.file_bytes / 8)?;
    let time = window(options);
    let alone = || random_writes(options, place, &volume, time, &mut Silent);
    let cut = || {
        let each = |count: u64| {
            place.snapshot_made("seconds", &format!("s{count}"))?;
            count.checked_sub(KEPT).map_or(Ok(()), |old| place.remove_snapshot("seconds", &format!("s{old}")))
        };
        let report = meanwhile(options, Duration::from_secs(1), each, alone)?;
        for info in place.control.call("GET", "/v1/snapshots", None)?.body.as_array().into_iter().flatten() {
            let name =
                info["name"].as_str().and_then(|name| name.split_once('@')).ok_or("a snapshot without a name")?;
            place.remove_snapshot(name.0, name.1)?;
        }
        place.settle()?;
        Ok::<LoadReport, Failed>(report)
    };
    // Not measured: what the first writes of all do to caches and to the file system.
    alone()?;
    let steal = cpu::steal();
    let (mut ours, mut peer) = (Vec::new(), Vec::new());
    for pair in 0..options.pairs {
        if pair % 2 == 0 {
            ours.push(cut()?);
            peer.push(alone()?);
        } else {
            peer.push(alone()?);
            ours.push(cut()?);
        }
    }
    let steal_percent = cpu::steal_percent(steal, cpu::steal());
    place.remove_volume("seconds")?;
    let sides = |reports: &[LoadReport]| reports.iter().map(Side::from).collect::<Vec<_>>();
    let slow = |reports: &[LoadReport]| {
        let side = |report: &LoadReport| Side { figure: report.operations[0].latency.p999_us, ..Side::default() };
        reports.iter().map(side).collect::<Vec<_>>()
    };
    let name = "4 KiB random writes, a snapshot every second, beside none";
    let rate = Bar::beside(name.into(), Some(Goal::AtLeast(0.95)), &sides(&ours), &sides(&peer));
    let tail = Bar::beside(format!("{name}: p99.9"), Some(Goal::AtMost(1.1)), &slow(&ours), &slow(&peer));
    Ok(vec![Bar { steal_percent, ..rate }, Bar { steal_percent, unit: "us", ..tail }])
}

/// The same writes go on over a snapshot: what is done in the window after it beside what was done in the one before.
fn before_and_after(options: &Options, place: &Place) -> Result<Bar, Failed> {
    let volume = place.filled("after", options.file_bytes / 2)?;
    let time = window(options);
    random_writes(options, place, &volume, options.time, &mut Silent)?;
    let steal = cpu::steal();
    let (mut after, mut before) = (Vec::new(), Vec::new());
    for _ in 0..options.pairs {
        let (tell, told) = channel::<()>();
        let (mut at_cut, mut told_at) = (0, Duration::ZERO);
        let report = thread::scope(|scope| {
            let commander = scope.spawn(move || -> Result<(), Failed> {
                cpu::pin(options.client_core)?;
                // An error: the load has failed, and says why.
                if told.recv().is_ok() {
                    place.snapshot_made("after", "s")?;
                }
                Ok(())
            });
            let mut halfway = |now: &Snapshot| {
                if at_cut == 0 && now.elapsed >= time {
                    (at_cut, told_at) = (now.operations, now.elapsed);
                    // Who waits for it has failed otherwise, which shows when it is joined.
                    let _ = tell.send(());
                }
                ControlFlow::Continue(())
            };
            let report = random_writes(options, place, &volume, time * 2, &mut halfway)?;
            drop(tell);
            commander.join().map_err(|_| "the thread that commands panicked")??;
            Ok::<_, Failed>(report)
        })?;
        if at_cut == 0 {
            return Err("the load ended before its snapshot".into());
        }
        let rate = |operations: u64, time: Duration| operations as f64 / time.as_secs_f64();
        let side = |figure| Side { figure, client_cpu_ns: Some(report.client_cpu_ns), ..Side::default() };
        before.push(side(rate(at_cut, told_at)));
        after.push(side(rate(report.total() - at_cut, report.elapsed - told_at)));
        place.remove_snapshot("after", "s")?;
        place.settle()?;
    }
    let steal_percent = cpu::steal_percent(steal, cpu::steal());
    place.remove_volume("after")?;
    let name = format!("4 KiB random overwrites, {:.0} s after a snapshot beside before", time.as_secs_f64());
    Ok(Bar { steal_percent, ..Bar::beside(name, Some(Goal::AtLeast(0.9)), &after, &before) })
}
