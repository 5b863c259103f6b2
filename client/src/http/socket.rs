//! A connection's socket, as the runtime sees it.
//!
//! Guarantees: never blocks a thread of the runtime for the machine at the other end; what goes out,
//! and what has to wait, is noted for the pace; nothing goes on being sent to a machine that has closed
//! its side, which iPXE does when it gives up, and still takes what comes. A file's octets go from the page cache to the socket
//! without passing through this process (sendfile(2)).

use std::{fs::File, io, net::Shutdown};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::sendfile,
    io::{Errno, retry_on_intr},
    net::{RecvFlags, SendFlags, recv, send, sockopt::set_tcp_cork},
};
use socket2::SockRef;
use tokio::{io::Interest, net::TcpStream};

use super::pace::Pace;

/// A connection.
pub(super) struct Socket<'a> {
    stream: TcpStream,
    pace: &'a Pace,
}

impl<'a> Socket<'a> {
    /// What goes out on `stream` is noted in `pace`.
    pub fn new(stream: TcpStream, pace: &'a Pace) -> Self {
        Self { stream, pace }
    }

    /// Appends what comes next to `octets`, as far as `room` goes. How much that was: nothing, if the
    /// other end has no more.
    pub async fn receive(&self, octets: &mut Vec<u8>, room: usize) -> io::Result<usize> {
        octets.reserve_exact(room);
        loop {
            self.stream.readable().await?;
            match self.stream.try_read_buf(octets) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return result,
            }
        }
    }

    /// Sends all of `octets`. If more follow, they wait for those a moment, to share a packet.
    pub async fn send(&self, mut octets: &[u8], more: bool) -> io::Result<()> {
        let more = if more { SendFlags::MORE } else { SendFlags::empty() };
        while !octets.is_empty() {
            let act = || send(&self.stream, octets, SendFlags::NOSIGNAL | more);
            let sent = self.write(octets.len(), act).await?;
            octets = octets.get(sent..).unwrap_or_default();
        }
        Ok(())
    }

    /// Sends up to `count` octets of `file` from `start` on. How many that were: none at the file's
    /// end.
    pub async fn send_file(&self, file: &File, start: u64, count: usize) -> io::Result<usize> {
        self.write(count, || sendfile(&self.stream, file, Some(&mut { start }), count)).await
    }

    /// Whether octets that fill no packet wait for more of them (`TCP_CORK`, tcp(7)); when they need not any
    /// longer, they go at once. While a file is sent piece by piece, the end of each would be a packet.
    pub fn cork(&self, waits: bool) -> io::Result<()> {
        Ok(set_tcp_cork(&self.stream, waits)?)
    }

    /// Nothing more will be sent.
    pub fn finish(&self) {
        // One that is broken needs no end.
        let _ = SockRef::from(&self.stream).shutdown(Shutdown::Write);
    }

    /// Whether the machine will say nothing more, and has said nothing that was not read.
    fn is_closed(&self) -> bool {
        let mut octet = [0];
        let looked = recv(&self.stream, &mut octet, RecvFlags::PEEK | RecvFlags::DONTWAIT);
        looked.is_ok_and(|(_, heard)| heard == 0)
    }

    /// Sends some of `count` octets once the socket takes any. If it has no room for all of them, the next
    /// wait until it has much: filled up to the brim with each ACK, it would send many small packets.
    async fn write(
        &self,
        count: usize,
        mut act: impl FnMut() -> Result<usize, Errno>,
    ) -> io::Result<usize> {
        let mut part = None;
        loop {
            self.stream.writable().await?;
            let written = self.stream.try_io(Interest::WRITABLE, || {
                let written = retry_on_intr(&mut act)?;
                self.pace.takes(written);
                if written == count || self.has_room() {
                    return Ok(written);
                }
                // To the runtime, not writable until the kernel says so again.
                part = Some(written);
                Err(Errno::AGAIN.into())
            });
            match written {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.pace.waits();
                    if self.is_closed() {
                        return Err(io::ErrorKind::ConnectionAborted.into());
                    }
                    if let Some(part) = part {
                        return Ok(part);
                    }
                }
                written => return written,
            }
        }
    }

    /// Whether the kernel would say that the socket takes octets. If not, it will when it does: asking
    /// sees to that, whyever less was taken than could have been.
    fn has_room(&self) -> bool {
        let mut ask = [PollFd::new(&self.stream, PollFlags::OUT)];
        poll(&mut ask, Some(&Timespec::default())).map_or(true, |ready| ready > 0)
    }
}
