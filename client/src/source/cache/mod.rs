//! Files of other web servers, fetched once for all machines that ask, and kept for later runs.
//!
//! The data's way: `http/remote` -> [`Cache::open`] -> a question to the file's server -> `bring` -> `grow` (a file that
//! grows, in the folder of `store`) -> `held` -> `http/files`. What an earlier run has kept goes by `look` and `parts` instead
//! of `bring` and `grow`. What may be kept, and what goes, is decided in `record`.
//!
//! Guarantees: of one address one copy is fetched at a time, however many machines ask; a copy of an
//! earlier run is used only if the file's server says that it is still the same, and each part of it if its octets
//! have the hash that they had; nothing is stored that may not be stored. Where no copy can be made (no
//! end that could be told from a connection's, no room, no folder), [`Opened::Direct`] says so, and each machine is sent what its own question brings.

mod bring;
mod grow;
mod held;
mod look;
mod parts;
mod record;
mod store;

use std::{
    collections::BTreeMap,
    fmt, io,
    mem::{replace, take},
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use http::{Method, Response, StatusCode, header::TRANSFER_ENCODING};
use hyper::body::Incoming;
use tokio::{sync::OnceCell, task::spawn_blocking};

use crate::{
    event::Fact,
    fetch::{ANSWER, Facts, FetchError, Fetcher},
    image::Remote,
    read::Content,
    source::token,
};
use bring::{Fetch, identity};
pub use bring::{STALL, Tell};
pub use held::{Copied, Held};
use look::Kept;
use record::Terms;
pub use record::{Budget, Record};
use store::NoRoom;
pub use store::{Store, place};

/// Octets of all copies together, if the user says nothing else.
pub const LIMIT: u64 = 8 << 30;
/// Copies in the folder.
const FILES: usize = 1024;
/// Copies that are open in one run: each has a descriptor.
const OPEN: usize = 64;
/// What is said of a file without a length.
pub const NO_LENGTH: &str =
    "its server does not tell its length: iPXE takes it slowly, and progress is not known";
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
type Place = Arc<tokio::sync::Mutex<Here>>;

#[derive(Default)]
struct Here {
    copy: Option<Arc<Copied>>,
    /// That there can be none was said.
    refused: bool,
    /// What was found before the first machine asked.
    untold: Vec<Fact>,
}

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

/// A copy as one machine reads it, and what is asked if it turns out to be damaged.
#[derive(Clone)]
pub struct Shared {
    /// What it reads.
    pub held: Arc<Held>,
    /// What it is a copy of.
    pub remote: Remote,
    /// In this machine's name.
    pub tell: Tell,
}

impl Shared {
    /// What is there, once the octet at `at` is, which is the first that this machine has not taken. From a
    /// copy that turns out to be damaged it goes over to the one that is fetched anew.
    ///
    /// # Errors
    /// It will never be there.
    pub async fn beyond(&mut self, at: u64) -> io::Result<Content> {
        match self.held.beyond(at).await {
            Err(_) if self.held.copy.is_damaged() => {
                self.held = self.anew(at).await?;
                self.held.beyond(at).await
            }
            result => result,
        }
    }

    /// Another copy of the same file, of which the machine has the first `at` octets.
    async fn anew(&self, at: u64) -> io::Result<Arc<Held>> {
        let old = &self.held.copy;
        let opened = self.remote.cache.open(&self.remote, Arc::clone(&self.tell)).await;
        match opened.map_err(io::Error::other)? {
            Opened::Shared(new)
                if new.copy.length() == old.length()
                    && (at == 0 || old.terms.is_surely(&new.copy.terms)) =>
            {
                Ok(new)
            }
            _ => Err(io::Error::other(
                "the copy in the cache is damaged, and its server does not say surely that the rest which it \
                 sends belongs to the beginning: start the machine again",
            )),
        }
    }
}

/// Why it gets none.
#[derive(Debug, thiserror::Error)]
pub enum Problem {
    /// It was not to be had.
    #[error("{0}")]
    Fetch(#[from] FetchError),
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
        let here = place.lock().await;
        here.copy.as_ref().filter(|copy| will_do(copy, remote)).map(Copied::read)
    }

    /// Looks at the copy that an earlier run has kept of what was chosen at the start, so that no machine waits for
    /// that. What is found is told with the first machine that asks.
    pub async fn prepare(&self, remote: &Remote) {
        // Without a folder there is no copy, and none is made for nothing.
        let folder = self.0.settings.as_ref().filter(|settings| settings.keep);
        if !is_chosen(remote) || !folder.is_some_and(|settings| settings.folder.is_dir()) {
            return;
        }
        let Some(place) = self.place(&remote.address.to_string()) else { return };
        let mut here = place.lock().await;
        if here.copy.is_none() {
            let facts = Arc::new(Mutex::new(Vec::new()));
            let sink = Arc::clone(&facts);
            let tell: Tell = Arc::new(move |fact| {
                sink.lock().unwrap_or_else(PoisonError::into_inner).push(fact);
            });
            here.copy = self.kept(remote, &tell).await;
            here.untold = take(&mut *facts.lock().unwrap_or_else(PoisonError::into_inner));
        }
    }

    /// The copy of an earlier run, if its server says that it is the same, without sending it.
    async fn kept(&self, remote: &Remote, tell: &Tell) -> Option<Arc<Copied>> {
        let store = self.store(tell).await?;
        let (file, record) = found(&store, remote).await?;
        let got = self.ask(Method::HEAD, remote, Some(&record.terms())).await.ok()?;
        match got.status() {
            StatusCode::NOT_MODIFIED => self.sound(&store, file, record, remote, tell).await,
            // The first machine asks again.
            _ => None,
        }
    }

    /// The copy of a file; one is begun if there is none.
    ///
    /// # Errors
    /// The file is not to be had.
    pub async fn open(&self, remote: &Remote, tell: Tell) -> Result<Opened, Problem> {
        let place = self.place(&remote.address.to_string());
        let Some(place) = place else { return Ok(Opened::Direct(None)) };
        let mut here = place.lock().await;
        here.untold.drain(..).for_each(|fact| tell(fact));
        let Some(store) = self.store(&tell).await else { return Ok(Opened::Direct(None)) };
        if let Some(copy) = &here.copy {
            copy.lend(&tell);
            if will_do(copy, remote) {
                return Ok(Opened::Shared(copy.read()));
            }
            // Once more it would be the same.
            if copy.has_spilled() {
                return Ok(Opened::Direct(None));
            }
        }
        // Of a copy that will not do this says only that it may still be the same.
        let mut known = match here.copy.take().filter(|copy| copy.is_whole()) {
            Some(copy) => Some(Known::Copied(copy)),
            None if self.keeps() => {
                found(&store, remote).await.map(|(file, record)| Known::Kept(file, record))
            }
            None => None,
        };
        loop {
            let terms = known.as_ref().map(Known::terms);
            let got = self.ask(Method::GET, remote, terms.as_ref()).await?;
            let held = match (got.status(), known.take()) {
                (StatusCode::NOT_MODIFIED, Some(Known::Copied(copy))) => copy.read(),
                (StatusCode::NOT_MODIFIED, Some(Known::Kept(file, record))) => {
                    match self.sound(&store, file, record, remote, &tell).await {
                        Some(copy) => copy.read(),
                        None => continue,
                    }
                }
                (StatusCode::OK, _) => {
                    if !Facts::of(&got).agrees(&remote.facts) {
                        return Err(Problem::Changed);
                    }
                    match self.begin(&store, remote, got, &tell, &mut here.refused).await {
                        Ok(held) => held,
                        Err(got) => return Ok(Opened::Direct(Some(got))),
                    }
                }
                (status, _) => return Err(Problem::Status(status)),
            };
            if !held.copy.facts().agrees(&remote.facts) {
                return Err(Problem::Changed);
            }
            held.copy.lend(&tell);
            here.copy = Some(Arc::clone(&held.copy));
            return Ok(Opened::Shared(held));
        }
    }

    /// Asks a file's server for it, or whether it is still what `terms` say.
    async fn ask(
        &self,
        method: Method,
        remote: &Remote,
        terms: Option<&Terms>,
    ) -> Result<Response<Incoming>, FetchError> {
        let mut headers = identity();
        if let Some(terms) = terms.filter(|terms| terms.can_be_asked()) {
            headers.extend(terms.conditions());
        }
        self.0.fetcher.ask(method, &remote.address, &headers, ANSWER).await
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

    /// Begins to look at the octets of a copy of an earlier run; one whose hashes are damaged goes.
    async fn sound(
        &self,
        store: &Arc<Store>,
        file: std::fs::File,
        record: Record,
        remote: &Remote,
        tell: &Tell,
    ) -> Option<Arc<Copied>> {
        let (url, name) = (remote.address.to_string(), remote.name.clone());
        let kept = Kept { store: Arc::clone(store), url, name };
        let looking = kept.clone();
        let begun = spawn_blocking(move || match store::list(&file, &record)? {
            Some(list) => {
                let copy = Arc::new(Copied::kept(file, &record, list));
                looking.start(&copy).map(|()| Some(copy))
            }
            None => Ok(None),
        });
        let what = match begun.await.map_err(io::Error::other).flatten() {
            Ok(Some(copy)) => return Some(copy),
            Ok(None) => "is not what was written there".to_owned(),
            Err(error) => format!("cannot be read: {error}"),
        };
        store.discard(&kept.url);
        tell(kept.lost(&what));
        None
    }

    /// Begins a copy of what is being sent, or gives that back, if there can be none.
    async fn begin(
        &self,
        store: &Arc<Store>,
        remote: &Remote,
        got: Response<Incoming>,
        tell: &Tell,
        refused: &mut bool,
    ) -> Result<Arc<Held>, Box<Response<Incoming>>> {
        let terms = Terms::of(got.headers());
        let length = Facts::of(&got).length;
        if terms.no_store || length.is_none() && !has_an_end(&got) {
            return Err(Box::new(got));
        }
        let tag =
            terms.strong().map(str::to_owned).or_else(|| Some(format!("\"{}\"", token().ok()?)));
        let Some(tag) = tag else { return Err(Box::new(got)) };
        let named = self.keeps() && terms.may_be_kept(&remote.address);
        let file = || remote.address.to_string();
        let partial = loop {
            let creator = Arc::clone(store);
            let created =
                spawn_blocking(move || creator.create(length.unwrap_or_default(), named)).await;
            match created.unwrap_or_else(|error| Err(NoRoom::Io(error.into()))) {
                Ok(partial) => break partial,
                // What nobody reads at the moment goes before what is lost for good.
                Err(NoRoom::Budget | NoRoom::Disk) if leave_oldest(&mut self.slots()) => {}
                Err(why) => {
                    let problem = format!(
                        "{}, so that each machine's download of it is one of its own ({})",
                        why.sentence(),
                        why.advice(store.name())
                    );
                    if !replace(refused, true) {
                        tell(Fact::Upstream { file: file(), problem });
                    }
                    return Err(Box::new(got));
                }
            }
        };
        if length.is_none() {
            let problem = NO_LENGTH.to_owned();
            tell(Fact::Upstream { file: file(), problem });
        }
        let (address, fetcher) = (remote.address.clone(), self.0.fetcher.clone());
        let fetch = Fetch { address, fetcher, terms, length, tag, tell: Arc::clone(tell) };
        Ok(fetch.start(got.into_body(), Arc::clone(store), partial))
    }
}

/// The copy in the folder.
async fn found(store: &Arc<Store>, remote: &Remote) -> Option<(std::fs::File, Record)> {
    let (store, url) = (Arc::clone(store), remote.address.to_string());
    spawn_blocking(move || store.find(&url)).await.ok().flatten()
}

/// Whether an answer without a length has an end that is none of a connection that breaks off: a last chunk
/// (RFC 9112 section 6.3).
fn has_an_end(got: &Response<Incoming>) -> bool {
    let codings = got.headers().get_all(TRANSFER_ENCODING).iter().next_back();
    let last = codings.and_then(|value| value.to_str().ok()?.rsplit(',').next());
    last.is_some_and(|coding| coding.trim().eq_ignore_ascii_case("chunked"))
}

/// What is known of an address before its server is asked.
enum Known {
    /// Of this run.
    Copied(Arc<Copied>),
    /// Of an earlier one.
    Kept(std::fs::File, Record),
}

impl Known {
    fn terms(&self) -> Terms {
        match self {
            Self::Copied(copy) => copy.terms.clone(),
            Self::Kept(_, record) => record.terms(),
        }
    }
}

/// Whether a machine is given this copy without another question to the file's server: it grows at this
/// moment, or it is what was chosen at the start. What an API named may be another file each time.
fn will_do(copy: &Copied, remote: &Remote) -> bool {
    let fits = !copy.has_failed() && !copy.has_spilled() && copy.facts().agrees(&remote.facts);
    fits && (is_chosen(remote) || !copy.is_whole())
}

fn is_chosen(remote: &Remote) -> bool {
    remote.facts != Facts::default()
}

/// Lets go of the copy that was not used for longest, of those that nobody reads. Whether there was one.
fn leave_oldest(slots: &mut BTreeMap<String, Slot>) -> bool {
    let idle = |slot: &Slot| {
        Arc::strong_count(&slot.place) == 1
            && slot.place.try_lock().is_ok_and(|here| {
                here.copy.as_ref().is_none_or(|copy| {
                    Arc::strong_count(copy) == 1 && (copy.is_whole() || copy.has_failed())
                })
            })
    };
    let oldest = slots.iter().filter(|(_, slot)| idle(slot)).min_by_key(|(_, slot)| slot.used);
    let oldest = oldest.map(|(url, _)| url.clone());
    oldest.and_then(|url| slots.remove(&url)).is_some()
}
