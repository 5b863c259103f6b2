//! `boot`, `api` and `quick`, from the arguments to the last line: the whole story in one place.
//!
//! Guarantees: everything that can be wrong with the arguments is found before the bus is asked, so
//! that no dialog appears for nothing; whatever ends the run, every socket is dropped before it is
//! said that the ports are closed.

use std::{
    fs,
    future::poll_fn,
    io,
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use portcullis_dbus::{DEFAULT_MAX_SECONDS, Error, keys::reason};
use tokio::{
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{
    cli::{self, Boot, Quick, Serving},
    commands::{pick_interfaces, runtime, with_agent},
    dhcp::{Count, Policy, UefiOffer, serve_boot_server, serve_dhcp},
    event::Event,
    exit::{Code, Failure},
    http::{self, serve_http},
    image::{EfiImage, Generation, Loader, Loaders, NoEfiImage, Payload},
    inhibit,
    loaders::{self, coverage},
    machines::Machines,
    report::{Asking, Ready, Report, Served},
    rpi::Folder,
    session::{Lease, Request, Session, Sockets},
    source::{self, Order, Same, Source, api::Api, fresh::Fresh, quick::Dish},
    template::Machine,
    tftp::{self, serve_tftp},
};

/// Events that wait while the terminal is slow; what does not fit is not shown.
const EVENTS: usize = 8192;
/// Notes of `--debug` that wait.
const NOTES: usize = 1024;
/// Changes of files that wait to be told.
const CHANGES: usize = 16;
/// How often silence is judged.
const TICK: Duration = Duration::from_secs(1);
/// How long closing may take; after that the connection is dropped, which closes as well.
const CLOSING: Duration = Duration::from_secs(5);
/// Ethernet's (RFC 894), if the interface does not tell its own.
const MTU: u16 = 1500;

/// What is served where, checked, before anybody is asked.
struct Plan<'a> {
    boot: &'a Serving,
    content: Content<'a>,
    loaders: Arc<Loaders>,
    /// For Raspberry Pis.
    folder: Arc<Folder>,
    count: Option<Arc<Count>>,
    /// One for each interface, at least one.
    requests: Vec<Request>,
}

/// What is served.
enum Content<'a> {
    /// The same for every machine.
    Same(Arc<Generation>),
    /// Files that are opened anew when they change, and what they are at first.
    Fresh(Arc<Fresh>, Arc<Generation>),
    /// What the API at this address says.
    Api(Arc<Api>, &'a str),
}

impl Content<'_> {
    fn source(&self) -> Arc<dyn Source> {
        match self {
            Self::Same(generation) => Arc::new(Same(Arc::clone(generation))),
            Self::Fresh(fresh, _) => Arc::clone(fresh) as Arc<dyn Source>,
            Self::Api(api, _) => Arc::clone(api) as Arc<dyn Source>,
        }
    }

    fn generation(&self) -> Option<&Generation> {
        match self {
            Self::Same(generation) | Self::Fresh(_, generation) => Some(generation),
            Self::Api(..) => None,
        }
    }

    /// The EFI program that is the same for every machine but for its command line.
    fn efi(&self) -> Option<&EfiImage> {
        self.generation().and_then(|generation| generation.efi.as_ref().ok())
    }
}

impl Plan<'_> {
    /// What firmware can be given by TFTP.
    fn loaders(&self) -> impl Iterator<Item = Loader> {
        let image = self.content.efi().map(|_| Loader::Image);
        let folder = (!self.folder.is_empty()).then_some(Loader::Folder);
        self.loaders.0.keys().copied().chain(image).chain(folder)
    }
}

/// `boot`: returns when the user ends it.
///
/// # Errors
/// Everything else, each with its exit code.
pub fn boot(boot: &Boot, report: &mut Report) -> Result<(), Failure> {
    begin(&boot.serving, boot.refusal(), report)?;
    let runtime = runtime()?;
    let order = Order {
        kernel: boot.kernel.clone(),
        initrds: boot.initrds.clone(),
        cmdline: boot.cmdline.clone(),
        message: boot.bootmsg.clone(),
        direct: boot.serving.direct,
    };
    let generation = Arc::new(complete(runtime.block_on(source::open(&order))?, &boot.serving)?);
    let (sender, changes) = mpsc::channel(CHANGES);
    let stub = boot.serving.stub.clone();
    let fresh = Arc::new(Fresh::new(order, stub, Arc::clone(&generation), sender));
    serve(&boot.serving, Content::Fresh(fresh, generation), Some(changes), runtime, report)
}

