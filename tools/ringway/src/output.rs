//! Answers on stdout: JSON on one line, or text in columns.

use std::io::{self, Write};

use serde::Serialize;

use crate::failure::Failure;

/// How to answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    /// One line of JSON.
    Json,
    /// For people.
    Text,
}

impl Format {
    /// Prints `value`, or what `text` makes of it.
    pub(crate) fn print<T: Serialize>(self, value: &T, text: impl FnOnce(&T) -> String) {
        let out = match self {
            Format::Json => serde_json::to_string(value).expect("answers are serialisable"),
            Format::Text => text(value),
        };
        write_line(&out);
    }

    /// Prints a failure to stderr.
    pub(crate) fn print_failure(self, failure: &Failure) {
        match self {
            Format::Json => eprintln!("{}", serde_json::json!({ "error": failure })),
            Format::Text => eprintln!("ringway: {failure}"),
        }
    }
}

/// A line on stdout. A reader that went away (`| head`) is no failure of ours.
pub(crate) fn write_line(line: &str) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{}", line.trim_end()).and_then(|()| out.flush());
}

/// Rows in columns as wide as their widest cell; cells that look like figures stand to the right.
pub(crate) fn columns(head: &[&str], rows: &[Vec<String>]) -> String {
    let widths: Vec<usize> = head
        .iter()
        .enumerate()
        .map(|(n, title)| {
            rows.iter().map(|row| row[n].chars().count()).chain([title.chars().count()]).max().unwrap_or(0)
        })
        .collect();
    let right: Vec<bool> = (0..head.len())
        .map(|n| {
            !rows.is_empty() && rows.iter().all(|row| row[n].starts_with(|c: char| c.is_ascii_digit() || c == '-'))
        })
        .collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let mut line = String::new();
        for (n, cell) in cells.enumerate() {
            let width = widths[n];
            line += &if right[n] { format!("{cell:>width$}  ") } else { format!("{cell:<width$}  ") };
        }
        line.trim_end().to_owned() + "\n"
    };
    let mut text = line(&mut head.iter().copied());
    for row in rows {
        text += &line(&mut row.iter().map(String::as_str));
    }
    text
}

/// `name: value` lines with the values aligned.
pub(crate) fn facts(facts: &[(&str, String)]) -> String {
    let width = facts.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 1;
    facts.iter().map(|(name, value)| format!("{:<width$} {value}\n", format!("{name}:"))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell_and_figures_stand_to_the_right() {
        let rows = [vec!["vm1".to_owned(), "1 GiB".to_owned()], vec!["database".to_owned(), "20 GiB".to_owned()]];
        assert_eq!(columns(&["name", "size"], &rows), "name        size\nvm1        1 GiB\ndatabase  20 GiB\n");
        assert_eq!(columns(&["name"], &[]), "name\n");
    }

    #[test]
    fn facts_are_aligned() {
        assert_eq!(facts(&[("a", "1".into()), ("long", "2".into())]), "a:    1\nlong: 2\n");
    }
}
