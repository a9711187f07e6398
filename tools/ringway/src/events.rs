//! `ringway events`: what happens to volumes, snapshots, streams and the pool's space.

use std::thread;
use std::time::{Duration, Instant};

use clap::Args;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use ringway_core::control::ControlErrorKind;
use ringway_core::event::{Event, EventKind};
use serde::{Deserialize, Serialize};

use crate::cli::DaemonArgs;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Format, utc, write_line};
use crate::size::Size;
use crate::stream::PATIENCE;
use crate::volume::client;

/// Between two tries to reach a target that went away.
const AGAIN: Duration = Duration::from_millis(500);
/// Bytes of the longest message; an event has far fewer.
const MESSAGE_MAX: usize = 1 << 20;

pub(crate) const EXAMPLES: &str = "\
Examples:
  ringway events                       # what happens from now on, until interrupted
  ringway events --since 0 --once      # what has happened, as far as it is kept
  ringway events --since 41 --json | jq -r 'select(.kind == \"stream_completed\") | .name'

Each event has a number; who gives the last one he has seen gets each event once, also over restarts of the target.";

/// `ringway events`.
#[derive(Args, Debug)]
pub(crate) struct EventsArgs {
    /// Begin after the event of this number [default: with what happens next, or with --once, at the oldest]
    #[arg(long, value_name = "NUMBER")]
    pub(crate) since: Option<u64>,
    /// Show what is kept, and end
    #[arg(long)]
    pub(crate) once: bool,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// What the server sends.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Event(Box<Event>),
    /// These are not kept any more.
    Lost(Lost),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Lost {
    from: u64,
    to: u64,
}

pub(crate) fn run(args: &EventsArgs, format: Format) -> Result<(), Failure> {
    let client = client(&args.daemon);
    let mut since = if args.once { Some(args.since.unwrap_or(0)) } else { args.since };
    if since.is_none() {
        // Known from the start, so that a restart between loses nothing.
        since = Some(newest(&client)?);
    }
    let (mut heard, mut connected) = (Instant::now(), false);
    loop {
        let outcome = listen(&client, since.unwrap_or(0), args.once, &mut |told| {
            if let Told::Event(event) = &told {
                since = Some(event.number);
            }
            print(&told, format);
        });
        match outcome {
            Ok(()) if args.once => return Ok(()),
            // The target stops.
            Ok(()) => (heard, connected) = (Instant::now(), true),
            Err(failure) if failure.is(ControlErrorKind::Unavailable) && connected && heard.elapsed() < PATIENCE => {}
            Err(failure) => return Err(failure),
        }
        thread::sleep(AGAIN);
    }
}

/// Events that are kept with numbers of at least `first`.
pub(crate) fn kept(client: &Client, first: u64) -> Result<Vec<Event>, Failure> {
    let mut all = Vec::new();
    listen(client, first.saturating_sub(1), true, &mut |told| {
        if let Told::Event(event) = told {
            all.push(*event);
        }
    })?;
    Ok(all)
}

/// The number of the newest event.
fn newest(client: &Client) -> Result<u64, Failure> {
    let mut newest = 0;
    listen(client, 0, true, &mut |told| {
        if let Told::Event(event) = told {
            newest = event.number;
        }
    })?;
    Ok(newest)
}

/// Hears events until the server ends it.
fn listen(client: &Client, since: u64, once: bool, each: &mut dyn FnMut(Told)) -> Result<(), Failure> {
    let since = since.to_string();
    let path = format!("/v1/events?since={}&once={once}", utf8_percent_encode(&since, NON_ALPHANUMERIC));
    let mut parser = Parser::default();
    client.listen(&path, &mut |bytes| {
        for message in parser.push(bytes)? {
            if let Some(told) = understood(&message)? {
                each(told);
            }
        }
        Ok(())
    })
}

/// Kinds of messages of a later version are passed over.
fn understood(message: &Message) -> Result<Option<Told>, Failure> {
    let wrong = |error| Failure::internal(format!("the daemon's event {:?} is not understood: {error}", message.data));
    if message.kind == "lost" {
        return serde_json::from_str(&message.data).map(|lost| Some(Told::Lost(lost))).map_err(wrong);
    }
    if message.id.is_empty() {
        return Ok(None);
    }
    serde_json::from_str(&message.data).map(|event| Some(Told::Event(Box::new(event)))).map_err(wrong)
}

fn print(told: &Told, format: Format) {
    match (told, format) {
        (Told::Event(event), _) => format.print(event, |event| shown(event)),
        (Told::Lost(lost), Format::Json) => write_line(&serde_json::json!({ "lost": lost }).to_string()),
        (Told::Lost(lost), Format::Text) => {
            write_line(&format!("events {} to {} are not kept any more", lost.from, lost.to));
        }
    }
}

fn shown(event: &Event) -> String {
    let mut notes: Vec<String> = event.job.map(|job| format!("job {job}")).into_iter().collect();
    notes.extend(event.bytes.map(|bytes| match event.kind {
        EventKind::SpaceLevel => format!("above {bytes} %"),
        kind if kind.ends_a_stream() => format!("{} copied", Size(bytes)),
        _ => Size(bytes).to_string(),
    }));
    if !event.text.is_empty() {
        notes.push(event.text.clone());
    }
    let name = if event.name.is_empty() { "the pool" } else { &event.name };
    format!("{:>6}  {}  {:<19} {name}  {}", event.number, utc(event.unix_s), event.kind, notes.join(", "))
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
    fn push(&mut self, bytes: &[u8]) -> Result<Vec<Message>, Failure> {
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
                return Err(Failure::internal(format!("the daemon has sent an event of over {MESSAGE_MAX} bytes")));
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