/// `quick`: as [`boot`], from a recipe's addresses.
///
/// # Errors
/// As [`boot`].
pub fn quick(quick: &Quick, report: &mut Report) -> Result<(), Failure> {
    begin(&quick.serving, quick.refusal(), report)?;
    let runtime = runtime()?;
    let opening = async {
        let dish = source::quick::prepare(source::quick::Choice {
            recipe: &quick.recipe,
            version: quick.version.as_deref(),
            arch: quick.arch.as_deref(),
            mirror: quick.mirror.as_deref(),
            cmdline: quick.cmdline.as_deref(),
        });
        match dish.await? {
            Dish::Linux { kernel, initrds, cmdline } => {
                let (cmdline, message) = (Some(cmdline), quick.bootmsg.clone());
                let direct = quick.serving.direct;
                source::open(&Order { kernel, initrds, cmdline, message, direct }).await
            }
            Dish::Script(script) => source::open_script(&script, quick.serving.direct).await,
        }
    };
    let generation = complete(runtime.block_on(opening)?, &quick.serving)?;
    serve(&quick.serving, Content::Same(Arc::new(generation)), None, runtime, report)
}

/// `api`: as [`boot`], with what a web service says for each machine.
///
/// # Errors
/// As [`boot`].
pub fn api(api: &cli::Api, report: &mut Report) -> Result<(), Failure> {
    begin(&api.serving, None, report)?;
    let source = Api::new(&api.url, api.api_request_timeout, api.serving.stub.clone())?;
    let source = source.direct(api.serving.direct);
    serve(&api.serving, Content::Api(Arc::new(source), &api.url), None, runtime()?, report)
}

/// What is wrong with the arguments themselves, and what has no effect.
fn begin(
    serving: &Serving,
    refusal: Option<&'static str>,
    report: &mut Report,
) -> Result<(), Failure> {
    if let Some(refusal) = refusal {
        return Err(Failure::new(Code::Usage, refusal));
    }
    for note in serving.notes() {
        report.note(note);
    }
    Ok(())
}

/// A whole generation, if a script can be made of it.
fn complete(mut generation: Generation, serving: &Serving) -> Result<Generation, Failure> {
    source::add_efi_image(&mut generation, serving.stub.as_deref())?;
    if let (Some(_), Err(NoEfiImage::BadStub(text))) = (&serving.stub, &generation.efi) {
        return Err(Failure::new(Code::Source, text.clone()));
    }
    source::check_script(&generation)?;
    Ok(generation)
}

fn serve(
    boot: &Serving,
    content: Content<'_>,
    changes: Option<mpsc::Receiver<String>>,
    runtime: Runtime,
    report: &mut Report,
) -> Result<(), Failure> {
    let loaders = find_loaders(boot, content.efi())?;
    let folder = boot.rpi.as_deref().map(Folder::open).transpose()?.unwrap_or_default();
    let request = |interface| Request {
        interface,
        http_port: boot.port,
        max_seconds: boot.duration.and_then(|time| u32::try_from(time.as_secs()).ok()),
    };
    let requests = pick_interfaces(boot, report)?.into_iter().map(request).collect();
    let count = boot.count.map(|count| Count::new(count.into()));
    let plan = Plan {
        boot,
        content,
        loaders: Arc::new(loaders),
        folder: Arc::new(folder),
        count,
        requests,
    };
    let result = runtime.block_on(run(&plan, changes, report));
    // A read from a slow disk must not hold the end.
    runtime.shutdown_background();
    result
}

/// iPXE, for machines that do not load the EFI program.
fn find_loaders(boot: &Serving, efi: Option<&EfiImage>) -> Result<Loaders, Failure> {
    if efi.is_some_and(EfiImage::is_named) {
        return Ok(Loaders::default());
    }
    loaders::find(&loaders::Wishes {
        directory: boot.ipxe_dir.clone(),
        bios: boot.ipxe_bios.clone(),
        ipxe: boot.ipxe_ipxe.clone(),
        efi64: boot.ipxe_efi64.clone(),
        efi32: boot.ipxe_efi32.clone(),
        given: boot.loader.clone(),
        optional: efi.is_some(),
    })
}

