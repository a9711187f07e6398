//! What is wrong with a command line is said before anything is touched: exit code, what was wrong, what would be right.

mod common;

use common::{Place, run};

#[test]
fn wrong_arguments_are_refused_with_what_would_be_right() {
    for (line, says) in [
        ("volume create a:b 1GiB", "A-Z a-z 0-9"),
        ("volume create -- -a 1GiB", "not starting with"),
        ("volume create a//b 1GiB", "empty path component"),
        ("volume create vm1 1Q", "1.5GiB"),
        ("volume create vm1 0", "64 TiB"),
        ("volume create vm1 1000", "512 and 1024"),
        ("volume create vm1 65TiB", "64 TiB"),
        ("volume create vm1 1GiB --lba 1024", "512 or 4096"),
        ("volume create vm1 1GiB --shards 0,0", "names one twice"),
        ("volume create vm1 1GiB --host me", "nqn.2014-08"),
        ("volume resize vm1 big", "1.5GiB"),
        ("volume creat vm1", "create"),
        ("volume show", "<NAME>"),
        ("pool grow", "--size"),
        ("pool grow --size 1GiB --device /dev/null", "cannot be used with"),
        ("pool format mem:1GiB", "formatted by `ringway serve`"),
        ("pool format p --shards 0", "1..=256"),
        ("doctor --seconds 0", "between 0.1 and 60"),
        ("doctor --cores 5-3", "runs backwards"),
        ("doctor --replay x --record y", "cannot be used with"),
        ("doctor --control https://ringway.example:1", "run `ringway doctor --record` there"),
        ("pool format p --allocate all", "written"),
        ("serve --listen 127.0.0.1:4420", "tcp://127.0.0.1:4420"),
        ("serve --listen tcp://127.0.0.1", "port is missing"),
        ("serve --listen nvme://127.0.0.1:1", "not in this version"),
        ("serve --listen rdma://127.0.0.1", "port is missing"),
        ("serve --pool mem:x", "not a size"),
        ("serve --cores 1-", "list of cores"),
        ("serve --socket-mode rw", "0660"),
        ("serve --log loud=x", "MODULE=LEVEL"),
        ("serve --socket-group no-such-group-here --runtime /tmp/ringway-never", "/etc/group"),
        ("bench tcp://127.0.0.1:4420", "tcp://HOST:PORT/VOLUME"),
        ("bench nvme://h/v", "tcp://HOST:PORT/VOLUME"),
        ("bench tcp://127.0.0.1:1/v --mix fly", "read, write"),
        ("bench tcp://127.0.0.1:1/v --block 1000", "multiple of 512"),
        ("bench tcp://127.0.0.1:1/v --depth 0", "depth 0"),
        ("bench tcp://127.0.0.1:1/v --time soon", "10 or 0.5"),
        ("bench tcp://127.0.0.1:1/v --sweep flushed", "--verify"),
        ("demo --size 1MiB", "16 MiB"),
        ("inspect", "<DIR|DEVICE>"),
    ] {
        run(line.split(' ')).fails(2, says);
    }
}

#[test]
fn cores_that_do_not_exist_are_named_beside_those_that_do() {
    let ended = run("serve --cores 1000".split(' '));
    ended.fails(9, "1000");
    assert!(ended.stderr.contains("has") || ended.stderr.contains("allowed"), "{ended:?}");
}

#[test]
fn a_failure_in_json_has_a_kind_and_a_message() {
    for (line, code, kind) in [
        ("--json volume create a:b 1GiB", 2, "invalid"),
        ("--json volume create vm1 1Q", 2, "invalid"),
        ("volume list --json --control /no/such/socket", 6, "unavailable"),
    ] {
        let ended = run(line.split(' '));
        assert_eq!(ended.code, Some(code), "{ended:?}");
        let error: serde_json::Value = serde_json::from_str(&ended.stderr).unwrap();
        assert_eq!(error["error"]["kind"], kind, "{ended:?}");
        assert!(!error["error"]["message"].as_str().unwrap().is_empty());
        assert!(ended.stdout.is_empty());
    }
}

