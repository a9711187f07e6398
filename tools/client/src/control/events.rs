//! Events, as the daemon tells them while somebody listens: a stream of messages (WHATWG HTML, section 9.2).

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ringway_core::control::{ControlError, ControlErrorKind};
use ringway_core::event::Event;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::sleep;

use super::{Caller, internal, runtime, unless};

/// Between two tries to reach a target that went away.
const AGAIN: Duration = Duration::from_millis(500);
/// Bytes of the longest message; an event has far fewer.
const MESSAGE_MAX: usize = 1 << 20;

/// What the server sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Told {
    /// One of them.
    Event(Box<Event>),
    /// These are not kept any more.
    Lost(Lost),
}

/// Numbers of events, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lost {
    /// The first.
    pub from: u64,
    /// The last.
    pub to: u64,
}

/// Ends a listener, from any thread.
#[derive(Debug, Default)]
pub struct Stop {
    said: AtomicBool,
    told: Notify,
}

impl Stop {
    /// It is to end.
    pub fn stop(&self) {
        self.said.store(true, Ordering::Release);
        self.told.notify_one();
    }

    /// Whether that was said.
    #[must_use]
    pub fn is_stopped(&self) -> bool {
        self.said.load(Ordering::Acquire)
    }

    async fn stopped(&self) {
        while !self.is_stopped() {
            // What was said between the look and this is kept for it.
            self.told.notified().await;
        }
    }
}

impl Caller {
    /// Events that are kept with numbers above `since`.
    ///
    /// # Errors
    /// `Invalid` for a number that has never been; as for [`Caller::call`].
    pub fn kept_events(&self, since: u64, each: &mut dyn FnMut(Told)) -> Result<(), ControlError> {
        runtime()?.block_on(self.hear(since, true, each))
    }

    /// The number of the newest event; 0 before the first.
    ///
    /// # Errors
    /// As for [`Caller::call`].
    pub fn newest_event(&self) -> Result<u64, ControlError> {
        let mut newest = 0;
        self.kept_events(0, &mut |told| {
            if let Told::Event(event) = told {
                newest = event.number;
            }
        })?;
        Ok(newest)
    }

    /// Tells of each event above `since` once, until it is stopped. A target that goes away after it was reached is waited for, so long
    /// at most.
    ///
    /// # Errors
    /// `Unavailable` where it was not reached or stays away; as for [`Caller::kept_events`].
    pub fn follow_events(
        &self,
        since: u64,
        patience: Duration,
        stop: Option<&Stop>,
        each: &mut dyn FnMut(Told),
    ) -> Result<(), ControlError> {
        let work = self.follow(since, patience, each);
        match stop {
            Some(stop) => runtime()?.block_on(unless(work, stop.stopped())).unwrap_or(Ok(())),
            None => runtime()?.block_on(work),
        }
    }

    async fn follow(&self, mut since: u64, patience: Duration, each: &mut dyn FnMut(Told)) -> Result<(), ControlError> {
        let (mut heard, mut connected) = (Instant::now(), false);
        loop {
            let reached = since;
            let mut take = |told: Told| {
                if let Told::Event(event) = &told {
                    since = event.number;
                }
                each(told);
            };
            match self.hear(reached, false, &mut take).await {
                // The target stops.
                Ok(()) => (heard, connected) = (Instant::now(), true),
                Err(error)
                    if error.kind == ControlErrorKind::Unavailable && connected && heard.elapsed() < patience => {}
                Err(error) => return Err(error),
            }
            sleep(AGAIN).await;
        }
    }

    /// Hears events until the server ends it.
    async fn hear(&self, since: u64, once: bool, each: &mut dyn FnMut(Told)) -> Result<(), ControlError> {
        let path = format!("/v1/events?since={since}&once={once}");
        let mut parser = Parser::default();
        self.listen(&path, &mut |bytes| {
            for message in parser.push(bytes)? {
                if let Some(told) = understood(&message)? {
                    each(told);
                }
            }
            Ok(())
        })
        .await
    }
}

/// Kinds of messages of a later version are passed over.
fn understood(message: &Message) -> Result<Option<Told>, ControlError> {
    let wrong = |error| internal(format!("the daemon's event {:?} is not understood: {error}", message.data));
    if message.kind == "lost" {
        return serde_json::from_str(&message.data).map(|lost| Some(Told::Lost(lost))).map_err(wrong);
    }
    if message.id.is_empty() {
        return Ok(None);
    }
    serde_json::from_str(&message.data).map(|event| Some(Told::Event(Box::new(event)))).map_err(wrong)
}

/// A message of the server's stream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Message {
    id: String,
    kind: String,
    data: String,
}

/// Takes the server's stream apart, wherever it is cut (WHATWG HTML, section 9.2.6, without the parts that nobody sends us).
#[derive(Debug, Default)]
struct Parser {
    /// The start of a line.
    line: Vec<u8>,
    message: Message,
    /// Lines of data in it.
    lines: usize,
    /// The line before ended with a carriage return, which may be half of its end.
    returned: bool,
}

impl Parser {
    fn push(&mut self, bytes: &[u8]) -> Result<Vec<Message>, ControlError> {
        let mut found = Vec::new();
        for &byte in bytes {
            let continues = std::mem::take(&mut self.returned) && byte == b'\n';
            match byte {
                _ if continues => {}
                b'\r' | b'\n' => {
                    self.returned = byte == b'\r';
                    let line = std::mem::take(&mut self.line);
                    found.extend(self.end_line(&String::from_utf8_lossy(&line)));
                }
                _ => self.line.push(byte),
            }
            if self.line.len() + self.message.data.len() > MESSAGE_MAX {
                return Err(internal(format!("the daemon has sent an event of over {MESSAGE_MAX} bytes")));
            }
        }
        Ok(found)
    }

    fn end_line(&mut self, line: &str) -> Option<Message> {
        if line.is_empty() {
            let message = std::mem::take(&mut self.message);
            return (std::mem::take(&mut self.lines) > 0).then_some(message);
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => value.clone_into(&mut self.message.id),
            "event" => value.clone_into(&mut self.message.kind),
            "data" => {
                if self.lines > 0 {
                    self.message.data.push('\n');
                }
                self.message.data.push_str(value);
                self.lines += 1;
            }
            // A comment, or a field that says nothing to us.
            _ => {}
        }
        None
    }
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
