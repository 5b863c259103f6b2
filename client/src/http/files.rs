//! Files on their way from the page cache to the socket, without a copy through this process.
//!
//! Guarantees: exactly the octets announced, or an error, with which the connection is broken off: a
//! file that became shorter is never filled up, and the end of one that was written to is not sent.
//! The runtime's threads do not wait for the disk: what is not in the page cache is brought there by
//! another thread first. Other connections have their turn after each [`TURN`]. Nothing is kept in
//! memory of what is sent, but where the kernel cannot send from a file's file system: one [`COPIED`].

use std::{
    fs::File,
    io::{self, IoSliceMut},
    num::NonZeroU64,
    sync::Arc,
};

use rustix::{
    fs::{Advice, fadvise},
    io::{Errno, ReadWriteFlags, pread, preadv2},
};
use tokio::task::{spawn_blocking, yield_now};

use super::{body::Part, socket::Socket};
use crate::read::{Piece, changed, shorter};

/// Octets that one connection sends before others have their turn, by a link that takes them at once: a
/// millisecond's.
const TURN: u64 = 4 << 20;

/// Octets that are sent by one call.
const AT_ONCE: u64 = 2 << 20;

/// Octets whose place in the page cache is looked at together; as many again are asked for ahead.
const AHEAD: u64 = 4 << 20;

/// What is left of a file when it is asked whether it was changed.
const HELD_BACK: u64 = 4096;

/// Octets between two looks at the page cache at first, and where some were missing: what the kernel reads
/// ahead by itself.
const STRIDE: usize = 128 * 1024;

/// Octets between two looks as long as all were there: a look touches the octet, which costs more than
/// the call.
const LONG_STRIDE: usize = 4 << 20;

/// The smallest page.
const PAGE: usize = 4096;

/// Octets of one copy, where there has to be one.
const COPIED: u64 = 64 * 1024;

/// Sends a part of what is served.
///
/// # Errors
/// The connection broke, or a file cannot be read to the end that was announced.
pub(super) async fn send_part(socket: &Socket<'_>, mut part: Part) -> io::Result<()> {
    let mut way = Way { cached: part.rest.start, stride: STRIDE, copies: false };
    let mut turn = 0;
    while let Some(piece) = part.next().await? {
        let sent = way.send(socket, &mut part, &piece).await?;
        part.handed_over(sent);
        turn += u64::try_from(sent).unwrap_or(u64::MAX);
        if turn >= TURN {
            turn = 0;
            yield_now().await;
        }
    }
    if part.rest.is_empty() { Ok(()) } else { Err(part.failed(shorter())) }
}

/// What is known of the way from the files.
struct Way {
    /// Up to here, counted in the whole, the octets are in the page cache, or were a moment ago.
    cached: u64,
    /// Octets between two looks.
    stride: usize,
    /// The kernel cannot send from this file system.
    copies: bool,
}

impl Way {
    /// Sends what comes next, as much of it as goes at once.
    async fn send(
        &mut self,
        socket: &Socket<'_>,
        part: &mut Part,
        piece: &Piece,
    ) -> io::Result<usize> {
        let (at, wanted) = (part.rest.start, part.rest.end - part.rest.start);
        let (file, start, length) = match piece {
            Piece::Memory(octets) => {
                let octets = octets.get(..fitting(wanted)).unwrap_or(octets);
                socket.send(octets, octets.len() < fitting(wanted)).await?;
                return Ok(octets.len());
            }
            Piece::File { file, start, length, .. } => (file, *start, *length),
        };
        if self.copies {
            let (content, count) = (part.content.clone(), wanted.min(length).min(COPIED));
            let read = spawn_blocking(move || content.read_at(at, fitting(count), Vec::new()));
            let octets = read.await?.map_err(|error| part.failed(error))?;
            socket.send(&octets, count < wanted).await?;
            return Ok(octets.len());
        }
        // Its end goes last, on its own, and only if nobody wrote to it.
        if length <= HELD_BACK && !piece.is_unchanged() {
            return Err(part.failed(changed()));
        }
        if self.cached < at.saturating_add(length.min(AT_ONCE)) {
            let from = self.cached.max(at);
            let count = length.min(AHEAD).saturating_sub(from - at);
            self.cached = from.saturating_add(count);
            let first = start.saturating_add(from - at);
            if is_cached(file, first, fitting(count), self.stride) {
                self.stride = LONG_STRIDE.min(self.stride * 2);
            } else {
                self.stride = STRIDE;
                let file = Arc::clone(file);
                let fetched = spawn_blocking(move || fetch(&file, first, count)).await?;
                fetched.map_err(|error| part.failed(error))?;
            }
        }
        let end = if length > HELD_BACK { length - HELD_BACK } else { length };
        match socket.send_file(file, start, fitting(end.min(wanted).min(AT_ONCE))).await {
            Ok(0) => Err(part.failed(shorter())),
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP) => {
                    self.copies = true;
                    Ok(0)
                }
                Some(Errno::IO | Errno::STALE) => Err(part.failed(error)),
                // The rest are troubles of the connection.
                _ => Err(error),
            },
            sent => sent,
        }
    }
}

/// As many octets as memory could have.
fn fitting(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

/// Whether sending these octets would not wait for the disk, as far as looks at some of them tell.
/// Where the file system cannot say, they count as if it would.
fn is_cached(file: &File, start: u64, count: usize, stride: usize) -> bool {
    let is_there = |at: usize| {
        let at = start.saturating_add(u64::try_from(at).unwrap_or(u64::MAX));
        preadv2(file, &mut [IoSliceMut::new(&mut [0])], at, ReadWriteFlags::NOWAIT).is_ok()
    };
    (0..count).step_by(stride).chain(count.checked_sub(1)).all(is_there)
}

/// Brings octets of a file into the page cache, and asks for those behind them. Blocks.
fn fetch(file: &File, start: u64, length: u64) -> io::Result<()> {
    // Only a wish: without it the octets come all the same, later.
    let _ = fadvise(file, start, NonZeroU64::new(length.saturating_add(AHEAD)), Advice::WillNeed);
    // An octet of a page waits for the page.
    for at in (start..start.saturating_add(length)).step_by(PAGE) {
        if pread(file, &mut [0], at)? == 0 {
            break;
        }
    }
    Ok(())
}
