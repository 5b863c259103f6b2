//! Files of other web servers, fetched once for all machines that ask, and kept for later runs.
//!
//! The data's way: `http/remote` -> [`Cache::open`] -> a question to the file's server -> `held` (a file that
//! grows, in the folder of `store`) -> `http/files`. What may be kept, and what goes, is decided in `record`.
//!
//! Guarantees: of one address one copy is fetched at a time, however many machines ask; a copy of an
//! earlier run is used only if the file's server says that it is still the same, and if its octets
//! have the hash that they had; nothing is stored that may not be stored. Where no copy can be made (no
//! length, no room, no folder), [`Opened::Direct`] says so, and each machine is sent what its own question brings.

mod held;
mod record;
mod store;

use std::{
    collections::BTreeMap,
    fmt, io,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use http::{Method, Response, StatusCode};
use hyper::body::Incoming;
use tokio::{sync::OnceCell, task::spawn_blocking};

use crate::{
    event::Fact,
    fetch::{ANSWER, Facts, Fetcher},
    image::Remote,
    source::token,
};
use held::{Fetch, identity};
pub use held::{Held, STALL, Tell};
use record::Terms;
pub use record::{Budget, Record};
use store::{NoRoom, is_sound};
pub use store::{Store, place};

/// Octets of all copies together, if the user says nothing else.
pub const LIMIT: u64 = 8 << 30;
/// Copies in the folder.
const FILES: usize = 1024;
/// Copies that are open in one run: each has a descriptor.
const OPEN: usize = 64;
/// Octets that a machine may be ahead of a copy, and still waits for it.
pub const AHEAD: u64 = 4 << 20;

/// What there may be, with so many octets.
#[must_use]
pub fn budget(octets: u64) -> Budget {
    Budget { octets, files: FILES }
}

/// The copies of this run. Clones are the same one.
#[derive(Clone, Default)]
pub struct Cache(Arc<Inner>);

impl fmt::Debug for Cache {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Cache")
    }
}

/// Where copies are, and for how long.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The folder; made when it is needed.
    pub folder: PathBuf,
    /// Copies stay there when the run is over.
    pub keep: bool,
    /// Octets of all copies together.
    pub limit: u64,
}

#[derive(Default)]
struct Inner {
    fetcher: Fetcher,
    /// None: nothing is shared.
    settings: Option<Settings>,
    /// Opened when the first file is fetched.
    store: OnceCell<Option<Arc<Store>>>,
    slots: Mutex<BTreeMap<String, Slot>>,
}

/// What there is of one address. Locked while its server is asked, so that everybody else who wants it waits for
/// the answer.
type Place = Arc<tokio::sync::Mutex<Option<Arc<Held>>>>;

struct Slot {
    used: Instant,
    place: Place,
}

/// How a machine gets a file.
pub enum Opened {
    /// From a copy, which may still grow.
    Shared(Arc<Held>),
    /// By what its own question brings: here is the answer, if its server was asked for the whole.
    Direct(Option<Box<Response<Incoming>>>),
}

/// Why it gets none.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// It was not to be had.
    #[error("{0}")]
    Fetch(#[from] crate::fetch::FetchError),
    /// Its server has no such file, or does not give it away.
    #[error("its server answers {0}")]
    Status(StatusCode),
    /// It is another file than at the start.
    #[error("it has changed on its server since portcullis was started: start it again")]
    Changed,
}

