//! One interface that is served: its lease's sockets -> four servers -> what they have to tell.
//!
//! Guarantees: packets never wait for who is told; what does not fit is left out. Its sockets are
//! dropped when it is stopped.

use std::{
    fs,
    future::poll_fn,
    io,
    net::{Ipv4Addr, SocketAddrV4},
    path::Path,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{sync::mpsc, task::JoinSet};

use super::Plan;
use crate::{
    cli,
    dhcp::{Authority, Policy, UefiOffer, serve_boot_server, serve_dhcp},
    event::Event,
    exit::{Code, Failure},
    http::{self, serve_http},
    image::EfiImage,
    machines::Machines,
    report::Report,
    session::{Lease, Sockets},
    tftp::{self, serve_tftp},
};

/// Events that wait while the terminal is slow; what does not fit is not shown.
const EVENTS: usize = 8192;
/// Notes of `--debug` that wait.
const NOTES: usize = 1024;
/// Ethernet's (RFC 894), if the interface does not tell its own.
const MTU: u16 = 1500;

/// One interface that is served: its lease, its four servers (each ends only when it fails), and
/// its machines.
pub(super) struct Outlet {
    pub(super) lease: Lease,
    pub(super) tasks: JoinSet<Failure>,
    pub(super) machines: Arc<Machines>,
    pub(super) events: mpsc::Receiver<Event>,
    pub(super) remarks: mpsc::Receiver<Remark>,
    /// How many machines can have an address at a time, if addresses are handed out.
    pub(super) addresses: Option<usize>,
}

impl Outlet {
    pub(super) fn start(
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

    /// The events that wait already.
    pub(super) fn waiting(&mut self) -> impl Iterator<Item = Event> {
        std::iter::from_fn(|| self.events.try_recv().ok())
    }

    /// Ends the servers, drops their sockets, and shows what is left to show.
    pub(super) async fn stop(&mut self, report: &mut Report) {
        self.tasks.shutdown().await;
        let interface = self.lease.facts.interface.clone();
        for event in self.waiting() {
            report.machine(&interface, &event);
        }
    }
}

/// What an outlet has to tell.
pub(super) enum Happening {
    Machine(Event),
    Remark(Remark),
    /// One of its servers has ended.
    Failed(Failure),
}

/// What is said beside what machines do.
pub(super) enum Remark {
    /// With `--debug`.
    Detail(String),
    /// To everybody.
    Note(String),
}

/// The next thing that happens at one of them.
pub(super) async fn next(outlets: &mut [Outlet]) -> (usize, Happening) {
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

/// The address that the helper chose.
pub(super) fn served_on(lease: &Lease) -> Result<Ipv4Addr, Failure> {
    lease.facts.address.ok_or_else(|| {
        Failure::new(Code::Internal, "the helper did not say which address to serve on")
            .advise("portcullis and portcullis-helper may be of different versions")
    })
}

/// Octets that the interface carries in one packet.
fn mtu(interface: &str) -> u16 {
    let path = Path::new("/sys/class/net").join(interface).join("mtu");
    let text = fs::read_to_string(path).unwrap_or_default();
    // Loopback's is 65536: more than fits is as good as the most that does.
    text.trim().parse::<u32>().map_or(MTU, |mtu| u16::try_from(mtu).unwrap_or(u16::MAX))
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
