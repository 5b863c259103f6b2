//! Files of this computer that may change while they are served: a new build is a new generation, for
//! machines that start later.
//!
//! Guarantees: kernel, initrds and command line of one machine always belong together, from its
//! script (or EFI program) on until it starts anew; a build that cannot be opened, or is not whole
//! yet, changes nothing but what is said. Looks at the files when a machine asks, at most once a
//! second, and not by itself.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::future::{BoxFuture, FutureExt as _};
use tokio::sync::mpsc;

use super::{Order, Refusal, Source, Step, complete, file::is_same, open};
use crate::{exit::Failure, image::Generation, mac::MacAddr, sign::Signer};

/// Machines whose generation is kept: as many as are remembered otherwise.
const BOOTS: usize = 4096;
/// Between two looks at the files.
const PAUSE: Duration = Duration::from_secs(1);

/// What the user named, as it is now.
#[derive(Debug)]
pub struct Fresh {
    /// The user's own stub for EFI programs.
    stub: Option<PathBuf>,
    /// Who signs them.
    signer: Option<Arc<Signer>>,
    token: String,
    /// What people are told.
    notes: mpsc::Sender<String>,
    state: Mutex<State>,
    /// Held while files are looked at and opened; when that was last done.
    looked: tokio::sync::Mutex<Instant>,
}

#[derive(Debug)]
struct State {
    order: Order,
    current: Arc<Generation>,
    /// What machines that have their script are given.
    boots: BTreeMap<MacAddr, (Instant, Arc<Generation>)>,
    /// Why the files, as they are now, cannot be served: said once.
    failure: Option<String>,
}

impl Fresh {
    /// Opens what `order` names, and also returns what it is at first.
    ///
    /// # Errors
    /// As [`open`] and [`complete`].
    pub async fn open(
        order: Order,
        stub: Option<PathBuf>,
        signer: Option<Arc<Signer>>,
        notes: mpsc::Sender<String>,
    ) -> Result<(Self, Arc<Generation>), Failure> {
        let first = complete(open(&order).await?, stub.as_deref(), signer.as_ref()).await?;
        let current = Arc::new(first);
        let state =
            State { order, current: Arc::clone(&current), boots: BTreeMap::new(), failure: None };
        let fresh = Self {
            stub,
            signer,
            token: current.token.clone(),
            notes,
            state: Mutex::new(state),
            looked: tokio::sync::Mutex::new(Instant::now()),
        };
        Ok((fresh, current))
    }

    fn with_state<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A note that does not fit is left out: machines do not wait for a terminal.
    fn note(&self, text: String) {
        let _ = self.notes.try_send(text);
    }

    /// Opens the files anew if they are others than those that are served.
    async fn look(&self) {
        // While one machine's question looks, the others go on with what there is.
        let Ok(mut looked) = self.looked.try_lock() else {
            return;
        };
        if looked.elapsed() < PAUSE {
            return;
        }
        let (order, current) =
            self.with_state(|state| (state.order.clone(), Arc::clone(&state.current)));
        // A file system may take its time.
        let changed = tokio::task::spawn_blocking(move || changed(&current)).await;
        if let Ok(Some(path)) = changed {
            let opened = self.reopen(&order).await;
            self.take(opened, &path);
        }
        *looked = Instant::now();
    }

    /// Serves something else from now on, to machines that start later.
    ///
    /// # Errors
    /// It cannot be served, and what was served before is.
    pub async fn renew(&self, mut order: Order) -> Result<(), Failure> {
        // No look at what was ordered before may come in between.
        let mut looked = self.looked.lock().await;
        order.cache = self.with_state(|state| state.order.cache.clone());
        let generation = Arc::new(self.reopen(&order).await?);
        self.with_state(|state| {
            state.order = order;
            state.current = generation;
            state.failure = None;
        });
        *looked = Instant::now();
        Ok(())
    }

    async fn reopen(&self, order: &Order) -> Result<Generation, Failure> {
        let generation = open(order).await?;
        let completing = complete(generation, self.stub.as_deref(), self.signer.as_ref());
        let mut generation = completing.await?;
        // Addresses that were given out stay what they are.
        generation.token.clone_from(&self.token);
        Ok(generation)
    }

    fn take(&self, opened: Result<Generation, Failure>, path: &Path) {
        let path = path.display();
        match opened {
            Ok(generation) => {
                self.with_state(|state| {
                    state.current = Arc::new(generation);
                    state.failure = None;
                });
                self.note(format!(
                    "{path} has changed: machines that start now get what is there now"
                ));
            }
            Err(failure) => {
                let news = self.with_state(|state| {
                    state.failure.replace(failure.message.clone()).as_ref()
                        != Some(&failure.message)
                });
                if news {
                    self.note(format!(
                        "{path} has changed and cannot be served as it is now ({}): machines go on \
                         getting what was there before",
                        failure.message
                    ));
                }
            }
        }
    }

    /// What this machine gets at this step.
    fn choose(&self, mac: MacAddr, step: Step) -> Arc<Generation> {
        self.with_state(|state| {
            if step == Step::Discover {
                state.boots.remove(&mac);
            }
            if let Some((_, generation)) = state.boots.get(&mac) {
                return Arc::clone(generation);
            }
            let current = Arc::clone(&state.current);
            if step == Step::Script {
                if state.boots.len() >= BOOTS {
                    let oldest = state.boots.iter().min_by_key(|(_, (since, _))| *since);
                    let oldest = oldest.map(|(&mac, _)| mac);
                    oldest.map(|mac| state.boots.remove(&mac));
                }
                state.boots.insert(mac, (Instant::now(), Arc::clone(&current)));
            }
            current
        })
    }
}

