//! The other end of the control interface: HTTP over the daemon's unix socket. What can be asked is in docs/operating/control.md.

use std::io;
use std::path::PathBuf;

use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::{Request, header};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ringway_core::control::{ControlError, ControlErrorKind};
use ringway_reactor::socket_path::SocketPath;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;

pub use hyper::Method;

/// What may stand in one path segment as it is.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'.').remove(b'_').remove(b'-');

/// Body of every failure.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    /// What it is.
    pub error: ControlError,
}

/// A name as one segment of a path, or as a value in its query.
#[must_use]
pub fn segment(name: &str) -> String {
    utf8_percent_encode(name, SEGMENT).to_string()
}

/// Talks to the daemon behind one control socket; every call makes a connection of its own.
#[derive(Clone, Debug)]
pub struct Caller {
    socket: PathBuf,
}

impl Caller {
    /// Of the daemon with this socket.
    #[must_use]
    pub fn new(socket: PathBuf) -> Caller {
        Caller { socket }
    }

    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// The daemon's own, or `Unavailable` and `Denied` where it is not reached.
    pub fn call<A: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<A, ControlError> {
        let (status, bytes) = self.exchange(method, path, body)?;
        let broken = |error| internal(format!("the daemon's answer to {path} is not understood: {error}"));
        if (200..300).contains(&status) {
            serde_json::from_slice(&bytes).map_err(broken)
        } else {
            let body: ErrorBody = serde_json::from_slice(&bytes).map_err(broken)?;
            Err(body.error)
        }
    }

    fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<(u16, Bytes), ControlError> {
        let body = body.map(|body| serde_json::to_vec(body).expect("requests are serialisable")).unwrap_or_default();
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "ringway")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::<Bytes>::from(body))
            .expect("the path is percent-encoded");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .map_err(|error| internal(format!("cannot start the client: {error}")))?;
        runtime.block_on(async {
            let unreachable = |error| self.unreachable(&error);
            let path = SocketPath::of(&self.socket).map_err(unreachable)?;
            let stream = UnixStream::connect(path.as_path()).await.map_err(unreachable)?;
            let lost = |error| {
                ControlError::new(
                    ControlErrorKind::Unavailable,
                    format!("the daemon on {} stopped answering: {error}", self.socket.display()),
                )
            };
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
            let driver = tokio::task::spawn(connection);
            let response = sender.send_request(request).await.map_err(lost)?;
            let status = response.status().as_u16();
            let bytes = response.into_body().collect().await.map_err(lost)?.to_bytes();
            driver.abort();
            Ok((status, bytes))
        })
    }

    fn unreachable(&self, error: &io::Error) -> ControlError {
        let socket = self.socket.display();
        let (kind, advice) = match error.kind() {
            io::ErrorKind::PermissionDenied => (
                ControlErrorKind::Denied,
                "run as the daemon's user, or start it with --socket-group and --socket-mode 0660",
            ),
            _ => (
                ControlErrorKind::Unavailable,
                "start it by `ringway serve`, or name its socket by --control or --runtime",
            ),
        };
        ControlError::new(kind, format!("no daemon answers on {socket} ({error}); {advice}"))
    }
}

fn internal(why: String) -> ControlError {
    ControlError::new(ControlErrorKind::Internal, why)
}
