//! Where targets listen: `HOST`, `HOST:PORT`, `[V6]:PORT`, and several of them separated by commas, which are addresses of one
//! target.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};

/// Resolved addresses of one target, at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addresses {
    first: SocketAddr,
    others: Vec<SocketAddr>,
}

/// Why a text is none.
#[derive(Debug)]
pub enum BadAddress {
    /// It is not spelled as one, or has none.
    Malformed(String),
    /// The name cannot be resolved.
    Unresolved {
        /// The name.
        host: String,
        /// What the resolver says.
        source: io::Error,
    },
}

impl fmt::Display for BadAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            BadAddress::Malformed(why) => write!(f, "{why}; write HOST, HOST:PORT or [V6]:PORT, several with commas"),
            BadAddress::Unresolved { host, source } => write!(f, "{host} cannot be resolved: {source}"),
        }
    }
}

impl std::error::Error for BadAddress {}

impl Addresses {
    /// Resolves a list, at once. `port` is that of hosts without one of their own.
    pub fn resolve(list: &str, port: u16) -> Result<Addresses, BadAddress> {
        let mut found: Vec<SocketAddr> = Vec::new();
        // What is wrong is said before anybody is asked.
        let parts: Vec<_> = list.split(',').map(|part| split(part.trim(), port)).collect::<Result<_, _>>()?;
        for (host, port) in parts {
            let resolved = (host, port)
                .to_socket_addrs()
                .map_err(|source| BadAddress::Unresolved { host: host.to_owned(), source })?;
            for addr in resolved {
                if !found.contains(&addr) {
                    found.push(addr);
                }
            }
        }
        let mut found = found.into_iter();
        let first = found.next().ok_or_else(|| BadAddress::Malformed(format!("{list:?} has no address")))?;
        Ok(Addresses { first, others: found.collect() })
    }

    /// The one to try first.
    #[must_use]
    pub fn first(&self) -> SocketAddr {
        self.first
    }

    /// Those to try after it.
    #[must_use]
    pub fn others(&self) -> &[SocketAddr] {
        &self.others
    }
}

fn split(part: &str, port: u16) -> Result<(&str, u16), BadAddress> {
    let bad = |why: String| Err(BadAddress::Malformed(why));
    if part.parse::<IpAddr>().is_ok() {
        return Ok((part, port));
    }
    let (host, own) = match part.strip_prefix('[') {
        Some(rest) => {
            let Some((host, after)) = rest.split_once(']') else { return bad(format!("{part:?} has no closing ]")) };
            match (after, after.strip_prefix(':')) {
                ("", _) => (host, None),
                (_, Some(own)) => (host, Some(own)),
                _ => return bad(format!("{part:?}: after ] comes :PORT")),
            }
        }
        None => part.split_once(':').map_or((part, None), |(host, own)| (host, Some(own))),
    };
    if host.is_empty() {
        return bad(format!("{part:?} has no host"));
    }
    match own.map(str::parse::<u16>) {
        None => Ok((host, port)),
        Some(Ok(own)) if own != 0 => Ok((host, own)),
        Some(_) => bad(format!("the port of {part:?} is not a number from 1 to 65535")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_hosts_is_resolved_in_its_order_with_each_ones_port() {
        let found = Addresses::resolve("127.0.0.1, [::1]:7,127.0.0.2:8,127.0.0.1", 21321).unwrap();
        assert_eq!(found.first(), "127.0.0.1:21321".parse().unwrap());
        assert_eq!(found.others(), ["[::1]:7".parse().unwrap(), "127.0.0.2:8".parse::<SocketAddr>().unwrap()]);
        assert_eq!(Addresses::resolve("::1", 1).unwrap().first(), "[::1]:1".parse().unwrap());
    }

    #[test]
    fn what_is_no_address_is_told_from_a_name_that_nobody_knows() {
        for bad in ["", "a,,b", ":1", "127.0.0.1:0", "127.0.0.1:x", "[::1", "[::1]7"] {
            assert!(matches!(Addresses::resolve(bad, 1), Err(BadAddress::Malformed(_))), "{bad}");
        }
        let error = Addresses::resolve("no-such-host.invalid", 1).unwrap_err();
        assert!(matches!(&error, BadAddress::Unresolved { host, .. } if host == "no-such-host.invalid"), "{error}");
    }
}
