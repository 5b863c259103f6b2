//! Who is measured: each server on a LAN of its own, with the same addresses and the same machines;
//! the others at their best configuration and without a firewall, Portcullis as a user has it, with
//! bus, polkit, helper, lease and NixOS' firewall.

use std::{
    fs::{File, Permissions},
    io::{Read, Write},
    net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpStream},
    os::unix::fs::{FileExt, PermissionsExt},
    path::{Path, PathBuf},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use portcullis_lab::{
    LabError, Result, boot_client,
    host::{Client, Host, SOON, Site},
    lan::Lan,
    netns::Netns,
    nixos::{self, Flavour, Settings},
    process::{Process, wait_until},
    scene::{HOST, HTTP},
};
use tempfile::TempDir;

use crate::origin::Origin;

/// Octets of a MiB.
pub const MIB: u64 = 1 << 20;
/// What everybody serves.
pub const IMAGE: &str = "image.efi";
/// What is compared octet by octet; the rest of the image is a hole.
pub const FILLED: u64 = 16 * MIB;
/// Machines at a time.
const MOST: u8 = 80;
/// A program that Portcullis recognises as one; its end may be anything.
const STUB: &str = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub";

/// A directory with images.
#[derive(Debug)]
pub struct Images(TempDir);

impl Images {
    pub fn new() -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("portcullis-bench-")
            .tempdir()
            .map_err(|error| LabError::of("a directory for the images", error))?;
        // Everybody's server reads it, and what alice runs writes beside it.
        std::fs::set_permissions(directory.path(), Permissions::from_mode(0o777))
            .map_err(|error| LabError::of("a directory for the images", error))?;
        let images = Self(directory);
        images.make(IMAGE, 512 * MIB)?;
        images.make("small", FILLED)?;
        Ok(images)
    }

    pub fn path(&self) -> &Path {
        self.0.path()
    }

    /// The image that everybody serves, 512 MiB.
    pub fn image(&self) -> PathBuf {
        self.path().join(IMAGE)
    }

    /// Writes a configuration for nginx at its best, whose `http` has this, too: the file, and what it says, as
    /// people are told of it.
    pub fn nginx(&self, label: &str, http: &str) -> Result<(String, String)> {
        let directory = self.path().display().to_string();
        let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {directory}/{label}-{name};\n"))
            .concat();
        let workers = std::thread::available_parallelism().map_or(1, usize::from);
        let configuration = format!(
            "daemon off; user root; worker_processes {workers}; pid {directory}/{label}.pid;
error_log /dev/null crit;
events {{ worker_connections 1024; }}
http {{ sendfile on; tcp_nopush on; tcp_nodelay on; keepalive_timeout 65;
{temporary}{http} }}
"
        );
        let path = self.path().join(format!("{label}.conf"));
        std::fs::write(&path, &configuration)
            .map_err(|error| LabError::of(path.display(), error))?;
        let shown = configuration.replace(&temporary, "").replace('\n', " ");
        Ok((path.display().to_string(), format!("nginx -c: {}", shown.replace(&directory, "DIR"))))
    }

    /// An EFI program of this size, in the page cache: its beginning is different everywhere, its
    /// rest is a hole that takes no room on the disk.
    pub fn make(&self, name: &str, octets: u64) -> Result<PathBuf> {
        let path = self.path().join(name);
        let write = || -> std::io::Result<()> {
            let mut bytes = std::fs::read(STUB)?;
            let mut word = 0x9e37_79b9_7f4a_7c15_u64;
            while u64::try_from(bytes.len()).is_ok_and(|length| length < octets.min(FILLED)) {
                word ^= word << 13;
                word ^= word >> 7;
                word ^= word << 17;
                bytes.extend(word.to_le_bytes());
            }
            let mut file = File::create(&path)?;
            file.write_all(&bytes)?;
            file.set_len(octets)?;
            // Read once, so that nobody waits for the disk.
            let file = File::open(&path)?;
            let mut step = vec![0; 1 << 20];
            let mut at = 0;
            while at < octets {
                let count = file.read_at(&mut step, at)?;
                at += u64::try_from(count.max(1)).unwrap_or(u64::MAX);
            }
            Ok(())
        };
        write().map_err(|error| LabError::of(path.display(), error))?;
        Ok(path)
    }
}

