//! Control of a target from another machine: with TLS and a token, and in no other way.
//!
//! The certificates in `tls/` were made for this test by `openssl req -x509` and are valid for 127.0.0.1.

mod common;

use std::fs::{Permissions, set_permissions, write};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Daemon, Ended, Place, run};

const TOKEN: &str = "8a1c5f0e93d74b26a0b7-ringway-test";

fn tls(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/tls").join(name).display().to_string()
}

fn token(place: &Place, name: &str, text: &str, mode: u32) -> String {
    let path: PathBuf = place.path(name);
    write(&path, text).unwrap();
    set_permissions(&path, Permissions::from_mode(mode)).unwrap();
    path.display().to_string()
}

fn serve(place: &Place, more: &[&str]) -> Result<Daemon, Ended> {
    let token = token(place, "token", TOKEN, 0o600);
    let (certificate, key) = (tls("certificate.pem"), tls("key.pem"));
    let mut args = vec!["--control-listen", "https://127.0.0.1:0", "--control-token-file", &token];
    args.extend(["--tls-cert", &certificate, "--tls-key", &key]);
    args.extend(more);
    place.try_serve(&args)
}

fn url(daemon: &Daemon) -> String {
    daemon.ready["control_listeners"][0].as_str().expect("it says where").to_owned()
}

fn remote(url: &str, authority: &str, token: &str, args: &[&str]) -> Ended {
    let where_to = ["--control", url, "--control-ca", authority, "--control-token-file", token];
    run(args.iter().copied().chain(where_to))
}

#[test]
fn a_command_on_another_machine_controls_a_target_over_tls_with_its_token() {
    let place = Place::new();
    place.format();
    let daemon = serve(&place, &[]).unwrap();
    let (url, good) = (url(&daemon), token(&place, "mine", TOKEN, 0o600));
    let ours = tls("certificate.pem");
    let there = |args: &[&str]| remote(&url, &ours, &good, args);
    there(&["volume", "create", "a/b", "16MiB"]).ends(0);
    there(&["snapshot", "create", "a/b", "s", "--timeout", "20s"]).ends(0);
    assert!(place.run(&["snapshot", "list"]).stdout.contains("a/b@s"), "both ways lead to the same target");
    there(&["volume", "create", "a/b", "16MiB"]).fails(4, "a/b");
    // By the address's name too, which the certificate has.
    let by_name = url.replace("127.0.0.1", "localhost");
    remote(&by_name, &ours, &good, &["volume", "show", "a/b"]).ends(0);
    let wrong = token(&place, "wrong", "8a1c5f0e93d74b26a0b7-ringway-tesT", 0o600);
    remote(&url, &ours, &wrong, &["volume", "list"]).fails(9, "not this target's");
    remote(&url, &ours, &wrong, &["volume", "remove", "a/b", "--force"]).fails(9, "not this target's");
    remote(&url, &tls("other-certificate.pem"), &good, &["volume", "list"]).fails(9, "not trusted");
    run(["volume", "list", "--control", &url, "--control-ca", &ours]).fails(2, "--control-token-file");
    run(["volume", "list", "--control", &url, "--control-token-file", &good]).fails(2, "--control-ca");
    remote("https://127.0.0.1", &ours, &good, &["volume", "list"]).fails(2, "port is missing");
    remote("http://127.0.0.1:1", &ours, &good, &["volume", "list"]).fails(2, "https://");
    remote("https://127.0.0.1:1", &ours, &good, &["volume", "list"]).fails(6, "no daemon answers");
    assert!(place.run(&["volume", "list"]).stdout.contains("a/b"), "nothing was removed");
    daemon.stop().ends(0);
}

#[test]
fn who_speaks_no_tls_or_says_nothing_gets_nothing_and_keeps_nobody_waiting() {
    let place = Place::new();
    place.format();
    let daemon = serve(&place, &[]).unwrap();
    let (url, good) = (url(&daemon), token(&place, "mine", TOKEN, 0o600));
    let addr = url.strip_prefix("https://").unwrap();
    let silent: Vec<_> = (0..40).map(|_| TcpStream::connect(addr).unwrap()).collect();
    let mut plain = TcpStream::connect(addr).unwrap();
    write!(plain, "GET /v1/volumes HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {TOKEN}\r\n\r\n").unwrap();
    plain.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut answer = Vec::new();
    // Closed or reset: what matters is what was not said.
    let _ = plain.read_to_end(&mut answer);
    assert!(!String::from_utf8_lossy(&answer).contains("HTTP"), "{answer:?}");
    remote(&url, &tls("certificate.pem"), &good, &["volume", "list"]).ends(0);
    drop(silent);
    daemon.stop().ends(0);
}

#[test]
fn without_a_certificate_or_a_safe_token_no_target_listens_for_other_machines() {
    let place = Place::new();
    place.format();
    let (certificate, key) = (tls("certificate.pem"), tls("key.pem"));
    let good = token(&place, "good", TOKEN, 0o600);
    let open = token(&place, "open", TOKEN, 0o644);
    let short = token(&place, "short", "secret", 0o600);
    let missing = place.path("missing").display().to_string();
    let listen = ["--control-listen", "https://127.0.0.1:0"];
    let pair = ["--tls-cert", &certificate, "--tls-key", &key];
    for (args, code, says) in [
        (&listen[..], 2, "whoever gets in may do everything"),
        (&[&listen[..], &pair].concat(), 2, "whoever gets in may do everything"),
        (&[&listen[..], &["--control-token-file", &good]].concat(), 2, "whoever gets in may do everything"),
        (&[&listen[..], &pair[..2], &["--control-token-file", &good]].concat(), 2, "needs its key"),
        (&[&listen[..], &pair, &["--control-token-file", &open]].concat(), 9, "chmod 600"),
        (&[&listen[..], &pair, &["--control-token-file", &short]].concat(), 2, "20 to 1024"),
        (&[&listen[..], &pair, &["--control-token-file", &missing]].concat(), 3, "read the token"),
        (
            &[&listen[..], &["--tls-cert", &good, "--tls-key", &key, "--control-token-file", &good]].concat(),
            2,
            "no certificate",
        ),
        (
            &[&["--control-listen", "https://192.0.2.1:1"], &pair[..], &["--control-token-file", &good]].concat(),
            3,
            "192.0.2.1",
        ),
        (&["--control-listen", "tcp://127.0.0.1:0"], 2, "https://10.0.0.1:4421"),
    ] {
        place.try_serve(args).expect_err("it must not start").fails(code, says);
    }
}
