//! The folder of copies: `$XDG_CACHE_HOME/portcullis`, or `~/.cache/portcullis`.
//!
//! Guarantees: the folder is the user's own and nobody else's (mode 0700); no symbolic link in it is
//! followed, and only regular files of the user's are opened. What grows has a name of its own that
//! nobody looks for, and gets the right one when it is whole, in one step (rename(2)): a process that
//! is killed leaves nothing that is used later, and what it leaves is removed by the next one. A file
//! that any process has open here is locked (flock(2)), and not removed to make room. Blocks: call it off the
//! runtime's own threads. Trusts the user's other programs not to write into the folder: what they
//! spoil is found by its hashes, once in a run.

use std::{
    fs::{DirBuilder, File, Permissions},
    io,
    os::{
        fd::OwnedFd,
        unix::fs::{
            DirBuilderExt as _, FileExt as _, MetadataExt as _, OpenOptionsExt as _,
            PermissionsExt as _,
        },
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rustix::{
    fs::{
        AtFlags, Dir, FallocateFlags, FlockOperation, Mode, OFlags, Timespec, Timestamps,
        UTIME_NOW, UTIME_OMIT, fallocate, flock, fstatvfs, futimens, openat, renameat, unlinkat,
    },
    io::Errno,
    process::geteuid,
};

use super::{
    parts::List,
    record::{Budget, OUTDATED, Record, Shelved, TAIL, file_name, hex, oldest_first},
};

/// What begins the names of files that grow.
const PARTIAL: &str = "partial-";
/// Octets of which room is made at a time for a file whose length nobody has told.
const STEP: u64 = 16 << 20;
/// The part of the file system that stays free for others: a twentieth.
const FREE: u64 = 20;

/// Where copies lie, by the environment's variables (XDG Base Directory Specification: a path that is
/// not absolute does not count).
#[must_use]
pub fn place(variable: impl Fn(&str) -> Option<std::ffi::OsString>) -> Option<PathBuf> {
    let absolute = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
    Some(base.join("portcullis"))
}

/// The folder, open.
#[derive(Debug)]
pub struct Store {
    folder: OwnedFd,
    /// For people.
    name: String,
    budget: Budget,
    /// What files without a name take.
    nameless: Arc<AtomicU64>,
    /// One at a time counts what there is and takes room.
    taking: Mutex<()>,
}

/// Why there is no room for a file.
#[derive(Debug)]
pub enum NoRoom {
    /// All that there may be is in use.
    Budget,
    /// Of the disk.
    Disk,
    /// Something else.
    Io(io::Error),
}

impl NoRoom {
    /// What happened.
    #[must_use]
    pub fn sentence(&self) -> String {
        match self {
            Self::Budget => "the cache is full of copies in use".to_owned(),
            Self::Disk => "the cache's disk has no room for it".to_owned(),
            Self::Io(error) => format!("the cache takes none of it: {error}"),
        }
    }

    /// What the user can do, with a folder of this name.
    #[must_use]
    pub fn advice(&self, folder: &str) -> String {
        match self {
            Self::Budget => "portcullis cache clear; --cache-size".to_owned(),
            Self::Disk | Self::Io(_) => format!(
                "make room on the disk of {folder}, by portcullis cache clear, or else; or name a folder on another disk \
                 by XDG_CACHE_HOME"
            ),
        }
    }
}

impl<E: Into<io::Error>> From<E> for NoRoom {
    fn from(error: E) -> Self {
        let error = error.into();
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Disk,
            _ => Self::Io(error),
        }
    }
}

impl Store {
    /// Opens the folder, makes it if there is none, and removes what killed processes and earlier versions have left.
    ///
    /// # Errors
    /// It cannot be made or used, or it is somebody else's.
    pub fn open(path: &Path, budget: Budget) -> io::Result<Self> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(0o700).create(path)?;
        let folder = File::options()
            .read(true)
            .custom_flags((nix::fcntl::OFlag::O_DIRECTORY | nix::fcntl::OFlag::O_NOFOLLOW).bits())
            .open(path)?;
        let facts = folder.metadata()?;
        if facts.uid() != geteuid().as_raw() {
            return Err(io::Error::other("the folder belongs to another user"));
        }
        if facts.mode() & 0o077 != 0 {
            folder.set_permissions(Permissions::from_mode(0o700))?;
        }
        let (nameless, taking) = (Arc::default(), Mutex::default());
        let name = path.display().to_string();
        let store = Self { folder: folder.into(), name, budget, nameless, taking };
        let is_left = |name: &&String| name.starts_with(PARTIAL) || store.is_outdated(name);
        for name in store.names()?.iter().filter(is_left) {
            store.remove(name);
        }
        Ok(store)
    }

    /// For people.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    fn names(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in Dir::read_from(&self.folder)? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name != "." && name != ".." {
                names.push(name);
            }
        }
        Ok(names)
    }

    /// A regular file of the user's.
    fn file(&self, name: &str, flags: OFlags) -> io::Result<File> {
        // O_NONBLOCK: a FIFO must not hold the program; no effect on files. O_NOATIME: when it was used is written by
        // who uses it, not by who looks what there is.
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOATIME;
        let file = File::from(openat(&self.folder, name, flags, Mode::empty())?);
        let facts = file.metadata()?;
        if facts.is_file() && facts.uid() == geteuid().as_raw() {
            Ok(file)
        } else {
            Err(io::Error::other("not a file of this user's"))
        }
    }

    /// Whether an earlier version has kept it, which nobody can read any more.
    fn is_outdated(&self, name: &str) -> bool {
        let mut end = [0; OUTDATED.len()];
        let read = self.file(name, OFlags::RDONLY).and_then(|file| {
            let start =
                file.metadata()?.len().saturating_sub(u64::try_from(end.len()).unwrap_or_default());
            file.read_exact_at(&mut end, start)
        });
        read.is_ok() && end == OUTDATED
    }

    /// Removes a file that nobody uses. Whether it is gone.
    fn remove(&self, name: &str) -> bool {
        // Writable: NFS gives no exclusive lock otherwise.
        let is_free = match self.file(name, OFlags::RDWR) {
            Ok(file) => flock(&file, FlockOperation::NonBlockingLockExclusive).is_ok(),
            // What is none of ours is in nobody's use.
            Err(_) => true,
        };
        is_free && unlinkat(&self.folder, name, AtFlags::empty()).is_ok()
    }

    fn shelf(&self) -> io::Result<Vec<Shelved>> {
        let mut shelf = Vec::new();
        for name in self.names()? {
            let Ok(facts) = self.file(&name, OFlags::RDONLY).and_then(|file| file.metadata())
            else {
                continue;
            };
            let octets = facts.len().max(facts.blocks().saturating_mul(512));
            shelf.push(Shelved { name, octets, used: facts.accessed().unwrap_or(UNIX_EPOCH) });
        }
        oldest_first(&mut shelf);
        Ok(shelf)
    }

    /// Makes a file that will have `length` octets, with room for them, if need be that of copies which
    /// nobody uses. With a name, it can be kept when it is whole.
    ///
    /// # Errors
    /// There is no room.
    pub fn create(&self, length: u64, named: bool) -> Result<Partial, NoRoom> {
        let _turn = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        let mut octets = [0; 16];
        rustix::rand::getrandom(&mut octets, rustix::rand::GetRandomFlags::empty())?;
        let name = format!("{PARTIAL}{}", hex(&octets));
        let end = List::size(length).saturating_add(u64::try_from(TAIL).unwrap_or_default());
        let needed = length.saturating_add(end);
        let mut shelf = self.make_way(1, needed)?;
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = File::from(openat(&self.folder, &name, flags | OFlags::CLOEXEC, mode)?);
        let folder = self.folder.try_clone()?;
        let mut partial = Partial {
            file: Arc::new(file),
            name: Some((folder, name)),
            reserved: length,
            claim: None,
        };
        flock(&partial.file, FlockOperation::NonBlockingLockExclusive)?;
        self.reserve(&partial.file, 0, length, &mut shelf)?;
        if !named {
            partial.forget();
            self.nameless.fetch_add(length, Ordering::Relaxed);
            let (of, octets) = (Arc::clone(&self.nameless), AtomicU64::new(length));
            partial.claim = Some(Arc::new(Claim { of, octets }));
        }
        Ok(partial)
    }

    /// Makes room for the octets of a file up to `end`, by steps.
    ///
    /// # Errors
    /// There is no room.
    pub fn extend(&self, partial: &mut Partial, end: u64) -> Result<(), NoRoom> {
        if end <= partial.reserved {
            return Ok(());
        }
        let step = partial.reserved.saturating_add(STEP).max(end);
        self.grow(partial, step).or_else(|_| self.grow(partial, end))
    }

    fn grow(&self, partial: &mut Partial, end: u64) -> Result<(), NoRoom> {
        let _turn = self.taking.lock().unwrap_or_else(PoisonError::into_inner);
        let more = end.saturating_sub(partial.reserved);
        let mut shelf = self.make_way(0, more)?;
        self.reserve(&partial.file, partial.reserved, more, &mut shelf)?;
        partial.reserved = end;
        if let Some(claim) = &partial.claim {
            claim.of.fetch_add(more, Ordering::Relaxed);
            claim.octets.fetch_add(more, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Lets so many `more` files and octets be within what there may be: what is left of the files that
    /// could go, too.
    fn make_way(&self, more: usize, needed: u64) -> Result<std::vec::IntoIter<Shelved>, NoRoom> {
        let shelf = self.shelf()?;
        let (mut files, mut taken) = (shelf.len(), self.nameless.load(Ordering::Relaxed));
        taken = shelf.iter().fold(taken, |sum, one| sum.saturating_add(one.octets));
        // Nothing goes for one that cannot have room.
        if needed > self.budget.octets {
            return Err(NoRoom::Budget);
        }
        let (free, kept_free) = self.disk()?;
        if free.saturating_add(taken) < needed.saturating_add(kept_free) {
            return Err(NoRoom::Disk);
        }
        let mut shelf = shelf.into_iter();
        while !self.budget.fits(files.saturating_add(more), taken, needed) {
            let gone = shelf.find(|one| self.remove(&one.name)).ok_or(NoRoom::Budget)?;
            taken = taken.saturating_sub(gone.octets);
            files = files.saturating_sub(1);
        }
        Ok(shelf)
    }

    /// Takes `more` octets of the disk for a file from `start` on; what is on the shelf goes, if need be.
    fn reserve(
        &self,
        file: &File,
        start: u64,
        more: u64,
        shelf: &mut impl Iterator<Item = Shelved>,
    ) -> Result<(), NoRoom> {
        let try_once = || -> rustix::io::Result<()> {
            let (free, kept_free) = self.disk()?;
            if free < kept_free.saturating_add(more) {
                return Err(Errno::NOSPC);
            }
            fallocate(file, FallocateFlags::KEEP_SIZE, start, more.max(1))
        };
        loop {
            match try_once() {
                Err(Errno::NOSPC | Errno::DQUOT) => {
                    shelf.find(|one| self.remove(&one.name)).ok_or(NoRoom::Disk)?;
                }
                // It is found out while it grows.
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Octets of the disk that are free, and those that are to stay so.
    fn disk(&self) -> rustix::io::Result<(u64, u64)> {
        let disk = fstatvfs(&self.folder)?;
        let octets = |blocks: u64| blocks.saturating_mul(disk.f_frsize);
        Ok((octets(disk.f_bavail), octets(disk.f_blocks / FREE)))
    }

    /// The copy of what lies at this address, if there is one. Nobody has looked at its octets yet.
    #[must_use]
    pub fn find(&self, url: &str) -> Option<(File, Record)> {
        let name = file_name(url);
        let file = self.file(&name, OFlags::RDONLY).ok()?;
        flock(&file, FlockOperation::NonBlockingLockShared).ok()?;
        let record = record(&file, &name)?;
        // The time of the last change is what tells that somebody writes to it: it stays.
        let now = Timestamps {
            last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_NOW },
            last_modification: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        };
        // Without it this one goes a little sooner.
        let _ = futimens(&file, &now);
        Some((file, record))
    }

    /// Throws a copy away, also one that is used: whoever has it open keeps it.
    pub fn discard(&self, url: &str) {
        let _ = unlinkat(&self.folder, file_name(url), AtFlags::empty());
    }

    /// What is kept, what was not used for longest first: records, and how long ago it was used.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn list(&self) -> io::Result<Vec<(Record, Duration)>> {
        let now = SystemTime::now();
        let kept = self.shelf()?.into_iter().filter_map(|one| {
            let file = self.file(&one.name, OFlags::RDONLY).ok()?;
            let age = now.duration_since(one.used).unwrap_or_default();
            Some((record(&file, &one.name)?, age))
        });
        Ok(kept.collect())
    }

    /// Removes everything that no process uses: how many files that were, and octets; and how many are
    /// left.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn clear(&self) -> io::Result<(usize, u64, usize)> {
        let (mut files, mut octets, mut left) = (0, 0_u64, 0);
        for one in self.shelf()? {
            if self.remove(&one.name) {
                files += 1;
                octets = octets.saturating_add(one.octets);
            } else {
                left += 1;
            }
        }
        Ok((files, octets, left))
    }
}

/// The record at the end of a file.
fn record(file: &File, name: &str) -> Option<Record> {
    let size = file.metadata().ok()?.len();
    let start = size.saturating_sub(u64::try_from(TAIL).ok()?);
    let mut end = vec![0; usize::try_from(size - start).ok()?];
    file.read_exact_at(&mut end, start).ok()?;
    Record::read(&end, size, name)
}

/// The hashes of the parts of a copy, if they are those that its record tells of.
///
/// # Errors
/// The file cannot be read.
pub fn list(file: &File, record: &Record) -> io::Result<Option<List>> {
    let size = usize::try_from(List::size(record.length)).map_err(io::Error::other)?;
    let mut octets = vec![0; size];
    file.read_exact_at(&mut octets, record.length)?;
    Ok(Some(List::new(octets)).filter(|list| list.sha256() == record.parts_sha256))
}

/// Octets that files without a name take, until the last one who has such a file is gone.
#[derive(Debug)]
pub struct Claim {
    of: Arc<AtomicU64>,
    octets: AtomicU64,
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.of.fetch_sub(*self.octets.get_mut(), Ordering::Relaxed);
    }
}

/// A file that grows. Its name, if it has one, goes with it.
#[derive(Debug)]
pub struct Partial {
    /// Locked.
    pub file: Arc<File>,
    name: Option<(OwnedFd, String)>,
    /// Octets for which there is room.
    reserved: u64,
    /// What it takes of the room, if it has no name.
    pub claim: Option<Arc<Claim>>,
}

impl Partial {
    /// Whether it can be kept.
    #[must_use]
    pub fn is_named(&self) -> bool {
        self.name.is_some()
    }

    /// It is whole: from now on it is found under its address, in the place of what was there.
    ///
    /// # Errors
    /// The record cannot be written, or the folder takes no more.
    pub fn keep(&mut self, record: &Record, list: &List) -> io::Result<()> {
        let tail = record.tail().ok_or_else(|| io::Error::other("its address is too long"))?;
        let tail = [list.octets(), &tail].concat();
        self.file.write_all_at(&tail, record.length)?;
        // Room that it does not need is given back (fallocate(2): what lies behind the end).
        let end = record.length.saturating_add(u64::try_from(tail.len()).unwrap_or_default());
        self.file.set_len(end)?;
        let Some((folder, name)) = self.name.take() else { return Ok(()) };
        let renamed = renameat(&folder, &name, &folder, file_name(&record.url));
        if renamed.is_err() {
            self.name = Some((folder, name));
        }
        // Others may use it, too.
        flock(&self.file, FlockOperation::NonBlockingLockShared)?;
        Ok(renamed?)
    }

    /// Takes its name away.
    fn forget(&mut self) {
        if let Some((folder, name)) = self.name.take() {
            let _ = unlinkat(&folder, &name, AtFlags::empty());
        }
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        self.forget();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::{super::parts::Hasher, *};

    const BUDGET: Budget = Budget { octets: 1 << 20, files: 8 };

    fn record(url: &str, octets: &[u8]) -> (Record, List) {
        let mut hasher = Hasher::new();
        hasher.update(octets);
        let list = hasher.finish();
        let record = Record {
            url: url.to_owned(),
            length: u64::try_from(octets.len()).unwrap(),
            etag: Some("\"a\"".to_owned()),
            last_modified: None,
            tag: "\"a\"".to_owned(),
            parts_sha256: list.sha256(),
        };
        (record, list)
    }

    /// Keeps a copy, and gives it back open.
    fn keep(store: &Store, url: &str, octets: &[u8]) -> Partial {
        let (record, list) = record(url, octets);
        let mut partial = store.create(record.length, true).unwrap();
        partial.file.write_all_at(octets, 0).unwrap();
        partial.keep(&record, &list).unwrap();
        partial
    }

    fn names(store: &Store) -> Vec<String> {
        let mut names = store.names().unwrap();
        names.sort();
        names
    }

    #[test]
    fn the_folder_follows_the_environment() {
        let place = |cache: Option<&str>, home: Option<&str>| {
            let variable = |name: &str| match name {
                "HOME" => home.map(Into::into),
                _ => cache.map(Into::into),
            };
            place(variable).map(|path| path.display().to_string())
        };
        assert_eq!(place(Some("/c"), Some("/h")).as_deref(), Some("/c/portcullis"));
        assert_eq!(place(Some("c"), Some("/h")).as_deref(), Some("/h/.cache/portcullis"));
        assert_eq!(place(None, None), None);
    }

    #[test]
    fn a_whole_copy_is_found_and_its_octets_are_looked_at() {
        let base = tempfile::tempdir().unwrap();
        let folder = base.path().join("new/portcullis");
        let store = Store::open(&folder, BUDGET).unwrap();
        assert_eq!(folder.metadata().unwrap().mode() & 0o777, 0o700);
        assert!(store.find("u").is_none());
        drop(keep(&store, "u", b"octets"));
        assert_eq!(names(&store), [file_name("u")]);
        let path = folder.join(file_name("u"));
        assert_eq!(path.metadata().unwrap().mode() & 0o777, 0o600);
        let (file, found) = store.find("u").unwrap();
        let (kept, hashes) = record("u", b"octets");
        assert_eq!((&found, list(&file, &found).unwrap()), (&kept, Some(hashes)));
        let listed = store.list().unwrap();
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].0, found);
        // An octet of the list is another one.
        File::options().write(true).open(&path).unwrap().write_all_at(b"x", 6 + 3).unwrap();
        let (file, found) = store.find("u").unwrap();
        assert_eq!(list(&file, &found).unwrap(), None);
        store.discard("u");
        assert!(store.find("u").is_none());
    }

    #[test]
    fn what_a_killed_process_left_is_removed_and_what_grows_stays() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), BUDGET).unwrap();
        let growing = store.create(10, true).unwrap();
        std::fs::write(folder.path().join("partial-left"), b"half").unwrap();
        assert_eq!(names(&store).len(), 2);
        let other = Store::open(folder.path(), BUDGET).unwrap();
        assert_eq!(names(&other).len(), 1);
        drop(growing);
        assert_eq!(names(&other), [""; 0]);
        let nameless = other.create(10, false).unwrap();
        assert!(!nameless.is_named() && names(&other).is_empty());
        assert_eq!(other.nameless.load(Ordering::Relaxed), 10);
        drop(nameless);
        assert_eq!(other.nameless.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_an_earlier_version_has_kept_goes_unless_it_is_used() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), BUDGET).unwrap();
        drop(keep(&store, "u", b"octets"));
        let old = [b"octets{}".as_slice(), &2_u32.to_le_bytes(), OUTDATED].concat();
        for name in ["old", "used"] {
            std::fs::write(folder.path().join(name), &old).unwrap();
        }
        let used = File::open(folder.path().join("used")).unwrap();
        flock(&used, FlockOperation::NonBlockingLockShared).unwrap();
        let mut left = [file_name("u"), "used".to_owned()];
        left.sort();
        assert_eq!(names(&Store::open(folder.path(), BUDGET).unwrap()), left);
        drop(used);
        assert_eq!(names(&Store::open(folder.path(), BUDGET).unwrap()), [file_name("u")]);
    }

    #[test]
    fn no_link_is_followed_and_nothing_but_files_is_opened() {
        let (folder, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = Store::open(folder.path(), BUDGET).unwrap();
        drop(keep(&store, "u", b"octets"));
        let inside = folder.path().join(file_name("u"));
        let moved = outside.path().join("moved");
        std::fs::rename(&inside, &moved).unwrap();
        symlink(&moved, &inside).unwrap();
        assert!(store.find("u").is_none());
        assert_eq!(store.clear().unwrap().0, 0);
        drop(keep(&store, "u", b"other"));
        assert!(!inside.is_symlink() && store.find("u").is_some());
        assert!(std::fs::read(&moved).unwrap().starts_with(b"octets"));
        let link = outside.path().join("link");
        symlink(folder.path(), &link).unwrap();
        assert!(Store::open(&link, BUDGET).is_err());
    }

    #[test]
    fn what_was_not_used_for_longest_goes_and_what_is_used_stays() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), BUDGET).unwrap();
        let third = vec![7; 300 << 10];
        for url in ["a", "b", "c"] {
            drop(keep(&store, url, &third));
        }
        let used = |url: &str, seconds: i64| {
            let file = File::open(folder.path().join(file_name(url))).unwrap();
            let time = |tv_nsec| Timespec { tv_sec: seconds, tv_nsec };
            let times = Timestamps { last_access: time(0), last_modification: time(UTIME_OMIT) };
            futimens(&file, &times).unwrap();
        };
        for (url, time) in [("a", 1_000), ("b", 3_000), ("c", 2_000)] {
            used(url, time);
        }
        // Another process uses the oldest one.
        let other = Store::open(folder.path(), BUDGET).unwrap();
        let oldest = other.find("a").unwrap();
        used("a", 1_000);
        drop(keep(&store, "d", &third));
        let there = |url: &str| folder.path().join(file_name(url)).exists();
        assert_eq!(["a", "b", "c", "d"].map(there), [true, true, false, true]);
        assert!(matches!(store.create(2 << 20, true), Err(NoRoom::Budget)));
        assert_eq!(["a", "b", "d"].map(there), [true; 3], "nothing goes for what cannot be");
        let unlimited = Budget { octets: u64::MAX, ..BUDGET };
        let greedy = Store::open(folder.path(), unlimited).unwrap();
        assert!(matches!(greedy.create(1 << 60, true), Err(NoRoom::Disk)));
        assert_eq!(["a", "b", "d"].map(there), [true; 3]);
        assert_eq!((store.clear().unwrap().0, there("a")), (2, true));
        drop(oldest);
        assert_eq!((store.clear().unwrap().0, there("a")), (1, false));
    }
}
