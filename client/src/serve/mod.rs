//! `boot`, `api`, `quick` and `nixos`, from the arguments to the last line.
//!
//! Arguments -> what is served (`arguments`, `nixos`) -> where, with everything looked at (`plan`) ->
//! leases of the helper (`run`) -> on each interface four servers and their machines (`outlet`), with
//! what hands out addresses if that is wanted (`authority`) -> what happens there, to the report
//! (`ready`, `watch`), until the user (`interrupts`) or the helper ends it.
//!
//! Guarantees: everything that can be wrong with the arguments is found before the bus is asked, so
//! that no dialog appears for nothing; whatever ends the run, every socket is dropped before it is
//! said that the ports are closed.

mod arguments;
mod authority;
mod interrupts;
mod nixos;
mod outlet;
mod plan;
mod ready;
mod run;
mod watch;

use std::{
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{runtime::Runtime, sync::mpsc};

pub use arguments::{api, boot, quick};
use authority::can_hand_out;
use interrupts::Interrupts;
pub use nixos::nixos;
use plan::{Content, Plan, find_chain};
pub(crate) use plan::{find_loaders, request};
use run::run;

use crate::{
    cli::Serving,
    commands::pick_interfaces,
    dhcp::Count,
    exit::Failure,
    nixos::Workshop,
    notify::Desktop,
    once,
    report::Report,
    rpi::Folder,
    source,
    web::{Door, events::Feed},
};

/// Changes of files that wait to be told.
const CHANGES: usize = 16;

/// For tasks to be dropped.
const ENDING: Duration = Duration::from_millis(500);

/// What a command has beside what it serves.
#[derive(Default)]
struct Beside {
    /// What is said of files that have changed.
    changes: Option<mpsc::Receiver<String>>,
    /// Those to serve on, if they have been chosen already.
    interfaces: Vec<String>,
    /// If it has heard of them already.
    interrupts: Option<Interrupts>,
    /// Builds anew.
    workshop: Option<Workshop>,
    /// Is told of machines that are up, or have stopped.
    desktop: Option<Desktop>,
}

fn serve(
    boot: &Serving,
    content: Content<'_>,
    mut beside: Beside,
    runtime: Runtime,
    report: &mut Report,
) -> Result<(), Failure> {
    if boot.direct && content.generation().is_some_and(|one| !one.is_fetched_elsewhere()) {
        report.note("--direct does nothing here: every file lies on this computer.");
    }
    let chain = find_chain(boot, &content, report)?;
    let (loaders, missing) =
        runtime.block_on(find_loaders(boot, content.generation(), chain.is_some()))?;
    for text in missing {
        report.note(&format!("{text}. Machines of that kind need an iPXE on this computer."));
    }
    let folder = boot.rpi.as_deref().map(Folder::open).transpose()?.unwrap_or_default();
    let interfaces = match std::mem::take(&mut beside.interfaces) {
        none if none.is_empty() => pick_interfaces(boot, report)?,
        chosen => chosen,
    };
    if boot.dhcp_server {
        interfaces.iter().try_for_each(|interface| can_hand_out(interface))?;
    }
    let requests = interfaces.into_iter().map(|interface| request(boot, interface)).collect();
    let count = boot.count.map(|count| Count::new(count.into()));
    let begun = Instant::now();
    let page = page(boot, begun, &runtime, report)?;
    let plan = Plan {
        boot,
        content,
        loaders: Arc::new(loaders),
        chain,
        folder: Arc::new(folder),
        count,
        requests,
        begun,
    };
    let result = runtime.block_on(async {
        let _page = page.map(tokio::spawn);
        let result = match once::way(boot.via, &boot.common, report).await {
            Ok(way) => run(&plan, way, &mut beside, report).await,
            Err(failure) => Err(failure),
        };
        if let Some(workshop) = beside.workshop.take() {
            workshop.close().await;
        }
        result
    });
    // What grows in the cache is removed. A read from a slow disk must not hold the end.
    runtime.shutdown_timeout(ENDING);
    result
}

/// The web page, if it is wanted, ready to answer.
fn page(
    boot: &Serving,
    begun: Instant,
    runtime: &Runtime,
    report: &mut Report,
) -> Result<Option<impl Future<Output = ()> + use<>>, Failure> {
    let Some(wish) = boot.page() else { return Ok(None) };
    let _where_it_listens = runtime.enter();
    let session = std::env::var_os("XDG_RUNTIME_DIR");
    let door = Door::open(wish, session.as_deref().map(Path::new))?;
    let feed = Feed::new(Arc::clone(report.board()), begun, source::token()?);
    report.page(Arc::clone(&feed), &door.url(), door.is_public());
    Ok(Some(door.serve(feed)))
}