/// One server and its machines.
#[derive(Debug)]
pub struct Server {
    /// For tables.
    pub name: &'static str,
    /// The command line, for the reader to judge whether it is the best one.
    pub how: String,
    pub body: Body,
    /// Each at its [`address`], all on one interface.
    pub machines: Netns,
    pub lan: Lan,
    /// Who has the image, if this one passes it on.
    pub origin: Option<Origin>,
}

#[derive(Debug)]
pub enum Body {
    // Dropped in this order: what keeps its processes together, then where they run.
    Rival { keeper: Process, netns: Netns },
    Ours(Box<Ours>),
}

/// Portcullis with its host.
#[derive(Debug)]
pub struct Ours {
    // Dropped first: it runs on the host.
    pub client: Option<Client>,
    pub host: Host,
    pub path: String,
    /// Address of the web page.
    page: String,
}

/// An open web page, that reads whatever it is told.
pub struct Watching {
    stream: TcpStream,
    reader: Option<JoinHandle<()>>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ends_the_reader = self.stream.shutdown(Shutdown::Both);
        if let Some(reader) = self.reader.take() {
            let _its_panic_was_shown = reader.join();
        }
    }
}

fn network() -> Result<(Lan, Netns)> {
    let machines = Netns::new("machines")?;
    Ok((Lan::new()?, machines))
}

/// How the kernel sends by TCP for every server, whatever this computer prefers: with the congestion control
/// of Debian and NixOS, and without what it learned from earlier connections, since one early loss would
/// be remembered, and slow down all that follow.
const TCP: [&str; 2] = ["tcp_congestion_control=cubic", "tcp_no_metrics_save=1"];

fn settle_tcp(netns: &Netns) -> Result<()> {
    TCP.iter().try_for_each(|setting| {
        netns.sh(&format!("sysctl --quiet --write net.ipv4.{setting}")).map(|_| ())
    })
}

/// Starts a server in a process namespace of its own: its workers end with it, even if this program is killed.
pub fn alone(netns: &Netns, program: &str, arguments: &[&str]) -> Result<Process> {
    netns.daemon("unshare", &[&["--fork", "--pid", "--kill-child", program], arguments].concat())
}

/// The machines get their addresses once the server has its own: the server is port 0 of the switch.
fn plug_machines(lan: &Lan, machines: &Netns) -> Result<()> {
    lan.attach(machines, "eth0", None)?;
    (0..MOST).try_for_each(|machine| machines.address("eth0", &format!("{}/24", address(machine))))
}

/// The address of a machine.
pub fn address(machine: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 100 + machine)
}

impl Server {
    /// A server that is started by a command line, once it listens (`ss` filter).
    pub fn rival(
        name: &'static str,
        program: &str,
        arguments: &[String],
        listens: &str,
    ) -> Result<Self> {
        let (lan, machines) = network()?;
        let netns = Netns::new(name)?;
        settle_tcp(&netns)?;
        lan.attach(&netns, "eth0", Some("192.0.2.2/24"))?;
        plug_machines(&lan, &machines)?;
        let words: Vec<_> = arguments.iter().map(String::as_str).collect();
        let keeper = alone(&netns, program, &words)?;
        let ready =
            || netns.sh(&format!("ss -Hlntu {listens}")).is_ok_and(|lines| !lines.is_empty());
        let how = format!("{program} {}", arguments.join(" "));
        if !wait_until(SOON, ready) {
            return Err(LabError(format!("{name} does not listen: {how}")));
        }
        Ok(Self { name, how, body: Body::Rival { keeper, netns }, machines, lan, origin: None })
    }

    pub fn dnsmasq(images: &Images) -> Result<Self> {
        let arguments = [
            "--keep-in-foreground --conf-file=/dev/null --port=0 --user=root --group=root --pid-file=",
            "--no-hosts --no-resolv --bind-interfaces --interface=eth0 --quiet-dhcp --quiet-tftp",
            "--log-facility=/dev/null --no-ping --dhcp-range=192.0.2.0,proxy",
            "--pxe-service=7,boot,image.efi --enable-tftp --tftp-max=1000",
        ]
        .join(" ");
        let mut arguments: Vec<_> = arguments.split(' ').map(str::to_owned).collect();
        arguments.push(format!("--tftp-root={}", images.path().display()));
        arguments.push(format!("--dhcp-leasefile={}", images.path().join("leases").display()));
        Self::rival("dnsmasq", "dnsmasq", &arguments, "'sport = :69'")
    }