/// A file that is another one now.
fn changed(generation: &Generation) -> Option<PathBuf> {
    generation.files.iter().find(|(path, tag)| !is_same(path, tag)).map(|(path, _)| path.clone())
}

impl Source for Fresh {
    fn token(&self) -> &str {
        &self.token
    }

    fn generation(
        &self,
        mac: MacAddr,
        step: Step,
    ) -> BoxFuture<'_, Result<Arc<Generation>, Refusal>> {
        async move {
            if step != Step::File {
                self.look().await;
            }
            Ok(self.choose(mac, step))
        }
        .boxed()
    }

    fn known(&self, mac: MacAddr) -> Option<Arc<Generation>> {
        Some(self.choose(mac, Step::Script))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::{read_head, tests::bzimage};

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const OTHER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

    struct Lab {
        folder: tempfile::TempDir,
        fresh: Fresh,
        notes: mpsc::Receiver<String>,
        runtime: tokio::runtime::Runtime,
    }

    impl Lab {
        /// A kernel and an initrd `old`.
        fn new() -> Self {
            let folder = tempfile::tempdir().unwrap();
            let at = |name: &str| folder.path().join(name);
            std::fs::write(at("k"), bzimage()).unwrap();
            std::fs::write(at("i"), "old").unwrap();
            let order = Order {
                kernel: at("k"),
                initrds: vec![at("i")],
                cmdline: Some("a".into()),
                ..Order::default()
            };
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let (sender, notes) = mpsc::channel(8);
            let (fresh, _) = runtime.block_on(Fresh::open(order, None, None, sender)).unwrap();
            Self { folder, fresh, notes, runtime }
        }

        /// Another file takes the initrd's place, as a new build does.
        fn build(&self, text: &str) {
            let new = self.folder.path().join("new");
            std::fs::write(&new, text).unwrap();
            std::fs::rename(new, self.folder.path().join("i")).unwrap();
            self.forget_the_last_look();
        }

        fn forget_the_last_look(&self) {
            let long_ago = Instant::now().checked_sub(PAUSE).unwrap();
            *self.runtime.block_on(self.fresh.looked.lock()) = long_ago;
        }

        /// The initrd that a machine is given.
        fn initrd(&self, mac: MacAddr, step: Step) -> String {
            let generation = self.runtime.block_on(self.fresh.generation(mac, step)).unwrap();
            assert_eq!(generation.token, self.fresh.token());
            let crate::image::Payload::Local(blob) = &generation.initrds[0] else { panic!() };
            String::from_utf8(read_head(blob, 100).unwrap()).unwrap()
        }
    }

    #[test]
    fn a_new_build_is_for_machines_that_start_later() {
        let mut lab = Lab::new();
        for step in [Step::Discover, Step::Script, Step::File] {
            assert_eq!(lab.initrd(MAC, step), "old");
        }
        lab.build("new");
        assert_eq!(lab.initrd(MAC, Step::File), "old", "it has its script");
        assert_eq!(lab.initrd(MAC, Step::Script), "old");
        for step in [Step::Discover, Step::Script, Step::File] {
            assert_eq!(lab.initrd(OTHER, step), "new");
        }
        assert_eq!(lab.initrd(MAC, Step::File), "old");
        assert_eq!(lab.initrd(MAC, Step::Discover), "new", "it starts anew");
        assert_eq!(lab.initrd(MAC, Step::File), "new");
        let note = lab.notes.try_recv().unwrap();
        assert!(note.contains("/i has changed"), "{note}");
        assert!(lab.notes.try_recv().is_err(), "said once");
    }

    #[test]
    fn what_cannot_be_served_changes_nothing_and_is_said_once() {
        let mut lab = Lab::new();
        lab.build("");
        assert_eq!(lab.initrd(OTHER, Step::Discover), "old");
        lab.forget_the_last_look();
        assert_eq!(lab.initrd(OTHER, Step::Script), "old");
        let note = lab.notes.try_recv().unwrap();
        assert!(note.contains("is empty"), "{note}");
        assert!(lab.notes.try_recv().is_err(), "said once");
        lab.build("new");
        assert_eq!(lab.initrd(MAC, Step::Discover), "new");
    }

    #[test]
    fn another_order_is_for_machines_that_start_later_and_a_bad_one_for_nobody() {
        let mut lab = Lab::new();
        assert_eq!(lab.initrd(MAC, Step::Script), "old");
        let at = |name: &str| lab.folder.path().join(name);
        std::fs::write(at("other"), "new").unwrap();
        let order = |initrd: &str| Order {
            kernel: at("k"),
            initrds: vec![at(initrd)],
            cmdline: Some("b".to_owned()),
            ..Order::default()
        };
        let renew = |initrd: &str| lab.runtime.block_on(lab.fresh.renew(order(initrd)));
        assert!(renew("missing").unwrap_err().message.contains("missing"));
        assert_eq!(lab.initrd(OTHER, Step::Discover), "old");
        renew("other").unwrap();
        assert_eq!(lab.initrd(MAC, Step::File), "old");
        assert_eq!(lab.initrd(OTHER, Step::Script), "new");
        let generation = lab.runtime.block_on(lab.fresh.generation(OTHER, Step::File)).unwrap();
        assert_eq!(generation.cmdline, "b".into());
        // What was ordered before is not looked at any more.
        std::fs::remove_file(at("i")).unwrap();
        lab.forget_the_last_look();
        assert_eq!(lab.initrd(MAC, Step::Discover), "new");
        assert!(lab.notes.try_recv().is_err());
    }

    #[test]
    fn files_are_looked_at_once_a_second_at_most() {
        let lab = Lab::new();
        lab.build("new");
        *lab.runtime.block_on(lab.fresh.looked.lock()) = Instant::now() + 60 * PAUSE;
        assert_eq!(lab.initrd(MAC, Step::Discover), "old");
    }
}