async fn run(
    plan: &Plan<'_>,
    mut changes: Option<mpsc::Receiver<String>>,
    report: &mut Report,
) -> Result<(), Failure> {
    let mut interrupts = Interrupts::new()?;
    let mut session = Session::connect().await?;
    let opened = tokio::select! {
        // First, since an agent that Ctrl-C ended makes the helper answer as well.
        biased;
        () = interrupts.next() => {
            report.interrupted();
            let text = "you ended it before it was allowed: nothing was opened".to_owned();
            return Err(Error::AuthenticationDismissed(text).into());
        }
        opened = open(plan, &mut session, report) => opened?,
    };
    let mut outlets = Vec::with_capacity(opened.len());
    for (lease, sockets) in opened {
        outlets.push(Outlet::start(plan, lease, sockets)?);
    }
    for (index, outlet) in outlets.iter().enumerate() {
        report.ready(&ready(plan, &outlet.lease, index + 1 == outlets.len()));
    }
    let _awake = inhibit::sleep(session.connection()).await;
    watch(&mut session, &mut outlets, &mut changes, &mut interrupts, report).await?;
    for outlet in &mut outlets {
        outlet.stop(report).await;
    }
    report.interrupted();
    let close = async {
        for outlet in &outlets {
            if let Ok(Err(failure)) = timeout(CLOSING, session.close(outlet.lease.number)).await {
                report.detail(&failure.message);
            }
        }
    };
    tokio::select! {
        () = interrupts.next() => {}
        () = close => {}
    }
    for outlet in &outlets {
        report.closed(&outlet.lease, reason::CLOSED);
    }
    Ok(())
}

/// Asks for one interface after the other: nobody can answer two dialogs at once, and the helper
/// hears one question at a time. All of them or none: what was opened closes with the session.
async fn open(
    plan: &Plan<'_>,
    session: &mut Session,
    report: &mut Report,
) -> Result<Vec<(Lease, Sockets)>, Failure> {
    let mut opened = Vec::with_capacity(plan.requests.len());
    for request in &plan.requests {
        report.asking(&Asking {
            interface: request.interface.clone(),
            udp_ports: Request::UDP.to_vec(),
            tcp_ports: vec![request.http_port],
            max_seconds: request.max_seconds.unwrap_or(DEFAULT_MAX_SECONDS),
        });
        opened.push(with_agent(&plan.boot.common, async || session.open(request).await).await?);
    }
    Ok(opened)
}

/// Shows what happens until the user ends it. A lease that ends takes only its own interface along.
///
/// # Errors
/// The last lease has ended; why.
async fn watch(
    session: &mut Session,
    outlets: &mut Vec<Outlet>,
    changes: &mut Option<mpsc::Receiver<String>>,
    interrupts: &mut Interrupts,
    report: &mut Report,
) -> Result<(), Failure> {
    let mut tick = interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        // Those that serve no more, and why.
        let (over, word, why) = tokio::select! {
            biased;
            () = interrupts.next() => return Ok(()),
            (number, end) = session.ended() => {
                let ended = |outlet: &mut Outlet| number.is_none_or(|it| it == outlet.lease.number);
                let over: Vec<_> = outlets.extract_if(.., ended).collect();
                let Some(first) = over.first() else { continue };
                let failure = end.failure(&first.lease.facts.interface);
                (over, end.word().to_owned(), failure)
            }
            _ = tick.tick() => {
                outlets.iter().for_each(|outlet| outlet.machines.tick(Instant::now()));
                continue;
            }
            text = change(changes) => {
                report.note(&text);
                continue;
            }
            (index, happening) = next(outlets) => match happening {
                Happening::Machine(event) => {
                    report.machine(&outlets[index].lease.facts.interface, &event);
                    continue;
                }
                Happening::Note(note) => {
                    report.detail(&note);
                    continue;
                }
                Happening::Failed(failure) => {
                    let outlet = outlets.remove(index);
                    // Best effort: if it is the last one, the end of the session closes it.
                    let _ = timeout(CLOSING, session.close(outlet.lease.number)).await;
                    (vec![outlet], "failed".to_owned(), failure)
                }
            },
        };
        for mut outlet in over {
            outlet.stop(report).await;
            report.closed(&outlet.lease, &word);
            if !outlets.is_empty() {
                let interface = &outlet.lease.facts.interface;
                report.attention(&format!("{interface}: {}", why.message));
            }
        }
        if outlets.is_empty() {
            return Err(why);
        }
    }
}

