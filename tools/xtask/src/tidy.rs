//! Rules of this repository that no other tool knows. A rule here is one that a machine can decide.

mod histories;
mod links;
mod source;

use std::path::{Path, PathBuf};

/// Folders that are not ours to read: build output, version control, what a demo leaves.
const NOT_OURS: &[&str] = &["target", ".git", "ringway-data", "corpus", "artifacts", "coverage"];

/// Reads every file of the repository and returns all that is wrong, one line each.
pub(crate) fn check(root: &Path) -> Result<(), String> {
    let mut files = Vec::new();
    walk(root, &mut files)?;
    let mut wrong = Vec::new();
    let mut with_unsafe = Vec::new();
    let mut sources = Vec::new();
    for file in &files {
        let Ok(text) = std::fs::read_to_string(file) else { continue }; // pictures, seeds
        let name = file.strip_prefix(root).unwrap_or(file).to_string_lossy().into_owned();
        let mut say = |line: usize, what: &str| wrong.push(format!("{name}:{line}: {what}"));
        match file.extension().and_then(|extension| extension.to_str()) {
            Some("rs") => {
                source::check(&name, &text, &mut say);
                if source::has_unsafe(&text) {
                    with_unsafe.push(name.clone());
                }
                sources.push(text.clone());
            }
            Some("md") => links::check(root, file, &text, &mut say),
            _ => {}
        }
        source::check_text(&name, &text, &mut |line, what| wrong.push(format!("{name}:{line}: {what}")));
    }
    wrong.extend(source::check_unsafe_files(&with_unsafe));
    let document = std::fs::read_to_string(root.join(histories::DOCUMENT)).unwrap_or_default();
    let name = histories::DOCUMENT;
    histories::check(&document, &sources, &mut |line, what| wrong.push(format!("{name}:{line}: {what}")));
    if wrong.is_empty() { Ok(()) } else { Err(format!("{} findings\n{}", wrong.len(), wrong.join("\n"))) }
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) -> Result<(), String> {
    let entries = std::fs::read_dir(folder).map_err(|why| format!("{}: {why}", folder.display()))?;
    for entry in entries {
        let path = entry.map_err(|why| format!("{}: {why}", folder.display()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_symlink() || NOT_OURS.contains(&name.as_str()) {
            continue;
        }
        if path.is_dir() { walk(&path, files)? } else { files.push(path) }
    }
    Ok(())
}
