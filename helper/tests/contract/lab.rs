//! A private bus with the real bus policy, a strict stand-in for polkit, and a world (kernel and
//! firewall) that does what a test tells it.

use std::{
    collections::{BTreeMap, HashMap},
    io::{self, Read},
    net::{IpAddr, Ipv4Addr},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use futures_util::{StreamExt, future::BoxFuture};
use portcullis_dbus::{Error, Netboot1Proxy, action, keys};
use portcullis_helper::{
    config::{self, Config},
    firewall::{Backend, Dhcp, Firewall, FirewallError, Opening, Standing},
    interface::{InterfaceName, Link, Master},
    kernel::Kernel,
    run::{self, Failure},
    sockdiag::{Found, Protocol},
    sockets::{BindError, Bound},
    state::State,
};
use tempfile::TempDir;
use tokio::{sync::oneshot, task::JoinHandle};
use zbus::{Connection, Message, MessageStream, OwnedVariant, Variant, message::Type};

use crate::netns::skipped;

/// A dbus-daemon of our own, with the shipped policy; the helper's user is whoever runs the test.
pub struct Bus {
    daemon: Child,
    pub address: String,
    directory: TempDir,
}

impl Bus {
    /// For a helper in this process.
    pub fn start() -> Self {
        Self::start_for(nix::unistd::getuid().as_raw())
    }

    /// For a helper that runs as this user.
    pub fn start_for(helper: u32) -> Self {
        Self::launch(helper, Command::new("dbus-daemon"))
    }

    /// With these accounts besides those of the machine, since a bus serves nobody whom it does not
    /// know; needs root.
    pub fn start_with_accounts(users: std::ops::Range<u32>) -> Self {
        let mut accounts = std::fs::read_to_string("/etc/passwd").unwrap();
        accounts.extend(users.map(|uid| format!("user{uid}:x:{uid}:65534::/:/bin/false\n")));
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), accounts).unwrap();
        let script = "mount --bind \"$0\" /etc/passwd && exec dbus-daemon \"$@\"";
        let mut daemon = Command::new("unshare");
        daemon.args(["--mount", "sh", "-c", script]).arg(file.path());
        Self::launch(nix::unistd::getuid().as_raw(), daemon)
    }

    fn launch(helper: u32, mut daemon: Command) -> Self {
        let directory = tempfile::tempdir().unwrap();
        // Other users must reach the socket.
        let open = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(directory.path(), open).unwrap();
        let user = nix::unistd::getuid();
        let shipped = include_str!("../../../dbus/org.portcullis.Netboot1.conf");
        assert!(shipped.contains("user=\"portcullis\""));
        let policy = shipped.replace("user=\"portcullis\"", &format!("user=\"{helper}\""));
        let socket = directory.path().join("bus");
        // The rest is what every distribution's system.conf says.
        let config = format!(
            r#"<busconfig>
  <type>system</type><listen>unix:path={socket}</listen><auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/><deny own="*"/><deny send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/><allow receive_type="method_return"/>
    <allow receive_type="error"/><allow receive_type="signal"/>
    <allow send_destination="org.freedesktop.DBus"/>
    <allow send_destination="org.freedesktop.PolicyKit1"/>
  </policy>
  <policy user="{user}"><allow own="org.freedesktop.PolicyKit1"/></policy>
  {policy}
</busconfig>"#,
            socket = socket.display(),
            policy = policy
                .split_once("<busconfig>")
                .and_then(|(_, rest)| rest.split_once("</busconfig>"))
                .unwrap()
                .0,
        );
        let file = directory.path().join("bus.conf");
        std::fs::write(&file, config).unwrap();
        let mut daemon = daemon
            .arg(format!("--config-file={}", file.display()))
            .args(["--nofork", "--nosyslog", "--print-address"])
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("dbus-daemon is installed");
        let mut stdout = daemon.stdout.take().unwrap();
        let mut line = Vec::new();
        while line.last() != Some(&b'\n') {
            let mut byte = [0];
            stdout.read_exact(&mut byte).expect("dbus-daemon starts");
            line.push(byte[0]);
        }
        Self { daemon, address: String::from_utf8(line).unwrap().trim().to_owned(), directory }
    }

    pub async fn connect(&self) -> Connection {
        zbus::connection::Builder::address(self.address.as_str()).build().await.unwrap()
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("bus")
    }

    /// A connection of another user; needs root.
    pub async fn connect_as(&self, user: u32) -> Connection {
        let socket = self.socket();
        let connect = move || {
            // The kernel notes who connects. This changes the thread alone, which ends here.
            let user = rustix::thread::Uid::from_raw(user);
            rustix::thread::set_thread_res_uid(user, user, user).unwrap();
            UnixStream::connect(socket).unwrap()
        };
        let stream = std::thread::spawn(connect).join().unwrap();
        zbus::connection::Builder::unix_stream(stream).user_id(user).build().await.unwrap()
    }

    /// Ends the bus itself.
    pub fn stop(&mut self) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
    }
}

