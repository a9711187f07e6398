//! NBD from outside, by the programs that people have: qemu-img, qemu-io, qemu-nbd, nbdinfo, nbdcopy, fio. The wire itself is in
//! `nbd_wire.rs`.

mod common;
mod nbd_peer;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use common::{Ended, skip};
use nbd_peer::Home;

/// A program's end; `None` and a loud skip where it is not on this machine.
fn program(test: &str, name: &str, args: &[&str]) -> Option<Ended> {
    let mut command = Command::new("timeout");
    match command.args(["60", name]).args(args).output() {
        Ok(output) if output.status.code() == Some(127) => {
            skip(test, &format!("there is no {name}"));
            None
        }
        Ok(output) => Some(output.into()),
        Err(error) => panic!("timeout: {error}"),
    }
}

#[track_caller]
fn well(ended: &Ended) -> &str {
    assert_eq!(ended.code, Some(0), "{ended:?}");
    &ended.stdout
}

fn scratch(home: &Home, name: &str) -> String {
    home.socket(name).to_str().unwrap().to_owned()
}

/// Bytes that compress badly, with a hole in the middle.
fn image(path: &PathBuf, len: usize) {
    let mut bytes: Vec<u8> = (0..len as u64).map(|at| (at.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40) as u8).collect();
    bytes[len / 4..len / 2].fill(0);
    fs::write(path, bytes).unwrap();
}

#[test]
fn qemu_img_converts_compares_and_maps_over_a_unix_socket() {
    let test = "qemu_img_converts_compares_and_maps_over_a_unix_socket";
    let home = Home::new();
    let _daemon = home.serve(&[]);
    home.create("vm1", "16MiB");
    home.add("vm1");
    let uri = format!("nbd+unix:///vm1?socket={}", home.socket("nbd/vm1.sock").display());
    let Some(info) = program(test, "qemu-img", &["info", "--output=json", &uri]) else { return };
    assert!(well(&info).contains("\"virtual-size\": 16777216"), "{info:?}");
    let raw = home.socket("disk.img");
    image(&raw, 16 << 20);
    let raw = raw.to_str().unwrap();
    for args in [
        &["convert", "-n", "-f", "raw", "-O", "raw", raw, &uri][..],
        &["compare", "-f", "raw", "-F", "raw", raw, &uri],
        &["convert", "-f", "raw", "-O", "raw", &uri, &scratch(&home, "back.img")],
        &["compare", "-f", "raw", "-F", "raw", raw, &scratch(&home, "back.img")],
    ] {
        well(&program(test, "qemu-img", args).unwrap());
    }
    let map = program(test, "qemu-img", &["map", "--output=json", &uri]).unwrap();
    let extents: serde_json::Value = serde_json::from_str(well(&map)).unwrap();
    let holes: Vec<_> = extents.as_array().unwrap().iter().filter(|extent| extent["data"] == false).collect();
    assert_eq!(holes.len(), 1, "{extents}");
    assert_eq!((&holes[0]["start"], &holes[0]["length"]), (&(4 << 20).into(), &(4 << 20).into()));
    let listed = program(test, "qemu-nbd", &["--list", "-k", home.socket("nbd/vm1.sock").to_str().unwrap()]).unwrap();
    for says in ["export: 'vm1'", "size:  16777216", "base:allocation", "multi", "fast-zero", "max block: 33554432"] {
        assert!(well(&listed).contains(says), "{says}: {listed:?}");
    }
}