impl Cache {
    /// Copies in a folder.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        Self(Arc::new(Inner { settings: Some(settings), ..Inner::default() }))
    }

    /// Asks other servers.
    #[must_use]
    pub fn fetcher(&self) -> &Fetcher {
        &self.0.fetcher
    }

    /// The copy of a file, if there is one already that will do without asking its server.
    pub async fn peek(&self, remote: &Remote) -> Option<Arc<Held>> {
        let place = self.slots().get(&remote.address.to_string())?.place.clone();
        let held = place.lock().await.clone()?;
        will_do(&held, remote).then_some(held)
    }

    /// The copy of a file; one is begun if there is none.
    ///
    /// # Errors
    /// The file is not to be had.
    pub async fn open(&self, remote: &Remote, tell: Tell) -> Result<Opened, Problem> {
        let Some(store) = self.store(&tell).await else { return Ok(Opened::Direct(None)) };
        let url = remote.address.to_string();
        let Some(place) = self.place(&url) else { return Ok(Opened::Direct(None)) };
        let mut here = place.lock().await;
        if let Some(held) = here.as_ref().filter(|held| will_do(held, remote)) {
            return Ok(Opened::Shared(Arc::clone(held)));
        }
        // Of a copy that will not do this says only that it may still be the same.
        let mut known = match here.take().filter(|held| held.is_whole()) {
            Some(held) => Some(Known::Held(held)),
            None if self.keeps() => {
                let (store, url) = (Arc::clone(&store), url.clone());
                let found = spawn_blocking(move || store.find(&url)).await.ok().flatten();
                found.map(|(file, record)| Known::Kept(file, record))
            }
            None => None,
        };
        loop {
            let mut headers = identity();
            if let Some(terms) = known.as_ref().map(Known::terms).filter(Terms::can_be_asked) {
                headers.extend(terms.conditions());
            }
            let fetcher = &self.0.fetcher;
            let got = fetcher.ask(Method::GET, &remote.address, &headers, ANSWER).await?;
            let held = match (got.status(), known.take()) {
                (StatusCode::NOT_MODIFIED, Some(Known::Held(held))) => held,
                (StatusCode::NOT_MODIFIED, Some(Known::Kept(file, record))) => {
                    match self.look_at(file, record, remote).await {
                        Ok(held) => {
                            tell(Fact::Reused { file: url, octets: held.length });
                            held
                        }
                        Err(problem) => {
                            store.discard(&url);
                            tell(Fact::Upstream { file: url.clone(), problem });
                            continue;
                        }
                    }
                }
                (StatusCode::OK, _) => {
                    if !Facts::of(&got).agrees(&remote.facts) {
                        return Err(Problem::Changed);
                    }
                    match self.begin(&store, remote, got, tell).await {
                        Ok(held) => held,
                        Err(got) => return Ok(Opened::Direct(Some(got))),
                    }
                }
                (status, _) => return Err(Problem::Status(status)),
            };
            if !held.facts().agrees(&remote.facts) {
                return Err(Problem::Changed);
            }
            *here = Some(Arc::clone(&held));
            return Ok(Opened::Shared(held));
        }
    }

    fn keeps(&self) -> bool {
        self.0.settings.as_ref().is_some_and(|settings| settings.keep)
    }

    fn slots(&self) -> MutexGuard<'_, BTreeMap<String, Slot>> {
        self.0.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The place of an address. None, if all places are in use.
    fn place(&self, url: &str) -> Option<Place> {
        let mut slots = self.slots();
        if !slots.contains_key(url) && slots.len() >= OPEN && !leave_oldest(&mut slots) {
            return None;
        }
        let new = || Slot { used: Instant::now(), place: Place::default() };
        let slot = slots.entry(url.to_owned()).or_insert_with(new);
        slot.used = Instant::now();
        Some(Arc::clone(&slot.place))
    }

    /// The folder. That there is none is said to the first machine that would need it.
    async fn store(&self, tell: &Tell) -> Option<Arc<Store>> {
        let settings = self.0.settings.clone()?;
        let opening = async {
            let name = settings.folder.display().to_string();
            let (folder, limit) = (settings.folder, settings.limit);
            let opened = spawn_blocking(move || Store::open(&folder, budget(limit))).await;
            match opened.map_err(io::Error::other).flatten() {
                Ok(store) => Some(Arc::new(store)),
                Err(error) => {
                    let problem = format!(
                        "no copies can be put there, so that each machine's download is one of its \
                         own: {error}"
                    );
                    tell(Fact::Upstream { file: name, problem });
                    None
                }
            }
        };
        self.0.store.get_or_init(|| opening).await.clone()
    }

    /// Looks at the octets of a copy of an earlier run.
    async fn look_at(
        &self,
        file: std::fs::File,
        record: Record,
        remote: &Remote,
    ) -> Result<Arc<Held>, String> {
        let looking = spawn_blocking(move || match is_sound(&file, &record) {
            Ok(true) => Ok(Arc::new(Held::whole(file, &record))),
            Ok(false) => Err("is not what was written there".to_owned()),
            Err(error) => Err(format!("cannot be read: {error}")),
        });
        let looked = looking.await.map_err(|error| error.to_string()).flatten();
        looked.map_err(|what| {
            format!("the copy of {} in the cache {what}: it is fetched anew", remote.name)
        })
    }

    /// Begins a copy of what is being sent, or gives that back, if there can be none.
    async fn begin(
        &self,
        store: &Arc<Store>,
        remote: &Remote,
        got: Response<Incoming>,
        tell: Tell,
    ) -> Result<Arc<Held>, Box<Response<Incoming>>> {
        let terms = Terms::of(got.headers());
        let length = match Facts::of(&got).length {
            Some(length) if !terms.no_store => length,
            _ => return Err(Box::new(got)),
        };
        let tag =
            terms.strong().map(str::to_owned).or_else(|| Some(format!("\"{}\"", token().ok()?)));
        let Some(tag) = tag else { return Err(Box::new(got)) };
        let named = self.keeps() && terms.may_be_kept(&remote.address);
        let partial = loop {
            let store = Arc::clone(store);
            let created = spawn_blocking(move || store.create(length, named)).await;
            match created.unwrap_or_else(|error| Err(NoRoom::Io(error.into()))) {
                Ok(partial) => break partial,
                // What nobody reads at the moment goes before what is lost for good.
                Err(NoRoom::Budget | NoRoom::Disk) if leave_oldest(&mut self.slots()) => {}
                Err(error) => {
                    let why = match error {
                        NoRoom::Budget => "the cache is full of copies in use".to_owned(),
                        NoRoom::Disk => "the cache's disk has no room for it".to_owned(),
                        NoRoom::Io(error) => format!("the cache takes none: {error}"),
                    };
                    let problem = format!(
                        "{why}, so that each machine's download of it is one of its own \
                         (portcullis cache clear; --cache-size)"
                    );
                    tell(Fact::Upstream { file: remote.address.to_string(), problem });
                    return Err(Box::new(got));
                }
            }
        };
        let (address, fetcher) = (remote.address.clone(), self.0.fetcher.clone());
        let fetch = Fetch { address, fetcher, terms, length, tag, tell };
        Ok(fetch.start(got.into_body(), partial))
    }
}

