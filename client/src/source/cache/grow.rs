//! Writes a copy while it is fetched: a thread that takes pieces, adds them to the file and their hashes, and says
//! how far it is.
//!
//! Guarantees: pieces are in the file before anybody is told of them; memory is [`QUEUED`] pieces and one [`BATCH`].
//! Where the disk takes no more, the machines that read the copy get the rest all the same: the latest octets stay in
//! memory, [`KEPT`] of them, until all of these machines have taken them, and no more are taken from the
//! server meanwhile. A machine that does not move for [`PATIENCE`] then keeps the others waiting no longer.
//!
//! Why a thread: the disk may block, and what is handed to another thread piece by piece wakes it for each.

use std::{
    io,
    os::unix::fs::FileExt as _,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};

use super::{
    held::{Copied, Progress, Spill},
    parts::{Hasher, List},
    store::{NoRoom, Partial, Store},
};

/// Pieces that wait to be written; hyper's have up to 417,792 octets.
pub const QUEUED: usize = 2;
/// Octets that are written before anybody is told, if so many wait.
const BATCH: usize = 1 << 20;
/// Octets that stay in memory where the disk takes no more.
const KEPT: u64 = 4 << 20;
/// For a machine to take anything, where the others have to wait for it: the slowest network that machines boot
/// over brings some megabytes in that time.
pub const PATIENCE: Duration = Duration::from_secs(20);
/// Between two looks whether a machine has moved. Not the runtime's clock, which may end before this thread does.
const LOOK: Duration = Duration::from_millis(5);

/// Writes one copy.
pub struct Writer {
    pub copy: Arc<Copied>,
    pub partial: Partial,
    pub store: Arc<Store>,
    pub progress: watch::Sender<Progress>,
    /// Is told once, if the disk takes no more, why.
    pub full: Box<dyn Fn(&NoRoom) + Send>,
    /// [`PATIENCE`].
    pub patience: Duration,
}

/// What was written.
pub struct Written {
    pub partial: Partial,
    pub progress: watch::Sender<Progress>,
    /// Octets.
    pub length: u64,
    /// The hashes of a file that can be kept.
    pub list: Option<List>,
}

impl Writer {
    /// Writes what comes, to its end. Blocks.
    ///
    /// # Errors
    /// Why nobody gets any more of it.
    pub fn run(mut self, mut queue: mpsc::Receiver<Bytes>) -> (Written, Result<(), String>) {
        let mut hash = self.partial.is_named().then(Hasher::new);
        let mut at = 0;
        let mut batch = Vec::new();
        let mut result = Ok(());
        while result.is_ok()
            && let Some(first) = queue.blocking_recv()
        {
            let mut octets = first.len();
            batch.push(first);
            while octets < BATCH
                && let Ok(more) = queue.try_recv()
            {
                octets += more.len();
                batch.push(more);
            }
            let end = at + u64::try_from(octets).unwrap_or(u64::MAX);
            let spilled = self.copy.has_spilled();
            match if spilled { Ok(()) } else { self.write(&batch, at, end) } {
                Ok(()) if !spilled => {
                    if let Some(hash) = &mut hash {
                        batch.iter().for_each(|piece| hash.update(piece));
                    }
                    self.progress.send_modify(|progress| progress.there = end);
                    batch.clear();
                }
                failed => {
                    if let Err(why) = failed {
                        (self.full)(&why);
                        hash = None;
                        self.spill(at);
                    }
                    for piece in batch.drain(..) {
                        result = result.and_then(|()| self.keep(piece));
                    }
                }
            }
            at = end;
        }
        let list = hash.map(Hasher::finish);
        let Self { copy, partial, progress, .. } = self;
        (Written { partial, progress, length: copy.there(), list }, result)
    }

    fn write(&mut self, batch: &[Bytes], at: u64, end: u64) -> Result<(), NoRoom> {
        self.store.extend(&mut self.partial, end)?;
        let mut at = at;
        for piece in batch {
            self.partial.file.write_all_at(piece, at)?;
            at += u64::try_from(piece.len()).unwrap_or(u64::MAX);
        }
        Ok(())
    }

    /// What comes after the first `file` octets goes to memory.
    fn spill(&self, file: u64) {
        // A piece may have been written in part. If that stays, it is not read.
        let _ = self.partial.file.set_len(file);
        let spill = Spill { file, first: file, pieces: [].into() };
        self.progress.send_modify(|progress| progress.spill = Some(spill));
    }

    /// Keeps a piece in memory, once there is room.
    fn keep(&self, piece: Bytes) -> Result<(), String> {
        let length = u64::try_from(piece.len()).unwrap_or(u64::MAX);
        loop {
            let Some(slowest) = self.copy.places.borrow().slowest() else {
                return Err("the cache's disk takes no more of it, and no machine reads it any \
                            more"
                    .to_owned());
            };
            let is_kept = self.progress.send_if_modified(|progress| {
                let there = progress.there;
                let Some(spill) = &mut progress.spill else { return false };
                while let Some(first) = spill.pieces.front()
                    && let next = spill.first + u64::try_from(first.len()).unwrap_or(u64::MAX)
                    && next <= slowest
                {
                    spill.first = next;
                    spill.pieces.pop_front();
                }
                let fits = spill.pieces.is_empty() || there - spill.first + length <= KEPT;
                if fits {
                    spill.pieces.push_back(piece.clone());
                    progress.there = there.saturating_add(length);
                }
                fits
            });
            if is_kept {
                return Ok(());
            }
            let waits = Instant::now();
            while self.copy.places.borrow().slowest() == Some(slowest) {
                if waits.elapsed() >= self.patience {
                    self.copy.places.send_modify(|places| places.leave_behind(slowest));
                    break;
                }
                thread::sleep(LOOK);
            }
        }
    }
}

