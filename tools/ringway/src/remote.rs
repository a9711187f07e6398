//! The control interface for other machines: HTTP over TLS, and a token in each request. Whoever may control a target may do
//! everything with its data, so there is no way to have the one without the other, on loopback neither.
//!
//! A connection counts from its first byte on, and so many may be open; a greeting that takes too long is given up.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Turn, Poll};
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::{Next, from_fn_with_state};
use axum::response::Response;
use axum::{Router, serve};
use ringway_client::control::Token;
use ringway_core::control::{ControlError, ControlErrorKind};
use rustls::ServerConfig;
use subtle::ConstantTimeEq;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::api::Refused;
use crate::endpoint::ControlListen;
use crate::failure::Failure;

/// Connections at a time.
const CONNECTIONS_MAX: usize = 256;
/// For the greeting of TLS.
const GREETING_MAX: Duration = Duration::from_secs(10);
/// Whether a request's `authorization` is the token's, in a time that does not tell how much of it was right; only its length can be
/// learnt.
fn is(token: &Token, header: &[u8]) -> bool {
    bool::from(header.ct_eq(token.header().as_bytes()))
}

/// Addresses that are listened on, and what is needed of those who connect.
pub(crate) struct Remote {
    listeners: Vec<TcpListener>,
    tls: Arc<ServerConfig>,
    token: Arc<Token>,
}

impl Remote {
    /// Takes the addresses; nobody is served before [`Remote::serve`].
    pub(crate) fn bind(listen: &[ControlListen], tls: Arc<ServerConfig>, token: Token) -> Result<Remote, Failure> {
        let listeners = listen.iter().map(|listen| bind(listen.addr)).collect::<Result<_, _>>()?;
        Ok(Remote { listeners, tls, token: Arc::new(token) })
    }

    /// As `--control` of a command takes them; port 0 is resolved.
    pub(crate) fn addresses(&self) -> Vec<String> {
        let addresses = self.listeners.iter().filter_map(|listener| listener.local_addr().ok());
        addresses.map(|addr| format!("https://{addr}")).collect()
    }

    /// Serves these routes; to be called inside the control thread's runtime.
    pub(crate) fn serve(self, routes: &Router) -> io::Result<()> {
        let routes = routes.clone().layer(from_fn_with_state(self.token, admit));
        let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        for listener in self.listeners {
            listener.set_nonblocking(true)?;
            let greeted = Greeted::start(listener, TlsAcceptor::from(Arc::clone(&self.tls)), Arc::clone(&places))?;
            let routes = routes.clone();
            tokio::spawn(async move { serve(greeted, routes).await });
        }
        Ok(())
    }
}

fn bind(addr: SocketAddr) -> Result<TcpListener, Failure> {
    TcpListener::bind(addr).map_err(|error| {
        let kind = match error.kind() {
            io::ErrorKind::AddrInUse => ControlErrorKind::Busy,
            io::ErrorKind::PermissionDenied => ControlErrorKind::Denied,
            io::ErrorKind::AddrNotAvailable => ControlErrorKind::NotFound,
            _ => ControlErrorKind::Internal,
        };
        Failure::new(kind, format!("cannot listen for control on https://{addr}: {error}"))
    })
}

/// Lets a request through that has the token.
async fn admit(State(token): State<Arc<Token>>, request: Request, next: Next) -> Result<Response, Refused> {
    let denied = |why: &str| Refused(ControlError::new(ControlErrorKind::Denied, why));
    match request.headers().get(header::AUTHORIZATION) {
        None => Err(denied(
            "this target wants a token: give the file with it by --control-token-file (in HTTP: `authorization: Bearer …`)",
        )),
        Some(given) if is(&token, given.as_bytes()) => Ok(next.run(request).await),
        Some(_) => {
            tracing::warn!("a request for control has a wrong token");
            Err(denied("the token is not this target's"))
        }
    }
}

/// A connection that counts as one.
struct Counted {
    stream: TlsStream<TcpStream>,
    _place: OwnedSemaphorePermit,
}

impl AsyncRead for Counted {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Turn<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Counted {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Turn<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Turn<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Turn<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Connections whose greeting is over: one that is slow keeps nobody else from being served.
struct Greeted {
    local: SocketAddr,
    streams: mpsc::Receiver<(Counted, SocketAddr)>,
}

impl Greeted {
    fn start(listener: TcpListener, acceptor: TlsAcceptor, places: Arc<Semaphore>) -> io::Result<Greeted> {
        let local = listener.local_addr()?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let (sender, streams) = mpsc::channel(1);
        tokio::spawn(async move {
            loop {
                let place = Arc::clone(&places).acquire_owned().await.expect("it is never closed");
                let (stream, peer) = match listener.accept().await {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        // Out of descriptors, say: soon there may be some.
                        tracing::warn!(%error, "a connection for control could not be taken");
                        sleep(Duration::from_millis(100)).await;
                        continue;
                    }
                };
                let (acceptor, sender) = (acceptor.clone(), sender.clone());
                tokio::spawn(async move {
                    match timeout(GREETING_MAX, acceptor.accept(stream)).await {
                        // The server ends with the process.
                        Ok(Ok(stream)) => drop(sender.send((Counted { stream, _place: place }, peer)).await),
                        Ok(Err(error)) => tracing::info!(%peer, %error, "TLS could not be agreed on for control"),
                        Err(_) => tracing::info!(%peer, "a connection for control said nothing for too long"),
                    }
                });
            }
        });
        Ok(Greeted { local, streams })
    }
}

impl serve::Listener for Greeted {
    type Io = Counted;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Counted, SocketAddr) {
        match self.streams.recv().await {
            Some(greeted) => greeted,
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.local)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{Permissions, set_permissions, write};
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn only_the_token_itself_is_the_token() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        write(&path, "0123456789abcdef0123").unwrap();
        set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        let token = Token::read(&path).unwrap();
        assert!(is(&token, b"Bearer 0123456789abcdef0123"));
        for wrong in
            ["Bearer 0123456789abcdef0124", "Bearer 0123456789abcdef012", "0123456789abcdef0123", "", "Bearer "]
        {
            assert!(!is(&token, wrong.as_bytes()), "{wrong}");
        }
    }
}
