//! Dependencies between our crates point one way: tools -> perf -> core -> {rdma, shm-ring} -> reactor.

use std::path::Path;

use serde_json::Value;

use crate::command::{cargo, output};

/// A crate's folder, and the folders it may depend on. A crate that is not listed is refused, so that each new one is placed.
const ALLOWED: &[(&str, &[&str])] = &[
    ("reactor", &[]),
    ("shm-ring", &["reactor"]),
    ("rdma", &["reactor"]),
    ("core", &["rdma", "shm-ring", "reactor"]),
    ("perf", &["core", "rdma", "shm-ring", "reactor"]),
    ("tools/client", &["core", "shm-ring", "reactor"]),
    ("tools/ovsvolumedriver", &["tools/client", "core"]),
    ("tools/ringway", &["tools/ovsvolumedriver", "tools/client", "perf", "core", "rdma", "shm-ring", "reactor"]),
    ("tools/fio-engine", &["tools/client"]),
    ("tools/xtask", &[]),
];

pub(crate) fn check() -> Result<(), String> {
    let text = output(cargo(["metadata", "--format-version", "1", "--no-deps", "--all-features"]))?;
    let metadata: Value = serde_json::from_str(&text).map_err(|why| format!("cargo metadata: {why}"))?;
    let edges = edges(&metadata).ok_or("cargo metadata: its shape is not the one known")?;
    let wrong: Vec<String> = edges.iter().filter_map(|(from, to)| refuse(from, to.as_deref())).collect();
    if wrong.is_empty() { Ok(()) } else { Err(wrong.join("\n")) }
}

/// Each crate's folder with each folder of the workspace it depends on, whatever the kind; once alone, so that it is known.
fn edges(metadata: &Value) -> Option<Vec<(String, Option<String>)>> {
    let root = Path::new(metadata.get("workspace_root")?.as_str()?);
    let folder = |path: &str| Some(Path::new(path).strip_prefix(root).ok()?.to_str()?.to_owned());
    let mut edges = Vec::new();
    for package in metadata.get("packages")?.as_array()? {
        let manifest = Path::new(package.get("manifest_path")?.as_str()?);
        let from = folder(manifest.parent()?.to_str()?)?;
        edges.push((from.clone(), None));
        for dependency in package.get("dependencies")?.as_array()? {
            if let Some(path) = dependency.get("path").and_then(Value::as_str) {
                edges.push((from.clone(), Some(folder(path)?)));
            }
        }
    }
    Some(edges)
}

fn refuse(from: &str, to: Option<&str>) -> Option<String> {
    let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == from) else {
        return Some(format!("{from} has no place in tools/xtask/src/direction.rs: say what it may depend on"));
    };
    let to = to?;
    (!allowed.contains(&to)).then(|| format!("{from} may not depend on {to}, only on: {}", allowed.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_itself_has_no_cycle() {
        for (position, (name, allowed)) in ALLOWED.iter().enumerate() {
            for dependency in *allowed {
                let place = ALLOWED.iter().position(|(other, _)| other == dependency);
                assert!(place.is_some_and(|place| place < position), "{name} -> {dependency}");
            }
        }
    }

    #[test]
    fn a_dependency_against_the_direction_is_refused() {
        let metadata = serde_json::json!({"workspace_root": "/w", "packages": [
            {"manifest_path": "/w/reactor/Cargo.toml", "dependencies": [
                {"name": "ringway-core", "path": "/w/core"}, {"name": "slab"}]}]});
        let edges = edges(&metadata).expect("the shape is right");
        assert_eq!(edges, [("reactor".to_owned(), None), ("reactor".to_owned(), Some("core".to_owned()))]);
        assert!(refuse("reactor", Some("core")).is_some_and(|why| why.contains("may not depend on core")));
        assert!(refuse("core", Some("reactor")).is_none());
        assert!(refuse("somewhere", None).is_some());
    }
}
