//! Each history of the failure model has a test of its name.

/// The document whose table lists the histories.
pub(super) const DOCUMENT: &str = "docs/internals/failure-model.md";

/// The histories in the document's table: the first cell of each row, such as `C3` or `H15`.
fn listed(document: &str) -> Vec<(usize, String)> {
    let rows = document
        .lines()
        .enumerate()
        .filter_map(|(at, line)| Some((at + 1, line.strip_prefix("| ")?.split(' ').next()?)));
    let is_history = |name: &str| {
        name.len() > 1 && name.starts_with(['C', 'H']) && name[1..].bytes().all(|byte| byte.is_ascii_digit())
    };
    rows.filter(|(_, name)| is_history(name)).map(|(at, name)| (at, name.to_lowercase())).collect()
}

/// Says which histories of `document` no function of `sources` is named after.
pub(super) fn check(document: &str, sources: &[String], say: &mut dyn FnMut(usize, &str)) {
    for (line, name) in listed(document) {
        let wanted = format!("fn {name}_");
        if !sources.iter().any(|source| source.contains(&wanted)) {
            say(line, &format!("history {} has no test: none is named {name}_…", name.to_uppercase()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_history_without_a_test_of_its_name_is_found() {
        let document = "| | What |\n|---|---|\n| C3 | lost |\n| H15 | slow |\n| Word | no history |\n";
        let mut said = Vec::new();
        check(document, &["fn c3_a_write_survives() {}".to_owned()], &mut |line, what| {
            said.push((line, what.to_owned()));
        });
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].0 == 4 && said[0].1.contains("H15"), "{said:?}");
    }
}
