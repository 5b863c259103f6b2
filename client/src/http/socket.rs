//! A connection's socket, as the runtime sees it.
//!
//! Guarantees: never blocks a thread of the runtime for the machine at the other end; what goes out,
//! and what has to wait, is noted for the pace; nothing goes on being sent to a machine that has closed
//! its side, which iPXE does when it gives up, and still takes what comes. A file's octets go from the page cache to the socket
//! without passing through this process (sendfile(2)).

use std::{fs::File, io, net::Shutdown};

use rustix::{
    fs::sendfile,
    io::{Errno, retry_on_intr},
    net::{RecvFlags, SendFlags, recv, send},
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
            let sent = self.write(act).await?;
            octets = octets.get(sent..).unwrap_or_default();
        }
        Ok(())
    }

    /// Sends up to `count` octets of `file` from `start` on. How many that were: none at the file's
    /// end.
    pub async fn send_file(&self, file: &File, start: u64, count: usize) -> io::Result<usize> {
        self.write(|| sendfile(&self.stream, file, Some(&mut { start }), count)).await
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

    /// Does something with the socket once it takes octets.
    async fn write(&self, mut act: impl FnMut() -> Result<usize, Errno>) -> io::Result<usize> {
        let noted = || {
            let written = retry_on_intr(&mut act);
            match written {
                Ok(octets) => self.pace.takes(octets),
                Err(Errno::AGAIN) if self.is_closed() => {
                    return Err(io::ErrorKind::ConnectionAborted.into());
                }
                Err(Errno::AGAIN) => self.pace.waits(),
                Err(_) => {}
            }
            Ok(written?)
        };
        self.stream.async_io(Interest::WRITABLE, noted).await
    }
}
