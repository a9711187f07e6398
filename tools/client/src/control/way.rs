//! How a daemon is reached: by its socket on this machine, or over TLS with a token.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ringway_core::control::{ControlError, ControlErrorKind};
use ringway_core::target::certificates;
use ringway_reactor::socket_path::SocketPath;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::internal;
use super::token::Token;

/// To another machine that may not be there.
const CONNECT_MAX: Duration = Duration::from_secs(15);

/// What HTTP runs over.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Where a daemon is.
#[derive(Clone, Debug)]
pub enum Way {
    /// On this machine.
    Socket(PathBuf),
    /// On any.
    Remote(Remote),
}

/// A daemon that listens for other machines.
#[derive(Clone)]
pub struct Remote {
    url: String,
    /// `HOST:PORT`.
    address: String,
    name: ServerName<'static>,
    tls: Arc<ClientConfig>,
    token: Token,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.url)
    }
}

/// Host and port of `https://HOST:PORT`; the host of an address of version 6 keeps its brackets.
///
/// # Errors
/// What is wrong with it, in words.
pub fn place_of(url: &str) -> Result<(String, u16), String> {
    let wrong = |why: &str| format!("{url:?} is no place for control: {why}; write it like https://10.0.0.1:4421");
    let place = url.strip_prefix("https://").ok_or_else(|| wrong("it does not begin with https://"))?;
    let (host, port) = place.trim_end_matches('/').rsplit_once(':').ok_or_else(|| wrong("the port is missing"))?;
    let port = port.parse().map_err(|_| wrong("the port is not a number from 0 to 65535"))?;
    if host.is_empty() || host.contains('/') {
        return Err(wrong("the host is missing"));
    }
    Ok((host.to_owned(), port))
}

impl Way {
    /// A socket, or `https://HOST:PORT` with the file of who signed its certificate and the file of what lets us in.
    ///
    /// # Errors
    /// `Invalid` for what is spelled wrong or missing; why a file cannot be used.
    pub fn of(control: &Path, authority: Option<&Path>, token: Option<&Path>) -> Result<Way, ControlError> {
        let Some(url) = control.to_str().filter(|text| text.contains("://")) else {
            return Ok(Way::Socket(control.to_owned()));
        };
        let (host, port) = place_of(url).map_err(ControlError::invalid)?;
        let missing = |what: &str, flag: &str, variable: &str| {
            ControlError::invalid(format!("{url} needs {what}: give its file by {flag}, or in {variable}"))
        };
        let authority = authority.ok_or_else(|| {
            let what = "the certificate of the daemon, or of who signed that";
            missing(what, "--control-ca", "RINGWAY_CONTROL_CA")
        })?;
        let token =
            token.ok_or_else(|| missing("the daemon's token", "--control-token-file", "RINGWAY_CONTROL_TOKEN_FILE"))?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates(authority).map_err(ControlError::invalid)? {
            let wrong = |error| ControlError::invalid(format!("{}: {error}", authority.display()));
            roots.add(certificate).map_err(wrong)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| internal(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(bare).map_err(|_| {
            ControlError::invalid(format!("{host:?} in {url} is neither a name nor an address of a host"))
        })?;
        Ok(Way::Remote(Remote {
            url: url.to_owned(),
            address: format!("{host}:{port}"),
            name,
            tls: Arc::new(tls),
            token: Token::read(token)?,
        }))
    }

    /// What a request has to carry.
    pub(super) fn token(&self) -> Option<&Token> {
        match self {
            Way::Socket(_) => None,
            Way::Remote(remote) => Some(&remote.token),
        }
    }

    /// For messages.
    pub(super) fn name(&self) -> String {
        match self {
            Way::Socket(path) => path.display().to_string(),
            Way::Remote(remote) => remote.url.clone(),
        }
    }

    pub(super) async fn connect(&self) -> Result<Box<dyn Stream>, ControlError> {
        match self {
            Way::Socket(path) => {
                let unreachable = |error| no_daemon(&self.name(), &error);
                let path = SocketPath::of(path).map_err(unreachable)?;
                Ok(Box::new(UnixStream::connect(path.as_path()).await.map_err(unreachable)?))
            }
            Way::Remote(remote) => match timeout(CONNECT_MAX, remote.connect()).await {
                Ok(connected) => connected,
                Err(_) => {
                    let why = format!("no daemon answers on {} within {} s", remote.url, CONNECT_MAX.as_secs());
                    Err(ControlError::new(ControlErrorKind::Unavailable, why))
                }
            },
        }
    }
}

impl Remote {
    async fn connect(&self) -> Result<Box<dyn Stream>, ControlError> {
        let url = &self.url;
        let unreachable = |error: io::Error| {
            ControlError::new(ControlErrorKind::Unavailable, format!("no daemon answers on {url} ({error})"))
        };
        let stream = TcpStream::connect(&self.address).await.map_err(unreachable)?;
        // Requests are small, and an answer is waited for.
        stream.set_nodelay(true).map_err(unreachable)?;
        let connector = TlsConnector::from(Arc::clone(&self.tls));
        let stream = connector.connect(self.name.clone(), stream).await.map_err(|error| {
            let why = format!("{url} is not trusted, or does not speak TLS ({error}); --control-ca says whom to trust");
            ControlError::new(ControlErrorKind::Denied, why)
        })?;
        Ok(Box::new(stream))
    }
}

fn no_daemon(socket: &str, error: &io::Error) -> ControlError {
    let (kind, advice) = match error.kind() {
        io::ErrorKind::PermissionDenied => (
            ControlErrorKind::Denied,
            "run as the daemon's user, or start it with --socket-group and --socket-mode 0660",
        ),
        _ => {
            (ControlErrorKind::Unavailable, "start it by `ringway serve`, or name its socket by --control or --runtime")
        }
    };
    ControlError::new(kind, format!("no daemon answers on {socket} ({error}); {advice}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_for_control_has_a_host_and_a_port_and_nothing_else() {
        assert_eq!(place_of("https://a.b:1"), Ok(("a.b".into(), 1)));
        assert_eq!(place_of("https://[::1]:4421/"), Ok(("[::1]".into(), 4421)));
        for (text, says) in [
            ("http://a:1", "https://"),
            ("a:1", "https://"),
            ("https://a", "port is missing"),
            ("https://a:x", "0 to 65535"),
            ("https://:1", "host is missing"),
            ("https://a/b:1", "host is missing"),
        ] {
            let error = place_of(text).unwrap_err();
            assert!(error.contains(says) && error.contains("https://10.0.0.1:4421"), "{text}: {error}");
        }
    }
}
