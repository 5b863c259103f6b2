//! The repository's own files, as its tests use them: scripts that they start, and pages and generated
//! files that are held against the sources.
//!
//! Guarantees: nothing is written but with `UPDATE=1`. Trusts that the tests run where they were built.

// A test speaks by failing.
#![allow(clippy::panic)]

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The top of the repository.
#[must_use]
pub fn workspace() -> &'static Path {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests)
}

/// One of the laboratory's scripts, to be given arguments and started.
#[must_use]
pub fn script(name: &str) -> Command {
    Command::new(scripts().join(name))
}

/// Where they are.
#[must_use]
pub fn scripts() -> PathBuf {
    workspace().join("tests/scripts")
}

/// A file by its path in the repository.
///
/// # Panics
/// It cannot be read.
#[must_use]
#[track_caller]
pub fn read(path: &str) -> String {
    fs::read_to_string(workspace().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Holds a file against what is made for it, or writes that with `UPDATE=1`.
///
/// # Panics
/// It is another text; `command` is named as what writes it.
#[track_caller]
pub fn assert_made(path: &str, text: &str, command: &str) {
    if std::env::var_os("UPDATE").is_some_and(|value| value == "1") {
        let written = fs::write(workspace().join(path), text);
        written.unwrap_or_else(|error| panic!("{path}: {error}"));
    }
    assert!(read(path) == text, "{path} is not what is made for it: UPDATE=1 {command}");
}

/// All files below a folder, but for what was built and what is hidden.
///
/// # Panics
/// A folder cannot be read.
#[must_use]
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(&folder);
        let entries = entries.unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for entry in entries.flatten() {
            let name = entry.file_name();
            let made = name == "target" || name.to_string_lossy().starts_with('.');
            match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                true if made => {}
                true => folders.push(entry.path()),
                false => found.push(entry.path()),
            }
        }
    }
    found
}
