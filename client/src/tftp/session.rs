//! One machine's transfers: a thread that waits in the kernel for the machine, and moves packets for
//! [`Transfer`].
//!
//! Guarantees: answers come from the address and port of this transfer only, or all of them from
//! port 69; a datagram from anybody else gets ERROR 5 and changes nothing; memory is one read-ahead
//! and a small stack. The socket is not connected to the machine, because a connected one would
//! never see strangers.
//!
//! Why a thread: a window costs two system calls, and an ACK wakes the one thread that answers it, or
//! finds it looking (`glance`).
//! What waits for many sockets in turn is woken, asks which one it was, and then reads.

use std::{
    io,
    net::{SocketAddr, UdpSocket},
    sync::{Arc, mpsc::Receiver},
    time::{Duration, Instant},
};

use tokio::runtime::Handle;

use super::{
    Settings,
    line::{Line, Wake},
    transfer::{Action, Agreement, GIVE_UP, MAX_WINDOW_OCTETS, Transfer},
};
use crate::{
    download::{Download, printable},
    event::{Protocol, Role, Witness},
    image::{Blob, Generation, NoEfiImage},
    mac::MacAddr,
    source::efi_program,
    template::Machine,
    wire::tftp::{ErrorCode, MAX_REQUEST, Packet, Request, error},
};

/// Smallest read from the file: a window of one block must not cost a read each.
const READ_AHEAD: usize = 64 * 1024;

/// Longest IP datagram that the helper's guard lets out from port 69.
const FRAME: u16 = 1500;

/// An ERROR that comes so soon after a new request was sent before it: each came to its own socket,
/// and nothing keeps their order.
const SAME_TIME: Duration = Duration::from_millis(100);
/// Answers that were sent again, as often as this, are lost: it is no probe for the size, and the machine
/// waits. Seven seconds, unless the machine asks again itself.
const UNANSWERED: u32 = 3;

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

/// What port 69 passes on to a machine's session.
#[derive(Debug)]
pub(super) enum Mail {
    /// The same address and port asks, or asks again.
    Request(Job),
    /// An ACK or ERROR, where transfers have no port of their own.
    Datagram(Vec<u8>),
}

/// Whom a thread serves, and by what.
pub(super) struct Peer {
    pub settings: Arc<Settings>,
    pub witness: Arc<dyn Witness>,
    pub address: SocketAddr,
    /// The socket of port 69, where transfers have none of their own.
    pub shared: Option<Arc<UdpSocket>>,
    /// Makes the files that have to be made.
    pub runtime: Handle,
}

impl Peer {
    /// Serves `job`. What the same address and port asked for meanwhile, if anything.
    pub fn serve(&self, job: &Job, mail: &Receiver<Mail>) -> Option<Job> {
        let blob = self.runtime.block_on(job.file.open());
        let length = blob.as_ref().map_or(0, |blob| blob.length);
        let download = Download::new(
            Arc::clone(&self.witness),
            job.mac,
            Protocol::Tftp,
            job.role,
            &job.request.file,
            length,
        );
        let line = match &self.shared {
            Some(socket) => Ok(Line::shared(Arc::clone(socket))),
            None => Line::open(self.settings.address, &self.settings.interface),
        };
        match (line, blob) {
            (Ok(line), Ok(blob)) => {
                let largest = if self.settings.single_port { FRAME } else { u16::MAX };
                let mtu = self.settings.mtu.min(largest);
                let agreement = Agreement::new(job.request.options, blob.length, mtu);
                let window = Window::new(blob, &agreement);
                let session = Session { line, peer: self.address, window, began: Instant::now() };
                session.serve(job, agreement, download, mail)
            }
            (Ok(line), Err(reason)) => {
                let refusal = error(ErrorCode::Undefined, "the file cannot be made");
                // A lost one is repaired by the machine's own time-out.
                let _ = line.send(&refusal, self.address);
                download.ended(reason.to_string());
                None
            }
            (Err(error), _) => {
                download.ended(format!("no socket for the transfer: {error}"));
                None
            }
        }
    }
}

struct Session {
    line: Line,
    peer: SocketAddr,
    window: Window,
    began: Instant,
}