impl Drop for Bus {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// What the stand-in for polkit answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Yes,
    No,
    /// Both results at once: no answer that polkit gives.
    YesAndChallenge,
    /// A password is needed, and there is no agent.
    Challenge,
    /// The dialog was closed.
    Dismissed,
    /// A dialog was shown and failed; without one a password is needed.
    WrongPassword,
    /// No answer.
    Silent,
    /// An answer of another type.
    Garbage,
    /// An error.
    Failing,
}

/// What polkit was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub subject: String,
    pub action: String,
    pub details: BTreeMap<String, String>,
    pub interactive: bool,
}

#[derive(Default)]
pub struct PolkitLog {
    pub asked: Vec<Asked>,
    pub cancelled: usize,
    /// What was not as polkit wants it.
    pub violations: Vec<String>,
}

/// A stand-in for polkit that takes nothing that is not exactly as it should be.
pub struct Polkit {
    pub open: Arc<Mutex<Mood>>,
    pub open_dhcp: Arc<Mutex<Mood>>,
    pub manage: Arc<Mutex<Mood>>,
    pub log: Arc<Mutex<PolkitLog>>,
    connection: Connection,
    unanswered: Arc<Mutex<Vec<Message>>>,
    task: JoinHandle<()>,
}

type Question =
    ((String, HashMap<String, OwnedVariant>), String, HashMap<String, String>, u32, String);

impl Polkit {
    pub async fn start(bus: &Bus) -> Self {
        let connection = bus.connect().await;
        let mut calls = MessageStream::from(&connection);
        connection.request_name("org.freedesktop.PolicyKit1").await.unwrap();
        let open = Arc::new(Mutex::new(Mood::Yes));
        let open_dhcp = Arc::new(Mutex::new(Mood::No));
        let manage = Arc::new(Mutex::new(Mood::No));
        let log = Arc::new(Mutex::new(PolkitLog::default()));
        let moods = (open.clone(), open_dhcp.clone(), manage.clone());
        let seen = log.clone();
        let unanswered = Arc::new(Mutex::new(Vec::new()));
        let (later, serving) = (unanswered.clone(), connection.clone());
        let task = tokio::spawn(async move {
            let connection = serving;
            while let Some(Ok(message)) = calls.next().await {
                if message.message_type() != Type::MethodCall {
                    continue;
                }
                let header = message.header();
                match header.member().unwrap().as_str() {
                    "CheckAuthorization" => {}
                    "CancelCheckAuthorization" => {
                        seen.lock().unwrap().cancelled += 1;
                        connection.reply(&header, &()).await.unwrap();
                        continue;
                    }
                    other => {
                        seen.lock().unwrap().violations.push(format!("call of {other}"));
                        continue;
                    }
                }
                let body = message.body();
                let signature = body.signature().to_string();
                let question: Question = body.deserialize().unwrap();
                let mood = {
                    let mut log = seen.lock().unwrap();
                    judge(&signature, &question, &mut log);
                    let mood = match question.1.as_str() {
                        action::OPEN => &moods.0,
                        action::OPEN_DHCP => &moods.1,
                        _ => &moods.2,
                    };
                    *mood.lock().unwrap()
                };
                let interactive = question.3 == 1;
                let plain = HashMap::<String, String>::new();
                let dismissed = HashMap::from([("polkit.dismissed", "true")]);
                let reply = match mood {
                    Mood::Yes => connection.reply(&header, &(true, false, plain)).await,
                    Mood::No => connection.reply(&header, &(false, false, plain)).await,
                    Mood::YesAndChallenge => connection.reply(&header, &(true, true, plain)).await,
                    Mood::Challenge => connection.reply(&header, &(false, true, plain)).await,
                    Mood::Dismissed => connection.reply(&header, &(false, false, dismissed)).await,
                    Mood::WrongPassword => {
                        connection.reply(&header, &(false, !interactive, plain)).await
                    }
                    Mood::Silent => {
                        later.lock().unwrap().push(message.clone());
                        Ok(())
                    }
                    Mood::Garbage => connection.reply(&header, &("yes", 1_u32)).await,
                    Mood::Failing => {
                        let name = "org.freedesktop.PolicyKit1.Error.Failed";
                        connection.reply_error(&header, name, &"true").await
                    }
                };
                reply.unwrap();
            }
        });
        Self { open, open_dhcp, manage, log, connection, unanswered, task }
    }

