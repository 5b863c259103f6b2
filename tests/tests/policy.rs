//! Dependency policy: licences, sources and bans, from Cargo's own metadata; and the helper's
//! dependencies are counted and each has a reason.

use std::{collections::BTreeSet, path::Path, process::Command};

use serde_json::Value;

/// Terms that may be linked into a program under MIT OR Apache-2.0.
const LICENCES: [&str; 9] = [
    "MIT",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Crates that must not come in by a side door, each with its reason.
const BANNED: [(&str, &str); 5] = [
    ("openssl-sys", "TLS is rustls: ARCHITECTURE.md"),
    ("async-std", "one runtime: tokio"),
    ("rustables", "GPL-3, and falls short: ARCHITECTURE.md"),
    ("nftnl-sys", "C library: ARCHITECTURE.md"),
    ("async-io", "one runtime: tokio"),
];

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--offline"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(workspace())
        .output()
        .expect("cargo metadata starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON")
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace holds this crate")
}

fn packages(metadata: &Value) -> &[Value] {
    metadata["packages"].as_array().expect("packages")
}

/// Whether one of the alternatives of an SPDX expression is allowed. Handles what occurs: OR, AND,
/// `/` as an old OR, and brackets around either.
fn allowed(expression: &str) -> bool {
    expression
        .replace(['(', ')'], "")
        .replace('/', " OR ")
        .split(" AND ")
        .all(|part| part.split(" OR ").any(|term| LICENCES.contains(&term.trim())))
}

#[test]
fn every_licence_is_allowed() {
    assert!(!allowed("GPL-3.0-or-later"));
    assert!(!allowed("MIT AND GPL-3.0-only"));
    assert!(allowed("(MIT OR Apache-2.0) AND Unicode-3.0"));
    let metadata = metadata();
    let refused: Vec<_> = packages(&metadata)
        .iter()
        .filter(|package| !package["license"].as_str().is_some_and(allowed))
        .map(|package| format!("{} {}", package["name"], package["license"]))
        .collect();
    assert!(refused.is_empty(), "licences not allowed: {refused:#?}");
}

#[test]
fn every_source_is_the_registry() {
    let metadata = metadata();
    let strange: Vec<_> = packages(&metadata)
        .iter()
        .filter(|package| match package["source"].as_str() {
            None => package["manifest_path"]
                .as_str()
                .is_none_or(|path| !Path::new(path).starts_with(workspace())),
            Some(source) => !source.starts_with("registry+"),
        })
        .map(|package| package["id"].to_string())
        .collect();
    assert!(strange.is_empty(), "from somewhere else: {strange:#?}");
}

#[test]
fn every_direct_dependency_is_pinned() {
    let metadata = metadata();
    let mut seen = 0;
    for package in packages(&metadata).iter().filter(|package| package["source"].is_null()) {
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            if !dependency["source"].is_null() {
                let requirement = dependency["req"].as_str().expect("requirement");
                assert!(
                    requirement.starts_with('='),
                    "{} is not pinned: {requirement}",
                    dependency["name"]
                );
                seen += 1;
            }
        }
    }
    assert!(seen > 20, "the list of dependencies is not the whole list");
}

#[test]
fn nothing_banned_comes_in() {
    let metadata = metadata();
    let names: BTreeSet<_> =
        packages(&metadata).iter().filter_map(|package| package["name"].as_str()).collect();
    assert!(names.contains("zbus"), "the list of packages is not the whole list");
    for (name, reason) in BANNED {
        assert!(!names.contains(name), "{name} is banned: {reason}");
    }
}

#[test]
fn each_dependency_of_the_helper_has_a_reason() {
    let metadata = metadata();
    let readme =
        std::fs::read_to_string(workspace().join("helper/README.md")).expect("helper/README.md");
    let helper = packages(&metadata)
        .iter()
        .find(|package| package["name"] == "portcullis-helper")
        .expect("the helper is a package");
    let direct = helper["dependencies"].as_array().expect("dependencies");
    assert!(!direct.is_empty());
    for dependency in direct.iter().filter(|dependency| dependency["kind"].is_null()) {
        let name = dependency["name"].as_str().expect("name");
        assert!(
            readme.contains(&format!("| `{name}` |")),
            "helper/README.md gives no reason for `{name}` (a row that begins with | `{name}` |)"
        );
    }
}