#[test]
fn qemu_io_writes_zeroes_trims_and_flushes_at_any_byte() {
    let test = "qemu_io_writes_zeroes_trims_and_flushes_at_any_byte";
    let home = Home::new();
    let _daemon = home.serve(&[]);
    home.create("v", "8MiB");
    let uri = home.add_tcp("v", &[]);
    let steps = [
        "write -P 1 0 4M",
        "write -f -P 2 1000 3000",
        "write -P 3 1048575 2",
        "write -z -u 8192 4096",
        "write -z 16384 4096",
        "write -z -u 20000 1000",
        "discard 1M 64k",
        "flush",
        "read -P 1 0 1000",
        "read -P 2 1000 3000",
        "read -P 1 4000 4192",
        "read -P 0 8192 4096",
        "read -P 0 16384 4096",
        "read -P 0 20000 1000",
        "read -P 1 21000 1000",
        "read -P 3 1048575 1",
        "read -P 0 1M 64k",
        "read -P 0 4M 4M",
        "aio_write -P 7 2M 1M",
        "aio_flush",
        "read -P 7 2M 1M",
    ];
    let mut args = vec!["-f", "raw", &uri];
    steps.iter().for_each(|step| args.extend(["-c", step]));
    let Some(ended) = program(test, "qemu-io", &args) else { return };
    assert!(!well(&ended).contains("verification failed") && !ended.stdout.contains("failed"), "{ended:?}");
    assert_eq!(ended.stdout.matches("bytes at offset").count(), 19, "{ended:?}");
    // Space that a client wants for its zeros is there, what it gives up is not.
    let map = program(test, "qemu-img", &["map", "--output=json", &uri]).unwrap();
    let extents: serde_json::Value = serde_json::from_str(well(&map)).unwrap();
    let is_data = |offset: u64| {
        let holds = |extent: &&serde_json::Value| {
            let (start, len) = (extent["start"].as_u64().unwrap(), extent["length"].as_u64().unwrap());
            (start..start + len).contains(&offset)
        };
        extents.as_array().unwrap().iter().find(holds).unwrap()["data"] == true
    };
    assert_eq!([0, 8192, 16384, 1 << 20, 4 << 20].map(is_data), [true, false, true, false, false], "{extents}");
}

#[test]
fn several_volumes_and_a_snapshot_share_a_port_and_are_listed_and_copied() {
    let test = "several_volumes_and_a_snapshot_share_a_port_and_are_listed_and_copied";
    let home = Home::new();
    let daemon = home.serve(&[]);
    for volume in ["a", "b"] {
        home.create(volume, "4MiB");
    }
    let uri = home.add_tcp("a", &[]);
    let listen = uri.strip_suffix("/a").unwrap().replace("nbd://", "tcp://");
    home.export(&format!("add nbd b --listen {listen} --read-only --json")).json();
    let raw = home.socket("a.img");
    image(&raw, 4 << 20);
    let Some(copied) = program(test, "nbdcopy", &[raw.to_str().unwrap(), &uri]) else { return };
    well(&copied);
    home.place.run(&["snapshot", "create", "a", "monday", "--json"]).json();
    home.export(&format!("add nbd a@monday --listen {listen} --json")).json();
    home.export(&format!("add nbd a --listen {listen}")).fails(4, "already");
    let root = uri.strip_suffix("/a").unwrap();
    let listed = program(test, "nbdinfo", &["--list", "--json", root]).unwrap();
    let listed: serde_json::Value = serde_json::from_str(well(&listed)).unwrap();
    let exports = listed["exports"].as_array().unwrap();
    let told: Vec<_> =
        exports.iter().map(|e| (e["export-name"].as_str().unwrap(), e["is_read_only"] == true)).collect();
    assert_eq!(told, [("a", false), ("b", true), ("a@monday", true)], "{listed}");
    assert!(exports.iter().all(|export| export["can_multi_conn"] == true && export["structured"] != false));
    // What is written after the snapshot is not in it.
    well(&program(test, "qemu-io", &["-f", "raw", "-c", "write -P 9 0 1M", &uri]).unwrap());
    let snapshot = format!("{root}/a@monday");
    let back = home.socket("back.img");
    well(&program(test, "nbdcopy", &[&snapshot, back.to_str().unwrap()]).unwrap());
    assert!(fs::read(&raw).unwrap() == fs::read(&back).unwrap(), "the snapshot has changed");
    let refused = program(test, "qemu-io", &["-f", "raw", "-c", "write 0 1k", &snapshot]).unwrap();
    assert!(refused.code != Some(0), "{refused:?}");
    let unknown = program(test, "nbdinfo", &["--size", &format!("{root}/nope")]).unwrap();
    assert!(unknown.code != Some(0) && unknown.stderr.contains("no export named"), "{unknown:?}");
    let size = program(test, "nbdinfo", &["--map", "--totals", &format!("{root}/b")]).unwrap();
    assert!(well(&size).contains("100.0%") && size.stdout.contains("hole,zero"), "{size:?}");
    // All of it comes back with the target, by the same port.
    daemon.kill();
    let _daemon = home.serve(&[]);
    let again = program(test, "nbdinfo", &["--list", "--json", root]).unwrap();
    assert_eq!(serde_json::from_str::<serde_json::Value>(well(&again)).unwrap(), listed);
}

