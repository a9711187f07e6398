//! `ringway metrics`: what `/metrics` says, where nothing else is at hand that speaks HTTP over a socket or with a token.

use crate::cli::DaemonArgs;
use crate::failure::Failure;
use crate::output::Format;
use crate::volume::client;

pub(crate) fn run(daemon: &DaemonArgs, format: Format) -> Result<(), Failure> {
    let text = client(daemon).metrics()?;
    format.print(&serde_json::json!({ "text": text }), |_| text.clone());
    Ok(())
}
