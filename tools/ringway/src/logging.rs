//! Logs to stderr. What is logged can be changed while the daemon runs.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::reload;

use crate::failure::Failure;

/// Logged where nothing else is asked for.
pub(crate) const FILTER_DEFAULT: &str = "info";

/// Changes what is logged.
pub(crate) struct LogFilter(Box<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send>);

impl LogFilter {
    /// Starts logging.
    pub(crate) fn start(filter: Option<&str>) -> Result<LogFilter, Failure> {
        let builder = tracing_subscriber::fmt()
            .with_writer(std::io::stderr)
            .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
            .with_env_filter(parse(filter)?)
            .with_filter_reloading();
        let handle = builder.reload_handle();
        builder.try_init().map_err(|error| Failure::internal(format!("cannot start logging: {error}")))?;
        Ok(LogFilter(Box::new(move |filter| handle.reload(filter))))
    }

    /// From now on log by `filter`.
    pub(crate) fn change(&self, filter: Option<&str>) -> Result<(), Failure> {
        let filter = parse(filter)?;
        (self.0)(filter).map_err(|error| Failure::internal(format!("cannot change the log filter: {error}")))
    }
}

fn parse(filter: Option<&str>) -> Result<EnvFilter, Failure> {
    let filter = filter.unwrap_or(FILTER_DEFAULT);
    EnvFilter::try_new(filter).map_err(|error| {
        Failure::usage(format!(
            "log filter {filter:?} is not one ({error}); write error, warn, info, debug, trace, or MODULE=LEVEL,..."
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_filter_is_refused_with_what_would_be_right() {
        assert!(parse(Some("info,ringway_core::journal=debug")).is_ok());
        let failure = parse(Some("ringway=loud")).unwrap_err();
        assert!(failure.exit_code() == 2 && failure.message.contains("MODULE=LEVEL"), "{failure}");
    }
}