    pub fn tftpd_hpa(images: &Images) -> Result<Self> {
        let arguments = "--foreground --address 192.0.2.2:69 --user root --secure";
        let mut arguments: Vec<_> = arguments.split(' ').map(str::to_owned).collect();
        arguments.push(images.path().display().to_string());
        Self::rival("tftpd-hpa", "in.tftpd", &arguments, "'sport = :69'")
    }

    pub fn nginx(images: &Images) -> Result<Self> {
        Self::nginx_as("nginx", images)
    }

    /// The same behind the firewall that Portcullis is behind, which is what packets cost on such a host.
    pub fn nginx_behind_firewall(images: &Images) -> Result<Self> {
        let mut server = Self::nginx_as("nginx+firewall", images)?;
        let settings = Settings { allowed_tcp: vec![80], ..Settings::default() };
        nixos::start(server.netns(), Flavour::Nftables, &settings)?;
        server.how.push_str("; NixOS' nftables firewall with TCP 80 open");
        Ok(server)
    }

    fn nginx_as(name: &'static str, images: &Images) -> Result<Self> {
        let root = images.path().display();
        let http = format!("access_log off; server {{ listen 192.0.2.2:80; root {root}; }}");
        let (configuration, how) = images.nginx(name, &http)?;
        let words = ["-e", "/dev/null", "-c", &configuration].map(str::to_owned);
        Ok(Self { how, ..Self::rival(name, "nginx", &words, "'sport = :80'")? })
    }

    pub fn portcullis(images: &Images) -> Result<Self> {
        let mut server = Self::ours_alone()?;
        server.serve(&images.image())?;
        Ok(server)
    }

    /// Portcullis' host, on which nothing is served yet.
    pub fn ours_alone() -> Result<Self> {
        let (lan, machines) = network()?;
        let host = Host::start("host", Site::AllowsAlice)?;
        settle_tcp(host.netns())?;
        lan.attach(host.netns(), "eth0", Some("192.0.2.2/24"))?;
        nixos::start(host.netns(), Flavour::Nftables, &Settings::default())?;
        plug_machines(&lan, &machines)?;
        let ours = Box::new(Ours { client: None, host, path: String::new(), page: String::new() });
        let how =
            "portcullis boot image.efi --interface eth0 --json --web, by alice, uid not 0, no \
                   capability; system bus, polkit, helper, NixOS' nftables firewall"
                .to_owned();
        Ok(Self { name: "Portcullis", how, body: Body::Ours(ours), machines, lan, origin: None })
    }

    /// Where it runs.
    pub fn netns(&self) -> &Netns {
        match &self.body {
            Body::Rival { netns, .. } => netns,
            Body::Ours(ours) => ours.host.netns(),
        }
    }

    /// The processes that serve.
    pub fn pids(&self) -> Result<Vec<u32>> {
        match &self.body {
            Body::Rival { keeper, netns } => {
                let mut pids = netns.processes()?;
                pids.retain(|pid| *pid != keeper.pid());
                Ok(pids)
            }
            Body::Ours(ours) => {
                let client = ours.client.as_ref().map(Client::pid).transpose()?;
                Ok(client.into_iter().chain(ours.host.helpers()?).collect())
            }
        }
    }

    pub fn ours(&mut self) -> Option<&mut Ours> {
        match &mut self.body {
            Body::Rival { .. } => None,
            Body::Ours(ours) => Some(ours),
        }
    }

    /// Portcullis serves this image from now on; the time from the start of its process until it says
    /// that it serves.
    pub fn serve(&mut self, image: &Path) -> Result<Duration> {
        let image = image.display().to_string();
        self.serve_by("portcullis", &[&image], SOON)
    }

    /// The same by a program that runs `portcullis`, with its arguments before ours.
    pub fn serve_by(
        &mut self,
        program: &str,
        arguments: &[&str],
        patience: Duration,
    ) -> Result<Duration> {
        let time = self.start(program, arguments, patience)?;
        let path = url_path(&self.machines)?;
        if let Body::Ours(ours) = &mut self.body {
            ours.path = path;
        }
        Ok(time)
    }

