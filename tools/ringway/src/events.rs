//! `ringway events`: what happens to volumes, snapshots, streams and the pool's space.

use clap::Args;
use ringway_client::control::Told;
use ringway_core::event::{Event, EventKind};

use crate::cli::DaemonArgs;
use crate::client::Client;
use crate::failure::Failure;
use crate::output::{Format, utc, write_line};
use crate::size::Size;
use crate::stream::PATIENCE;
use crate::volume::client;

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

pub(crate) fn run(args: &EventsArgs, format: Format) -> Result<(), Failure> {
    let client = client(&args.daemon);
    let mut show = |told| print(&told, format);
    if args.once {
        return Ok(client.caller().kept_events(args.since.unwrap_or(0), &mut show)?);
    }
    // Known from the start, so that a restart between loses nothing.
    let since = args.since.map_or_else(|| client.caller().newest_event(), Ok)?;
    Ok(client.caller().follow_events(since, PATIENCE, None, &mut show)?)
}

/// Events that are kept with numbers of at least `first`.
pub(crate) fn kept(client: &Client, first: u64) -> Result<Vec<Event>, Failure> {
    let mut all = Vec::new();
    client.caller().kept_events(first.saturating_sub(1), &mut |told| {
        if let Told::Event(event) = told {
            all.push(*event);
        }
    })?;
    Ok(all)
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

#[cfg(test)]
mod tests {
    use ringway_core::ids::{JobId, VolumeId};

    use super::*;

    #[test]
    fn an_event_is_shown_on_one_line() {
        let event =
            Event::new(EventKind::StreamFailed, Some(VolumeId(2)), "vm2").of_job(Some(JobId(3))).with_bytes(4096);
        let event = Event { number: 12, ..event.with_text("no space") };
        assert_eq!(
            shown(&event),
            "    12  1970-01-01 00:00:00  stream_failed       vm2  job 3, 4 KiB copied, no space"
        );
        let level = Event::new(EventKind::SpaceLevel, None, "").with_bytes(90);
        assert!(shown(&level).ends_with("the pool  above 90 %"), "{}", shown(&level));
    }
}
