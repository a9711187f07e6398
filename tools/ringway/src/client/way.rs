//! How a command reaches its daemon: by its socket on this machine, or over TLS with a token.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ringway_core::control::ControlErrorKind;
use ringway_core::target::certificates;
use ringway_reactor::socket_path::SocketPath;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use crate::endpoint::control_url;
use crate::failure::Failure;
use crate::remote::Token;

/// To another machine that may not be there.
const CONNECT_MAX: Duration = Duration::from_secs(15);

/// What HTTP runs over.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// Where a daemon is.
#[derive(Clone, Debug)]
pub(crate) enum Way {
    Socket(PathBuf),
    Remote(Remote),
}

/// A daemon on another machine.
#[derive(Clone)]
pub(crate) struct Remote {
    url: String,
    /// `HOST:PORT`.
    address: String,
    name: ServerName<'static>,
    tls: Arc<ClientConfig>,
    pub(crate) token: Token,
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.url)
    }
}

impl Way {
    /// A socket, or `https://HOST:PORT` with who signed its certificate and what lets us in.
    pub(crate) fn of(control: &Path, authority: Option<&Path>, token: Option<&Path>) -> Result<Way, Failure> {
        let Some(url) = control.to_str().filter(|text| text.contains("://")) else {
            return Ok(Way::Socket(control.to_owned()));
        };
        let (host, port) = control_url(url).map_err(Failure::usage)?;
        let missing = |what: &str, flag: &str, variable: &str| {
            Failure::usage(format!("{url} needs {what}: give its file by {flag}, or in {variable}"))
        };
        let authority = authority.ok_or_else(|| {
            let what = "the certificate of the daemon, or of who signed that";
            missing(what, "--control-ca", "RINGWAY_CONTROL_CA")
        })?;
        let token =
            token.ok_or_else(|| missing("the daemon's token", "--control-token-file", "RINGWAY_CONTROL_TOKEN_FILE"))?;
        let mut roots = RootCertStore::empty();
        for certificate in certificates(authority).map_err(Failure::usage)? {
            let wrong = |error| Failure::usage(format!("{}: {error}", authority.display()));
            roots.add(certificate).map_err(wrong)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| Failure::internal(error.to_string()))?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(bare)
            .map_err(|_| Failure::usage(format!("{host:?} in {url} is neither a name nor an address of a host")))?;
        Ok(Way::Remote(Remote {
            url: url.to_owned(),
            address: format!("{host}:{port}"),
            name,
            tls: Arc::new(tls),
            token: Token::read(token)?,
        }))
    }

    /// For messages.
    pub(crate) fn name(&self) -> String {
        match self {
            Way::Socket(path) => path.display().to_string(),
            Way::Remote(remote) => remote.url.clone(),
        }
    }

    pub(crate) async fn connect(&self) -> Result<Box<dyn Stream>, Failure> {
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
                    Err(Failure::new(ControlErrorKind::Unavailable, why))
                }
            },
        }
    }
}

impl Remote {
    async fn connect(&self) -> Result<Box<dyn Stream>, Failure> {
        let url = &self.url;
        let unreachable = |error: io::Error| {
            Failure::new(ControlErrorKind::Unavailable, format!("no daemon answers on {url} ({error})"))
        };
        let stream = TcpStream::connect(&self.address).await.map_err(unreachable)?;
        // Requests are small, and an answer is waited for.
        stream.set_nodelay(true).map_err(unreachable)?;
        let connector = TlsConnector::from(Arc::clone(&self.tls));
        let stream = connector.connect(self.name.clone(), stream).await.map_err(|error| {
            let why = format!("{url} is not trusted, or does not speak TLS ({error}); --control-ca says whom to trust");
            Failure::new(ControlErrorKind::Denied, why)
        })?;
        Ok(Box::new(stream))
    }
}

fn no_daemon(socket: &str, error: &io::Error) -> Failure {
    let (kind, advice) = match error.kind() {
        io::ErrorKind::PermissionDenied => (
            ControlErrorKind::Denied,
            "run as the daemon's user, or start it with --socket-group and --socket-mode 0660",
        ),
        _ => {
            (ControlErrorKind::Unavailable, "start it by `ringway serve`, or name its socket by --control or --runtime")
        }
    };
    Failure::new(kind, format!("no daemon answers on {socket} ({error}); {advice}"))
}
