//! Rules for the text of the sources.

/// A file longer than this is several files.
const LINES_MAX: usize = 800;

/// Where `unsafe` may stand, each with what needs it. Everything else is safe code; an entry that needs it no more is a finding.
const UNSAFE_FILES: &[(&str, &str)] = &[
    ("rdma/src/rdma/connection.rs", "librdmacm: identifiers of connections and their events"),
    ("rdma/src/rdma/device.rs", "libibverbs: devices, domains, and memory that they read and write"),
    ("rdma/src/rdma/queue.rs", "libibverbs: completions, and requests with addresses of buffers"),
    ("reactor/src/buf.rs", "buffers are pieces of one mapping the kernel writes to"),
    ("reactor/src/clock.rs", "reads the time stamp counter"),
    ("reactor/src/crash_log/map.rs", "maps the log that outlives the process"),
    ("reactor/src/prefetch.rs", "hints to the CPU's cache"),
    ("reactor/src/priority.rs", "a call of the scheduler's that has no safe wrapper"),
    ("reactor/src/shared.rs", "maps memory that another process writes to, and catches its faults"),
    ("reactor/src/uring/in_flight.rs", "message headers that the kernel reads point into their own operation"),
    ("reactor/src/uring/ring.rs", "the kernel's ring"),
    ("tools/fio-engine/src/abi.rs", "the interface to the engine, which is in C"),
    ("tools/client/src/memory.rs", "the buffers of programs in other languages are addresses"),
    ("tools/client/src/shm.rs", "such buffers may be part of what is shared with the target"),
    ("tools/client/src/session.rs", "its tests make such buffers"),
    ("tools/ovsvolumedriver/src/aio.rs", "the interface to programs in C: control blocks and completions"),
    ("tools/ovsvolumedriver/src/allocation.rs", "the interface to programs in C: lists of extents"),
    ("tools/ovsvolumedriver/src/attr.rs", "the interface to programs in C: attributes and texts"),
    ("tools/ovsvolumedriver/src/buffer.rs", "the interface to programs in C: buffers"),
    ("tools/ovsvolumedriver/src/ctx.rs", "the interface to programs in C: contexts; signal masks and forks"),
    ("tools/ovsvolumedriver/src/data.rs", "the interface to programs in C: data"),
    ("tools/ovsvolumedriver/src/errors.rs", "errno"),
    ("tools/ovsvolumedriver/src/snapshots.rs", "the interface to programs in C: lists of snapshots"),
    ("tools/ovsvolumedriver/src/streams.rs", "the interface to programs in C: streams and their listeners"),
    ("tools/ovsvolumedriver/src/volumes.rs", "the interface to programs in C: lists of names"),
    ("core/tests/vhost/independent.rs", "maps the memory of a guest that an independent driver fills"),
    ("perf/src/bars/vhost.rs", "maps the memory of the guest that loads a disk"),
    ("shm-ring/src/client/buffer.rs", "buffers are pieces of the memory that a client shares with its target"),
    ("shm-ring/src/client/queue.rs", "a caller from C promises to keep its hands off a range of the data area"),
    ("perf/src/load/oracle.rs", "maps the file that says which writes were acknowledged"),
];

/// What no file of ours has in it, and why. Split, so that this file passes its own rule.
const FORBIDDEN: &[(&str, &str)] = &[
    (concat!("todo", "!("), "finish it, or do not commit it"),
    (concat!("unimplemented", "!("), "finish it, or do not commit it"),
    (concat!("dbg", "!("), "left over from a debugging session"),
    (concat!("#[", "ignore"), "a test runs or is not there; long ones are soak tests"),
    (concat!("#[", "allow("), "#[expect(lint, reason = ...)]"),
    (concat!("#![", "allow("), "#![expect(lint, reason = ...)]"),
    (concat!("FIX", "ME"), "fix it, or open an issue"),
    (concat!("TO", "DO"), "do it, or open an issue"),
    (concat!("X", "XX"), "say what it is"),
];

/// Names that say nothing about what a thing is.
const EMPTY_NAMES: &[&str] = &["Manager", "Context", "Util", "Utils", "Helper", "Helpers", "Handler"];
const EMPTY_FUNCTIONS: &[&str] = &["process", "handle", "do_it"];
const EMPTY_MODULES: &[&str] = &["util", "utils", "helper", "helpers", "misc", "manager", "context"];

/// Rules for Rust.
pub(super) fn check(name: &str, text: &str, say: &mut impl FnMut(usize, &str)) {
    let first = text.lines().find(|line| !line.trim().is_empty() && !line.starts_with("#!"));
    if !first.is_some_and(|line| line.starts_with("//!")) {
        say(1, "a file opens with `//!`: its role and its invariants");
    }
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        for (word, instead) in FORBIDDEN {
            if line.contains(word) {
                say(number, &format!("`{word}`: {instead}"));
            }
        }
        if let Some((kind, defined)) = definition(line).filter(|(kind, defined)| is_empty(kind, defined)) {
            say(number, &format!("`{kind} {defined}`: the name does not say what it is"));
        }
    }
    if name.starts_with("core/src/") && text.contains("println!(") {
        say(1, "core prints nothing: it has no terminal of its own");
    }
}

