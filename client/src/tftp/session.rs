//! One machine's transfers: a task with its own socket that moves packets for [`Transfer`].
//!
//! Guarantees: answers come from the address and port of this transfer only, or all of them from
//! port 69; a datagram from anybody else gets ERROR 5 and changes nothing; memory is one read-ahead.
//! The socket is not connected to the machine, because a connected one would never see strangers.

use std::{io, net::SocketAddr, pin::pin, sync::Arc, time::Duration};

use tokio::{
    net::UdpSocket,
    sync::mpsc,
    time::{Instant, sleep_until},
};

use super::{
    Settings,
    line::Line,
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

/// Serves `job` to `peer`, and after it whatever the same address and port asks for meanwhile.
pub(super) async fn run(
    settings: Arc<Settings>,
    witness: Arc<dyn Witness>,
    peer: SocketAddr,
    job: Job,
    shared: Option<Arc<UdpSocket>>,
    mut mail: mpsc::Receiver<Mail>,
) {
    let mut next = Some(job);
    while let Some(job) = next {
        let blob = job.file.open().await;
        let length = blob.as_ref().map_or(0, |blob| blob.length);
        let download = Download::new(
            Arc::clone(&witness),
            job.mac,
            Protocol::Tftp,
            job.role,
            &job.request.file,
            length,
        );
        let line = match &shared {
            Some(socket) => Ok(Line::shared(Arc::clone(socket))),
            None => Line::open(settings.address, &settings.interface),
        };
        next = match (line, blob) {
            (Ok(line), Ok(blob)) => {
                let largest = if settings.single_port { FRAME } else { u16::MAX };
                let mtu = settings.mtu.min(largest);
                let agreement = Agreement::new(job.request.options, blob.length, mtu);
                let window = Window::new(blob, &agreement);
                let session = Session { line, peer, window, began: Instant::now() };
                session.serve(&job, agreement, download, &mut mail).await
            }
            (Ok(line), Err(reason)) => {
                let refusal = error(ErrorCode::Undefined, "the file cannot be made");
                // A lost one is repaired by the machine's own time-out.
                let _ = line.send(&refusal, peer).await;
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
            mail.close();
            while let (None, Ok(letter)) = (&next, mail.try_recv()) {
                if let Mail::Request(job) = letter {
                    next = Some(job);
                }
            }
        }
    }
}

/// What woke the task.
enum Wake {
    Datagram(io::Result<(usize, SocketAddr)>),
    Mail(Mail),
    Alarm,
}

struct Session {
    line: Line,
    peer: SocketAddr,
    window: Window,
    began: Instant,
}

impl Session {
    /// Until the end of the transfer. Gives back the request that takes its place, if there is one.
    async fn serve(
        mut self,
        job: &Job,
        agreement: Agreement,
        mut download: Download,
        mail: &mut mpsc::Receiver<Mail>,
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
        // Deadlines move on with every packet. The alarm is not: it is set again when it rings early,
        // or when a deadline comes before it.
        let mut alarm = pin!(sleep_until(self.began + transfer.deadline()));
        loop {
            download.sent_again(transfer.retransmissions());
            if transfer.under_way() || transfer.retransmissions() >= UNANSWERED {
                download.progress(transfer.octets());
            }
            let sent = match action {
                Action::Wait => Ok(()),
                Action::Oack(ref packet) => self.send(packet).await,
                Action::Window { first, count } => self.send_window(first, count, block).await,
                Action::Done => {
                    download.done();
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
            let deadline = self.began + transfer.deadline();
            if deadline < alarm.deadline() {
                alarm.as_mut().reset(deadline);
            }
            let wake = tokio::select! {
                biased;
                received = self.line.receive(&mut buffer) => Wake::Datagram(received),
                Some(letter) = mail.recv() => Wake::Mail(letter),
                () = &mut alarm => Wake::Alarm,
            };
            let now = self.began.elapsed();
            action = match wake {
                Wake::Datagram(Ok((count, sender))) if sender != self.peer => {
                    self.rebuff(buffer.get(..count).unwrap_or(&buffer), sender).await;
                    Action::Wait
                }
                Wake::Datagram(Ok((count, _))) => {
                    heard(&mut transfer, buffer.get(..count).unwrap_or(&buffer), &mut pending, now)
                }
                Wake::Mail(Mail::Datagram(datagram)) => {
                    heard(&mut transfer, &datagram, &mut pending, now)
                }
                Wake::Datagram(Err(failure)) => {
                    download.ended(format!("the transfer's socket failed: {failure}"));
                    return None;
                }
                Wake::Mail(Mail::Request(again)) => {
                    let repeats = again.request == job.request && !transfer.under_way();
                    pending = Some((again, now));
                    if repeats { transfer.repeat(now) } else { Action::Wait }
                }
                Wake::Alarm if now < transfer.deadline() => {
                    alarm.as_mut().reset(deadline);
                    Action::Wait
                }
                Wake::Alarm => match pending.take() {
                    Some((again, _)) if again.request != job.request || transfer.under_way() => {
                        supersede(download);
                        return Some(again);
                    }
                    _ => transfer.time_out(now),
                },
            };
        }
    }

    async fn send(&self, packet: &[u8]) -> io::Result<()> {
        self.line.send(packet, self.peer).await
    }

    async fn send_window(&mut self, first: u64, count: u16, block: u16) -> io::Result<()> {
        let octets = self.window.read(first, count, block).await?;
        self.line.send_window(first, count, usize::from(block), octets, self.peer).await
    }

    /// ERROR 5 to a datagram from elsewhere (RFC 1350 section 4), unless it is an ERROR itself.
    async fn rebuff(&self, datagram: &[u8], stranger: SocketAddr) {
        if !matches!(Packet::parse(datagram), Ok(Packet::Error { .. })) {
            let packet = error(ErrorCode::UnknownTransfer, "not your transfer");
            let _ = self.line.send(&packet, stranger).await;
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
    /// Made once; `filled` octets of it are the file's, from `start` on.
    octets: Vec<u8>,
    filled: usize,
    start: u64,
}

impl Window {
    fn new(blob: Blob, agreement: &Agreement) -> Self {
        let largest = usize::from(agreement.window) * usize::from(agreement.block);
        debug_assert!(largest <= MAX_WINDOW_OCTETS);
        let most = usize::try_from(blob.length).unwrap_or(usize::MAX);
        let octets = vec![0; largest.max(READ_AHEAD).min(most)];
        Self { blob, octets, filled: 0, start: 0 }
    }

    /// The octets of `count` blocks from block `first` on, fewer at the end of the file.
    async fn read(&mut self, first: u64, count: u16, block: u16) -> io::Result<&[u8]> {
        let length = self.blob.length;
        let from = (first - 1).saturating_mul(u64::from(block)).min(length);
        let wanted = usize::from(count) * usize::from(block);
        let wanted = usize::try_from(length - from).map_or(wanted, |left| left.min(wanted));
        if self.slice(from, wanted).is_none() {
            self.start = from;
            // What is in the page cache is not worth a way to another thread and back.
            self.filled = self.blob.content.read_cached(from, &mut self.octets);
            if self.filled < wanted {
                self.wait_for(from).await?;
            }
        }
        self.slice(from, wanted).ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }

    /// Reads as much as there is room for, from the disk if need be.
    async fn wait_for(&mut self, from: u64) -> io::Result<()> {
        let room = self.octets.len();
        let ahead = usize::try_from(self.blob.length - from).map_or(room, |left| left.min(room));
        let content = self.blob.content.clone();
        let octets = std::mem::take(&mut self.octets);
        let read = tokio::task::spawn_blocking(move || content.read_at(from, ahead, octets));
        self.octets = read.await??;
        self.filled = ahead;
        self.octets.resize(room, 0);
        Ok(())
    }

    fn slice(&self, from: u64, wanted: usize) -> Option<&[u8]> {
        let skipped = usize::try_from(from.checked_sub(self.start)?).ok()?;
        let octets = self.octets.get(..self.filled)?;
        octets.get(skipped..skipped.checked_add(wanted)?)
    }
}
