//! `ringway stream ...`: clones are made independent of what they lie over.

use std::thread;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressStyle};
use ringway_core::control::ControlErrorKind;
use ringway_core::event::{Event, EventKind};
use ringway_core::stream::{OnError, StreamInfo, StreamRequest, StreamStart, StreamStatus};

use crate::cli::DaemonArgs;
use crate::client::Client;
use crate::events::kept;
use crate::failure::Failure;
use crate::output::{Format, columns, facts, utc};
use crate::size::Size;
use crate::volume::client;

/// How often to ask how far a stream is.
const LOOK: Duration = Duration::from_millis(200);
/// How long a target that went away is waited for.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// `ringway stream ...`.
#[derive(Subcommand, Debug)]
pub(crate) enum StreamCommand {
    /// Copy what a clone has from its parent, in the background, until it needs that no more
    #[command(after_help = START_EXAMPLES)]
    Start(StartArgs),
    /// Copy one increment, and say where to go on
    #[command(after_help = STEP_EXAMPLES)]
    Step(StepArgs),
    /// Show how far a stream is
    #[command(after_help = "Examples:\n  ringway stream info vm2\n  ringway stream info vm2 --follow")]
    Info(InfoArgs),
    /// List all streams
    #[command(
        after_help = "Examples:\n  ringway stream list\n  ringway stream list --json | jq -r '.[] | select(.status == \"paused\") | .volume'"
    )]
    List(DaemonArgs),
    /// Change how fast a stream may copy, at once
    #[command(
        after_help = "Examples:\n  ringway stream set-speed vm2 50MiB\n  ringway stream set-speed vm2 0   # no limit"
    )]
    SetSpeed(SpeedArgs),
    /// Go on with a stream that an error has paused
    #[command(after_help = "Example:\n  ringway stream resume vm2")]
    Resume(NamedArgs),
    /// End a stream; what was copied stays, and the clone goes on needing its parent
    #[command(after_help = "Example:\n  ringway stream abort vm2")]
    Abort(NamedArgs),
}

const START_EXAMPLES: &str = "\
Examples:
  ringway stream start vm2                       # returns at once; it goes on, over restarts too
  ringway stream start vm2 --follow              # until it is done, with a progress bar
  ringway stream start vm2 --speed 50MiB --on-error stop

When it is done, vm2 lies over nothing, and the snapshot it was cloned from can be removed. What its guests write meanwhile is
never touched. Interrupting --follow leaves the stream going: `ringway stream info vm2 --follow` looks on again.";

const STEP_EXAMPLES: &str = "\
Examples:
  ringway stream step vm2
  ringway stream step vm2 --cursor 8388608 --json | jq .cursor

When the cursor that it answers is the end, the volume is independent.";

