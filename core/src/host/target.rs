//! One spelling of a target everywhere: `tcp://HOST:PORT/VOL`, `rdma://HOST:PORT/VOL`, `shm:VOL`, `VOL`, each with an optional `@SNAP`.
//!
//! Parsing says what was wrong and what would be right; it never touches the network.

use std::borrow::Cow;
use std::fmt;

use crate::snapshot::name::full_name;
use crate::volume::check_name;
use crate::wire::log_page::TransportType;

/// The port of NVMe/TCP where a spelling has none.
pub const PORT_DEFAULT: u16 = 4420;
/// Bytes of a snapshot's name, exclusive.
const SNAPSHOT_NAME_MAX: usize = 128;

/// How to reach a volume.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Transport {
    /// NVMe/TCP: host as spelled (a name, an IPv4 address or an IPv6 address without brackets) and port.
    Tcp { host: String, port: u16 },
    /// NVMe/RDMA, likewise.
    Rdma { host: String, port: u16 },
    /// Shared memory with the daemon of this machine.
    Shm,
}

/// A volume or a snapshot of it, and how to reach it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    /// The way there.
    pub transport: Transport,
    /// The volume's name.
    pub volume: String,
    /// The snapshot's name, for `VOL@SNAP`.
    pub snapshot: Option<String>,
}

/// Why a spelling is not a target.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{spelling:?} is not a target: {why}; write tcp://HOST:PORT/VOLUME or rdma://HOST:PORT/VOLUME, for example tcp://127.0.0.1:4420/vm1"
)]
pub struct BadTarget {
    /// As given.
    pub spelling: String,
    /// What is wrong with it.
    pub why: String,
}

impl Target {
    /// Parses a spelling. A bare `VOL` means the default port of this machine.
    pub fn parse(spelling: &str) -> Result<Target, BadTarget> {
        let bad = |why: String| BadTarget { spelling: spelling.to_owned(), why };
        if let Some(volume) = spelling.strip_prefix("shm:") {
            let (volume, snapshot) = split_volume(volume).map_err(bad)?;
            return Ok(Target { transport: Transport::Shm, volume, snapshot });
        }
        if let Some((scheme, rest)) = spelling.split_once("://") {
            return match scheme {
                "tcp" => parse_remote(rest, |host, port| Transport::Tcp { host, port }).map_err(bad),
                "rdma" => parse_remote(rest, |host, port| Transport::Rdma { host, port }).map_err(bad),
                other => Err(bad(format!("{other}:// is not a transport of Ringway"))),
            };
        }
        let (volume, snapshot) = split_volume(spelling).map_err(bad)?;
        Ok(Target { transport: Transport::Tcp { host: "127.0.0.1".into(), port: PORT_DEFAULT }, volume, snapshot })
    }

    /// The volume's name, or `VOLUME@SNAPSHOT`: what the target calls it.
    #[must_use]
    pub fn name(&self) -> String {
        self.snapshot.as_ref().map_or_else(|| self.volume.clone(), |snapshot| full_name(&self.volume, snapshot))
    }

    /// Host and port of a volume that is reached over a network, and over what.
    ///
    /// # Errors
    /// If it is reached by shared memory.
    pub fn remote(&self) -> Result<(TransportType, &str, u16), BadTarget> {
        let bad = |why: &str| Err(BadTarget { spelling: self.to_string(), why: why.into() });
        match &self.transport {
            Transport::Tcp { host, port } => Ok((TransportType::Tcp, host, *port)),
            Transport::Rdma { host, port } => Ok((TransportType::Rdma, host, *port)),
            Transport::Shm => bad("it is not reached over a network"),
        }
    }
}

fn parse_remote(rest: &str, transport: impl FnOnce(String, u16) -> Transport) -> Result<Target, String> {
    let (authority, volume) = rest.split_once('/').ok_or("no volume after the address")?;
    let (host, port) = split_authority(authority)?;
    let (volume, snapshot) = split_volume(volume)?;
    Ok(Target { transport: transport(host, port), volume, snapshot })
}