impl Session {
    /// Until the end of the transfer. Gives back the request that takes its place, if there is one.
    fn serve(
        mut self,
        job: &Job,
        agreement: Agreement,
        mut download: Download,
        mail: &Receiver<Mail>,
    ) -> Option<Job> {
        let length = self.window.blob.length;
        let block = agreement.block;
        let (mut transfer, mut action) = Transfer::begin(agreement, length, Duration::ZERO);
        let mut buffer = [0; MAX_REQUEST];
        // A second request from the same port is the machine's repetition of the first, whose
        // answer was lost; or a new transfer whose predecessor it has broken off. It takes over
        // when the ERROR that belongs to it is seen, or when this transfer falls silent, and is
        // forgotten when an ACK shows that the transfer lives.
        let mut pending: Option<(Job, Duration)> = None;
        let mut now = Duration::ZERO;
        loop {
            download.sent_again(transfer.retransmissions());
            if transfer.under_way() || transfer.retransmissions() >= UNANSWERED {
                download.progress(transfer.octets());
            }
            let sent = match action {
                Action::Wait => Ok(()),
                Action::Oack(ref packet) => self.send(packet),
                Action::Window { first, count } => self.send_window(first, count, block),
                Action::Done => {
                    download.done();
                    return pending.map(|(again, _)| again);
                }
                Action::Refused { code, ref message } => {
                    refused(download, code, message);
                    return pending
                        .filter(|(_, asked)| now.saturating_sub(*asked) < SAME_TIME)
                        .map(|(again, _)| again);
                }
                Action::GivenUp => {
                    download.ended(silence(&transfer));
                    return None;
                }
                Action::TooSlow => {
                    let _ = self.send(&error(ErrorCode::Undefined, "too slow"));
                    download.ended("the machine took next to nothing for a minute");
                    return None;
                }
            };
            if let Err(failure) = sent {
                let _ = self.send(&error(ErrorCode::Undefined, "the file cannot be read"));
                download.ended(failure.to_string());
                return None;
            }
            let wake = self.line.wait(&mut buffer, mail, transfer.deadline().saturating_sub(now));
            now = self.began.elapsed();
            action = match wake {
                Wake::Datagram(count, sender) if sender != self.peer => {
                    self.rebuff(buffer.get(..count).unwrap_or(&buffer), sender);
                    Action::Wait
                }
                Wake::Datagram(count, _) => {
                    heard(&mut transfer, buffer.get(..count).unwrap_or(&buffer), &mut pending, now)
                }
                Wake::Mail(Mail::Datagram(datagram)) => {
                    heard(&mut transfer, &datagram, &mut pending, now)
                }
                Wake::Mail(Mail::Request(again)) => {
                    let repeats = again.request == job.request && !transfer.under_way();
                    pending = Some((again, now));
                    if repeats { transfer.repeat(now) } else { Action::Wait }
                }
                Wake::Nothing => Action::Wait,
                Wake::Failed(failure) => {
                    download.ended(format!("the transfer's socket failed: {failure}"));
                    return None;
                }
                // Dropping the download says so.
                Wake::Over => return None,
            };
            if action == Action::Wait && now >= transfer.deadline() {
                action = match pending.take() {
                    Some((again, _)) if again.request != job.request || transfer.under_way() => {
                        supersede(download);
                        return Some(again);
                    }
                    _ => transfer.time_out(now),
                };
            }
        }
    }

    fn send(&self, packet: &[u8]) -> io::Result<()> {
        self.line.send(packet, self.peer)
    }

    fn send_window(&mut self, first: u64, count: u16, block: u16) -> io::Result<()> {
        let octets = self.window.read(first, count, block)?;
        self.line.send_window(first, count, usize::from(block), octets, self.peer)?;
        // While the machine takes these.
        self.window.read_ahead(first.saturating_add(count.into()), count, block);
        Ok(())
    }

    /// ERROR 5 to a datagram from elsewhere (RFC 1350 section 4), unless it is an ERROR itself.
    fn rebuff(&self, datagram: &[u8], stranger: SocketAddr) {
        if !matches!(Packet::parse(datagram), Ok(Packet::Error { .. })) {
            let packet = error(ErrorCode::UnknownTransfer, "not your transfer");
            let _ = self.line.send(&packet, stranger);
        }
    }
}

/// A datagram from the machine. One that moves the transfer on shows that it lives.
fn heard(
    transfer: &mut Transfer,
    datagram: &[u8],
    pending: &mut Option<(Job, Duration)>,
    now: Duration,
) -> Action {
    let action = transfer.receive(datagram, now);
    if matches!(action, Action::Oack(_) | Action::Window { .. }) {
        *pending = None;
    }
    action
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
fn supersede(download: Download) {
    if download.started() {
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
    /// The octets from `start` on; used again and again.
    octets: Vec<u8>,
    start: u64,
    /// How much is read at once.
    most: usize,
}

impl Window {
    fn new(blob: Blob, agreement: &Agreement) -> Self {
        let largest = usize::from(agreement.window) * usize::from(agreement.block);
        debug_assert!(largest <= MAX_WINDOW_OCTETS);
        Self { blob, octets: Vec::new(), start: 0, most: largest.max(READ_AHEAD) }
    }

    /// The octets of `count` blocks from block `first` on, fewer at the end of the file.
    fn read(&mut self, first: u64, count: u16, block: u16) -> io::Result<&[u8]> {
        let (from, wanted) = self.part(first, count, block);
        if self.slice(from, wanted).is_none() {
            self.fill(from)?;
        }
        self.slice(from, wanted).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Reads these, if they are not there: [`Window::read`] will find them. What was there is gone
    /// then, and is read again if it has to be sent again.
    fn read_ahead(&mut self, first: u64, count: u16, block: u16) {
        let (from, wanted) = self.part(first, count, block);
        if self.slice(from, wanted).is_none() && self.fill(from).is_err() {
            // It comes again when they are needed, if ever.
            self.octets.clear();
        }
    }

    /// Where blocks lie in the file: their first octet, and how many.
    fn part(&self, first: u64, count: u16, block: u16) -> (u64, usize) {
        let from = (first - 1).saturating_mul(u64::from(block)).min(self.blob.length);
        let wanted = usize::from(count) * usize::from(block);
        (from, self.until_the_end(from, wanted))
    }

    fn until_the_end(&self, from: u64, most: usize) -> usize {
        usize::try_from(self.blob.length - from).map_or(most, |left| left.min(most))
    }

    /// Reads from there on, from the disk if need be.
    fn fill(&mut self, from: u64) -> io::Result<()> {
        let count = self.until_the_end(from, self.most);
        let octets = std::mem::take(&mut self.octets);
        self.octets = self.blob.content.read_at(from, count, octets)?;
        self.start = from;
        Ok(())
    }

    fn slice(&self, from: u64, wanted: usize) -> Option<&[u8]> {
        let skipped = usize::try_from(from.checked_sub(self.start)?).ok()?;
        self.octets.get(skipped..skipped.checked_add(wanted)?)
    }
}