    /// Answers yes to what was not answered so far.
    pub async fn say_yes_now(&self) {
        let unanswered: Vec<Message> = self.unanswered.lock().unwrap().drain(..).collect();
        for message in unanswered {
            let yes = (true, false, HashMap::<String, String>::new());
            self.connection.reply(&message.header(), &yes).await.unwrap();
        }
    }

    /// Tells everybody that its rules may have changed.
    pub async fn changes(&self) {
        let authority = "org.freedesktop.PolicyKit1.Authority";
        let path = "/org/freedesktop/PolicyKit1/Authority";
        self.connection.emit_signal(None::<&str>, path, authority, "Changed", &()).await.unwrap();
    }

    pub fn answers(&self, mood: Mood) {
        *self.open.lock().unwrap() = mood;
    }

    pub fn full_dhcp(&self, mood: Mood) {
        *self.open_dhcp.lock().unwrap() = mood;
    }

    pub fn manager(&self, mood: Mood) {
        *self.manage.lock().unwrap() = mood;
    }

    pub fn log(&self) -> MutexGuard<'_, PolkitLog> {
        self.log.lock().unwrap()
    }

    /// Waits until polkit has been asked so many questions.
    pub async fn asked(&self, questions: usize) {
        until("polkit is asked", || self.log().asked.len() >= questions).await;
    }
}

impl Drop for Polkit {
    fn drop(&mut self) {
        self.task.abort();
        if !std::thread::panicking() {
            assert_eq!(self.log().violations, Vec::<String>::new());
        }
    }
}

/// Nothing but a bus name as the subject; our actions, our details, the one flag there is, and a
/// cancellation id that was not used before.
fn judge(signature: &str, question: &Question, log: &mut PolkitLog) {
    let ((kind, subject), action_id, details, flags, cancellation) = question;
    let mut complain = |text: String| log.violations.push(text);
    if signature != "(sa{sv})sa{ss}us" && signature != "((sa{sv})sa{ss}us)" {
        complain(format!("signature {signature}"));
    }
    let name = subject.get("name").and_then(|name| <&str>::try_from(name).ok());
    if kind != "system-bus-name" || subject.len() != 1 || name.is_none() {
        complain(format!("subject {kind} {subject:?}"));
    }
    let expected: &[&str] = match action_id.as_str() {
        action::OPEN | action::OPEN_DHCP => &action::DETAILS,
        action::MANAGE => &[],
        other => {
            complain(format!("action {other}"));
            &[]
        }
    };
    let exact =
        details.len() == expected.len() && expected.iter().all(|key| details.contains_key(*key));
    if !exact {
        complain(format!("details {details:?}"));
    }
    if *flags > 1 {
        complain(format!("flags {flags}"));
    }
    if cancellation.is_empty() {
        complain("no cancellation id".into());
    }
    log.asked.push(Asked {
        subject: name.unwrap_or_default().to_owned(),
        action: action_id.clone(),
        details: details.clone().into_iter().collect(),
        interactive: *flags == 1,
    });
}

