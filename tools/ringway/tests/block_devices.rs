//! Pools on block devices of the host: loop devices, which need root.

mod common;

use std::fs::File;
use std::path::Path;
use std::process::Command;

use common::{Place, finish, ringway, run, skip, spawn};

/// A block device over a file. Detached when dropped.
struct Loop {
    device: String,
}

impl Loop {
    fn over(path: &Path, bytes: u64, sector: u32) -> Result<Loop, String> {
        File::create(path).and_then(|file| file.set_len(bytes)).unwrap();
        let sector = sector.to_string();
        let device =
            losetup(&["--find", "--show", "--direct-io=on", "--sector-size", &sector, path.to_str().unwrap()])?;
        Ok(Loop { device })
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = losetup(&["--detach", &self.device]);
    }
}

fn losetup(args: &[&str]) -> Result<String, String> {
    // Debian has it where only root looks.
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new("losetup").env("PATH", path).args(args).output();
    let output = output.map_err(|error| format!("losetup: {error}"))?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    } else {
        Err(String::from_utf8_lossy(&output.stderr).trim().to_owned())
    }
}

/// Two devices with sectors of so many bytes; without them the test cannot run.
fn devices(test: &str, place: &Place, sector: u32) -> Option<[Loop; 2]> {
    let make = |name| Loop::over(&place.path(name), 256 << 20, sector);
    match (make("a"), make("b")) {
        (Ok(a), Ok(b)) => Some([a, b]),
        (Err(why), _) | (_, Err(why)) => {
            skip(test, &format!("no loop devices here (they need root): {why}"));
            None
        }
    }
}

#[test]
fn a_pool_on_a_block_device_is_formatted_served_killed_grown_and_served_again() {
    const NAME: &str = "a_pool_on_a_block_device_is_formatted_served_killed_grown_and_served_again";
    let place = Place::new();
    let Some([first, second]) = devices(NAME, &place, 512) else { return };
    let device = first.device.as_str();
    run(["pool", "show", device]).fails(7, "is empty");
    let formatted = run(["pool", "format", device, "--json"]).json();
    run(["pool", "format", device]).fails(4, "force");
    let daemon = place.serve(&["--pool", device]);
    let listener = daemon.listener();
    let shown = place.run(&["pool", "show", "--json"]).json();
    assert_eq!((&shown["uuid"], &shown["devices"][0]["path"]), (&formatted["uuid"], &device.into()));
    // What the device cannot keep whole over power loss is not promised.
    place.run(&["volume", "create", "whole", "16MiB", "--lba", "4096"]).fails(2, "keep 512");
    place.run(&["volume", "create", "vm1", "16MiB", "--json"]).json();

    let (target, oracle) = (format!("{listener}/vm1"), place.path("oracle"));
    let bench = |rest: &[&str]| {
        let all = ["bench", &target, "--verify", "--oracle", oracle.to_str().unwrap(), "--json"];
        spawn(ringway(all).args(rest))
    };
    let load = bench(&["--fresh", "--mix", "write=90,flush=5,trim=5", "--time", "3", "--sweep", "acknowledged"]);
    std::thread::sleep(std::time::Duration::from_millis(1200));
    daemon.kill();
    let daemon = place.serve(&["--pool", device, "--listen", &listener]);
    let report = finish(load).json();
    assert_eq!(report["verify"]["faults"].as_object().map(serde_json::Map::len), Some(0), "{report}");
    assert!(report["reconnects"].as_u64() >= Some(1), "{report}");
    assert_eq!(daemon.stop().code, Some(0));

    let looked = run(["inspect", device, "--json"]).json();
    assert_eq!((&looked["clean"], &looked["volumes"][0]["name"]), (&true.into(), &"vm1".into()));
    let grown = run(["pool", "grow", device, "--device", &second.device, "--json"]).json();
    let both = format!("{device},{}", second.device);
    assert_eq!((grown["serve"].as_str(), grown["devices"].as_u64()), (Some(both.as_str()), Some(2)));
    place.try_serve(&["--pool", device]).unwrap_err().fails(7, "the pool has 2 devices");
    let daemon = place.serve(&["--pool", &both, "--listen", &listener]);
    let report = finish(bench(&["--resume", "--time", "0", "--sweep", "acknowledged"])).json();
    assert_eq!(report["verify"]["faults"].as_object().map(serde_json::Map::len), Some(0), "{report}");
    assert_eq!(daemon.stop().code, Some(0));
    assert_eq!(run(["pool", "show", &both, "--json"]).json()["devices"].as_array().unwrap().len(), 2);
}

#[test]
fn a_block_device_with_sectors_of_4096_bytes_takes_volumes_of_both_sizes_and_one_in_use_is_not_formatted() {
    const NAME: &str =
        "a_block_device_with_sectors_of_4096_bytes_takes_volumes_of_both_sizes_and_one_in_use_is_not_formatted";
    let place = Place::new();
    let Some([first, second]) = devices(NAME, &place, 4096) else { return };
    let device = first.device.as_str();
    run(["pool", "format", device, "--json"]).json();
    let daemon = place.serve(&["--pool", device]);
    for lba in ["512", "4096"] {
        place.run(&["volume", "create", lba, "8MiB", "--lba", lba, "--json"]).json();
        let target = format!("{}/{lba}", daemon.listener());
        let load = ["--verify", "--fresh", "--mix", "write=70,read=30", "--time", "1", "--block", lba, "--json"];
        let report = finish(spawn(ringway(["bench", &target]).args(load))).json();
        assert_eq!(report["verify"]["faults"].as_object().map(serde_json::Map::len), Some(0), "{report}");
    }
    assert_eq!(daemon.stop().code, Some(0));
    // Somebody else's data, known by nothing but that it is there.
    let foreign = File::options().write(true).open(&second.device).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&foreign, &[0xec; 4096], 0).unwrap();
    foreign.sync_all().unwrap();
    drop(foreign);
    run(["pool", "format", &second.device]).fails(4, "force");
    run(["pool", "grow", device, "--device", &second.device]).fails(4, "force");
    run(["pool", "grow", device, "--device", &second.device, "--force", "--json"]).json();
}
