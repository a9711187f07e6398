//! What a shell and `man` want to know of the command line, made from the command line itself.

use std::fs;
use std::io;
use std::path::PathBuf;

use clap::{Args, CommandFactory};
use clap_complete::Shell;
use serde::Serialize;

use crate::cli::Cli;
use crate::failure::Failure;
use crate::output::Format;

const NAME: &str = "ringway";

#[derive(Args, Debug)]
pub(crate) struct CompletionsArgs {
    /// Whose completions
    #[arg(value_name = "SHELL")]
    pub(crate) shell: Shell,
}

#[derive(Args, Debug)]
pub(crate) struct ManArgs {
    /// Where they go; the folder is made
    #[arg(value_name = "DIR")]
    pub(crate) folder: PathBuf,
}

/// Prints the script to be sourced; it is for a shell, whatever `--json` says.
pub(crate) fn completions(args: &CompletionsArgs) {
    clap_complete::generate(args.shell, &mut Cli::command(), NAME, &mut io::stdout().lock());
}

/// The manual pages that were written.
#[derive(Debug, Serialize)]
struct Written {
    pages: Vec<PathBuf>,
}

/// A page for each command, named as `man` finds it: ringway-volume-create(1).
pub(crate) fn man(args: &ManArgs, format: Format) -> Result<(), Failure> {
    let failed = |error: io::Error| Failure::io("write manual pages to", &args.folder, &error);
    fs::create_dir_all(&args.folder).map_err(failed)?;
    clap_mangen::generate_to(Cli::command(), &args.folder).map_err(failed)?;
    let entries = fs::read_dir(&args.folder).map_err(failed)?;
    let mut pages: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    pages.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(NAME)));
    pages.sort();
    format.print(&Written { pages }, |written| {
        format!(
            "{} pages in {}, which `man {}` shows",
            written.pages.len(),
            args.folder.display(),
            written.pages[0].display()
        )
    });
    Ok(())
}