/// The kernel and the firewall of a test.
pub struct World {
    pub links: BTreeMap<String, Link>,
    pub now: Duration,
    pub holders: Vec<Found>,
    /// Every socket that was made: what it is, and our end of the pair that stands for it.
    pub sockets: Vec<(Found, UnixStream)>,
    pub placeholders: Vec<UnixStream>,
    /// What is open in the firewall.
    pub open: Vec<Opening>,
    ended: Vec<Opening>,
    pub sweeps: usize,
    pub standing: Standing,
    pub restorable: bool,
    pub restored: usize,
    pub close_fails: bool,
    /// The firewall carries an opening out, and its answer is lost.
    pub answer_lost: bool,
    pub backend: Backend,
    /// Effects so far, and the one that fails.
    pub effects: usize,
    pub fails_at: Option<usize>,
}

pub type Shared = Arc<Mutex<World>>;

impl World {
    pub fn new() -> Shared {
        let mut world = Self {
            links: BTreeMap::new(),
            now: Duration::from_secs(1000),
            holders: Vec::new(),
            sockets: Vec::new(),
            placeholders: Vec::new(),
            open: Vec::new(),
            ended: Vec::new(),
            sweeps: 0,
            standing: Standing::Whole,
            restorable: false,
            restored: 0,
            close_fails: false,
            answer_lost: false,
            backend: Backend::NixosNftables,
            effects: 0,
            fails_at: None,
        };
        for number in 0..12 {
            world.add_link(number);
        }
        Arc::new(Mutex::new(world))
    }

    pub fn add_link(&mut self, number: u8) {
        let link = Link {
            index: u32::from(number) + 2,
            name: format!("eth{number}"),
            up: true,
            loopback: false,
            master: None,
            addresses: vec![Ipv4Addr::new(192, 0, 2, number + 1)],
        };
        self.links.insert(link.name.clone(), link);
    }

    pub fn link(&mut self, name: &str) -> &mut Link {
        self.links.get_mut(name).unwrap()
    }

    /// The sockets that somebody still holds.
    pub fn living(&self) -> Vec<Found> {
        let living = self.sockets.iter().filter(|(_, socket)| is_held(socket));
        living.map(|(tagged, _)| *tagged).collect()
    }

    pub fn living_placeholders(&self) -> usize {
        self.placeholders.iter().filter(|socket| is_held(socket)).count()
    }

    /// Nothing bound, nothing open.
    pub fn is_clean(&self) -> bool {
        self.living().is_empty() && self.living_placeholders() == 0 && self.open.is_empty()
    }

    fn effect(&mut self) -> io::Result<()> {
        self.effects += 1;
        if self.fails_at == Some(self.effects) {
            return Err(io::Error::other("told to fail"));
        }
        Ok(())
    }

    fn make(&mut self, tagged: Option<Found>) -> OwnedFd {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();
        match tagged {
            Some(tagged) => self.sockets.push((tagged, ours)),
            None => self.placeholders.push(ours),
        }
        theirs.into()
    }
}

fn is_held(mut socket: &UnixStream) -> bool {
    !matches!(socket.read(&mut [0]), Ok(0))
}

/// A stand-in for the kernel and for the firewall: make one for each.
pub struct Fake(pub Shared);

impl Fake {
    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }
}

impl Kernel for Fake {
    fn link(&mut self, name: &InterfaceName) -> io::Result<Option<Link>> {
        self.world().effect()?;
        Ok(self.world().links.get(name.as_str()).cloned())
    }

