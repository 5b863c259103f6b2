//! Looks at the octets of a copy that an earlier run has kept, while machines read it.
//!
//! Guarantees: what is found is said once, in the name of a machine that wants the copy, as soon as there is one: that it is what it
//! was before the last machine has all of it, or that it is not, before anybody is told so. A copy that is damaged is thrown away.
//! Two threads at most, which end with their work, or when nobody has the copy any more; memory is [`READ`] for each.

use std::{
    fs::File,
    io,
    mem::replace,
    os::unix::fs::FileExt as _,
    sync::{Arc, Mutex, PoisonError, Weak},
    thread,
};

use ring::digest::{Context, Digest, SHA256};

use super::{
    bring::{STACK, Tell},
    held::Copied,
    parts::{List, Parts},
    store::Store,
};
use crate::event::Fact;

/// Octets that are read at a time: they stay in the processor's own memory until they are hashed.
const READ: usize = 128 * 1024;
/// Of a processor each.
const THREADS: usize = 2;

/// What is known of a copy that was kept.
#[derive(Debug)]
pub struct Look {
    /// What may be read of it.
    pub parts: Parts,
    voice: Mutex<Voice>,
}

/// Who is told what was found.
enum Voice {
    /// Nobody has asked for it yet.
    Nobody,
    Machine(Tell),
    /// Who asks next.
    Next(Fact),
    /// It was said.
    Silent,
}

impl std::fmt::Debug for Voice {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("Voice")
    }
}

impl Look {
    /// Nobody has looked at any of `length` octets of `url`.
    #[must_use]
    pub fn new(url: &str, length: u64, list: List) -> Self {
        let voice = match length {
            0 => Voice::Next(Fact::Reused { file: url.to_owned(), octets: 0 }),
            _ => Voice::Nobody,
        };
        Self { parts: Parts::new(length, list), voice: Mutex::new(voice) }
    }

    /// A machine wants the copy: what is found can be said in its name.
    pub fn lend(&self, tell: &Tell) {
        let mut voice = self.voice.lock().unwrap_or_else(PoisonError::into_inner);
        *voice = match replace(&mut *voice, Voice::Silent) {
            Voice::Nobody | Voice::Machine(_) => Voice::Machine(Arc::clone(tell)),
            Voice::Next(fact) => {
                tell(fact);
                Voice::Silent
            }
            Voice::Silent => Voice::Silent,
        };
    }

    /// Whether nothing was said before.
    fn say(&self, fact: Fact) -> bool {
        let mut voice = self.voice.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = matches!(*voice, Voice::Nobody | Voice::Machine(_));
        *voice = match replace(&mut *voice, Voice::Silent) {
            Voice::Nobody => Voice::Next(fact),
            Voice::Machine(tell) => {
                tell(fact);
                Voice::Silent
            }
            said @ (Voice::Next(_) | Voice::Silent) => said,
        };
        is_first
    }
}

/// Whose copy it is.
#[derive(Clone)]
pub struct Kept {
    pub store: Arc<Store>,
    pub url: String,
    /// For people.
    pub name: String,
}

impl Kept {
    /// What is said of a copy that is not used.
    #[must_use]
    pub fn lost(&self, what: &str) -> Fact {
        let problem = format!("the copy of {} in the cache {what}: it is fetched anew", self.name);
        Fact::Upstream { file: self.url.clone(), problem }
    }

    /// Begins to look at all of it.
    ///
    /// # Errors
    /// There is no thread to be had.
    pub fn start(&self, copy: &Arc<Copied>) -> io::Result<()> {
        let threads = thread::available_parallelism().map_or(1, usize::from).min(THREADS);
        for number in 0..threads {
            let (kept, copy) = (self.clone(), Arc::downgrade(copy));
            let thread = thread::Builder::new().name("look".to_owned()).stack_size(STACK);
            match thread.spawn(move || kept.look(&copy)) {
                Err(error) if number == 0 => return Err(error),
                // One will do.
                _ => {}
            }
        }
        Ok(())
    }

    fn look(&self, copy: &Weak<Copied>) {
        let mut buffer = vec![0; READ];
        while let Some(copy) = copy.upgrade()
            && let Some(look) = &copy.look
            && let Some((part, start, length)) = look.parts.take()
        {
            let what = match sha256(&copy.file, start, length, &mut buffer) {
                Ok(digest) if look.parts.has(part, digest.as_ref()) => {
                    if look.parts.found_sound() {
                        look.say(Fact::Reused { file: self.url.clone(), octets: copy.there() });
                    }
                    look.parts.give(part);
                    continue;
                }
                Ok(_) => "is not what was written there".to_owned(),
                Err(error) => format!("cannot be read: {error}"),
            };
            // Once: what lies there later is what was fetched anew.
            if look.say(self.lost(&what)) {
                self.store.discard(&self.url);
                look.parts.damage();
            }
        }
    }
}

/// Of a part of a file.
fn sha256(file: &File, start: u64, length: u64, buffer: &mut [u8]) -> io::Result<Digest> {
    let (mut context, mut at, end) = (Context::new(&SHA256), start, start.saturating_add(length));
    while at < end {
        let wanted = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
        let room = buffer.get_mut(..wanted).unwrap_or_default();
        file.read_exact_at(room, at)?;
        context.update(room);
        at = at.saturating_add(u64::try_from(wanted).unwrap_or(u64::MAX));
    }
    Ok(context.finish())
}