/// Gives back what a file takes on the disk that nobody will read any more, once nobody does.
pub async fn give_back(copy: &Copied) -> io::Result<()> {
    let mut places = copy.places.subscribe();
    // It cannot fail: the sender is the copy's own.
    let _ = places.wait_for(|places| places.slowest().is_none()).await;
    copy.file.set_len(0)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, sync::Mutex};

    use super::*;
    use crate::{
        read::Piece,
        source::cache::{Budget, Held, record::Terms},
    };

    const PIECE: usize = 100_000;

    fn piece(number: usize) -> Bytes {
        (0..PIECE).map(|at| (at + number * 7).to_le_bytes()[0]).collect()
    }

    /// A copy on a disk that takes nothing (full(4)), and how often that was said.
    fn full(patience: Duration) -> (Writer, Arc<Copied>, Arc<Mutex<Vec<String>>>) {
        let folder = tempfile::tempdir().unwrap();
        let budget = Budget { octets: 1 << 30, files: 8 };
        let store = Arc::new(Store::open(folder.path(), budget).unwrap());
        let mut partial = store.create(1 << 20, true).unwrap();
        partial.file = Arc::new(File::options().write(true).open("/dev/full").unwrap());
        let (sender, progress) = watch::channel(Progress::default());
        let copy = Arc::new(Copied {
            file: Arc::clone(&partial.file),
            announced: Some(1 << 20),
            tag: String::new(),
            terms: Terms::default(),
            progress,
            places: watch::Sender::default(),
            look: None,
            _claim: None,
        });
        let said = Arc::new(Mutex::new(Vec::new()));
        let sink = Arc::clone(&said);
        let full = Box::new(move |why: &NoRoom| sink.lock().unwrap().push(why.sentence()));
        let of = Arc::clone(&copy);
        (Writer { copy: of, partial, store, progress: sender, full, patience }, copy, said)
    }

    /// Reads `count` pieces as a machine does.
    async fn take(held: &Held, count: usize) -> io::Result<()> {
        for number in 0..count {
            let (begin, mut got) = ((number * PIECE) as u64, Vec::new());
            while got.len() < PIECE {
                let at = begin + got.len() as u64;
                match held.beyond(at).await?.behind(at) {
                    Some(Piece::Memory(octets)) => got.extend(&octets[..]),
                    other => return Err(io::Error::other(format!("{other:?}"))),
                }
            }
            assert!(got[..PIECE] == piece(number), "piece {number}");
        }
        Ok(())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_the_disk_does_not_take_comes_to_all_who_read_and_memory_has_an_end() {
        let (writer, copy, said) = full(PATIENCE);
        let [quick, slow] = [copy.read(), copy.read()];
        let (pieces, queue) = mpsc::channel(QUEUED);
        let thread = thread::spawn(move || writer.run(queue));
        let sending = tokio::spawn(async move {
            for number in 0..200 {
                if pieces.send(piece(number)).await.is_err() {
                    break;
                }
            }
        });
        let reading = tokio::spawn(async move { take(&quick, 200).await });
        // As far as it goes while one of them takes nothing.
        let kept = |copy: &Copied| {
            let progress = copy.progress.borrow();
            let spill = progress.spill.as_ref();
            spill.map_or(0, |spill| spill.pieces.iter().map(Bytes::len).sum::<usize>())
        };
        while kept(&copy) + PIECE <= usize::try_from(KEPT).unwrap() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(copy.there() <= KEPT && copy.has_spilled() && !copy.is_whole());
        let rest = tokio::spawn(async move { take(&slow, 200).await });
        reading.await.unwrap().unwrap();
        rest.await.unwrap().unwrap();
        sending.await.unwrap();
        let (written, result) = thread.join().unwrap();
        assert_eq!((result, written.length), (Ok(()), 200 * PIECE as u64));
        assert_eq!(written.list, None, "it cannot be kept");
        assert!(kept(&copy) <= usize::try_from(KEPT).unwrap());
        assert_eq!(*said.lock().unwrap(), ["the cache's disk has no room for it"]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn who_takes_nothing_is_not_waited_for_for_ever_and_is_told() {
        let (writer, copy, _) = full(Duration::from_secs(5));
        let [quick, stalled] = [copy.read(), copy.read()];
        let (pieces, queue) = mpsc::channel(QUEUED);
        let thread = thread::spawn(move || writer.run(queue));
        let sending = tokio::spawn(async move {
            for number in 0..100 {
                if pieces.send(piece(number)).await.is_err() {
                    break;
                }
            }
        });
        take(&quick, 100).await.unwrap();
        sending.await.unwrap();
        assert_eq!(thread.join().unwrap().1, Ok(()));
        let error = stalled.beyond(0).await.unwrap_err().to_string();
        assert!(error.contains("too little for too long"), "{error}");
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn where_nobody_reads_any_more_it_ends() {
        let (writer, copy, _) = full(PATIENCE);
        drop(copy.read());
        let (pieces, queue) = mpsc::channel(QUEUED);
        let thread = thread::spawn(move || writer.run(queue));
        while pieces.send(piece(0)).await.is_ok() {}
        let problem = thread.join().unwrap().1.unwrap_err();
        assert!(problem.contains("no machine reads it"), "{problem}");
    }
}