    fn bind(&mut self, opening: &Opening, _address: Ipv4Addr) -> Result<Bound, BindError> {
        let mut world = self.world();
        let mut bound = Bound { handed: Vec::new(), placeholders: Vec::new(), ear: None };
        let raw = opening.dhcp == Dhcp::Raw;
        let dhcp = if raw { keys::socket::DHCP_RAW } else { keys::socket::DHCP };
        let wanted = [
            (opening.dhcp != Dhcp::None, dhcp, Protocol::Udp, 67),
            (opening.tftp, keys::socket::TFTP, Protocol::Udp, 69),
            (opening.boot_server, keys::socket::BOOT_SERVER, Protocol::Udp, 4011),
            (opening.http.is_some(), keys::socket::HTTP, Protocol::Tcp, opening.http.unwrap_or(0)),
        ];
        for (_, key, protocol, port) in wanted.into_iter().filter(|(wanted, ..)| *wanted) {
            let taken = world.holders.iter().any(|holder| {
                (holder.protocol, holder.port) == (protocol, port)
                    && !(raw && port == 67)
                    && holder.address != IpAddr::from([127, 0, 0, 1])
            });
            let result = match taken {
                true => Err(io::ErrorKind::AddrInUse.into()),
                false => world.effect(),
            };
            result.map_err(|source| BindError { protocol, port, source })?;
            if port == 69 || port == 4011 {
                bound.placeholders.push(world.make(None));
            }
            let ifindex = opening.index;
            let (address, mark) = (IpAddr::from([192, 0, 2, 1]), opening.mark.value());
            let tagged = Found { protocol, port, address, ifindex, uid: 0, held: true, mark };
            bound.handed.push((key, world.make(Some(tagged))));
        }
        Ok(bound)
    }

    fn tagged(&mut self) -> io::Result<Vec<Found>> {
        self.world().effect()?;
        Ok(self.world().living())
    }

    fn holders(&mut self, protocol: Protocol, port: u16) -> io::Result<Vec<Found>> {
        self.world().effect()?;
        let world = self.world();
        let matching =
            world.holders.iter().filter(|one| (one.protocol, one.port) == (protocol, port));
        Ok(matching.copied().collect())
    }

    fn boottime(&self) -> Duration {
        self.world().now
    }
}

impl Firewall for Fake {
    fn backend(&mut self) -> Result<Backend, FirewallError> {
        self.step("look")?;
        Ok(self.world().backend)
    }

    fn other_drops(&mut self) -> Result<Vec<String>, FirewallError> {
        Ok(vec!["table inet vpn, chain output".to_owned()])
    }

    fn open(&mut self, opening: &Opening) -> Result<Backend, FirewallError> {
        self.step("open")?;
        let mut world = self.world();
        world.open.push(opening.clone());
        if world.answer_lost {
            world.ended.push(opening.clone());
            return Err(not_understood("open"));
        }
        Ok(world.backend)
    }

    fn close(&mut self, opening: &Opening) -> Result<(), FirewallError> {
        self.step("close")?;
        let mut world = self.world();
        world.ended.push(opening.clone());
        if world.close_fails {
            return Err(not_understood("close"));
        }
        world.open.retain(|other| other != opening);
        Ok(())
    }

    fn standing(&mut self, _opening: &Opening) -> Result<Standing, FirewallError> {
        self.step("look")?;
        Ok(self.world().standing)
    }

    fn restore(&mut self, _opening: &Opening) -> Result<bool, FirewallError> {
        self.step("restore")?;
        let mut world = self.world();
        if world.restorable {
            world.restored += 1;
            world.standing = Standing::Whole;
        }
        Ok(world.restorable)
    }

    fn sweep(&mut self) -> Result<usize, FirewallError> {
        // No step of a request: it comes when it comes.
        let mut world = self.world();
        if world.close_fails {
            return Err(not_understood("sweep"));
        }
        let ended = std::mem::take(&mut world.ended);
        world.open.retain(|open| !ended.contains(open));
        world.sweeps += 1;
        Ok(0)
    }
}

fn not_understood(step: &'static str) -> FirewallError {
    FirewallError::Kernel { step, source: io::ErrorKind::InvalidData.into() }
}

impl Fake {
    fn step(&self, step: &'static str) -> Result<(), FirewallError> {
        self.world().effect().map_err(|source| FirewallError::Kernel { step, source })
    }
}

