//! Events, as a stream that the server sends (WHATWG HTML, section 9.2).
//!
//! ```text
//! GET /v1/events?since=N&once=true   events with numbers above N, then those that come; `once`: only those that are kept
//!
//! id: 7
//! event: stream_completed
//! data: {"number":7, ...}
//! ```
//! Who connects again gives the last `id` as `Last-Event-ID`, which wins over `since`, and misses nothing. Without either it begins
//! with what happens next. `event: lost` says which numbers are not kept any more. While nothing happens there is a comment now and then.

use std::collections::VecDeque;
use std::convert::Infallible;

use axum::Router;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event as Sent, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures_util::stream;
use ringway_core::control::{ControlAnswer, ControlError, ControlRequest};
use ringway_core::event::{EventList, EventQuery};
use serde::Deserialize;

use super::{Node, Refused, call};

/// How long nothing is sent.
const QUIET_MS: u64 = 15_000;

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct EventsQuery {
    since: Option<u64>,
    #[serde(default)]
    once: bool,
}

pub(super) fn routes() -> Router<Node> {
    Router::new().route("/v1/events", get(events))
}

async fn events(
    State(node): State<Node>,
    headers: HeaderMap,
    query: Result<Query<EventsQuery>, QueryRejection>,
) -> Result<Response, Refused> {
    let EventsQuery { since, once } = query?.0;
    let since = last_event_id(&headers)?.or(since);
    // Before the first byte: what cannot be asked for is told by the status.
    let first = list(&node, EventQuery { since, wait_ms: 0 }).await?;
    let mut telling = Telling { node, since: since.unwrap_or(first.newest), once, waiting: VecDeque::new() };
    telling.take(first);
    let sent = stream::unfold(telling, |mut telling| async move {
        let next = telling.next().await?;
        Some((Ok::<_, Infallible>(next), telling))
    });
    Ok(Sse::new(sent).into_response())
}

/// Where a client that connects again was.
fn last_event_id(headers: &HeaderMap) -> Result<Option<u64>, Refused> {
    let Some(value) = headers.get("last-event-id") else { return Ok(None) };
    let number = value.to_str().ok().and_then(|text| text.trim().parse().ok());
    let wrong = || ControlError::invalid(format!("Last-Event-ID {value:?} is no number of an event"));
    number.map(Some).ok_or_else(|| Refused(wrong()))
}

async fn list(node: &Node, query: EventQuery) -> Result<EventList, Refused> {
    match call(node, ControlRequest::Events(query)).await? {
        ControlAnswer::Events(list) => Ok(list),
        other => unreachable!("{other:?} is no answer to a question about events"),
    }
}

/// One client that listens.
struct Telling {
    node: Node,
    /// The last that it has been told.
    since: u64,
    once: bool,
    waiting: VecDeque<Sent>,
}

impl Telling {
    fn take(&mut self, list: EventList) {
        let lost = self.since + 1..list.oldest;
        if !lost.is_empty() && !list.events.is_empty() {
            let range = serde_json::json!({ "from": lost.start, "to": lost.end - 1 });
            self.waiting.push_back(Sent::default().event("lost").data(range.to_string()));
        }
        for event in list.events {
            self.since = event.number;
            let data = serde_json::to_string(&event).expect("events are serialisable");
            let sent = Sent::default().id(event.number.to_string()).event(event.kind.to_string()).data(data);
            self.waiting.push_back(sent);
        }
    }

    /// None: it is over, since that was all, or the target stops.
    async fn next(&mut self) -> Option<Sent> {
        if self.waiting.is_empty() {
            if self.once {
                return None;
            }
            let query = EventQuery { since: Some(self.since), wait_ms: QUIET_MS };
            let more = list(&self.node, query).await.ok()?;
            self.take(more);
        }
        Some(self.waiting.pop_front().unwrap_or_else(|| Sent::default().comment("nothing has happened")))
    }
}
