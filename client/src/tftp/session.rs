//! One machine's transfers: a task with its own socket that moves packets for [`Transfer`].
//!
//! Guarantees: answers come from the address and port of this transfer only; a datagram from
//! anybody else gets ERROR 5 and changes nothing; memory is one read-ahead and one packet.
//! The socket is not connected to the machine, because a connected one would never see strangers.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use socket2::{Domain, Protocol as IpProtocol, Socket, Type};
use tokio::{net::UdpSocket, sync::mpsc, time::Instant};

use super::{
    Settings,
    transfer::{Action, Agreement, GIVE_UP, MAX_WINDOW_OCTETS, Transfer},
};
use crate::{
    download::{Download, printable},
    event::{Protocol, Role, Witness},
    image::{Blob, Generation, NoEfiImage},
    mac::MacAddr,
    source::efi_program,
    template::Machine,
    wire::tftp::{DATA_HEADER, ErrorCode, MAX_REQUEST, Packet, Request, data_header, error},
};

/// Smallest read from the file: a window of one block must not cost a read each.
const READ_AHEAD: usize = 64 * 1024;

/// An ERROR that comes so soon after a new request was sent before it: each came to its own socket,
/// and nothing keeps their order.
const SAME_TIME: Duration = Duration::from_millis(100);

/// An admitted request for a file that there is.
#[derive(Debug)]
pub(super) struct Job {
    pub request: Request,
    pub mac: MacAddr,
    pub role: Role,
    pub file: File,
}

/// What is asked for.
#[derive(Debug)]
pub(super) enum File {
    /// There it is.
    Ready(Blob),
    /// The EFI program for this machine: to be made, and that may take the time of reading it.
    Image(Arc<Generation>, Machine),
}

impl File {
    async fn open(&self) -> Result<Blob, NoEfiImage> {
        match self {
            Self::Ready(blob) => Ok(blob.clone()),
            Self::Image(generation, machine) => efi_program(generation, machine).await,
        }
    }
}

/// Serves `job` to `peer`, and after it whatever the same address and port asks for meanwhile.
pub(super) async fn run(
    settings: Arc<Settings>,
    witness: Arc<dyn Witness>,
    peer: SocketAddr,
    job: Job,
    mut requests: mpsc::Receiver<Job>,
) {
    let mut next = Some(job);
    while let Some(job) = next {
        let blob = job.file.open().await;
        let length = blob.as_ref().map_or(0, |blob| blob.length);
        let download =
            Download::new(Arc::clone(&witness), job.mac, Protocol::Tftp, job.role, length);
        next = match (open_socket(&settings), blob) {
            (Ok(socket), Ok(blob)) => {
                let window = Window { blob, octets: Vec::new(), start: 0 };
                let session = Session { socket, peer, window, began: Instant::now() };
                session.serve(&job, settings.mtu, download, &mut requests).await
            }
            (Ok(socket), Err(reason)) => {
                let refusal = error(ErrorCode::Undefined, "the file cannot be made");
                // A lost one is repaired by the machine's own time-out.
                let _ = socket.send_to(&refusal, peer).await;
                download.ended(reason.to_string());
                None
            }
            (Err(error), _) => {
                download.ended(format!("no socket for the transfer: {error}"));
                None
            }
        };
        if next.is_none() {
            // From here on a new request makes a new session; one that came before is served here.
            requests.close();
            next = requests.try_recv().ok();
        }
    }
}

/// A fresh port on the interface's address.
fn open_socket(settings: &Settings) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(IpProtocol::UDP))?;
    // Keeps a VPN's routes from taking the answers. Kernels before 5.7 want a privilege for it;
    // the address alone has to do there.
    let _ = socket.bind_device(Some(settings.interface.as_bytes()));
    socket.bind(&SocketAddr::from((settings.address, 0)).into())?;
    socket.set_nonblocking(true)?;
    UdpSocket::from_std(socket.into())
}

/// What woke the task.
enum Wake {
    Datagram(io::Result<(usize, SocketAddr)>),
    /// The same address and port asks again.
    Request(Job),
    Deadline,
}

struct Session {
    socket: UdpSocket,
    peer: SocketAddr,
    window: Window,
    began: Instant,
}