/// Rules for any text.
pub(super) fn check_text(name: &str, text: &str, say: &mut impl FnMut(usize, &str)) {
    let lines = text.lines().count();
    if lines > LINES_MAX && !name.ends_with(".lock") && !name.starts_with("LICENSE") && !is_data(name) {
        say(lines, &format!("{lines} lines: more than {LINES_MAX}"));
    }
    if is_data(name) || name.starts_with("LICENSE") {
        return;
    }
    for (index, line) in text.lines().enumerate() {
        if line.ends_with([' ', '\t']) {
            say(index + 1, "ends in white space");
        }
        if line.starts_with("<<<<<<< ") || line.starts_with(">>>>>>> ") {
            say(index + 1, "a conflict that was not resolved");
        }
    }
    if !text.is_empty() && !text.ends_with('\n') {
        say(lines, "no newline at its end");
    }
}

/// Measurements and seeds are as the program wrote them.
fn is_data(name: &str) -> bool {
    name.ends_with(".json") || name.ends_with(".csv") || name.ends_with(".svg") || name.contains("/seeds/")
}

/// Compares the files that use `unsafe` with those that may.
pub(super) fn check_unsafe_files(found: &[String]) -> Vec<String> {
    let listed = |name: &str| UNSAFE_FILES.iter().any(|(file, _)| *file == name);
    let strangers = found
        .iter()
        .filter(|name| !listed(name))
        .map(|name| format!("{name}:1: unsafe code outside the files listed in tools/xtask/src/tidy/source.rs"));
    let stale = UNSAFE_FILES
        .iter()
        .filter(|(file, _)| !found.iter().any(|name| name == file))
        .map(|(file, _)| format!("tools/xtask/src/tidy/source.rs:1: {file} is listed for unsafe code and has none"));
    strangers.chain(stale).collect()
}

/// Whether a line of code, not of prose, says `unsafe`.
pub(super) fn has_unsafe(text: &str) -> bool {
    text.lines().filter_map(|line| line.split("//").next()).any(|code| {
        let keyword = concat!("un", "safe");
        [" {", " fn ", " impl ", " trait ", " extern ", "{"]
            .iter()
            .any(|next| code.contains(&format!("{keyword}{next}")))
    })
}

/// The kind and the name that a line defines.
fn definition(line: &str) -> Option<(&str, &str)> {
    let mut words = line.split_whitespace().skip_while(|word| {
        word.starts_with("pub")
            || ["async", "const", "in"].contains(word)
            || word.ends_with("super)")
            || word.ends_with("crate)")
    });
    let kind = words.next()?;
    if !["struct", "enum", "trait", "type", "fn", "mod"].contains(&kind) {
        return None;
    }
    let name = words.next()?;
    Some((kind, name.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap_or(name)))
}

fn is_empty(kind: &str, name: &str) -> bool {
    let versioned = name.rsplit_once("_v").is_some_and(|(_, digits)| kind == "fn" && digits == "2");
    versioned
        || match kind {
            "fn" => EMPTY_FUNCTIONS.contains(&name),
            "mod" => EMPTY_MODULES.contains(&name),
            _ => EMPTY_NAMES.iter().any(|ending| name.ends_with(ending)),
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(text: &str) -> Vec<String> {
        let mut found = Vec::new();
        check("reactor/src/x.rs", text, &mut |line, what| found.push(format!("{line}: {what}")));
        check_text("reactor/src/x.rs", text, &mut |line, what| found.push(format!("{line}: {what}")));
        found
    }

    #[test]
    fn a_file_in_order_has_no_finding() {
        assert_eq!(findings("//! A role.\n\npub(crate) struct Tick;\n"), Vec::<String>::new());
    }

    #[test]
    fn each_rule_finds_what_it_is_for() {
        let long = "//! Role.\n".repeat(LINES_MAX + 1);
        let cases = [
            ("fn main() {}\n", "opens with"),
            (concat!("//! A.\nfn a() { todo", "!() }\n"), "finish it"),
            (concat!("//! A.\n#[", "allow(dead_code)]\n"), "expect"),
            ("//! A.\npub(crate) struct PoolManager;\n", "PoolManager"),
            ("//! A.\nmod utils;\n", "utils"),
            ("//! A.\npub async fn process(x: u8) {}\n", "process"),
            ("//! A.\nfn open_v2() {}\n", "open_v2"),
            ("//! A. \n", "white space"),
            ("//! A.", "newline"),
            (concat!("//! A.\n<<<<", "<<< HEAD\n"), "conflict"),
            (long.as_str(), "lines: more than"),
        ];
        for (text, expected) in cases {
            let found = findings(text);
            assert!(found.len() == 1 && found.iter().all(|what| what.contains(expected)), "{expected}: {found:?}");
        }
    }

    #[test]
    fn unsafe_code_is_told_from_talk_about_it() {
        assert!(has_unsafe(concat!("    un", "safe { x() }\n")));
        assert!(has_unsafe(concat!("un", "safe impl Send for X {}\n")));
        assert!(!has_unsafe(concat!("// un", "safe { }\n#![forbid(un", "safe_code)]\n")));
    }

    #[test]
    fn the_list_of_unsafe_files_is_exact() {
        let listed: Vec<String> = UNSAFE_FILES.iter().map(|(file, _)| (*file).to_owned()).collect();
        assert_eq!(check_unsafe_files(&listed), Vec::<String>::new());
        let stranger = "core/src/lib.rs".to_owned();
        assert_eq!(check_unsafe_files(&[listed, vec![stranger]].concat()).len(), 1);
        assert_eq!(check_unsafe_files(&[]).len(), UNSAFE_FILES.len());
    }
}