/// Splits `HOST`, `HOST:PORT`, `[V6]` and `[V6]:PORT`.
pub(crate) fn split_authority(authority: &str) -> Result<(String, u16), String> {
    let (host, port) = match authority.strip_prefix('[') {
        Some(v6) => {
            let (host, after) = v6.split_once(']').ok_or("an IPv6 address needs a closing ]")?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| format!("{host:?} is not an IPv6 address"))?;
            let port = match after {
                "" => None,
                after => Some(after.strip_prefix(':').ok_or("after ] comes :PORT")?),
            };
            (host, port)
        }
        None => match authority.split_once(':') {
            Some((_, port)) if port.contains(':') => return Err("an IPv6 address stands in [ ]".into()),
            Some((host, port)) => (host, Some(port)),
            None => (authority, None),
        },
    };
    if host.is_empty() {
        return Err("the host is empty".into());
    }
    let port = match port {
        None => PORT_DEFAULT,
        Some(port) => match port.parse::<u16>() {
            Ok(port) if port != 0 => port,
            _ => return Err(format!("port {port:?} is not a number from 1 to 65535")),
        },
    };
    Ok((host.to_owned(), port))
}

fn split_volume(spelled: &str) -> Result<(String, Option<String>), String> {
    let (volume, snapshot) = match spelled.split_once('@') {
        Some((volume, snapshot)) => (volume, Some(snapshot)),
        None => (spelled, None),
    };
    check_name(volume).map_err(|bad| bad.to_string())?;
    if let Some(name) = snapshot {
        let fits = name.len() < SNAPSHOT_NAME_MAX && !name.contains('/') && check_name(name).is_ok();
        if !fits {
            return Err(format!("snapshot name {name:?} is not 1 to 127 bytes of A-Z a-z 0-9 . _ -"));
        }
    }
    Ok((volume.to_owned(), snapshot.map(str::to_owned)))
}

/// A host as it stands in front of a port.
fn bracketed(host: &str) -> Cow<'_, str> {
    if host.contains(':') { Cow::Owned(format!("[{host}]")) } else { Cow::Borrowed(host) }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.transport {
            Transport::Tcp { host, port } => write!(f, "tcp://{}:{port}/{}", bracketed(host), self.volume)?,
            Transport::Rdma { host, port } => write!(f, "rdma://{}:{port}/{}", bracketed(host), self.volume)?,
            Transport::Shm => write!(f, "shm:{}", self.volume)?,
        }
        match &self.snapshot {
            Some(snapshot) => write!(f, "@{snapshot}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_comes_back_as_it_was_written() {
        for spelling in [
            "tcp://127.0.0.1:4420/vm1",
            "tcp://[::1]:21321/a/b",
            "tcp://host.example:1/v@s1",
            "rdma://[fd00::1]:4420/v",
            "shm:v",
            "shm:v@s",
        ] {
            assert_eq!(Target::parse(spelling).unwrap().to_string(), spelling);
        }
    }

    #[test]
    fn what_is_left_out_has_its_default() {
        assert_eq!(Target::parse("vm1").unwrap().to_string(), "tcp://127.0.0.1:4420/vm1");
        assert_eq!(Target::parse("tcp://[::1]/vm1").unwrap().to_string(), "tcp://[::1]:4420/vm1");
    }

    #[test]
    fn what_is_not_a_target_says_why() {
        for (spelling, why) in [
            ("tcp://127.0.0.1:4420", "no volume"),
            ("tcp://:4420/v", "host is empty"),
            ("tcp://h:0/v", "port \"0\""),
            ("tcp://h:99999/v", "port \"99999\""),
            ("tcp://::1/v", "[ ]"),
            ("tcp://[::g]/v", "not an IPv6"),
            ("rdma://h", "no volume"),
            ("nbd://h/v", "not a transport"),
            ("tcp://h/-v", "starts with"),
            ("tcp://h/v@a/b", "snapshot name"),
            ("", "is empty"),
        ] {
            let error = Target::parse(spelling).unwrap_err();
            assert!(error.why.contains(why), "{spelling}: {error}");
        }
    }

    #[test]
    fn a_target_knows_what_it_is_called_and_where_it_listens() {
        let snapshot = Target::parse("tcp://h:1/v@s").unwrap();
        assert_eq!((snapshot.name().as_str(), snapshot.remote()), ("v@s", Ok((TransportType::Tcp, "h", 1))));
        let shared = Target::parse("shm:v").unwrap();
        assert_eq!(shared.name(), "v");
        assert!(shared.remote().unwrap_err().why.contains("not reached over a network"));
    }
}
