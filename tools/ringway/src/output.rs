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

/// Seconds since 1970 as a date and a time, UTC.
pub(crate) fn utc(unix_s: u64) -> String {
    let (days, second) = (unix_s / 86_400, unix_s % 86_400);
    // Years begin in March here, so that the leap day is the last of its year; 400 of them have 146097 days.
    let (era, day) = ((days + 719_468) / 146_097, (days + 719_468) % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let march = (5 * day + 2) / 153;
    let (month, day) = ((march + 2) % 12 + 1, day - (153 * march + 2) / 5 + 1);
    let year = era * 400 + year + u64::from(month <= 2);
    format!("{year}-{month:02}-{day:02} {:02}:{:02}:{:02}", second / 3600, second / 60 % 60, second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (unix_s, expected) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_399, "2000-02-28 23:59:59"),
            (951_782_400, "2000-02-29 00:00:00"),
            (951_868_800, "2000-03-01 00:00:00"),
            (1_798_761_599, "2026-12-31 23:59:59"),
            (4_107_542_400, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(utc(unix_s), expected);
        }
    }

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
