//! Where the doctor's facts come from: the files of `/proc` and `/sys`, or a record of them that was made on another machine.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// The layout of [`Record`]; another one is refused.
const VERSION: u32 = 1;

/// What the audit is about, where the machine cannot tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Subject {
    /// Cores of the reactors.
    pub(crate) cores: Vec<usize>,
    /// Whether a target runs on them; otherwise they are those that one would take.
    pub(crate) is_running: bool,
    /// Its process, whose limits count then.
    pub(crate) pid: Option<u32>,
    /// Names of the block devices under the pool, as in `/sys/block`.
    pub(crate) devices: Vec<String>,
    /// Bytes of buffers that each reactor registers.
    pub(crate) buffer_bytes: u64,
}

/// Everything that an audit reads.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    version: u32,
    pub(crate) subject: Subject,
    /// Seconds between the first and the second look at what counts up.
    pub(crate) seconds: f64,
    /// Files by path without the first slash. What was read twice is there again below `later/`.
    files: BTreeMap<String, String>,
    /// Names in folders, by path.
    folders: BTreeMap<String, Vec<String>>,
    /// Paths that may not be read.
    denied: BTreeSet<String>,
}

impl Record {
    pub(crate) fn new(subject: Subject, seconds: f64) -> Record {
        Record { version: VERSION, subject, seconds, ..Record::default() }
    }

    /// Reads a record. Errors say what it should have been.
    pub(crate) fn open(path: &Path) -> Result<Record, Failure> {
        let text = fs::read_to_string(path).map_err(|error| Failure::io("read the record", path, &error))?;
        let said: Result<serde_json::Value, _> = serde_json::from_str(&text);
        let version = said.ok().and_then(|value| value.get("version")?.as_u64());
        match version {
            Some(version) if version == u64::from(VERSION) => {}
            Some(version) => {
                return Err(Failure::usage(format!(
                    "{} is a record of version {version}; this program reads version {VERSION}: make it again with `ringway doctor --record`",
                    path.display()
                )));
            }
            None => {
                let what = "is no record of `ringway doctor --record`: it is no JSON object with a version";
                return Err(Failure::usage(format!("{} {what}", path.display())));
            }
        }
        serde_json::from_str(&text).map_err(|error| Failure::usage(format!("{}: {error}", path.display())))
    }

    #[cfg(test)]
    pub(super) fn with(mut self, path: &str, text: impl Into<String>) -> Record {
        if let Some((folder, name)) = path.rsplit_once('/') {
            let names = self.folders.entry(folder.to_owned()).or_default();
            if !names.iter().any(|known| known == name) {
                names.push(name.to_owned());
            }
            let mut below = folder;
            while let Some((folder, name)) = below.rsplit_once('/') {
                let names = self.folders.entry(folder.to_owned()).or_default();
                if !names.iter().any(|known| known == name) {
                    names.push(name.to_owned());
                }
                below = folder;
            }
        }
        self.files.insert(path.to_owned(), text.into());
        self
    }

    #[cfg(test)]
    pub(super) fn without(mut self, path: &str) -> Record {
        self.files.remove(path);
        self.denied.insert(path.to_owned());
        self
    }
}

/// Reads facts, and keeps what it read.
pub(crate) struct Source {
    /// `None`: all there is is in the record.
    root: Option<PathBuf>,
    record: RefCell<Record>,
}

impl Source {
    /// This machine, looked at twice, `between` apart.
    pub(crate) fn machine(subject: Subject, between: Duration) -> Source {
        let record = Record::new(subject, between.as_secs_f64());
        Source { root: Some(PathBuf::from("/")), record: RefCell::new(record) }
    }

    pub(crate) fn recorded(record: Record) -> Source {
        Source { root: None, record: RefCell::new(record) }
    }

    pub(crate) fn subject(&self) -> Subject {
        self.record.borrow().subject.clone()
    }

    /// Everything that was read.
    pub(crate) fn into_record(self) -> Record {
        self.record.into_inner()
    }

    /// What may not be read, as far as it was asked for.
    pub(crate) fn denied(&self) -> Vec<String> {
        self.record.borrow().denied.iter().map(|path| format!("/{path}")).collect()
    }

    /// A file without the white space around its text; `None` if there is none or it may not be read.
    pub(crate) fn read(&self, path: &str) -> Option<String> {
        if let Some(root) = &self.root {
            self.keep(path, path, fs::read_to_string(root.join(path)));
        }
        self.record.borrow().files.get(path).cloned()
    }

    /// Files that count up: their texts first and, after a while, again. One that is not there is empty.
    pub(crate) fn read_twice<const N: usize>(&self, paths: [&str; N]) -> [(String, String); N] {
        if let Some(root) = &self.root {
            for path in paths {
                self.keep(path, path, fs::read_to_string(root.join(path)));
            }
            thread::sleep(Duration::from_secs_f64(self.record.borrow().seconds));
            for path in paths {
                self.keep(&format!("later/{path}"), path, fs::read_to_string(root.join(path)));
            }
        }
        let record = self.record.borrow();
        let text = |path: &str| record.files.get(path).cloned().unwrap_or_default();
        paths.map(|path| (text(path), text(&format!("later/{path}"))))
    }

    /// Seconds between the two looks.
    pub(crate) fn seconds(&self) -> f64 {
        self.record.borrow().seconds
    }

    /// The names in a folder, in order; none if it is not there.
    pub(crate) fn names(&self, folder: &str) -> Vec<String> {
        if let Some(root) = &self.root {
            match fs::read_dir(root.join(folder)) {
                Ok(entries) => {
                    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
                    self.record.borrow_mut().folders.insert(folder.to_owned(), names.collect());
                }
                Err(error) => self.note(folder, &error),
            }
        }
        let mut names = self.record.borrow().folders.get(folder).cloned().unwrap_or_default();
        names.sort();
        names
    }

    fn keep(&self, name: &str, path: &str, read: io::Result<String>) {
        match read {
            Ok(text) => {
                self.record.borrow_mut().files.insert(name.to_owned(), text.trim().to_owned());
            }
            Err(error) => self.note(path, &error),
        }
    }

    fn note(&self, path: &str, error: &io::Error) {
        if error.kind() == io::ErrorKind::PermissionDenied {
            self.record.borrow_mut().denied.insert(path.to_owned());
        }
    }
}
