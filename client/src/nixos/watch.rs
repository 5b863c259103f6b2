//! Has anything changed in a folder? Files are compared as often as is asked for: device, inode, length and time.
//!
//! Guarantees: follows no links; leaves out what is hidden (`.git`) and nix's own `result` links; looks at
//! a bounded number of files.

use std::{
    collections::hash_map::DefaultHasher,
    fs,
    hash::{Hash as _, Hasher as _},
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use crate::exit::{Code, Failure};

/// Between two looks. A change counts when two looks have seen the same: an editor writes several
/// files.
const PAUSE: Duration = Duration::from_secs(1);
/// More files than a person's flake has; looking at them takes some 20 ms.
const FILES: usize = 20_000;

/// A folder, and how it was when it was looked at.
#[derive(Debug)]
pub struct Watched {
    path: PathBuf,
    seen: u64,
}

impl Watched {
    /// Looks for the first time.
    ///
    /// # Errors
    /// It cannot be read, or has too many files.
    pub fn open(path: PathBuf) -> Result<Self, Failure> {
        let seen = look(&path).map_err(|error| {
            Failure::new(Code::Usage, format!("--watch: {}: {error}", path.display()))
                .advise("without --watch it is built anew on demand: r and Enter, or SIGHUP")
        })?;
        Ok(Self { path, seen })
    }

    /// Completes when something has changed since the last time that was told.
    pub async fn changed(&mut self) {
        let mut last = self.seen;
        loop {
            tokio::time::sleep(PAUSE).await;
            let path = self.path.clone();
            // A file system may take its time.
            let now = tokio::task::spawn_blocking(move || look(&path)).await;
            // What cannot be read at the moment is looked at again.
            let Ok(Ok(now)) = now else { continue };
            if now == last && now != self.seen {
                self.seen = now;
                return;
            }
            last = now;
        }
    }
}

/// A number that is another one when a file is another one.
fn look(root: &Path) -> io::Result<u64> {
    let mut folders = vec![root.to_owned()];
    let mut sum: u64 = 0;
    let mut files = 0;
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            let name = entry.file_name();
            let text = name.to_string_lossy();
            let kind = entry.file_type()?;
            if text.starts_with('.') || kind.is_symlink() && text.starts_with("result") {
                continue;
            }
            files += 1;
            if files > FILES {
                return Err(io::Error::other(format!("it has more than {FILES} files")));
            }
            // Gone again: the next look tells.
            let Ok(facts) = entry.metadata() else { continue };
            let mut hasher = DefaultHasher::new();
            entry.path().hash(&mut hasher);
            if kind.is_dir() {
                folders.push(entry.path());
            } else {
                (facts.dev(), facts.ino(), facts.len()).hash(&mut hasher);
                (facts.mtime(), facts.mtime_nsec()).hash(&mut hasher);
            }
            // Whatever order the folder lists them in.
            sum = sum.wrapping_add(hasher.finish());
        }
    }
    Ok(sum)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn each_kind_of_change_is_seen_and_what_is_not_the_users_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("sub")).unwrap();
        fs::create_dir_all(at(".git")).unwrap();
        fs::write(at("flake.nix"), "{}").unwrap();
        let mut before = look(folder.path()).unwrap();
        let mut differs = |what: &str| {
            let now = look(folder.path()).unwrap();
            let differs = now != before;
            before = now;
            (what.to_owned(), differs)
        };
        assert_eq!(differs("nothing"), ("nothing".to_owned(), false));
        for (what, change) in [
            ("write", &(|| fs::write(at("flake.nix"), "{ }")) as &dyn Fn() -> io::Result<()>),
            ("new", &|| fs::write(at("sub/a.nix"), "1")),
            ("moved", &|| fs::rename(at("sub/a.nix"), at("sub/b.nix"))),
            ("replaced", &|| {
                fs::write(at("c"), "2")?;
                fs::rename(at("c"), at("sub/b.nix"))
            }),
            ("removed", &|| fs::remove_file(at("sub/b.nix"))),
            ("folder", &|| fs::create_dir(at("more"))),
        ] {
            change().unwrap();
            assert_eq!(differs(what), (what.to_owned(), true));
        }
        fs::write(at(".git/index"), "x").unwrap();
        symlink("/nix/store/x", at("result")).unwrap();
        assert_eq!(differs("not the user's"), ("not the user's".to_owned(), false));
    }

    #[test]
    fn a_change_is_told_once_and_when_it_has_settled() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("a");
        fs::write(&file, "1").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut watched = Watched::open(folder.path().to_owned()).unwrap();
            fs::write(&file, "22").unwrap();
            watched.changed().await;
            assert_eq!(watched.seen, look(folder.path()).unwrap());
            let again = tokio::time::timeout(3 * PAUSE, watched.changed()).await;
            assert!(again.is_err(), "told twice");
        });
    }
}
