//! Completions and manual pages: taken by the programs that they are for.

mod common;

use std::fs;
use std::process::Command;

use common::{Place, run};

#[test]
fn bash_completes_commands_and_their_options() {
    let place = Place::new();
    let script = place.path("completions");
    fs::write(&script, run(["completions", "bash"]).stdout).unwrap();
    let complete = |words: &[&str]| {
        let quoted: Vec<String> = words.iter().map(|word| format!("'{word}'")).collect();
        // What readline does: the words so far, the number of the last one, then the function that was registered.
        let said = format!(
            "source {}; COMP_WORDS=({}); COMP_CWORD={}; _ringway ringway '{}' '{}'; printf '%s\\n' \"${{COMPREPLY[@]}}\"",
            script.display(),
            quoted.join(" "),
            words.len() - 1,
            words[words.len() - 1],
            words[words.len() - 2]
        );
        let ended = Command::new("bash").args(["--norc", "-c", &said]).output().unwrap();
        assert!(ended.status.success() && ended.stderr.is_empty(), "{}", String::from_utf8_lossy(&ended.stderr));
        String::from_utf8(ended.stdout).unwrap().lines().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(complete(&["ringway", "doc"]), ["doctor"]);
    assert_eq!(complete(&["ringway", "volume", "rem"]), ["remove"]);
    assert_eq!(complete(&["ringway", "snapshot", "create", "--time"]), ["--timeout"]);
}

#[test]
fn every_command_has_a_manual_page_with_its_examples() {
    let place = Place::new();
    let folder = place.path("man");
    let written = run(["man", folder.to_str().unwrap(), "--json"]).json();
    assert!(written["pages"].as_array().unwrap().len() > 30, "{written}");
    for (page, says) in [
        ("ringway.1", "ringway\\-volume"),
        ("ringway-volume-create.1", "ringway volume create"),
        ("ringway-doctor.1", "ringway doctor \\-\\-replay machine.json"),
    ] {
        let text = fs::read_to_string(folder.join(page)).unwrap();
        assert!(text.starts_with(".ie") && text.contains(".SH SYNOPSIS"), "{page}: {text}");
        assert!(text.contains(says), "{page}: {text}");
    }
    run(["man", "/proc/ringway"]).fails(3, "write manual pages to");
}
