//! Control requests that came over NVMe: the routes of the control socket carry them out.

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Method, Request, header};
use axum::response::IntoResponse;
use ringway_core::control::{ControlError, ControlErrorKind};
use ringway_core::controller::vendor::{ControlFront, FrontAnswer, FrontReply};
use serde::Deserialize;
use tokio::runtime::Handle;
use tower::ServiceExt;

use crate::api::Refused;

/// Bytes of a reply: a list of the most volumes fits.
const REPLY_BYTES_MAX: usize = 64 << 20;

/// A request as it comes in the data of an admin command.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    method: String,
    /// With its query.
    path: String,
    #[serde(default)]
    body: Option<serde_json::Value>,
}

/// The routes, on the control thread.
pub(crate) struct HttpFront {
    routes: Router,
    runtime: Handle,
}

impl HttpFront {
    /// To be called inside the control thread's runtime.
    pub(crate) fn new(routes: Router) -> HttpFront {
        HttpFront { routes, runtime: Handle::current() }
    }
}

impl ControlFront for HttpFront {
    fn request(&self, host: &str, request: Vec<u8>, answer: FrontAnswer) {
        let (routes, host) = (self.routes.clone(), host.to_owned());
        self.runtime.spawn(async move {
            let response = match read(&request) {
                Ok(request) => {
                    tracing::debug!(host, method = %request.method(), path = %request.uri(), "control over NVMe");
                    let Ok(response) = routes.oneshot(request).await;
                    response
                }
                Err(error) => Refused(error).into_response(),
            };
            let status = response.status().as_u16();
            answer(match to_bytes(response.into_body(), REPLY_BYTES_MAX).await {
                Ok(body) => FrontReply { status, body: body.to_vec() },
                Err(_) => FrontReply { status: 500, body: b"{}".to_vec() },
            });
        });
    }
}

fn read(request: &[u8]) -> Result<Request<Body>, ControlError> {
    let invalid = |why: String| {
        let example = "{\"method\": \"GET\", \"path\": \"/v1/volumes\"}";
        ControlError::new(ControlErrorKind::Invalid, format!("not a control request: {why}; one looks like {example}"))
    };
    // Hosts send whole blocks; what follows the JSON is zeros.
    let text = request.split(|&byte| byte == 0).next().unwrap_or_default();
    let asked: Asked = serde_json::from_slice(text).map_err(|error| invalid(error.to_string()))?;
    let method: Method = asked.method.parse().map_err(|_| invalid(format!("{:?} is no method", asked.method)))?;
    let body = asked.body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
    Request::builder()
        .method(method)
        .uri(&asked.path)
        .header(header::CONTENT_TYPE, "application/json")
        .body(body)
        .map_err(|_| invalid(format!("{:?} is no path", asked.path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_out_of_whole_blocks_or_refused_with_an_example() {
        let mut block =
            b"{\"method\": \"POST\", \"path\": \"/v1/snapshots?x=1\", \"body\": {\"name\": \"s\"}}".to_vec();
        block.resize(512, 0);
        let request = read(&block).unwrap();
        assert_eq!((request.method(), request.uri().path()), (&Method::POST, "/v1/snapshots"));
        for (wrong, says) in [
            (&b""[..], "EOF"),
            (b"GET /v1/volumes", "expected value"),
            (b"{\"method\": \"GET\"}", "path"),
            (b"{\"method\": \"G T\", \"path\": \"/\"}", "no method"),
            (b"{\"method\": \"GET\", \"path\": \"a b\"}", "no path"),
            (b"{\"method\": \"GET\", \"path\": \"/\", \"more\": 1}", "more"),
        ] {
            let error = read(wrong).unwrap_err();
            assert!(error.message.contains(says) && error.message.contains("one looks like"), "{error}");
        }
    }
}