#[test]
fn fio_verifies_random_writes_through_libnbd() {
    let test = "fio_verifies_random_writes_through_libnbd";
    let home = Home::new();
    let _daemon = home.serve(&[]);
    home.create("v", "16MiB");
    home.add("v");
    let uri = format!("--uri=nbd+unix:///v?socket={}", home.socket("nbd/v.sock").display());
    let engines = program(test, "fio", &["--enghelp"]);
    let Some(engines) = engines else { return };
    if !engines.stdout.contains("nbd") {
        return skip(test, "this fio has no nbd engine");
    }
    for (depth, size) in [("1", "512-64k"), ("32", "4k-512k")] {
        let args = [
            "--name=v",
            "--ioengine=nbd",
            &uri,
            "--rw=randwrite",
            &format!("--bsrange={size}"),
            "--bs_unaligned=1",
            "--size=8m",
            &format!("--iodepth={depth}"),
            "--verify=crc32c",
            "--verify_fatal=1",
            "--do_verify=1",
            "--verify_state_save=0",
            "--minimal",
        ];
        well(&program(test, "fio", &args).unwrap());
    }
}

#[test]
fn with_a_certificate_clients_use_tls_and_where_it_is_required_nothing_else() {
    let test = "with_a_certificate_clients_use_tls_and_where_it_is_required_nothing_else";
    let home = Home::new();
    let folder = home.socket("pki");
    fs::create_dir(&folder).unwrap();
    if !nbd_peer::certificates(&folder) {
        return skip(test, "there is no openssl");
    }
    let at = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let without = home.serve(&[]);
    home.create("v", "4MiB");
    home.export("add nbd v --listen tls://127.0.0.1:0").fails(9, "--tls-cert");
    home.export("add nbd v --listen tcp://0.0.0.0:0").fails(9, "--insecure");
    assert_eq!(without.stop().code, Some(0));
    let tls = ["--tls-cert", &at("server-cert.pem"), "--tls-key", &at("server-key.pem")];
    let daemon = home.serve(&tls);
    let made = home.export("add nbd v --listen tls://127.0.0.1:0 --json").json();
    let uri = made["socket"].as_str().unwrap().replace("tls://", "nbds://") + "/v";
    let secure = format!("{uri}?tls-certificates={}", folder.display());
    let Some(info) = program(test, "nbdinfo", &["--size", &secure]) else { return };
    assert_eq!(well(&info).trim(), "4194304");
    let raw = home.socket("a.img");
    image(&raw, 4 << 20);
    well(&program(test, "nbdcopy", &[raw.to_str().unwrap(), &secure]).unwrap());
    let back = home.socket("b.img");
    well(&program(test, "nbdcopy", &[&secure, back.to_str().unwrap()]).unwrap());
    assert!(fs::read(&raw).unwrap() == fs::read(&back).unwrap(), "TLS has changed the data");
    let open = program(test, "nbdinfo", &["--size", &uri.replace("nbds://", "nbd://")]).unwrap();
    assert!(open.code != Some(0), "{open:?}");
    daemon.kill();
    // Only clients with a certificate of this authority.
    let _daemon = home.serve(&[&tls[..], &["--tls-client-ca", &at("ca-cert.pem")]].concat());
    assert_eq!(well(&program(test, "nbdinfo", &["--size", &secure]).unwrap()).trim(), "4194304");
    let bare = home.socket("bare");
    fs::create_dir(&bare).unwrap();
    fs::copy(at("ca-cert.pem"), bare.join("ca-cert.pem")).unwrap();
    let stranger =
        program(test, "nbdinfo", &["--size", &format!("{uri}?tls-certificates={}", bare.display())]).unwrap();
    assert!(stranger.code != Some(0), "{stranger:?}");
}

#[test]
fn nbdkit_reads_a_volume_through_its_nbd_plugin() {
    let test = "nbdkit_reads_a_volume_through_its_nbd_plugin";
    let home = Home::new();
    let _daemon = home.serve(&[]);
    home.create("v", "4MiB");
    home.add("v");
    let socket = format!("socket={}", home.socket("nbd/v.sock").display());
    let run = "nbdinfo --size \"$uri\" && nbdcopy -- \"$uri\" null: && qemu-io -f raw -c 'write -P 5 1 511' -c 'read -P 5 1 511' \"$uri\"";
    let Some(ended) = program(test, "nbdkit", &["-U", "-", "nbd", &socket, "export=v", "--run", run]) else { return };
    assert!(well(&ended).starts_with("4194304"), "{ended:?}");
}
