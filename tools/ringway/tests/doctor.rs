//! The audit of the machine that a target runs on: of the running one, and of a record made of it.

mod common;

use std::fs;

use common::{Place, run};

#[test]
fn the_doctor_looks_at_the_cores_of_the_target_that_runs_and_says_the_same_of_a_record() {
    let place = Place::new();
    let daemon = place.serve(&["--pool-size", "64MiB"]);
    let target: serde_json::Value = serde_json::from_str(&place.get("/v1/target").1).unwrap();
    let record = place.path("machine.json");
    let record = record.to_str().unwrap();
    let said = place.run(&["doctor", "--seconds", "0.2", "--record", record, "--json"]).json();
    assert_eq!(said["subject"]["cores"], target["cores"]);
    assert_eq!(said["subject"]["pid"], daemon.pid());
    assert_eq!(said["subject"]["is_running"], true);
    for finding in said["findings"].as_array().unwrap() {
        let has = |name: &str| !finding[name].is_null();
        assert!(has("rank") && has("what") && has("cost") && finding["evidence"][0].is_string(), "{finding}");
        assert_eq!(has("change"), has("undo"), "what can be changed can be changed back: {finding}");
        assert_ne!(has("change"), has("advice"), "{finding}");
    }
    assert_eq!(run(["doctor", "--replay", record, "--json"]).json(), said);
    let text = run(["doctor", "--replay", record]);
    assert!(text.stdout.starts_with("the target's reactors are on cores "), "{}", text.stdout);

    // It has changed nothing, the record included.
    assert!(fs::read_to_string(record).unwrap().contains("\"version\": 1"));
    assert_eq!(daemon.stop().code, Some(0));
    place.run(&["doctor"]).fails(6, "no daemon answers");
}