#[test]
fn without_a_daemon_every_command_says_how_to_start_one() {
    let place = Place::new();
    for args in [
        &["volume", "list"][..],
        &["volume", "show", "vm1"],
        &["volume", "create", "vm1", "1GiB"],
        &["volume", "resize", "vm1", "1GiB"],
        &["volume", "rename", "vm1", "vm2"],
        &["volume", "hosts", "vm1"],
        &["volume", "remove", "vm1"],
        &["volume", "export", "vm1", "/dev/null", "--overwrite"],
        &["pool", "show"],
        &["pool", "grow", "--size", "1GiB"],
    ] {
        place.run(args).fails(6, "ringway serve");
    }
}

#[test]
fn what_is_no_place_for_a_pool_is_named_as_what_it_is_and_nothing_is_made_there() {
    let place = Place::new();
    let runtime = place.path("run");
    let serve = |pool: &str| {
        run(["serve", "--listen", "tcp://127.0.0.1:0", "--pool", pool, "--runtime", runtime.to_str().unwrap()])
    };
    serve("/dev/no-such-device").fails(3, "/dev/no-such-device does not exist");
    run(["pool", "format", "/dev/no-such-device", "--size", "1GiB"]).fails(3, "/dev/no-such-device does not exist");
    assert!(!std::path::Path::new("/dev/no-such-device").exists());
    serve("/dev/null").fails(2, "character device");
    run(["pool", "format", "/dev/null", "--size", "1GiB"]).fails(2, "neither a directory nor a block device");
    run(["inspect", "/dev/null"]).fails(2, "character device");
    run(["pool", "format", "/proc/no/pool", "--size", "1GiB"]).fails(3, "/proc/no/pool");
    run(["bench", "tcp://no-such-host.invalid:4420/vm1"]).fails(2, "no-such-host.invalid");
}

/// A format that cannot be leaves what is there, and with force as well.
#[test]
fn a_format_that_cannot_be_is_refused_before_anything_is_made_or_removed() {
    let place = Place::new();
    let pool = place.pool();
    let format = |args: &[&str]| run([&["pool", "format", pool.to_str().unwrap()], args].concat());
    for args in [&["--size", "1MiB"][..], &["--size", "1GiB", "--slab", "5MiB"], &["--size", "1GiB", "--journal", "1"]]
    {
        format(args).ends(2);
        assert!(!pool.exists(), "{args:?}");
    }
    format(&[]).fails(2, "needs a size");
    place.format();
    let before = std::fs::read(pool.join("device-0.ringway")).unwrap();
    format(&["--size", "1MiB", "--force"]).fails(2, "at least");
    assert!(std::fs::read(pool.join("device-0.ringway")).unwrap() == before);
}

#[test]
fn an_image_that_is_not_there_is_named_before_the_daemon_is_asked() {
    Place::new().run(&["volume", "import", "vm1", "/no/such/image"]).fails(3, "/no/such/image");
}

#[test]
fn a_wrong_configuration_file_is_refused_with_its_line() {
    let place = Place::new();
    let file = place.path("ringway.toml");
    for (text, says) in [
        ("pool = \"mem:1GiB\"\ncolour = 1\n", "line 2"),
        ("colour = 1\n", "unknown field `colour`"),
        ("listen = [\"4420\"]\n", "tcp://127.0.0.1:4420"),
        ("pool-size = \"many\"\n", "1.5GiB"),
        ("pool = [\n", "line 1"),
    ] {
        std::fs::write(&file, text).unwrap();
        run(["serve", "--config", file.to_str().unwrap()]).fails(2, says);
    }
    run(["serve", "--config", "/no/such/file.toml"]).fails(3, "/no/such/file.toml");
}

#[test]
fn help_shows_examples_and_the_exit_codes() {
    let ended = run(["--help"]);
    assert_eq!(ended.code, Some(0));
    assert!(ended.stdout.contains("Exit codes:") && ended.stdout.contains("verification failed"));
    for command in ["serve", "bench", "inspect"] {
        let ended = run([command, "--help"]);
        assert!(ended.code == Some(0) && ended.stdout.contains("Examples:"), "{ended:?}");
    }
}
