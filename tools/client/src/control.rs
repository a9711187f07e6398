//! The other end of the control interface: HTTP over the daemon's unix socket, or over TLS with a token from another machine. What can
//! be asked is in docs/operating/control.md.

mod events;
mod token;
mod way;

use std::future::{Future, poll_fn};
use std::path::PathBuf;
use std::pin::pin;
use std::task::Poll;

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use ringway_core::control::{ControlError, ControlErrorKind};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::runtime::{Builder, Runtime};

pub use self::events::{Lost, Stop, Told};
pub use self::token::Token;
pub use self::way::{Way, place_of};
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

/// Talks to one daemon; every call makes a connection of its own.
#[derive(Clone, Debug)]
pub struct Caller {
    /// What is wrong with it is told by the first call: who makes it may have more to say before.
    way: Result<Way, ControlError>,
}

impl Caller {
    /// Of the daemon with this socket.
    #[must_use]
    pub fn new(socket: PathBuf) -> Caller {
        Caller { way: Ok(Way::Socket(socket)) }
    }

    /// Of the one that is reached so.
    #[must_use]
    pub fn by(way: Result<Way, ControlError>) -> Caller {
        Caller { way }
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
        let body = body.map(|body| serde_json::to_vec(body).expect("requests are serialisable")).unwrap_or_default();
        let exchange = self.with_answer(method, path, body, async |response, lost| {
            let status = response.status().as_u16();
            Ok((status, response.into_body().collect().await.map_err(lost)?.to_bytes()))
        });
        let (status, bytes) = runtime()?.block_on(exchange)?;
        if (200..300).contains(&status) {
            let broken = |error| internal(format!("the daemon's answer to {path} is not understood: {error}"));
            serde_json::from_slice(&bytes).map_err(broken)
        } else {
            Err(refusal(&bytes))
        }
    }

    /// What is behind a path and is no JSON.
    ///
    /// # Errors
    /// As for [`Caller::call`].
    pub fn text(&self, path: &str) -> Result<String, ControlError> {
        let mut text = Vec::new();
        let mut take = |piece: &[u8]| {
            text.extend_from_slice(piece);
            Ok(())
        };
        runtime()?.block_on(self.listen(path, &mut take))?;
        String::from_utf8(text).map_err(|_| internal(format!("the daemon's answer to {path} is no text")))
    }

    /// Reads what the daemon sends for as long as it sends something, piece by piece.
    async fn listen(
        &self,
        path: &str,
        each: &mut dyn FnMut(&[u8]) -> Result<(), ControlError>,
    ) -> Result<(), ControlError> {
        self.with_answer(Method::GET, path, Vec::new(), async |mut response, lost| {
            if response.status() != StatusCode::OK {
                return Err(refusal(&response.into_body().collect().await.map_err(lost)?.to_bytes()));
            }
            // Its end is the end of the target; who wants to go on connects again.
            while let Some(Ok(frame)) = response.frame().await {
                if let Some(bytes) = frame.data_ref() {
                    each(bytes)?;
                }
            }
            Ok(())
        })
        .await
    }

    /// Sends a request, and lets `take` have the answer while the connection is open.
    async fn with_answer<A>(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        take: impl AsyncFnOnce(Response<Incoming>, &dyn Fn(hyper::Error) -> ControlError) -> Result<A, ControlError>,
    ) -> Result<A, ControlError> {
        let way = self.way.as_ref().map_err(Clone::clone)?;
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "ringway")
            .header(header::CONTENT_TYPE, "application/json");
        if let Some(token) = way.token() {
            request = request.header(header::AUTHORIZATION, token.header());
        }
        let request = request.body(Full::<Bytes>::from(body)).expect("the path is percent-encoded");
        let stream = way.connect().await?;
        let lost = |error: hyper::Error| {
            let why = format!("the daemon on {} stopped answering: {error}", way.name());
            ControlError::new(ControlErrorKind::Unavailable, why)
        };
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
        let driver = tokio::task::spawn(connection);
        let response = sender.send_request(request).await.map_err(lost)?;
        let taken = take(response, &lost).await;
        driver.abort();
        taken
    }
}

/// Runs one call, or one listener, on this thread.
fn runtime() -> Result<Runtime, ControlError> {
    Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| internal(format!("cannot start the client: {error}")))
}

/// `work`, unless `stop` ends before it.
async fn unless<A>(work: impl Future<Output = A>, stop: impl Future<Output = ()>) -> Option<A> {
    let (mut work, mut stop) = (pin!(work), pin!(stop));
    poll_fn(|turn| match stop.as_mut().poll(turn) {
        Poll::Ready(()) => Poll::Ready(None),
        Poll::Pending => work.as_mut().poll(turn).map(Some),
    })
    .await
}

/// What the body of a failure says.
fn refusal(bytes: &[u8]) -> ControlError {
    match serde_json::from_slice::<ErrorBody>(bytes) {
        Ok(body) => body.error,
        Err(error) => internal(format!("the daemon's refusal is not understood: {error}")),
    }
}

fn internal(why: impl Into<String>) -> ControlError {
    ControlError::new(ControlErrorKind::Internal, why)
}