/// Waits until the helper has its name.
pub async fn appears(bus: &Bus) {
    let watcher = bus.connect().await;
    let dbus = zbus::fdo::DBusProxy::new(&watcher).await.unwrap();
    for _ in 0..500 {
        let name = portcullis_dbus::BUS_NAME.try_into().unwrap();
        if dbus.name_has_owner(name).await.unwrap() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the helper did not appear");
}

/// The helper on its bus, in this process.
pub struct Helper {
    pub world: Shared,
    pub task: JoinHandle<Result<(), Failure>>,
    stop: Option<oneshot::Sender<()>>,
}

impl Helper {
    pub async fn start(bus: &Bus) -> Self {
        Self::start_with(bus, Config::default()).await
    }

    /// On a host with this configuration.
    async fn start_with(bus: &Bus, config: Config) -> Self {
        let connection = bus.connect().await;
        let helper =
            Self::spawn(
                config,
                |state, stop| async move { run::run(connection, state, stop).await },
            );
        appears(bus).await;
        helper
    }

    /// Runs `serve` with a world of its own, and with what becomes ready when it is told to stop.
    pub fn spawn<F>(config: Config, serve: impl FnOnce(State, BoxFuture<'static, ()>) -> F) -> Self
    where
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let world = World::new();
        let (kernel, firewall) = (Fake(world.clone()), Fake(world.clone()));
        let state = State::new(config, Box::new(kernel), Box::new(firewall));
        let (stop, stopped) = oneshot::channel();
        let stop_asked = async {
            let _ = stopped.await;
        };
        let task = tokio::spawn(serve(state, Box::pin(stop_asked)));
        Self { world, task, stop: Some(stop) }
    }

    pub fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    /// As SIGTERM does.
    pub fn stop(&mut self) {
        let _ = self.stop.take().unwrap().send(());
    }

    /// Moves the clock.
    pub fn pass(&self, seconds: u64) {
        self.world().now += Duration::from_secs(seconds);
    }

    pub async fn clean(&self) {
        until("nothing is left", || self.world().is_clean()).await;
    }
}

/// The three together.
pub struct Lab {
    pub helper: Helper,
    pub polkit: Polkit,
    pub bus: Bus,
}

impl Lab {
    pub async fn start() -> Self {
        Self::start_with("").await
    }

    /// On a host with this configuration.
    pub async fn start_with(config: &str) -> Self {
        let bus = Bus::start();
        let polkit = Polkit::start(&bus).await;
        let file = bus.directory.path().join("helper.toml");
        std::fs::write(&file, config).unwrap();
        let helper = Helper::start_with(&bus, config::check(&file).unwrap()).await;
        Self { helper, polkit, bus }
    }

    /// A caller of the user who runs the test.
    pub async fn client(&self) -> Client {
        Client::new(&self.bus).await
    }

    /// A caller of another user, [`STRANGER`]; `None`, and a word, without root.
    pub async fn stranger(&self) -> Option<Client> {
        if !nix::unistd::geteuid().is_root() {
            skipped("needs root, to become another user");
            return None;
        }
        Some(Client::over(self.bus.connect_as(STRANGER).await).await)
    }
}

/// The user nobody.
pub const STRANGER: u32 = 65_534;

/// One caller with a connection of its own.
pub struct Client {
    pub connection: Connection,
    pub proxy: Netboot1Proxy<'static>,
}

pub type Opened = (u64, HashMap<String, zbus::OwnedFd>, HashMap<String, OwnedVariant>);

impl Client {
    pub async fn new(bus: &Bus) -> Self {
        Self::over(bus.connect().await).await
    }

    pub async fn over(connection: Connection) -> Self {
        let proxy = Netboot1Proxy::new(&connection).await.unwrap();
        Self { connection, proxy }
    }

    pub fn name(&self) -> String {
        self.connection.unique_name().unwrap().to_string()
    }

    pub async fn open(&self, interface: &str) -> Result<Opened, Error> {
        self.proxy.open(request(interface)).await
    }

    /// Leaves the bus, as a process does that is killed.
    pub async fn leave(self) {
        drop(self.proxy);
        self.connection.close().await.unwrap();
    }
}

pub fn request(interface: &str) -> HashMap<&'static str, Variant<'_>> {
    HashMap::from([("interface", Variant::from(interface))])
}

pub fn bridge_port(link: &mut Link) {
    let name = InterfaceName::parse("br0");
    link.master = Some(Master { name, kind: "bridge".into() });
}

/// Longest wait for what happens at once on an idle machine: over only when it never happens.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// Waits for a condition.
pub async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    if tokio::time::timeout(PATIENCE, wait).await.is_err() {
        panic!("in vain: {what}");
    }
}
