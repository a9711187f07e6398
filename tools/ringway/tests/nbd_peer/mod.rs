//! A target with NBD exports, and a client that speaks the protocol byte by byte.

#![expect(dead_code, unreachable_pub, reason = "each test binary uses its part of this")]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::common::{Daemon, Ended, Place};

/// Build folders are deep and a socket's path has 107 bytes: the runtime folder is elsewhere.
pub struct Home {
    pub place: Place,
    runtime: tempfile::TempDir,
}

impl Home {
    pub fn new() -> Home {
        Home { place: Place::new(), runtime: tempfile::Builder::new().prefix("ringway-").tempdir().unwrap() }
    }

    #[track_caller]
    pub fn serve(&self, args: &[&str]) -> Daemon {
        let runtime = self.runtime.path().to_str().unwrap();
        self.place.serve(&[&["--runtime", runtime, "--pool-size", "256MiB"], args].concat())
    }

    pub fn export(&self, args: &str) -> Ended {
        let all: Vec<&str> = ["export"].into_iter().chain(args.split(' ')).collect();
        self.place.run(&all)
    }

    pub fn socket(&self, name: &str) -> PathBuf {
        self.runtime.path().join(name)
    }

    #[track_caller]
    pub fn create(&self, volume: &str, size: &str) {
        self.place.run(&["volume", "create", volume, size, "--json"]).json();
    }

    /// Exports it by its own unix socket.
    #[track_caller]
    pub fn add(&self, volume: &str) {
        self.export(&format!("add nbd {volume} --json")).json();
    }

    /// Exports it by a port; returns its URI.
    #[track_caller]
    pub fn add_tcp(&self, volume: &str, more: &[&str]) -> String {
        let more: String = more.iter().map(|arg| format!(" {arg}")).collect();
        let made = self.export(&format!("add nbd {volume} --listen tcp://127.0.0.1:0{more} --json")).json();
        made["socket"].as_str().unwrap().replace("tcp://", "nbd://") + "/" + volume
    }
}

/// An authority, a server's certificate and a client's, by the names that libnbd and QEMU look for. `false`: there is no openssl.
pub fn certificates(folder: &Path) -> bool {
    let script = r#"
set -e
openssl req -x509 -newkey rsa:2048 -nodes -keyout ca-key.pem -out ca-cert.pem -days 2 -subj /CN=authority \
  -addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign
for who in server client; do
  openssl req -newkey rsa:2048 -nodes -keyout $who-key.pem -out $who.csr -subj /CN=localhost
  printf 'subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth,clientAuth\n' >$who.ext
  openssl x509 -req -in $who.csr -CA ca-cert.pem -CAkey ca-key.pem -CAcreateserial -out $who-cert.pem -days 2 -extfile $who.ext
done
"#;
    if Command::new("openssl").arg("version").output().is_err() {
        return false;
    }
    let made = Command::new("sh").arg("-c").arg(script).current_dir(folder).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    true
}

/// What a structured reply brought.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Answer {
    pub error: u32,
    /// Kinds of chunks, in order.
    pub chunks: Vec<u16>,
    pub data: Vec<u8>,
}

/// A client, one byte after the other.
pub struct Peer(pub UnixStream);

impl Peer {
    pub fn connect(path: &Path) -> Peer {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        stream.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
        Peer(stream)
    }

    /// After the greeting, as a client that knows what it does.
    pub fn greeted(path: &Path) -> Peer {
        let mut peer = Peer::connect(path);
        assert_eq!(peer.take(18), b"NBDMAGICIHAVEOPT\0\x03");
        peer.send(&3u32.to_be_bytes());
        peer
    }

    /// In transmission with simple replies.
    pub fn simple(path: &Path, name: &[u8]) -> Peer {
        let mut peer = Peer::greeted(path);
        peer.option(1, name);
        peer.take(10);
        peer
    }

    /// In transmission with structured replies.
    pub fn structured(path: &Path, name: &str) -> Peer {
        let mut peer = Peer::greeted(path);
        peer.option(8, b"");
        assert_eq!(peer.reply().0, 1);
        let mut go = (name.len() as u32).to_be_bytes().to_vec();
        go.extend(name.as_bytes());
        go.extend([0, 0]);
        peer.option(7, &go);
        while peer.reply().0 == 3 {}
        peer
    }

    pub fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    pub fn take(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.0.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn number<const N: usize>(&mut self) -> [u8; N] {
        self.take(N).try_into().unwrap()
    }

    pub fn option(&mut self, number: u32, data: &[u8]) {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend(number.to_be_bytes());
        bytes.extend((data.len() as u32).to_be_bytes());
        bytes.extend(data);
        self.send(&bytes);
    }

    /// Kind and data of the reply to an option.
    pub fn reply(&mut self) -> (u32, Vec<u8>) {
        assert_eq!(self.number(), 0x3_e889_0455_65a9u64.to_be_bytes());
        self.take(4);
        let kind = u32::from_be_bytes(self.number());
        let len = u32::from_be_bytes(self.number());
        (kind, self.take(len as usize))
    }

    pub fn ask(&mut self, kind: u16, flags: u16, cookie: u64, offset: u64, len: u32) {
        let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
        bytes.extend(flags.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend(cookie.to_be_bytes());
        bytes.extend(offset.to_be_bytes());
        bytes.extend(len.to_be_bytes());
        self.send(&bytes);
    }

    /// Error and cookie of a simple reply.
    pub fn simple_reply(&mut self) -> (u32, u64) {
        assert_eq!(self.number(), 0x6744_6698u32.to_be_bytes());
        (u32::from_be_bytes(self.number()), u64::from_be_bytes(self.number()))
    }

    /// All chunks of the structured reply to a read of `len` bytes at `offset`.
    pub fn structured_reply(&mut self, cookie: u64, offset: u64, len: usize) -> Answer {
        let mut answer = Answer { data: vec![0xEE; len], ..Answer::default() };
        loop {
            assert_eq!(self.number(), 0x668e_33efu32.to_be_bytes());
            let flags = u16::from_be_bytes(self.number());
            let kind = u16::from_be_bytes(self.number());
            assert_eq!(u64::from_be_bytes(self.number()), cookie);
            let size = u32::from_be_bytes(self.number()) as usize;
            let body = self.take(size);
            answer.chunks.push(kind);
            let at = |body: &[u8]| (u64::from_be_bytes(body[..8].try_into().unwrap()) - offset) as usize;
            match kind {
                0 => {}
                1 => answer.data[at(&body)..][..size - 8].copy_from_slice(&body[8..]),
                2 => {
                    let hole = u32::from_be_bytes(body[8..12].try_into().unwrap()) as usize;
                    answer.data[at(&body)..][..hole].fill(0);
                }
                _ => answer.error = u32::from_be_bytes(body[..4].try_into().unwrap()),
            }
            if flags & 1 != 0 {
                return answer;
            }
        }
    }

    /// Whether the server has closed the connection.
    pub fn is_closed(&mut self) -> bool {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Ok(_) => true,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}
