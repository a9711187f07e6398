//! Links between the documents resolve: the file is there, and so is the heading.

use std::path::Path;

/// Checks each link of one document that points into the repository.
pub(super) fn check(root: &Path, file: &Path, text: &str, say: &mut impl FnMut(usize, &str)) {
    for (number, target) in targets(text) {
        if target.contains("://") || target.starts_with("mailto:") {
            continue;
        }
        let (path, heading) = target.split_once('#').unwrap_or((target.as_str(), ""));
        let pointed = match path {
            "" => file.to_path_buf(),
            path if path.starts_with('/') => root.join(path.trim_start_matches('/')),
            path => file.parent().unwrap_or(root).join(path),
        };
        if !pointed.exists() {
            say(number, &format!("link to {target}: no such file"));
        } else if !heading.is_empty() && pointed.extension().is_some_and(|extension| extension == "md") {
            let there = std::fs::read_to_string(&pointed).is_ok_and(|text| headings(&text).any(|slug| slug == heading));
            if !there {
                say(number, &format!("link to {target}: no such heading"));
            }
        }
    }
}

/// Every `](target)` outside code, with the number of its line.
fn targets(text: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (index, line) in prose(text) {
        let without_code: String = line.split('`').step_by(2).collect();
        let mut rest = without_code.as_str();
        while let Some((_, after)) = rest.split_once("](") {
            let Some((target, behind)) = after.split_once(')') else { break };
            // [text](target "title")
            found.push((index + 1, target.split(' ').next().unwrap_or(target).to_owned()));
            rest = behind;
        }
    }
    found
}

/// Lines that are not inside a fenced block.
fn prose(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut fenced = false;
    text.lines().enumerate().filter(move |(_, line)| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    })
}

/// The anchors a forge makes of the headings: lower case, punctuation dropped, spaces as dashes.
fn headings(text: &str) -> impl Iterator<Item = String> {
    prose(text).filter(|(_, line)| line.starts_with('#')).map(|(_, line)| {
        let title = line.trim_start_matches('#').trim().to_lowercase();
        let kept = title.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_in_prose_are_found_and_those_in_code_are_not() {
        let text = "see [a](a.md) and [b](b.md#part \"title\")\n```\n[c](c.md)\n```\n`[d](d.md)` [e](#e)\n";
        let found = targets(text);
        assert_eq!(found, [(1, "a.md".to_owned()), (1, "b.md#part".to_owned()), (5, "#e".to_owned())]);
    }

    #[test]
    fn a_link_that_leads_nowhere_is_a_finding() {
        let root = crate::command::root();
        let mut found = Vec::new();
        let text = "# Title: one, two\n[a](no-such-file.md) [b](#title-one-two) [c](#nothing) [d](Cargo.toml) [e](https://x.y/z)\n";
        let file = root.join("README.md");
        // Anchors into the document itself are looked up in the file, so that one is written for the occasion.
        let folder = std::env::temp_dir().join(format!("xtask-links-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a temporary folder");
        let document = folder.join("document.md");
        std::fs::write(&document, text).expect("a temporary file");
        check(&root, &document, text, &mut |_, what| found.push(what.to_owned()));
        std::fs::remove_dir_all(&folder).expect("the temporary folder");
        found.retain(|what| !what.contains("Cargo.toml"));
        assert_eq!(found, ["link to no-such-file.md: no such file", "link to #nothing: no such heading"]);
        check(&root, &file, "[d](Cargo.toml)\n", &mut |_, what| panic!("{what}"));
    }
}
