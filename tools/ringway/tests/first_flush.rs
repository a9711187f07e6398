//! The machine that dies under a host which lives (history C3): the host believes in writes that may be gone, and is told.

mod common;
mod volume;

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;

use common::Place;
use ringway_core::host::Outcome;
use volume::Volume;

/// Removes the processes' logs, as a restart of the machine does with its memory; how many there were.
fn forget_logs(folder: &Path) -> usize {
    let Ok(entries) = fs::read_dir(folder) else { return 0 };
    let logs: Vec<_> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "crashlog"))
        .collect();
    logs.iter().for_each(|log| fs::remove_file(log).unwrap());
    logs.len()
}

fn is_write_fault(outcome: Outcome) -> bool {
    matches!(outcome, Outcome::Failed(status) if status.to_string().contains("WRITE_FAULT"))
}

#[test]
fn c3_after_the_machine_has_failed_the_first_flushes_of_an_attached_volume_fail_and_all_goes_on() {
    let place = Place::new();
    let daemon = place.serve(&["--pool-size", "256MiB"]);
    let listen = daemon.listener();
    for name in ["vm1", "idle"] {
        place.run(&["volume", "create", name, "16MiB", "--json"]).json();
    }
    let mut vm1 = Volume::attach(&listen, "vm1");
    assert_eq!(vm1.write(0, &[1; 4096]), Outcome::Success);
    assert_eq!(vm1.flush(), Outcome::Success);
    // Acknowledged, and covered by nothing.
    assert_eq!(vm1.write(8192, &[2; 4096]), Outcome::Success);

    // The process alone dies: nothing is lost, and nobody is told anything.
    daemon.kill();
    let daemon = place.serve(&["--listen", &listen]);
    assert_eq!(vm1.flush(), Outcome::Success);
    assert_eq!(vm1.read(8192, 4096), vec![2; 4096]);

    // Attached, and killed in the very next moment: it is on record by the time that the host is answered.
    let mut late = Volume::attach(&listen, "idle");
    daemon.kill();
    let logs = forget_logs(&place.path("run")) + forget_logs(&place.pool());
    assert!(logs > 0, "there are logs to lose");
    let daemon = place.serve(&["--listen", &listen, "--lost-writes-notice-ms", "300"]);
    for volume in [&mut vm1, &mut late] {
        assert_eq!(volume.write(4096, &[3; 4096]), Outcome::Success);
        let first = volume.flush();
        assert!(is_write_fault(first), "{first:?}");
        thread::sleep(Duration::from_millis(300));
        assert_eq!(volume.flush(), Outcome::Success);
        assert_eq!(volume.read(4096, 4096), vec![3; 4096]);
    }
    assert_eq!(vm1.read(0, 4096), vec![1; 4096], "what was flushed is there");
    drop((vm1, late));
    assert_eq!(daemon.stop().code, Some(0));

    // Closed in good order: a log that is gone means nothing.
    forget_logs(&place.path("run"));
    let daemon = place.serve(&["--listen", &listen]);
    let mut vm1 = Volume::attach(&listen, "vm1");
    assert_eq!(vm1.flush(), Outcome::Success);

    // Whoever does not want to be told says so.
    daemon.kill();
    forget_logs(&place.path("run"));
    let _daemon = place.serve(&["--listen", &listen, "--lost-writes-notice-ms", "0"]);
    assert_eq!(vm1.flush(), Outcome::Success);
}
