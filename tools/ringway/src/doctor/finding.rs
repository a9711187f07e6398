//! What an audit says.

use serde::Serialize;

/// How much there is to win, most first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Rank {
    /// Something does not work, or a good part of the speed is lost.
    High,
    /// It shows in a benchmark.
    Medium,
    /// It shows in the tail of the latencies, or in cases.
    Low,
}

impl Rank {
    pub(super) fn name(self) -> &'static str {
        match self {
            Rank::High => "high",
            Rank::Medium => "medium",
            Rank::Low => "low",
        }
    }
}

/// One thing that could be better.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Finding {
    pub(crate) rank: Rank,
    /// What it is about, for scripts: it stays the same from version to version.
    pub(crate) topic: &'static str,
    pub(crate) what: String,
    /// Where that was seen, and what stands there.
    pub(crate) evidence: Vec<String>,
    /// What it costs.
    pub(crate) cost: &'static str,
    #[serde(flatten)]
    pub(crate) remedy: Remedy,
}

/// What to do about it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(crate) enum Remedy {
    /// These commands change it, and those bring back what was.
    Commands { change: Vec<String>, undo: Vec<String> },
    /// No command on this machine does.
    Elsewhere { advice: String },
}

impl Remedy {
    /// Other words in files: path, what is to stand there, what stands there now.
    pub(super) fn writes(files: impl IntoIterator<Item = (String, String, String)>) -> Remedy {
        let (mut change, mut undo) = (Vec::new(), Vec::new());
        for (path, new, old) in files {
            change.push(format!("echo {new} > {path}"));
            undo.push(format!("echo {old} > {path}"));
        }
        Remedy::Commands { change, undo }
    }

    pub(super) fn command(change: impl Into<String>, undo: impl Into<String>) -> Remedy {
        Remedy::Commands { change: vec![change.into()], undo: vec![undo.into()] }
    }

    pub(super) fn elsewhere(advice: impl Into<String>) -> Remedy {
        Remedy::Elsewhere { advice: advice.into() }
    }
}
