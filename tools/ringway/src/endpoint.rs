//! Spellings of where something is: a listener `tcp://ADDR:PORT` or `rdma://ADDR:PORT`, a pool `DIR|DEVICE|mem:SIZE|null:SIZE`. (Targets,
//! `tcp://HOST:PORT/VOLUME`, are spelled by `ringway_core::host`.)

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::str::FromStr;

use ringway_client::control::place_of;
use ringway_core::target::PoolSpec;
use ringway_core::wire::log_page::TransportType;
use serde::{Deserialize, Serialize};

use crate::size::Size;

/// Where to listen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Listen {
    /// As it was written.
    pub(crate) text: String,
    /// Over what.
    pub(crate) transport: TransportType,
    /// What it means.
    pub(crate) addr: SocketAddr,
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Listen, String> {
        let (transport, addr) = resolve_listener(text)?;
        Ok(Listen { text: text.to_owned(), transport, addr })
    }
}

impl TryFrom<String> for Listen {
    type Error = String;

    fn try_from(text: String) -> Result<Listen, String> {
        text.parse()
    }
}

impl From<Listen> for String {
    fn from(listen: Listen) -> String {
        listen.text
    }
}

/// Where to listen for control.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct ControlListen {
    /// What it means.
    pub(crate) addr: SocketAddr,
}

impl FromStr for ControlListen {
    type Err = String;

    fn from_str(text: &str) -> Result<ControlListen, String> {
        let (host, port) = place_of(text)?;
        let addr = resolve(&format!("{host}:{port}")).map_err(|why| format!("{text:?}: {why}"))?;
        Ok(ControlListen { addr })
    }
}

impl TryFrom<String> for ControlListen {
    type Error = String;

    fn try_from(text: String) -> Result<ControlListen, String> {
        text.parse()
    }
}

fn resolve_listener(text: &str) -> Result<(TransportType, SocketAddr), String> {
    const EXAMPLE: &str = "write it like tcp://127.0.0.1:4420 or rdma://10.0.0.1:4420";
    let (transport, addr) = match text.split_once("://") {
        Some(("tcp", addr)) => (TransportType::Tcp, addr),
        Some(("rdma", addr)) => (TransportType::Rdma, addr),
        Some((other, _)) => return Err(format!("listening on {other:?} is not in this version; {EXAMPLE}")),
        None => return Err(format!("{text:?} is not a listener; {EXAMPLE}")),
    };
    let addr = resolve(addr).map_err(|why| format!("listener {text:?}: {why}; {EXAMPLE}"))?;
    Ok((transport, addr))
}

fn resolve(text: &str) -> Result<SocketAddr, String> {
    let port = text.rsplit_once(':').map(|(_, port)| port).ok_or("the port is missing")?;
    port.parse::<u16>().map_err(|_| format!("port {port:?} is not a number from 0 to 65535"))?;
    let mut found = text.to_socket_addrs().map_err(|error| format!("its address cannot be resolved ({error})"))?;
    found.next().ok_or_else(|| "its address resolves to nothing".to_owned())
}

/// Where a pool lives, as it is spelled: `DIR`, `DEVICE`, `DEVICE,DEVICE...`, `mem:SIZE` or `null:SIZE`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct PoolPlace(pub(crate) PoolSpec);

impl FromStr for PoolPlace {
    type Err = String;

    fn from_str(text: &str) -> Result<PoolPlace, String> {
        let sized = |size: &str| match size.parse::<Size>() {
            Ok(Size(0)) => Err(format!("pool {text:?} has no size; write it like mem:1GiB or null:1TiB")),
            Ok(Size(bytes)) => Ok(bytes),
            Err(why) => Err(format!("pool {text:?}: {why}")),
        };
        if let Some(size) = text.strip_prefix("mem:") {
            return sized(size).map(PoolSpec::Memory).map(PoolPlace);
        }
        if let Some(size) = text.strip_prefix("null:") {
            return sized(size).map(PoolSpec::Null).map(PoolPlace);
        }
        if text.is_empty() {
            return Err("a pool is a directory, a block device, mem:SIZE or null:SIZE; this one is empty".to_owned());
        }
        let paths: Vec<&str> = text.split(',').collect();
        if paths.len() > 1 && paths.iter().all(|path| path.starts_with("/dev/")) {
            return Ok(PoolPlace(PoolSpec::Devices(paths.into_iter().map(PathBuf::from).collect())));
        }
        Ok(PoolPlace(PoolSpec::Path(text.into())))
    }
}

impl TryFrom<String> for PoolPlace {
    type Error = String;

    fn try_from(text: String) -> Result<PoolPlace, String> {
        text.parse()
    }
}

impl From<PoolPlace> for String {
    fn from(place: PoolPlace) -> String {
        place.0.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_an_address_with_a_port() {
        assert_eq!("tcp://127.0.0.1:4420".parse::<Listen>().unwrap().addr, "127.0.0.1:4420".parse().unwrap());
        assert_eq!("tcp://[::1]:0".parse::<Listen>().unwrap().addr, "[::1]:0".parse().unwrap());
        let rdma: Listen = "rdma://10.0.0.1:4420".parse().unwrap();
        assert_eq!((rdma.transport, rdma.addr.port()), (TransportType::Rdma, 4420));
    }

    #[test]
    fn wrong_spellings_say_what_is_missing() {
        for (text, says) in [
            ("127.0.0.1:4420", "tcp://127.0.0.1:4420"),
            ("tcp://127.0.0.1", "port is missing"),
            ("tcp://127.0.0.1:99999", "0 to 65535"),
            ("tcp://127.0.0.1:x", "\"x\" is not a number"),
            ("nvme://127.0.0.1:4420", "\"nvme\" is not in this version"),
            ("rdma://127.0.0.1", "port is missing"),
            ("tcp://1.2.3.4.5.6:1", "cannot be resolved"),
        ] {
            let error = text.parse::<Listen>().unwrap_err();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn a_place_for_control_is_a_host_with_a_port_behind_tls() {
        assert_eq!("https://[::1]:0".parse::<ControlListen>().unwrap().addr, "[::1]:0".parse().unwrap());
        for (text, says) in [
            ("http://a:1", "https://"),
            ("a:1", "https://"),
            ("https://a", "port is missing"),
            ("https://a:x", "0 to 65535"),
            ("https://:1", "host is missing"),
            ("https://a/b:1", "host is missing"),
        ] {
            let error = text.parse::<ControlListen>().unwrap_err();
            assert!(error.contains(says) && error.contains("https://10.0.0.1:4421"), "{text}: {error}");
        }
    }

    #[test]
    fn a_pool_is_a_path_or_a_size_of_memory_or_of_nothing() {
        let spec = |text: &str| text.parse::<PoolPlace>().map(|place| place.0);
        assert_eq!(spec("mem:1G"), Ok(PoolSpec::Memory(1 << 30)));
        assert_eq!(spec("null:1T"), Ok(PoolSpec::Null(1 << 40)));
        assert_eq!(spec("./mem"), Ok(PoolSpec::Path("./mem".into())));
        assert_eq!(spec("a,b"), Ok(PoolSpec::Path("a,b".into())));
        assert_eq!(spec("/dev/a,/dev/b"), Ok(PoolSpec::Devices(vec!["/dev/a".into(), "/dev/b".into()])));
        assert!(spec("mem:x").unwrap_err().contains("not a size"));
        assert!(spec("mem:0").unwrap_err().contains("mem:1GiB"));
        assert!("".parse::<PoolPlace>().is_err());
    }
}
