//! `boot`, `api`, `quick` and `nixos`, from the arguments to the last line: the whole story in one place.
//!
//! Guarantees: everything that can be wrong with the arguments is found before the bus is asked, so
//! that no dialog appears for nothing; whatever ends the run, every socket is dropped before it is
//! said that the ports are closed.

use std::{
    fs,
    future::poll_fn,
    io,
    net::{Ipv4Addr, SocketAddrV4, UdpSocket},
    path::Path,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use portcullis_dbus::{Error, keys::reason};
use tokio::{
    runtime::Runtime,
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
    task::JoinSet,
    time::{MissedTickBehavior, interval, timeout},
};

use crate::{
    chain::{self, Chain},
    cli::{self, Boot, Nixos, Quick, Serving},
    commands::{pick_interfaces, runtime, with_agent},
    dhcp::{
        Authority, Count, Policy, UefiOffer,
        pool::{NoAddresses, Pool, Subnet},
        probe::Prober,
        serve_boot_server, serve_dhcp,
        server::{self, Server},
    },
    event::Event,
    exit::{Code, Failure},
    grub,
    http::{self, serve_http},
    image::{EfiImage, Generation, Loader, Loaders, Payload},
    inhibit,
    interfaces::{collect, direct_cable_advice},
    loaders::{self, coverage},
    machines::Machines,
    nixos::{self, Build, Links, Recipe, Screen, State, Told, Watched, Workshop},
    notify::Desktop,
    once::{self, Way},
    report::{Asking, Ready, Report, Served},
    rpi::Folder,
    session::{Lease, Request, Session, Sockets},
    sign::Signer,
    source::{self, Order, Same, Source, api::Api, fresh::Fresh, quick::Dish},
    template::Machine,
    tftp::{self, serve_tftp},
    uki,
    web::{Door, events::Feed},
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
    chain: Option<Arc<Chain>>,
    /// For Raspberry Pis.
    folder: Arc<Folder>,
    count: Option<Arc<Count>>,
    /// One for each interface, at least one.
    requests: Vec<Request>,
    /// What times are counted from, on all of them.
    begun: Instant,
}

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

/// What is said beside what machines do.
enum Remark {
    /// With `--debug`.
    Detail(String),
    /// To everybody.
    Note(String),
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

    /// It, or those of a menu.
    fn programs(&self) -> impl Iterator<Item = &EfiImage> {
        self.generation().into_iter().flat_map(Generation::programs)
    }

    /// The EFI program that is the same for every machine but for its command line.
    fn efi(&self) -> Option<&EfiImage> {
        self.generation().and_then(|generation| generation.efi.as_ref().ok())
    }
}

impl Plan<'_> {
    /// What firmware can be given by TFTP.
    fn loaders(&self) -> impl Iterator<Item = Loader> {
        // An API's is known when a machine asks.
        let api = matches!(self.content, Content::Api(..));
        let image = (api || self.content.programs().next().is_some()).then_some(Loader::Image);
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
    let signer = signer(&boot.serving, report)?;
    let direct = boot.serving.direct;
    if let Some(script) = runtime.block_on(source::quick::netboot_xyz(&boot.kernel))? {
        let alone = boot.initrds.is_empty()
            && boot.cmdline.is_none()
            && boot.menu.is_empty()
            && boot.mirror.is_empty();
        if !alone {
            let text = "netboot.xyz chooses kernel, command line and mirror itself: name it alone";
            return Err(Failure::new(Code::Usage, text));
        }
        let generation = runtime.block_on(async {
            let generation = source::open_script(&script, direct).await?;
            source::complete(generation, boot.serving.stub.as_deref(), signer.as_ref()).await
        })?;
        return serve(
            &boot.serving,
            Content::Same(Arc::new(generation)),
            Beside::default(),
            runtime,
            report,
        );
    }
    let order = Order {
        kernel: boot.kernel.clone(),
        initrds: boot.initrds.clone(),
        cmdline: boot.cmdline.clone(),
        message: boot.bootmsg.clone(),
        direct,
        menu: boot.menu.clone(),
        mirrors: boot.mirror.clone(),
    };
    let (sender, changes) = mpsc::channel(CHANGES);
    let opening = Fresh::open(order, boot.serving.stub.clone(), signer, sender);
    let (fresh, generation) = runtime.block_on(opening)?;
    let content = Content::Fresh(Arc::new(fresh), generation);
    let beside = Beside { changes: Some(changes), ..Beside::default() };
    serve(&boot.serving, content, beside, runtime, report)
}

/// `quick`: as [`boot`], from a recipe's addresses.
///
/// # Errors
/// As [`boot`].
pub fn quick(quick: &Quick, report: &mut Report) -> Result<(), Failure> {
    begin(&quick.serving, quick.refusal(), report)?;
    let runtime = runtime()?;
    let signer = signer(&quick.serving, report)?;
    let opening = async {
        let dish = source::quick::prepare(source::quick::Choice {
            recipe: &quick.recipe,
            version: quick.version.as_deref(),
            arch: quick.arch.as_deref(),
            mirror: quick.mirror.as_deref(),
            cmdline: quick.cmdline.as_deref(),
        });
        let generation = match dish.await? {
            Dish::Linux { kernel, initrds, cmdline } => {
                let (cmdline, message) = (Some(cmdline), quick.bootmsg.clone());
                let direct = quick.serving.direct;
                source::open(&Order {
                    kernel,
                    initrds,
                    cmdline,
                    message,
                    direct,
                    ..Order::default()
                })
                .await?
            }
            Dish::Script(script) => source::open_script(&script, quick.serving.direct).await?,
        };
        source::complete(generation, quick.serving.stub.as_deref(), signer.as_ref()).await
    };
    let generation = runtime.block_on(opening)?;
    serve(&quick.serving, Content::Same(Arc::new(generation)), Beside::default(), runtime, report)
}

/// `api`: as [`boot`], with what a web service says for each machine.
///
/// # Errors
/// As [`boot`].
pub fn api(api: &cli::Api, report: &mut Report) -> Result<(), Failure> {
    begin(&api.serving, None, report)?;
    let (stub, signer) = (api.serving.stub.clone(), signer(&api.serving, report)?);
    let source = Api::new(&api.url, api.api_request_timeout, stub, signer)?;
    let source = source.direct(api.serving.direct);
    let content = Content::Api(Arc::new(source), &api.url);
    serve(&api.serving, content, Beside::default(), runtime()?, report)
}

/// `nixos`: as [`boot`], with what nix builds, now and anew on demand. With `--new` only a flake is
/// written.
///
/// # Errors
/// As [`boot`], and [`Code::Nix`].
pub fn nixos(arguments: &Nixos, report: &mut Report) -> Result<(), Failure> {
    begin(&arguments.serving, arguments.refusal(), report)?;
    if let Some(folder) = &arguments.new {
        let told = nixos::new::write(folder, arguments)?;
        told.iter().for_each(|line| report.note(line));
        return Ok(());
    }
    // What may have to be asked comes before a build of minutes.
    let interfaces = pick_interfaces(&arguments.serving, report)?;
    let signer = signer(&arguments.serving, report)?;
    let mut recipe = Recipe::new(arguments);
    // Looked at before it is built, so that no change is missed.
    let folder = arguments.watch.then(|| recipe.folder().and_then(Watched::open)).transpose()?;
    let links = Arc::new(Links::new()?);
    let runtime = runtime()?;
    let mut interrupts = runtime.block_on(async { Interrupts::new() })?;
    let built = runtime.block_on(async {
        tokio::select! {
            biased;
            () = interrupts.next() => None,
            built = first_build(&mut recipe, &links, report) => Some(built),
        }
    });
    let Some(built) = built.transpose()? else {
        report.interrupted();
        report.note("Ended before it was built: nothing was opened.");
        return Ok(());
    };
    let (sender, changes) = mpsc::channel(CHANGES);
    let stub = arguments.serving.stub.clone();
    let (fresh, generation, workshop) = runtime.block_on(async {
        let (fresh, generation) = Fresh::open(built.order.clone(), stub, signer, sender).await?;
        let fresh = Arc::new(fresh);
        let workshop =
            Workshop::open(recipe, built, Arc::clone(&links), folder, Arc::clone(&fresh))?;
        Ok::<_, Failure>((fresh, generation, workshop))
    })?;
    interrupts.spare_hangups(workshop.takes_hangups());
    let beside = Beside {
        changes: Some(changes),
        interfaces,
        interrupts: Some(interrupts),
        workshop: Some(workshop),
        desktop: None,
    };
    serve(&arguments.serving, Content::Fresh(fresh, generation), beside, runtime, report)
}

/// Builds what is served first, in sight of the user.
async fn first_build(
    recipe: &mut Recipe,
    links: &Links,
    report: &mut Report,
) -> Result<Build, Failure> {
    let folder = links.build(0).map_err(|error| {
        Failure::new(Code::Internal, format!("no folder for the build can be made: {error}"))
    })?;
    let terminal = report.shares_terminal();
    let say = |report: &mut Report, state, text: &str| {
        report.build(&Told { state, text: text.to_owned() });
    };
    let mut tell = |line: &str| say(report, State::Output, line);
    recipe.choose(&mut Screen::new(terminal, &mut tell)).await?;
    say(report, State::Started, &format!("Building {} ...", recipe.name()));
    let mut tell = |line: &str| say(report, State::Output, line);
    let build = recipe.build(&folder, &mut Screen::new(terminal, &mut tell)).await?;
    let text = format!("Built {}: {}", recipe.name(), build.toplevel.display());
    say(report, State::Done, &text);
    Ok(build)
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

/// Who signs, if the user named a key.
fn signer(serving: &Serving, report: &mut Report) -> Result<Option<Arc<Signer>>, Failure> {
    let (Some(key), Some(certificate)) = (&serving.sign_key, &serving.sign_cert) else {
        return Ok(None);
    };
    let (signer, warning) = Signer::open(key, certificate)?;
    if let Some(warning) = warning {
        report.note(&warning);
    }
    Ok(Some(Arc::new(signer)))
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
    // A read from a slow disk must not hold the end.
    runtime.shutdown_background();
    result
}

/// What is asked of the helper for an interface.
pub(crate) fn request(boot: &Serving, interface: String) -> Request {
    Request {
        interface,
        http_port: boot.port,
        share_dhcp: boot.dhcp_no_bind,
        max_seconds: boot.duration.and_then(|time| u32::try_from(time.as_secs()).ok()),
        full_dhcp: boot.dhcp_server,
    }
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

/// The signed boot loaders that the user wants, if what is served can be loaded by them.
fn find_chain(
    boot: &Serving,
    content: &Content<'_>,
    report: &mut Report,
) -> Result<Option<Arc<Chain>>, Failure> {
    let Some(directory) = &boot.chain else {
        return Ok(None);
    };
    if let Some(machine) = directory.as_deref().and_then(chain::ipxe_machine) {
        return Chain::find(directory.as_deref(), machine).map(|chain| Some(Arc::new(chain)));
    }
    let refusal = |text: String| Failure::new(Code::Usage, format!("--chain: {text}"));
    let kernel = content
        .generation()
        .filter(|one| one.initrds.iter().all(|file| matches!(file, Payload::Local(_))))
        .and_then(|one| match one.kernel.as_ref()? {
            Payload::Local(kernel) => Some((one, kernel)),
            Payload::Remote(_) => None,
        });
    let Some((generation, kernel)) = kernel else {
        let text = "GRUB is given a kernel and initrds that lie on this computer, the same for every \
                    machine";
        return Err(refusal(text.to_owned()).advise("download them, and name the files"));
    };
    if content.efi().is_some_and(EfiImage::is_named) {
        return Err(refusal(format!("{} is an EFI program and not a Linux kernel", kernel.name)));
    }
    let head = source::read_head(kernel, source::HEAD)
        .map_err(|error| refusal(format!("{}: {error}", kernel.name)))?;
    let chain = Chain::find(directory.as_deref(), source::pe_machine(&head).unwrap_or_default())?;
    let nobody = Machine::at("http://ADDRESS");
    let cmdline = generation.cmdline.text(&nobody);
    grub::config(Ipv4Addr::UNSPECIFIED, nobody.mac, 0, &cmdline)
        .map_err(|error| refusal(error.to_string()))?;
    if uki::unhashed(&head).is_ok_and(|unhashed| !unhashed.signed) {
        report.note(&format!(
            "{} carries no signature: where Secure Boot is on, GRUB refuses it.",
            kernel.name
        ));
    }
    Ok(Some(Arc::new(chain)))
}

/// iPXE, for machines that load nothing else.
///
/// # Errors
/// As [`loaders::find`].
pub(crate) async fn find_loaders(
    boot: &Serving,
    generation: Option<&Generation>,
    chain: bool,
) -> Result<(Loaders, Vec<String>), Failure> {
    let efi = generation.and_then(|generation| generation.efi.as_ref().ok());
    if efi.is_some_and(EfiImage::is_named) {
        return Ok(Default::default());
    }
    let instead = generation.map_or(&[][..], |generation| &generation.instead);
    let program = generation.is_some_and(|generation| generation.programs().next().is_some());
    let mut wishes = loaders::Wishes {
        directory: boot.ipxe_dir.clone(),
        bios: boot.ipxe_bios.clone(),
        ipxe: boot.ipxe_ipxe.clone(),
        efi64: boot.ipxe_efi64.clone(),
        efi32: boot.ipxe_efi32.clone(),
        given: boot.loader.clone(),
        optional: program || chain || !instead.is_empty(),
    };
    let mut loaders = loaders::find(&wishes)?;
    let missing = loaders::add_instead(&mut loaders, instead).await;
    if loaders.0.is_empty() && !instead.is_empty() && !chain {
        wishes.optional = false;
        let failure = loaders::find(&wishes).err();
        let failure = failure.unwrap_or_else(|| Failure::new(Code::NoLoader, "no boot loader"));
        return Err(missing.into_iter().fold(failure, Failure::advise));
    }
    Ok((loaders, missing))
}

async fn run(
    plan: &Plan<'_>,
    way: Way,
    beside: &mut Beside,
    report: &mut Report,
) -> Result<(), Failure> {
    let mut interrupts = match beside.interrupts.take() {
        Some(interrupts) => interrupts,
        None => Interrupts::new()?,
    };
    let (mut session, started) = tokio::select! {
        biased;
        () = interrupts.next() => return Err(dismissed(report)),
        session = way.session() => session?,
    };
    let result = hold(plan, &mut session, beside, &mut interrupts, report).await;
    drop(session);
    if let Some(started) = started {
        started.end().await;
    }
    result
}

/// The user ended it before anything was open.
fn dismissed(report: &mut Report) -> Failure {
    report.interrupted();
    let text = "you ended it before it was allowed: nothing was opened".to_owned();
    Error::AuthenticationDismissed(text).into()
}

/// Opens, serves, and closes.
async fn hold(
    plan: &Plan<'_>,
    session: &mut Session,
    beside: &mut Beside,
    interrupts: &mut Interrupts,
    report: &mut Report,
) -> Result<(), Failure> {
    let opened = tokio::select! {
        // First, since an agent that Ctrl-C ended makes the helper answer as well.
        biased;
        () = interrupts.next() => return Err(dismissed(report)),
        opened = open(plan, session, report) => opened?,
    };
    // Of all that is open, also when it does not come to serving.
    let mut leases: Vec<Lease> = opened.iter().map(|(lease, _)| lease.clone()).collect();
    let started = tokio::select! {
        biased;
        () = interrupts.next() => None,
        outlets = start(plan, opened, report) => Some(outlets?),
    };
    let mut outlets = started.unwrap_or_default();
    for (index, outlet) in outlets.iter().enumerate() {
        report.ready(&ready(plan, outlet, index + 1 == outlets.len()));
    }
    let _awake = match session.bus() {
        Some(bus) => inhibit::sleep(bus).await,
        None => None,
    };
    if plan.boot.notify {
        beside.desktop = Desktop::of_session().await;
        if beside.desktop.is_none() {
            report.note("--notify does nothing here: there is no desktop session.");
        }
    }
    if !outlets.is_empty() {
        if beside.workshop.as_ref().is_some_and(Workshop::listen) {
            report.note("r and Enter builds anew, for machines that start after that.");
        }
        watch(session, &mut outlets, beside, interrupts, report).await?;
        leases = outlets.iter().map(|outlet| outlet.lease.clone()).collect();
    }
    for outlet in &mut outlets {
        outlet.stop(report).await;
    }
    report.interrupted();
    let close = async {
        for lease in &leases {
            if let Ok(Err(failure)) = timeout(CLOSING, session.close(lease.number)).await {
                report.detail(&failure.message);
            }
        }
    };
    tokio::select! {
        () = interrupts.next() => {}
        () = close => {}
    }
    for lease in &leases {
        report.closed(lease, reason::CLOSED);
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
            max_seconds: request.max_seconds,
            dhcp_server: request.full_dhcp,
        });
        opened.push(with_agent(&plan.boot.common, async || session.open(request).await).await?);
    }
    Ok(opened)
}

/// Begins to serve, on all interfaces or none.
async fn start(
    plan: &Plan<'_>,
    opened: Vec<(Lease, Sockets)>,
    report: &mut Report,
) -> Result<Vec<Outlet>, Failure> {
    let mut outlets = Vec::with_capacity(opened.len());
    for (lease, sockets) in opened {
        let authority = authority(plan, &lease, &sockets.dhcp, report).await?;
        outlets.push(Outlet::start(plan, lease, sockets, authority)?);
    }
    Ok(outlets)
}

/// With `--dhcp-server`: what hands out addresses, if no other DHCP server answers.
async fn authority(
    plan: &Plan<'_>,
    lease: &Lease,
    dhcp: &UdpSocket,
    report: &mut Report,
) -> Result<Option<Authority>, Failure> {
    if !plan.boot.dhcp_server {
        return Ok(None);
    }
    let interface = &lease.facts.interface;
    let address = served_on(lease)?;
    let networks = networks(interface)?;
    let (_, mask) = networks.iter().find(|(one, _)| *one == address).ok_or_else(|| {
        Failure::new(Code::Interface, format!("{interface} has lost its address {address}"))
    })?;
    let subnet = Subnet::new(address, *mask).map_err(|error| no_addresses(interface, error))?;
    report.note(&format!("Looking for other DHCP servers on {interface} ..."));
    let look = async {
        let prober = Prober::new(interface, address)?;
        let rival = prober.look(dhcp, address).await?;
        Ok((prober, rival))
    };
    let (prober, rival) = look.await.map_err(|error: io::Error| {
        let text = format!("other DHCP servers cannot be looked for on {interface}: {error}");
        Failure::new(Code::Internal, text)
    })?;
    if let Some(rival) = rival {
        let text = format!("{interface} has a DHCP server already, {rival}: two would disturb it");
        return Err(Failure::new(Code::OtherDhcpServer, text)
            .advise("leave out --dhcp-server: machines then boot with its addresses"));
    }
    let (router, dns) = (plan.boot.router, plan.boot.dns.clone());
    let kept_free = networks.iter().map(|(one, _)| *one).chain(router).chain(dns.iter().copied());
    let server = Server::new(Pool::new(subnet, kept_free), server::Settings { router, dns });
    Ok(Some(Authority::new(server, prober)))
}

/// Whether the interface is one to hand out addresses on, before anybody is asked.
fn can_hand_out(interface: &str) -> Result<(), Failure> {
    let networks = networks(interface)?;
    let mut verdicts =
        networks.iter().map(|(address, mask)| Subnet::new(*address, *mask).map(drop));
    match verdicts.clone().find(Result::is_ok).or_else(|| verdicts.next()) {
        Some(Ok(())) => Ok(()),
        Some(Err(error)) => Err(no_addresses(interface, error)),
        None => {
            let text = format!("{interface} has no IPv4 address to hand out others from");
            Err(with_cable_advice(Failure::new(Code::Interface, text), interface))
        }
    }
}

fn networks(interface: &str) -> Result<Vec<(Ipv4Addr, Ipv4Addr)>, Failure> {
    collect::networks(interface).map_err(|error| {
        let text = format!("the addresses of {interface} cannot be read: {error}");
        Failure::new(Code::Internal, text)
    })
}

fn no_addresses(interface: &str, error: NoAddresses) -> Failure {
    let text = format!("no addresses can be handed out on {interface}: {error}");
    with_cable_advice(Failure::new(Code::Interface, text), interface)
}

fn with_cable_advice(failure: Failure, interface: &str) -> Failure {
    direct_cable_advice(interface).into_iter().fold(failure, Failure::advise)
}

/// The address that the helper chose.
fn served_on(lease: &Lease) -> Result<Ipv4Addr, Failure> {
    lease.facts.address.ok_or_else(|| {
        Failure::new(Code::Internal, "the helper did not say which address to serve on")
            .advise("portcullis and portcullis-helper may be of different versions")
    })
}

/// Shows what happens until the user ends it. A lease that ends takes only its own interface along.
///
/// # Errors
/// The last lease has ended; why.
async fn watch(
    session: &mut Session,
    outlets: &mut Vec<Outlet>,
    beside: &mut Beside,
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
            wish = report.attend() => {
                if report.obey(wish) {
                    return Ok(());
                }
                continue;
            }
            text = change(&mut beside.changes) => {
                report.note(&text);
                continue;
            }
            told = build(&mut beside.workshop) => {
                report.build(&told);
                continue;
            }
            (index, happening) = next(outlets) => match happening {
                Happening::Machine(event) => {
                    beside.desktop.iter().for_each(|desktop| desktop.tell(&event));
                    report.machine(&outlets[index].lease.facts.interface, &event);
                    continue;
                }
                Happening::Remark(Remark::Detail(text)) => {
                    report.detail(&text);
                    continue;
                }
                Happening::Remark(Remark::Note(text)) => {
                    report.note(&text);
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

/// How a build goes; nothing, for ever, where none is made.
async fn build(workshop: &mut Option<Workshop>) -> Told {
    match workshop {
        Some(workshop) => workshop.next().await,
        None => std::future::pending().await,
    }
}

/// What an outlet has to tell.
enum Happening {
    Machine(Event),
    Remark(Remark),
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
    remarks: mpsc::Receiver<Remark>,
    /// How many machines can have an address at a time, if addresses are handed out.
    addresses: Option<usize>,
}

impl Outlet {
    fn start(
        plan: &Plan<'_>,
        lease: Lease,
        sockets: Sockets,
        authority: Option<Authority>,
    ) -> Result<Self, Failure> {
        let local = sockets.http.local_addr().map_err(|error| failed("HTTP", &error))?;
        let address = served_on(&lease)?;
        let addresses = authority.as_ref().map(Authority::size);
        let source = plan.content.source();
        let (sender, events) = mpsc::channel(EVENTS);
        let policy = policy(plan, source.token(), address, local.port());
        let machines = Machines::new(policy, plan.begun, sender);
        let (remark, remarks) = mpsc::channel(NOTES);
        let debug = plan.boot.debug;
        let noter = move || {
            let remark = remark.clone();
            // What does not fit is left out: packets do not wait for a terminal.
            move |note: crate::dhcp::Note| {
                if let crate::dhcp::What::Rival(server) = note.what {
                    let text = format!(
                        "The DHCP server {server} is on this network, too: no addresses are handed \
                         out here any more. Machines go on booting, with its addresses."
                    );
                    let _ = remark.try_send(Remark::Note(text));
                } else if debug {
                    let _ = remark.try_send(Remark::Detail(note.to_string()));
                }
            }
        };
        let mut tasks = JoinSet::new();
        let answers = sockets.raw.then(|| sockets.boot_server.try_clone()).transpose();
        let dhcp = serve_dhcp(
            sockets.dhcp,
            answers.map_err(|error| failed("DHCP (UDP 67)", &error))?,
            Arc::clone(&machines),
            Arc::clone(&source),
            authority,
            noter(),
        );
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
                single_port: plan.boot.tftp_single_port,
                scripts: format!("http://{address}:{}/{}", local.port(), source.token()),
                folder: Arc::clone(&plan.folder),
                source: Arc::clone(&source),
                chain: plan.chain.clone(),
            },
            Arc::clone(&plan.loaders),
            machines.clone(),
            machines.clone(),
        );
        tasks.spawn(async { ended("TFTP (UDP 69)", tftp.await) });
        let http = serve_http(
            sockets.http,
            http::Settings::new(SocketAddrV4::new(address, local.port()))
                .on(&lease.facts.interface),
            source,
            machines.clone(),
            machines.clone(),
        );
        tasks.spawn(async { ended("HTTP", http.await) });
        Ok(Self { lease, tasks, machines, events, remarks, addresses })
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
        match self.remarks.poll_recv(context) {
            Poll::Ready(Some(remark)) => Poll::Ready(Happening::Remark(remark)),
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
        chain: plan.chain.as_ref().map(|chain| (chain.cpu, chain.first.clone())),
        signed: plan.content.programs().any(EfiImage::is_signed),
        dhcp_server: boot.dhcp_server,
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

fn ready<'a>(plan: &'a Plan<'_>, outlet: &'a Outlet, last: bool) -> Ready<'a> {
    let lease = &outlet.lease;
    let served = |file: &Payload| Served { name: file.name().to_owned(), bytes: file.length() };
    let generation = plan.content.generation();
    let programs: Vec<_> = plan.content.programs().collect();
    let efi = generation.map(|generation| &generation.efi);
    let (mut can, cannot) = coverage(&plan.loaders, efi, &programs);
    can.extend((!plan.folder.is_empty()).then(|| "Raspberry Pis".to_owned()));
    let address = lease.facts.address.unwrap_or(Ipv4Addr::UNSPECIFIED);
    let url = |generation: &Generation| {
        let port = plan.boot.port;
        format!("http://{address}:{port}/{}/MAC", generation.token)
    };
    Ready {
        lease,
        begun: plan.begun,
        last,
        api: match plan.content {
            Content::Same(_) | Content::Fresh(..) => None,
            Content::Api(_, address) => Some(address),
        },
        kernel: generation.and_then(|generation| generation.kernel.as_ref()).map(served),
        initrds: generation.map_or(Vec::new(), |one| one.initrds.iter().map(served).collect()),
        menu: generation
            .map_or(Vec::new(), |one| one.menu.iter().map(|item| item.name.clone()).collect()),
        cmdline: generation
            .map(|generation| generation.cmdline.text(&Machine::at(&url(generation))))
            .unwrap_or_default(),
        loaders: (plan.chain.iter().map(|chain| chain.first.clone()))
            .chain(plan.loaders().map(|loader| loader.file_name().into_owned()))
            .collect(),
        can,
        cannot,
        addresses: outlet.addresses,
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
struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    /// The terminal is closed.
    hangup: Option<Signal>,
}

impl Interrupts {
    fn new() -> Result<Self, Failure> {
        let watch = || -> io::Result<Self> {
            Ok(Self {
                interrupt: signal(SignalKind::interrupt())?,
                terminate: signal(SignalKind::terminate())?,
                hangup: Some(signal(SignalKind::hangup())?),
            })
        };
        watch().map_err(|error| {
            Failure::new(Code::Internal, format!("signals cannot be watched: {error}"))
        })
    }

    /// Where SIGHUP means something else.
    fn spare_hangups(&mut self, spare: bool) {
        if spare {
            self.hangup = None;
        }
    }

    async fn next(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = hangup => {}
        }
    }
}