/// What is said of files that have changed; nothing, for ever, where none are looked at.
async fn change(changes: &mut Option<mpsc::Receiver<String>>) -> String {
    let received = match changes {
        Some(changes) => changes.recv().await,
        None => None,
    };
    match received {
        Some(text) => text,
        None => std::future::pending().await,
    }
}

/// What an outlet has to tell.
enum Happening {
    Machine(Event),
    Note(String),
    /// One of its servers has ended.
    Failed(Failure),
}

/// The next thing that happens at one of them.
async fn next(outlets: &mut [Outlet]) -> (usize, Happening) {
    poll_fn(|context| {
        for (index, outlet) in outlets.iter_mut().enumerate() {
            if let Poll::Ready(happening) = outlet.poll(context) {
                return Poll::Ready((index, happening));
            }
        }
        Poll::Pending
    })
    .await
}

/// One interface that is served: its lease, its four servers (each ends only when it fails), and
/// its machines.
struct Outlet {
    lease: Lease,
    tasks: JoinSet<Failure>,
    machines: Arc<Machines>,
    events: mpsc::Receiver<Event>,
    notes: mpsc::Receiver<String>,
}

impl Outlet {
    fn start(plan: &Plan<'_>, lease: Lease, sockets: Sockets) -> Result<Self, Failure> {
        let local = sockets.http.local_addr().map_err(|error| failed("HTTP", &error))?;
        let address = lease.facts.address.ok_or_else(|| {
            Failure::new(Code::Internal, "the helper did not say which address to serve on")
                .advise("portcullis and portcullis-helper may be of different versions")
        })?;
        let source = plan.content.source();
        let (sender, events) = mpsc::channel(EVENTS);
        let machines = Machines::new(policy(plan, source.token(), address, local.port()), sender);
        let (note, notes) = mpsc::channel(NOTES);
        let debug = plan.boot.debug;
        let noter = move || {
            let note = note.clone();
            // A note that does not fit is left out: packets do not wait for a terminal.
            move |text: crate::dhcp::Note| {
                if debug {
                    let _ = note.try_send(text.to_string());
                }
            }
        };
        let mut tasks = JoinSet::new();
        let dhcp = serve_dhcp(sockets.dhcp, Arc::clone(&machines), Arc::clone(&source), noter());
        tasks.spawn(async { failed("DHCP (UDP 67)", &dhcp.await) });
        let boot_server = serve_boot_server(
            sockets.boot_server,
            Arc::clone(&machines),
            Arc::clone(&source),
            noter(),
        );
        tasks.spawn(async { failed("the boot server (UDP 4011)", &boot_server.await) });
        let tftp = serve_tftp(
            sockets.tftp,
            tftp::Settings {
                address,
                interface: lease.facts.interface.clone(),
                mtu: mtu(&lease.facts.interface),
                scripts: format!("http://{address}:{}/{}", local.port(), source.token()),
                folder: Arc::clone(&plan.folder),
                source: Arc::clone(&source),
            },
            Arc::clone(&plan.loaders),
            machines.clone(),
            machines.clone(),
        );
        tasks.spawn(async { ended("TFTP (UDP 69)", tftp.await) });
        let http = serve_http(
            sockets.http,
            http::Settings::new(SocketAddrV4::new(address, local.port())),
            source,
            machines.clone(),
            machines.clone(),
        );
        tasks.spawn(async { ended("HTTP", http.await) });
        Ok(Self { lease, tasks, machines, events, notes })
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Happening> {
        if let Poll::Ready(Some(task)) = self.tasks.poll_join_next(context) {
            return Poll::Ready(Happening::Failed(task.unwrap_or_else(|error| {
                Failure::new(Code::Internal, format!("a server stopped: {error}"))
            })));
        }
        // Neither ends: their senders are kept here and in the tasks.
        if let Poll::Ready(Some(event)) = self.events.poll_recv(context) {
            return Poll::Ready(Happening::Machine(event));
        }
        match self.notes.poll_recv(context) {
            Poll::Ready(Some(note)) => Poll::Ready(Happening::Note(note)),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    /// Ends the servers, drops their sockets, and shows what is left to show.
    async fn stop(&mut self, report: &mut Report) {
        self.tasks.shutdown().await;
        while let Ok(event) = self.events.try_recv() {
            report.machine(&self.lease.facts.interface, &event);
        }
    }
}

fn policy(plan: &Plan<'_>, token: &str, address: Ipv4Addr, http_port: u16) -> Policy {
    let boot = plan.boot;
    Policy {
        for_mac: boot.for_mac.iter().copied().collect(),
        once: boot.once,
        count: plan.count.clone(),
        initrds: plan.content.generation().map_or(0, |generation| generation.initrds.len()),
        loaders: plan.loaders().collect(),
        address,
        http_port,
        token: token.to_owned(),
        uefi_offer: match boot.uefi_offer {
            cli::UefiOffer::Auto => UefiOffer::Auto,
            cli::UefiOffer::Complete => UefiOffer::Complete,
            cli::UefiOffer::BootServer => UefiOffer::BootServer,
        },
        boot_server: true,
    }
}

fn ended(what: &str, result: io::Result<()>) -> Failure {
    match result {
        Err(error) => failed(what, &error),
        Ok(()) => Failure::new(Code::Internal, format!("serving {what} ended")),
    }
}

fn failed(what: &str, error: &io::Error) -> Failure {
    Failure::new(Code::Internal, format!("serving {what} failed: {error}"))
}

fn ready<'a>(plan: &'a Plan<'_>, lease: &'a Lease, last: bool) -> Ready<'a> {
    let served = |file: &Payload| Served { name: file.name().to_owned(), bytes: file.length() };
    let generation = plan.content.generation();
    let (mut can, cannot) = coverage(&plan.loaders, generation.map(|generation| &generation.efi));
    can.extend((!plan.folder.is_empty()).then(|| "Raspberry Pis".to_owned()));
    let address = lease.facts.address.unwrap_or(Ipv4Addr::UNSPECIFIED);
    let url = |generation: &Generation| {
        let port = plan.boot.port;
        format!("http://{address}:{port}/{}/MAC", generation.token)
    };
    Ready {
        lease,
        last,
        api: match plan.content {
            Content::Same(_) | Content::Fresh(..) => None,
            Content::Api(_, address) => Some(address),
        },
        kernel: generation.and_then(|generation| generation.kernel.as_ref()).map(served),
        initrds: generation.map_or(Vec::new(), |one| one.initrds.iter().map(served).collect()),
        cmdline: generation
            .map(|generation| generation.cmdline.text(&Machine::at(&url(generation))))
            .unwrap_or_default(),
        loaders: plan.loaders().map(|loader| loader.file_name().into_owned()).collect(),
        can,
        cannot,
        only: only(plan.boot),
    }
}

/// What the user limits it to, in words.
fn only(boot: &Serving) -> Vec<String> {
    let macs: Vec<_> = boot.for_mac.iter().map(ToString::to_string).collect();
    let macs = (!macs.is_empty()).then(|| macs.join(", "));
    let once = boot.once.then(|| "each machine once".to_owned());
    let count = boot.count.map(|count| match count {
        1 => "one machine".to_owned(),
        count => format!("{count} machines"),
    });
    [macs, once, count].into_iter().flatten().collect()
}

/// Octets that the interface carries in one packet.
fn mtu(interface: &str) -> u16 {
    let path = Path::new("/sys/class/net").join(interface).join("mtu");
    let text = fs::read_to_string(path).unwrap_or_default();
    // Loopback's is 65536: more than fits is as good as the most that does.
    text.trim().parse::<u32>().map_or(MTU, |mtu| u16::try_from(mtu).unwrap_or(u16::MAX))
}

/// The user's and the system's wish that this ends.
struct Interrupts([Signal; 3]);

impl Interrupts {
    fn new() -> Result<Self, Failure> {
        let watch = || -> io::Result<[Signal; 3]> {
            Ok([
                signal(SignalKind::interrupt())?,
                signal(SignalKind::terminate())?,
                signal(SignalKind::hangup())?,
            ])
        };
        watch().map(Self).map_err(|error| {
            Failure::new(Code::Internal, format!("signals cannot be watched: {error}"))
        })
    }

    async fn next(&mut self) {
        let [interrupt, terminate, hangup] = &mut self.0;
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hangup.recv() => {}
        }
    }
}
