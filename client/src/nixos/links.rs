//! Links to what nix has built, which its garbage collector takes for roots as long as they are there.
//!
//! Guarantees: the folder is this user's alone, and gone when the value is dropped; one that a
//! killed run left is removed by the next run. Which are left is known by a lock that the kernel
//! gives up with the process.

use std::{
    env, fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{Flock, FlockArg},
    unistd::{Uid, mkdtemp},
};

use crate::exit::{Code, Failure};

/// Beginning of the folder's name.
const NAME: &str = "portcullis-nixos-";
/// The file in it that is locked while it is used.
const LOCK: &str = "lock";

/// See the module.
#[derive(Debug)]
pub struct Links {
    folder: PathBuf,
    _lock: Flock<fs::File>,
}

impl Links {
    /// A new folder, where the session keeps what must not outlive it, or in /tmp.
    ///
    /// # Errors
    /// [`Code::Internal`].
    pub fn new() -> Result<Self, Failure> {
        let runtime = env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
        let place = runtime.filter(|place| place.is_absolute() && is_ours(place));
        let place = place.unwrap_or_else(env::temp_dir);
        Self::below(&place).map_err(|error| {
            let place = place.display();
            Failure::new(Code::Internal, format!("no folder can be made in {place}: {error}"))
        })
    }

    fn below(place: &Path) -> io::Result<Self> {
        sweep(place);
        let folder = mkdtemp(&place.join(format!("{NAME}XXXXXX")))?;
        let new = folder.join("new");
        let lock = Flock::lock(fs::File::create(&new)?, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, errno)| errno)?;
        // A lock file counts under its name alone, so that nobody finds it before it is locked.
        fs::rename(new, folder.join(LOCK))?;
        Ok(Self { folder, _lock: lock })
    }

    /// An empty folder for the links of one build.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn build(&self, number: u64) -> io::Result<PathBuf> {
        let folder = self.folder.join(number.to_string());
        // What a build that failed has left.
        self.forget(number);
        fs::create_dir(&folder)?;
        Ok(folder)
    }

    /// Gives one build up. What is open of it stays readable.
    pub fn forget(&self, number: u64) {
        let _may_not_be_there = fs::remove_dir_all(self.folder.join(number.to_string()));
    }
}

impl Drop for Links {
    fn drop(&mut self) {
        let _best_effort = fs::remove_dir_all(&self.folder);
    }
}

/// Removes what runs that are no more have left.
fn sweep(place: &Path) {
    for entry in fs::read_dir(place).into_iter().flatten().flatten() {
        let folder = entry.path();
        let name = entry.file_name();
        if !name.to_string_lossy().starts_with(NAME) || !is_ours(&folder) {
            continue;
        }
        let free = fs::File::open(folder.join(LOCK))
            .ok()
            .and_then(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock).ok());
        if free.is_some() {
            let _best_effort = fs::remove_dir_all(folder);
        }
    }
}

/// A folder, and no link to one, of this user.
fn is_ours(path: &Path) -> bool {
    fs::symlink_metadata(path)
        .is_ok_and(|facts| facts.is_dir() && facts.uid() == Uid::effective().as_raw())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn the_folder_is_private_and_goes_with_its_owner_but_not_what_it_links_to() {
        let place = tempfile::tempdir().unwrap();
        let store = tempfile::tempdir().unwrap();
        fs::write(store.path().join("file"), "x").unwrap();
        let links = Links::below(place.path()).unwrap();
        let mode = fs::metadata(&links.folder).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        for number in [1, 2] {
            let build = links.build(number).unwrap();
            symlink(store.path(), build.join("result")).unwrap();
        }
        assert_eq!(fs::read_dir(links.build(1).unwrap()).unwrap().count(), 0, "it is new");
        links.forget(1);
        assert!(!links.folder.join("1").exists() && links.folder.join("2").exists());
        drop(links);
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 0);
        assert!(store.path().join("file").exists());
    }

    #[test]
    fn what_a_killed_run_left_is_swept_and_what_lives_is_not() {
        let place = tempfile::tempdir().unwrap();
        let living = Links::below(place.path()).unwrap();
        let left = place.path().join(format!("{NAME}killed"));
        fs::create_dir(&left).unwrap();
        fs::write(left.join(LOCK), "").unwrap();
        let beginning = place.path().join(format!("{NAME}begins"));
        fs::create_dir(&beginning).unwrap();
        let other = place.path().join("other");
        fs::create_dir(&other).unwrap();
        fs::write(other.join(LOCK), "").unwrap();
        let second = Links::below(place.path()).unwrap();
        assert!(!left.exists());
        assert!(living.folder.exists() && second.folder.exists());
        assert!(beginning.exists() && other.exists());
    }
}