    /// The same, and where the image is then is not asked.
    pub fn start(
        &mut self,
        program: &str,
        arguments: &[&str],
        patience: Duration,
    ) -> Result<Duration> {
        let Body::Ours(ours) = &mut self.body else {
            return Err(LabError(format!("{} is no Portcullis", self.name)));
        };
        ours.close()?;
        let (wrapper, image) = arguments.split_at(arguments.len().saturating_sub(1));
        let own = [
            "boot",
            image.first().unwrap_or(&""),
            "--interface",
            "eth0",
            "--json",
            "--no-ask-password",
            "--web",
        ];
        let begun = Instant::now();
        let mut client = ours.host.program("alice", program, &[wrapper, &own].concat())?;
        client.ready_within(patience)?;
        let time = begun.elapsed();
        let events = client.events();
        let page = events.iter().find_map(|event| event["url"].as_str());
        ours.page = page.unwrap_or_default().to_owned();
        ours.client = Some(client);
        Ok(time)
    }

    /// Opens our web page; others have none.
    pub fn watch(&self) -> Result<Option<Watching>> {
        let Body::Ours(ours) = &self.body else { return Ok(None) };
        let failed = |error| LabError::of(&ours.page, error);
        let rest = ours.page.trim_start_matches("http://");
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let mut stream = ours.host.netns().run(|| TcpStream::connect(host))?.map_err(failed)?;
        let question = format!("GET /{path}events HTTP/1.1\r\nHost: {host}\r\n\r\n");
        stream.write_all(question.as_bytes()).map_err(failed)?;
        let mut ears = stream.try_clone().map_err(failed)?;
        let mut head = [0; 12];
        ears.read_exact(&mut head).map_err(failed)?;
        if &head != b"HTTP/1.1 200" {
            return Err(LabError::of(&ours.page, String::from_utf8_lossy(&head)));
        }
        let reader = std::thread::spawn(move || {
            let _until_it_ends = std::io::copy(&mut ears, &mut std::io::sink());
        });
        Ok(Some(Watching { stream, reader: Some(reader) }))
    }

    /// Where TFTP has the image for a machine.
    pub fn file(&self, machine: u8) -> String {
        match &self.body {
            Body::Rival { .. } => IMAGE.to_owned(),
            Body::Ours(_) => format!("{}/boot.efi", mac(machine)),
        }
    }

    /// Where HTTP has it: address and path.
    pub fn url(&self, machine: u8) -> (SocketAddrV4, String) {
        match &self.body {
            Body::Rival { .. } => {
                (at(80), self.origin.as_ref().map_or_else(|| format!("/{IMAGE}"), Origin::path))
            }
            Body::Ours(ours) => (at(HTTP), ours.path.replace(&mac(0), &mac(machine))),
        }
    }
}

/// A port of every server.
pub fn at(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from(HOST), port)
}

/// The hardware address of a machine as paths have it.
pub fn mac(machine: u8) -> String {
    format!("02-00-00-02-00-{machine:02x}")
}

/// Asks as machine 0, a UEFI with HTTP boot, where the image is.
fn url_path(machines: &Netns) -> Result<String> {
    let message = boot_client::message(
        [2, 0, 0, 2, 0, 0],
        &[(53, &[1]), (60, b"HTTPClient:Arch:00016:UNDI:003001"), (93, &[0, 16]), (94, &[1, 3, 1])],
    );
    let everybody = [SocketAddrV4::new(Ipv4Addr::BROADCAST, 67)];
    let answers = boot_client::ask(machines, "eth0", 68, &message, &everybody, (1, SOON))?;
    let url = answers.first().and_then(|(_, bytes)| boot_client::option(bytes, 67));
    let url = String::from_utf8_lossy(&url.unwrap_or_default()).into_owned();
    match url.splitn(4, '/').nth(3) {
        Some(path) => Ok(format!("/{}", path.trim_end_matches('\0'))),
        None => Err(LabError(format!("no address is offered for HTTP boot: {url:?}"))),
    }
}

impl Ours {
    /// Ends the client, if one runs, as Ctrl-C does.
    pub fn close(&mut self) -> Result<()> {
        if let Some(mut client) = self.client.take() {
            client.signal(Signal::SIGINT)?;
            client.end()?;
        }
        Ok(())
    }

    /// Ends the helper: the next request finds it cold.
    pub fn end_helper(&self) -> Result<()> {
        for helper in self.host.helpers()? {
            portcullis_lab::process::send(helper, Signal::SIGTERM)?;
        }
        if wait_until(SOON, || self.host.helpers().is_ok_and(|helpers| helpers.is_empty())) {
            Ok(())
        } else {
            Err(LabError("the helper does not end".to_owned()))
        }
    }
}
