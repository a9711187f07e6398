//! `ringway snapshot diff`: which ranges of a volume have changed.

use clap::Args;
use ringway_core::control::ChangedRange;
use ringway_core::snapshot::asked::check_full_name;
use serde::Serialize;

use crate::cli::DaemonArgs;
use crate::failure::Failure;
use crate::output::{Format, write_line};
use crate::size::Size;
use crate::volume::client;

pub(crate) const EXAMPLES: &str = "\
Examples:
  ringway snapshot diff vm1@monday vm1@tuesday
  ringway snapshot diff vm1@monday               # and what vm1 holds now
  ringway snapshot diff vm1@monday vm1 --json | jq -r '.ranges[] | select(.data) | \"\\(.offset) \\(.len)\"'

Ranges are in bytes, of whole blocks of 4 KiB; `zeros` were discarded or written with zeros. A block may be listed that has not
changed; none is left out that has.";

/// `ringway snapshot diff`.
#[derive(Args, Debug)]
pub(crate) struct DiffArgs {
    /// The older snapshot
    #[arg(value_name = "VOLUME@SNAPSHOT")]
    pub(crate) from: String,
    /// A later one, or the volume [default: the volume]
    #[arg(value_name = "VOLUME[@SNAPSHOT]")]
    pub(crate) to: Option<String>,
    #[command(flatten)]
    pub(crate) daemon: DaemonArgs,
}

/// All of it.
#[derive(Debug, Serialize)]
struct Difference {
    from: String,
    to: String,
    /// Bytes in all ranges.
    changed: u64,
    ranges: Vec<ChangedRange>,
}

pub(crate) fn run(args: &DiffArgs, format: Format) -> Result<(), Failure> {
    let (volume, _) = check_full_name(&args.from)?;
    let to = args.to.clone().unwrap_or_else(|| volume.to_owned());
    let client = client(&args.daemon);
    let (mut ranges, mut changed, mut cursor) = (Vec::new(), 0, Some(0));
    while let Some(at) = cursor {
        let stretch = client.snapshot_diff(&args.from, Some(&to), at)?;
        for range in stretch.ranges {
            changed += range.len;
            match format {
                // As it comes: a large volume may have many.
                Format::Text => write_line(&line(range)),
                Format::Json => ranges.push(range),
            }
        }
        cursor = stretch.next;
    }
    let difference = Difference { from: args.from.clone(), to, changed, ranges };
    format.print(&difference, |all| format!("{} changed from {} to {}", Size(all.changed), all.from, all.to));
    Ok(())
}

fn line(range: ChangedRange) -> String {
    let what = if range.data { "data" } else { "zeros" };
    format!("{:>16} {:>12} {what}", range.offset, range.len)
}
