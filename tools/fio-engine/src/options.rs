//! What a job says about its volume, checked; and how something that cannot be is told.

use std::env;
use std::path::PathBuf;
use std::time::Duration;

use ringway_core::host::{HostError, HostErrorKind};
use ringway_core::snapshot::name::check_any_name;

/// The numbers that fio reports, as Linux has them.
pub(crate) mod errno {
    pub(crate) const ENOENT: i32 = 2;
    pub(crate) const EIO: i32 = 5;
    pub(crate) const EACCES: i32 = 13;
    pub(crate) const EINVAL: i32 = 22;
    pub(crate) const ENOSPC: i32 = 28;
    pub(crate) const EROFS: i32 = 30;
    pub(crate) const EOPNOTSUPP: i32 = 95;
    pub(crate) const ECONNRESET: i32 = 104;
    pub(crate) const ESHUTDOWN: i32 = 108;
    pub(crate) const ETIMEDOUT: i32 = 110;
    pub(crate) const ECONNREFUSED: i32 = 111;
}

/// Why something cannot be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) errno: i32,
    pub(crate) why: String,
}

impl Refusal {
    pub(crate) fn new(errno: i32, why: impl Into<String>) -> Refusal {
        Refusal { errno, why: why.into() }
    }
}

impl From<&HostError> for Refusal {
    fn from(error: &HostError) -> Refusal {
        let (errno, advice) = match error.kind {
            HostErrorKind::NoSuchVolume => (errno::ENOENT, "; `ringway volume list` shows what there is"),
            HostErrorKind::NotAllowed => {
                (errno::EACCES, "; `ringway volume hosts` says who may attach, hostnqn= who we are")
            }
            HostErrorKind::Refused => (errno::ECONNREFUSED, "; is `ringway serve` running there?"),
            HostErrorKind::Disconnected => (errno::ECONNRESET, ""),
            HostErrorKind::TimedOut => (errno::ETIMEDOUT, ""),
            HostErrorKind::Invalid => (errno::EINVAL, ""),
            HostErrorKind::Closed => (errno::ESHUTDOWN, ""),
            HostErrorKind::Digest | HostErrorKind::Protocol | HostErrorKind::Controller | HostErrorKind::Local => {
                (errno::EIO, "")
            }
        };
        Refusal::new(errno, format!("{error}{advice}"))
    }
}

/// How the target is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Shm,
    Tcp,
}

/// As the job has them, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Options {
    pub(crate) transport: Transport,
    pub(crate) volume: String,
    /// Where a target of this machine takes rings.
    pub(crate) socket: PathBuf,
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) host_nqn: Option<String>,
    pub(crate) queues: u16,
    /// Requests in flight, and bytes of the largest.
    pub(crate) depth: u32,
    pub(crate) block_bytes: u64,
    pub(crate) reconnect: Duration,
}

/// What fio was given, as it was written; `None` where nothing was.
#[derive(Clone, Debug, Default)]
pub(crate) struct Given {
    pub(crate) transport: Option<String>,
    pub(crate) volume: Option<String>,
    pub(crate) host: Option<String>,
    pub(crate) host_nqn: Option<String>,
    pub(crate) runtime: Option<String>,
    pub(crate) port: u32,
    pub(crate) queues: u32,
    pub(crate) depth: u32,
    pub(crate) block_bytes: u64,
    pub(crate) reconnect_s: u32,
}

impl Given {
    pub(crate) fn check(self) -> Result<Options, Refusal> {
        let invalid = |why: String| Refusal::new(errno::EINVAL, why);
        let transport = match self.transport.as_deref() {
            None if self.host.is_some() => Transport::Tcp,
            None | Some("shm") => Transport::Shm,
            Some("tcp") => Transport::Tcp,
            Some("rdma") => {
                return Err(invalid(
                    "transport=rdma is not in this version; write transport=shm or transport=tcp".into(),
                ));
            }
            Some(other) => {
                return Err(invalid(format!(
                    "transport={other} is none of Ringway's; write transport=shm or transport=tcp"
                )));
            }
        };
        let volume =
            self.volume.ok_or_else(|| invalid("which volume? Write volume=NAME, such as volume=vm1".into()))?;
        check_any_name(&volume).map_err(invalid)?;
        let port = u16::try_from(self.port).ok().filter(|&port| port != 0);
        let port = port.ok_or_else(|| invalid(format!("port={} is not a number from 1 to 65535", self.port)))?;
        if self.queues == 0 || self.queues > 128 {
            return Err(invalid(format!("queues={} is not a number from 1 to 128", self.queues)));
        }
        Ok(Options {
            transport,
            volume,
            socket: runtime_folder(self.runtime).join("shm.sock"),
            host: self.host.unwrap_or_else(|| "127.0.0.1".into()),
            port,
            host_nqn: self.host_nqn,
            queues: self.queues as u16,
            depth: self.depth.max(1),
            block_bytes: self.block_bytes.max(512),
            reconnect: Duration::from_secs(self.reconnect_s.into()),
        })
    }
}

/// As every client of this machine looks for it (docs/operating/control.md).
fn runtime_folder(given: Option<String>) -> PathBuf {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let uid = rustix::process::geteuid().as_raw();
    if let Some(folder) = given.map(PathBuf::from).or_else(|| set("RINGWAY_RUNTIME_DIR")) {
        return folder;
    }
    if uid == 0 {
        return "/run/ringway".into();
    }
    set("XDG_RUNTIME_DIR").map_or_else(|| format!("/tmp/ringway-{uid}").into(), |folder| folder.join("ringway"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given() -> Given {
        Given { volume: Some("v".into()), port: 4420, queues: 1, depth: 4, block_bytes: 4096, ..Given::default() }
    }

    #[test]
    fn what_a_job_leaves_out_has_its_default() {
        let options = Given { runtime: Some("/r".into()), ..given() }.check().unwrap();
        assert_eq!((options.transport, options.host.as_str(), options.port), (Transport::Shm, "127.0.0.1", 4420));
        assert_eq!(options.socket, PathBuf::from("/r/shm.sock"));
        let remote = Given { host: Some("h".into()), ..given() }.check().unwrap();
        assert_eq!(remote.transport, Transport::Tcp);
    }

    #[test]
    fn a_wrong_option_is_named_beside_what_is_right() {
        for (wrong, says) in [
            (Given { volume: None, ..given() }, "volume=NAME"),
            (Given { volume: Some("a:b".into()), ..given() }, "A-Z a-z 0-9"),
            (Given { transport: Some("rdma".into()), ..given() }, "transport=rdma is not in this version"),
            (Given { transport: Some("pigeon".into()), ..given() }, "transport=pigeon is none"),
            (Given { port: 0, ..given() }, "1 to 65535"),
            (Given { port: 65_536, ..given() }, "1 to 65535"),
            (Given { queues: 0, ..given() }, "1 to 128"),
        ] {
            let refusal = wrong.check().unwrap_err();
            assert!(refusal.errno == errno::EINVAL && refusal.why.contains(says), "{refusal:?}");
        }
    }
}
