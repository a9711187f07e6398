//! The commands of docs/edges are run as they stand there, each block of a page after the one before it.
//!
//! What differs on a tester's machine is replaced, word for word: where the pool and the runtime folder are, which ports are free, and where
//! `cargo xtask ovsvolumedriver` puts what was built for the tests already.

mod common;

use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::Place;
use tempfile::TempDir;

/// Pages whose commands run here.
const HERE: [&str; 3] = ["libovsvolumedriver.md", "libvirt.md", "nbd.md"];
/// Pages whose commands need more than this machine: what runs them.
const ELSEWHERE: [(&str, &str); 2] = [
    ("qemu.md", "tools/qemu/tests/the_commands_of_the_manual_work.sh"),
    ("tgt.md", "tools/tgt/tests/the_manuals_lines_make_units_of_volumes.sh"),
];
/// A block whose first word is one of these is commands; others are what is written into files.
const PROGRAMS: [&str; 6] = ["ringway", "cargo", "gcc", "qemu-img", "nbdinfo", "./follow"];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The page's blocks of commands, one behind the other.
fn blocks(page: &str) -> Vec<String> {
    let mut blocks: Vec<String> = Vec::new();
    let mut open = false;
    for line in page.lines() {
        match line.strip_prefix("    ") {
            Some(code) if open => *blocks.last_mut().expect("it is open") += &format!("{code}\n"),
            Some(code) => {
                open = true;
                blocks.push(format!("{code}\n"));
            }
            None => open = false,
        }
    }
    let first_word = |block: &String| block.split_whitespace().next().is_some_and(|word| PROGRAMS.contains(&word));
    blocks.retain(first_word);
    blocks
}

/// A machine as the pages take it for granted: a target, volumes, images, programs in the path.
struct Scene {
    place: Place,
    /// A short name: a socket's path has at most 107 bytes, and build folders are deep.
    runtime: TempDir,
    replaced: Vec<(String, String)>,
}

impl Scene {
    fn new() -> Scene {
        let place = Place::new();
        let runtime = tempfile::Builder::new().prefix("ringway-").tempdir().unwrap();
        let (bin, run) = (place.path("bin"), runtime.path().to_owned());
        fs::create_dir(&bin).unwrap();
        symlink(env!("CARGO_BIN_EXE_ringway"), bin.join("ringway")).unwrap();
        let sources = repository().join("tools/ovsvolumedriver");
        for program in ["hello.c", "follow.c"] {
            fs::copy(sources.join("tests").join(program), place.path(program)).unwrap();
        }
        fs::write(place.path("disk.img"), vec![7; 1 << 20]).unwrap();
        fs::write(
            place.path("disk.xml"),
            "<disk type='network'><source protocol='openvstorage' name='vm1'/><target dev='vda'/></disk>",
        )
        .unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let link = format!("{} {} {}", path(&sources.join("link.sh")), path(&archive()), path(&place.path("usr")));
        let replaced = [
            ("cargo xtask ovsvolumedriver --prefix /usr/local", link),
            ("ringway serve ", format!("ringway serve --listen tcp://127.0.0.1:0 --crash-log {} ", path(&run))),
            ("/var/lib/ringway", path(&place.pool())),
            ("/run/ringway", path(&run)),
            ("127.0.0.1:10809", format!("127.0.0.1:{port}")),
            ("nbd://127.0.0.1\n", format!("nbd://127.0.0.1:{port}\n")),
            ("--size 1GiB", "--size 256MiB".to_owned()),
            // A volume is as large as the page says, of a pool that is not.
            ("20GiB", "64MiB".to_owned()),
        ];
        let replaced = replaced.map(|(from, to)| (from.to_owned(), to)).into();
        Scene { place, runtime, replaced }
    }

    /// Runs it all in one shell; what it leaves behind ends with it.
    #[track_caller]
    fn run(&self, script: &str) {
        let mut script = script.to_owned();
        for (from, to) in &self.replaced {
            script = script.replace(from, to);
        }
        let served = "until ringway pool show >/dev/null 2>&1; do sleep 0.05; done";
        script = script.replace(" &\n", &format!(" &\n{served}\n"));
        let prelude = "set -eux\ntrap 'status=$?; kill $(jobs -p) 2>/dev/null; wait; exit $status' EXIT\n";
        let path = format!("{}:{}", self.place.path("bin").display(), std::env::var("PATH").unwrap());
        let mut bash = Command::new("timeout");
        bash.args(["120", "bash", "-c", &format!("{prelude}{script}")]).current_dir(self.place.path("."));
        bash.env("PATH", path).env("RINGWAY_RUNTIME_DIR", self.runtime.path());
        bash.env("LD_LIBRARY_PATH", self.place.path("usr/lib"));
        bash.env("PKG_CONFIG_PATH", self.place.path("usr/lib/pkgconfig"));
        let output = bash.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}\n---- {script}\n---- {said}", output.status);
    }
}

/// The static library that was built for this test, which depends on it.
fn archive() -> PathBuf {
    let program = std::env::current_exe().unwrap();
    let built = fs::read_dir(program.parent().unwrap()).unwrap().map(|entry| entry.unwrap().path());
    let named = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        name.starts_with("libringway_ovsvolumedriver") && name.ends_with(".a")
    };
    built.filter(named).max_by_key(|path| fs::metadata(path).unwrap().modified().unwrap()).expect("a dependency")
}

fn page(name: &str) -> String {
    fs::read_to_string(repository().join("docs/edges").join(name)).unwrap()
}

/// What a page takes for granted: a target that serves `vm1`.
const SERVED: &str = "ringway pool format /var/lib/ringway --size 1GiB --allocate sparse
ringway serve --pool /var/lib/ringway &
";

#[test]
fn the_commands_of_the_page_of_the_library_work() {
    Scene::new().run(&blocks(&page("libovsvolumedriver.md")).concat());
}

#[test]
fn the_commands_of_the_page_of_network_block_devices_work() {
    let before = format!("{SERVED}ringway volume create vm1 64MiB\nringway snapshot create vm1 monday\n");
    for program in ["qemu-img", "nbdinfo"] {
        if Command::new(program).arg("--version").output().is_err() {
            return common::skip("the commands of the page of network block devices", &format!("{program} is needed"));
        }
    }
    Scene::new().run(&format!("{before}{}", blocks(&page("nbd.md")).concat()));
}

#[test]
fn the_commands_of_the_page_of_libvirt_work() {
    Scene::new().run(&format!("{SERVED}{}", blocks(&page("libvirt.md")).concat()));
}

#[test]
fn every_page_is_run_here_or_somewhere() {
    for entry in fs::read_dir(repository().join("docs/edges")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        if HERE.contains(&name.as_str()) {
            continue;
        }
        let runs = ELSEWHERE.iter().find(|(page, _)| *page == name);
        let (_, by) = runs.unwrap_or_else(|| panic!("nothing runs the commands of docs/edges/{name}"));
        assert!(repository().join(by).exists(), "{by}, which is to run those of {name}");
    }
    let text = "Words\n\n    ringway a\n    ringway b\n\n    <disk/>\n\n    gcc x\nwords";
    assert_eq!(blocks(text), ["ringway a\nringway b\n", "gcc x\n"]);
}