/// `ringway stream start`.
#[derive(Args, Debug)]
pub(crate) struct StartArgs {
    /// The clone
    pub(crate) volume: String,
    /// Copy at most so many bytes a second, such as 50MiB; 0: no limit
    #[arg(long, value_name = "BYTES", value_parser = parse_speed)]
    pub(crate) speed: Option<Size>,
    /// About an error: report (end, and say why), stop (pause until resumed), or ignore (go on, and try again)
    #[arg(long, value_name = "WHAT", default_value = "report")]
    pub(crate) on_error: OnError,
    /// Wait for its end, and show how far it is
    #[arg(long)]
    pub(crate) follow: bool,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// `ringway stream step`.
#[derive(Args, Debug)]
pub(crate) struct StepArgs {
    /// The clone
    pub(crate) volume: String,
    /// Where to begin: 0, then what the step before has answered
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    pub(crate) cursor: u64,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// `ringway stream info`.
#[derive(Args, Debug)]
pub(crate) struct InfoArgs {
    /// The clone
    pub(crate) volume: String,
    /// Wait for its end, and show how far it is
    #[arg(long)]
    pub(crate) follow: bool,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// `ringway stream set-speed`.
#[derive(Args, Debug)]
pub(crate) struct SpeedArgs {
    /// The clone
    pub(crate) volume: String,
    /// Bytes a second, such as 50MiB; 0: no limit
    #[arg(value_name = "BYTES", value_parser = parse_speed)]
    pub(crate) speed: Size,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// A stream by its volume.
#[derive(Args, Debug)]
pub(crate) struct NamedArgs {
    /// The clone
    pub(crate) volume: String,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// A size a second; the second may be written.
fn parse_speed(text: &str) -> Result<Size, String> {
    text.strip_suffix("/s").unwrap_or(text).parse()
}

pub(crate) fn run(command: StreamCommand, format: Format) -> Result<(), Failure> {
    match command {
        StreamCommand::Start(args) => {
            let speed = args.speed.map(|size| size.0);
            let start = StreamStart { volume: args.volume, speed, on_error: args.on_error };
            StreamRequest::Start(start.clone()).check()?;
            let client = client(&args.daemon);
            let info = client.stream_start(&start)?;
            if args.follow {
                return follow(&client, &info, format);
            }
            format.print(&info, show);
        }
        StreamCommand::Step(args) => {
            let stepped = client(&args.daemon).stream_step(&args.volume, args.cursor)?;
            format.print(&stepped, |step| {
                let copied = Size(step.copied);
                if step.cursor == step.end {
                    format!("{} is independent ({copied} copied)", args.volume)
                } else {
                    format!(
                        "{} of {}, {copied} copied; go on with --cursor {}",
                        Size(step.cursor),
                        Size(step.end),
                        step.cursor
                    )
                }
            });
        }
        StreamCommand::Info(args) => {
            let client = client(&args.daemon);
            let info = client.stream(&args.volume)?;
            if args.follow {
                return follow(&client, &info, format);
            }
            format.print(&info, show);
        }
        StreamCommand::List(args) => format.print(&client(&args).streams()?, |streams| list(streams)),
        StreamCommand::SetSpeed(args) => {
            let info = client(&args.daemon).stream_speed(&args.volume, Some(args.speed.0))?;
            format.print(&info, show);
        }
        StreamCommand::Resume(args) => format.print(&client(&args.daemon).stream_resume(&args.volume)?, show),
        StreamCommand::Abort(args) => {
            client(&args.daemon).stream_abort(&args.volume)?;
            format.print(&serde_json::json!({ "aborted": args.volume }), |_| {
                format!("the stream of {} is over; it still needs its parent", args.volume)
            });
        }
    }
    Ok(())
}

/// Shows how far it is until its end, over restarts of the target.
fn follow(client: &Client, begun: &StreamInfo, format: Format) -> Result<(), Failure> {
    let bar = progress(begun.end, format);
    let mut heard = Instant::now();
    loop {
        match client.stream(&begun.volume) {
            Ok(info) if info.job == begun.job => {
                heard = Instant::now();
                bar.set_position(info.cur);
                bar.set_message(note(&info));
                if info.status == StreamStatus::Paused {
                    bar.abandon();
                    let why = info.error.unwrap_or_default();
                    return Err(Failure::internal(format!(
                        "the stream of {} is paused: {why}; go on by `ringway stream resume {}`",
                        info.volume, info.volume
                    )));
                }
            }
            // Another job may have followed already.
            Ok(_) => break,
            Err(failure) if failure.is(ControlErrorKind::NotFound) => break,
            Err(failure) if failure.is(ControlErrorKind::Unavailable) && heard.elapsed() < PATIENCE => {
                bar.set_message("the target does not answer");
            }
            Err(failure) => return Err(failure),
        }
        thread::sleep(LOOK);
    }
    bar.finish_and_clear();
    ended(client, begun, format)
}

/// How it has ended, by its last event.
fn ended(client: &Client, begun: &StreamInfo, format: Format) -> Result<(), Failure> {
    let events = kept(client, begun.job.0)?;
    let last = events.into_iter().find(|event| event.job == Some(begun.job) && event.kind.ends_a_stream());
    let Some(last) = last else {
        return Err(Failure::internal(format!(
            "the stream of {} is over, and its last event is not kept any more; `ringway volume show {}` says whether it has a \
             parent",
            begun.volume, begun.volume
        )));
    };
    match last.kind {
        EventKind::StreamCompleted => {
            format.print(&last, |last| {
                format!("{} is independent ({} copied)", last.name, Size(last.bytes.unwrap_or(0)))
            });
            Ok(())
        }
        EventKind::StreamFailed => Err(Failure::new(
            kind_of(&last),
            format!("the stream of {} has failed: {}; what was copied stays", last.name, last.text),
        )),
        _ => Err(Failure::internal(format!("the stream of {} was cancelled; it still needs its parent", last.name))),
    }
}

/// The kind of failure whose exit code an event has.
fn kind_of(event: &Event) -> ControlErrorKind {
    let known = ControlErrorKind::ALL.into_iter().find(|kind| Some(kind.exit_code()) == event.code);
    known.unwrap_or(ControlErrorKind::Internal)
}

fn progress(end: u64, format: Format) -> ProgressBar {
    if format == Format::Json {
        return ProgressBar::hidden();
    }
    let style =
        ProgressStyle::with_template("[{bar:40}] {bytes} of {total_bytes}, {msg}").expect("the template is valid");
    ProgressBar::new(end).with_style(style)
}

fn note(info: &StreamInfo) -> String {
    let state = status(info.status);
    let error = info.error.as_ref().map_or(String::new(), |why| format!(": {why}"));
    format!("{} copied, {state}{error}", Size(info.copied))
}

fn status(status: StreamStatus) -> &'static str {
    match status {
        StreamStatus::Running => "running",
        StreamStatus::Finishing => "finishing",
        StreamStatus::Retrying => "retrying",
        StreamStatus::Paused => "paused",
    }
}

fn speed(info: &StreamInfo) -> String {
    info.speed.map_or("no limit".to_owned(), |speed| format!("{}/s", Size(speed)))
}

fn show(info: &StreamInfo) -> String {
    facts(&[
        ("volume", info.volume.clone()),
        ("parent", info.parent.clone().unwrap_or_else(|| "not known".to_owned())),
        ("job", info.job.to_string()),
        ("status", status(info.status).to_owned()),
        ("done", format!("{} of {}", Size(info.cur), Size(info.end))),
        ("copied", Size(info.copied).to_string()),
        ("speed", speed(info)),
        ("on error", info.on_error.to_string()),
        ("error", info.error.clone().unwrap_or_else(|| "none".to_owned())),
        ("started", format!("{} UTC", utc(info.started_unix_s))),
    ])
}

fn list(streams: &[StreamInfo]) -> String {
    let row = |info: &StreamInfo| {
        vec![
            info.volume.clone(),
            info.parent.clone().unwrap_or_else(|| "-".to_owned()),
            info.job.to_string(),
            format!("{} of {}", Size(info.cur), Size(info.end)),
            Size(info.copied).to_string(),
            speed(info),
            status(info.status).to_owned(),
            info.error.clone().unwrap_or_else(|| "-".to_owned()),
        ]
    };
    let rows: Vec<_> = streams.iter().map(row).collect();
    columns(&["volume", "parent", "job", "done", "copied", "speed", "status", "error"], &rows)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_speed_is_a_size_and_its_second_may_be_written() {
        for text in ["50MiB", "50MiB/s", "52428800"] {
            assert_eq!(parse_speed(text), Ok(Size(50 << 20)));
        }
        assert!(parse_speed("fast").unwrap_err().contains("is not a size"));
    }

    #[test]
    fn a_stream_that_has_failed_exits_with_the_code_of_its_error() {
        let failed = |code| Event { code, ..Event::new(EventKind::StreamFailed, None, "vm2") };
        assert_eq!(kind_of(&failed(Some(5))), ControlErrorKind::NoSpace);
        assert_eq!(kind_of(&failed(Some(99))), ControlErrorKind::Internal);
        assert_eq!(kind_of(&failed(None)), ControlErrorKind::Internal);
    }
}