/// What is known of an address before its server is asked.
enum Known {
    /// Of this run.
    Held(Arc<Held>),
    /// Of an earlier one.
    Kept(std::fs::File, Record),
}

impl Known {
    fn terms(&self) -> Terms {
        match self {
            Self::Held(held) => held.terms.clone(),
            Self::Kept(_, record) => record.terms(),
        }
    }
}

/// Whether a machine is given this copy without another question to the file's server: it grows at this
/// moment, or it is what was chosen at the start. What an API named may be another file each time.
fn will_do(held: &Held, remote: &Remote) -> bool {
    let chosen = remote.facts != Facts::default();
    !held.has_failed() && held.facts().agrees(&remote.facts) && (chosen || !held.is_whole())
}

/// Lets go of the copy that was not used for longest, of those that nobody reads. Whether there was one.
fn leave_oldest(slots: &mut BTreeMap<String, Slot>) -> bool {
    let idle = |slot: &Slot| {
        Arc::strong_count(&slot.place) == 1
            && slot.place.try_lock().is_ok_and(|held| {
                held.as_ref().is_none_or(|held| {
                    Arc::strong_count(held) == 1 && (held.is_whole() || held.has_failed())
                })
            })
    };
    let oldest = slots.iter().filter(|(_, slot)| idle(slot)).min_by_key(|(_, slot)| slot.used);
    let oldest = oldest.map(|(url, _)| url.clone());
    oldest.and_then(|url| slots.remove(&url)).is_some()
}