impl Session {
    /// Until the end of the transfer. Gives back the request that takes its place, if there is one.
    async fn serve(
        mut self,
        job: &Job,
        mtu: u16,
        mut download: Download,
        requests: &mut mpsc::Receiver<Job>,
    ) -> Option<Job> {
        let length = self.window.blob.length;
        let agreement = Agreement::new(job.request.options, length, mtu);
        let block = agreement.block;
        let (mut transfer, mut action) = Transfer::begin(agreement, length, Duration::ZERO);
        let mut buffer = [0; MAX_REQUEST];
        // A second request from the same port is the machine's repetition of the first, whose
        // answer was lost; or a new transfer whose predecessor it has broken off. It takes over
        // when the ERROR that belongs to it is seen, or when this transfer falls silent, and is
        // forgotten when an ACK shows that the transfer lives.
        let mut pending: Option<(Job, Duration)> = None;
        loop {
            if transfer.under_way() {
                download.progress(transfer.octets());
            }
            let sent = match action {
                Action::Wait => Ok(()),
                Action::Oack(ref packet) => self.send(packet).await,
                Action::Window { first, count } => self.send_window(first, count, block).await,
                Action::Done => {
                    download.done(transfer.retransmissions());
                    return pending.map(|(again, _)| again);
                }
                Action::Refused { code, ref message } => {
                    refused(download, code, message);
                    let now = self.began.elapsed();
                    return pending
                        .filter(|(_, asked)| now.saturating_sub(*asked) < SAME_TIME)
                        .map(|(again, _)| again);
                }
                Action::GivenUp => {
                    download.ended(silence(&transfer));
                    return None;
                }
                Action::TooSlow => {
                    let _ = self.send(&error(ErrorCode::Undefined, "too slow")).await;
                    download.ended("the machine took next to nothing for a minute");
                    return None;
                }
            };
            if let Err(failure) = sent {
                let _ = self.send(&error(ErrorCode::Undefined, "the file cannot be read")).await;
                download.ended(failure.to_string());
                return None;
            }
            let wake = tokio::select! {
                biased;
                received = self.socket.recv_from(&mut buffer) => Wake::Datagram(received),
                Some(again) = requests.recv() => Wake::Request(again),
                () = tokio::time::sleep_until(self.began + transfer.deadline()) => Wake::Deadline,
            };
            let now = self.began.elapsed();
            action = match wake {
                Wake::Datagram(Ok((count, sender))) => {
                    let datagram = buffer.get(..count).unwrap_or(&buffer);
                    if sender == self.peer {
                        let action = transfer.receive(datagram, now);
                        if matches!(action, Action::Oack(_) | Action::Window { .. }) {
                            pending = None;
                        }
                        action
                    } else {
                        self.rebuff(datagram, sender).await;
                        Action::Wait
                    }
                }
                Wake::Datagram(Err(failure)) => {
                    download.ended(format!("the transfer's socket failed: {failure}"));
                    return None;
                }
                Wake::Request(again) => {
                    let repeats = again.request == job.request && !transfer.under_way();
                    pending = Some((again, now));
                    if repeats { transfer.repeat(now) } else { Action::Wait }
                }
                Wake::Deadline => match pending.take() {
                    Some((again, _)) if again.request != job.request || transfer.under_way() => {
                        supersede(download, transfer.under_way());
                        return Some(again);
                    }
                    _ => transfer.time_out(now),
                },
            };
        }
    }

    async fn send(&self, packet: &[u8]) -> io::Result<()> {
        self.socket.send_to(packet, self.peer).await.map(drop)
    }

    /// Sends a window of blocks.
    async fn send_window(&mut self, first: u64, count: u16, block: u16) -> io::Result<()> {
        let octets = self.window.read(first, count, block).await?;
        let block = usize::from(block);
        let mut packet = Vec::with_capacity(DATA_HEADER + block);
        let mut payloads = octets.chunks(block);
        for number in (first..).take(usize::from(count)) {
            packet.clear();
            packet.extend_from_slice(&data_header(number));
            // The last block of a file that fills its blocks exactly is empty.
            packet.extend_from_slice(payloads.next().unwrap_or(&[]));
            self.socket.send_to(&packet, self.peer).await?;
        }
        Ok(())
    }

    /// ERROR 5 to a datagram from elsewhere (RFC 1350 section 4), unless it is an ERROR itself.
    async fn rebuff(&self, datagram: &[u8], stranger: SocketAddr) {
        if !matches!(Packet::parse(datagram), Ok(Packet::Error { .. })) {
            let packet = error(ErrorCode::UnknownTransfer, "not your transfer");
            let _ = self.socket.send_to(&packet, stranger).await;
        }
    }
}

/// The machine sent an ERROR. Before the first block was acknowledged that is a probe for the size.
fn refused(download: Download, code: u16, message: &[u8]) {
    if download.started() {
        let message = printable(message);
        download.ended(format!("the machine broke off: TFTP error {code} \"{message}\""));
    } else {
        download.forget();
    }
}

/// The machine asked again and no longer acknowledges the old transfer.
fn supersede(download: Download, under_way: bool) {
    if under_way {
        download.ended("the machine asked for a file again");
    } else {
        download.forget();
    }
}

fn silence(transfer: &Transfer) -> String {
    let seconds = GIVE_UP.as_secs();
    if transfer.sent_whole() && transfer.under_way() {
        format!(
            "the last block was sent but not confirmed for {seconds} seconds: the machine may \
             well have the whole file"
        )
    } else {
        format!("no answer from the machine for {seconds} seconds")
    }
}

/// The part of the file around the current window.
struct Window {
    blob: Blob,
    octets: Vec<u8>,
    start: u64,
}

impl Window {
    /// The octets of `count` blocks from block `first` on, fewer at the end of the file.
    async fn read(&mut self, first: u64, count: u16, block: u16) -> io::Result<&[u8]> {
        let length = self.blob.length;
        let from = (first - 1).saturating_mul(u64::from(block)).min(length);
        let wanted = usize::from(count) * usize::from(block);
        debug_assert!(wanted <= MAX_WINDOW_OCTETS);
        let wanted = usize::try_from(length - from).map_or(wanted, |left| left.min(wanted));
        if self.slice(from, wanted).is_none() {
            let ahead = wanted.max(READ_AHEAD);
            let ahead = usize::try_from(length - from).map_or(ahead, |left| left.min(ahead));
            let content = self.blob.content.clone();
            let octets = std::mem::take(&mut self.octets);
            self.octets =
                tokio::task::spawn_blocking(move || content.read_at(from, ahead, octets)).await??;
            self.start = from;
        }
        self.slice(from, wanted).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    fn slice(&self, from: u64, wanted: usize) -> Option<&[u8]> {
        let skipped = usize::try_from(from.checked_sub(self.start)?).ok()?;
        self.octets.get(skipped..skipped.checked_add(wanted)?)
    }
}
