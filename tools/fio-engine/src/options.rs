//! What a job says about its volume, checked.

use std::path::Path;
use std::time::Duration;

use ringway_client::{Addresses, Options, Refusal, Transport, Way, errno};

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
            None => Transport::Shm,
            Some(name) => Transport::named(name)?,
        };
        let volume =
            self.volume.ok_or_else(|| invalid("which volume? Write volume=NAME, such as volume=vm1".into()))?;
        let port = u16::try_from(self.port).ok().filter(|&port| port != 0);
        let port = port.ok_or_else(|| invalid(format!("port={} is not a number from 1 to 65535", self.port)))?;
        if self.queues == 0 || self.queues > 128 {
            return Err(invalid(format!("queues={} is not a number from 1 to 128", self.queues)));
        }
        if self.queues > 1 && transport == Transport::Shm {
            let why = format!("queues={} is for transport=tcp and rdma: a job has one ring", self.queues);
            return Err(invalid(why));
        }
        let way = match transport {
            Transport::Shm => Way::shm(self.runtime.as_deref().map(Path::new)),
            Transport::Tcp | Transport::Rdma => {
                let host = self.host.unwrap_or_else(|| "127.0.0.1".into());
                let addresses = Addresses::resolve(&host, port);
                let addresses = addresses.map_err(|error| invalid(format!("host={host}: {error}")))?;
                if transport == Transport::Rdma { Way::Rdma(addresses) } else { Way::Tcp(addresses) }
            }
        };
        Ok(Options {
            host_nqn: self.host_nqn,
            queues: self.queues as u16,
            depth: self.depth.max(1),
            block_bytes: self.block_bytes.max(512),
            reconnect: Duration::from_secs(self.reconnect_s.into()),
            // A job that rests between requests does not call us, so nobody would send it.
            keep_alive: Duration::ZERO,
            tell: |what| eprintln!("ringway: {what}"),
            ..Options::new(way, volume)?
        })
    }
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
        assert_eq!(options.way, Way::Shm("/r/shm.sock".into()));
        let remote = Given { host: Some("127.0.0.2".into()), ..given() }.check().unwrap();
        assert_eq!(remote.way, Way::Tcp(Addresses::resolve("127.0.0.2", 4420).unwrap()));
    }

    #[test]
    fn a_wrong_option_is_named_beside_what_is_right() {
        for (wrong, says) in [
            (Given { volume: None, ..given() }, "volume=NAME"),
            (Given { volume: Some("a:b".into()), ..given() }, "A-Z a-z 0-9"),
            (Given { transport: Some("pigeon".into()), ..given() }, "transport=pigeon is none"),
            (Given { port: 0, ..given() }, "1 to 65535"),
            (Given { port: 65_536, ..given() }, "1 to 65535"),
            (Given { queues: 0, ..given() }, "1 to 128"),
            (Given { queues: 2, ..given() }, "a job has one ring"),
            (Given { host: Some("no-such-host.invalid".into()), ..given() }, "host=no-such-host.invalid"),
        ] {
            let refusal = wrong.check().unwrap_err();
            assert!(refusal.errno == errno::EINVAL && refusal.why.contains(says), "{refusal:?}");
        }
    }
}
