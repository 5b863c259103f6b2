//! One connection: requests in, answers out, in their order.
//!
//! Guarantees: one request is answered before the next is read; exactly what a head announces follows
//! it, or the connection is broken off; every head arrives in time, or the connection ends. What is
//! refused, and what a machine still says after its last request, is thrown away for a moment, so that
//! the answer is not lost to a reset.

use std::{
    io,
    net::IpAddr,
    time::{Duration, SystemTime},
};

use http::{Response, StatusCode};
use httpdate::fmt_http_date;
use tokio::{net::TcpStream, time::timeout};

use super::{
    Server,
    answer::answer,
    body::Body,
    files::send_part,
    pace::Pace,
    remote::RemoteBody,
    request::{Parsed, Request, parse},
    response::{Framing, head, refusal},
    socket::Socket,
};

/// Octets that are read at a time: more than a machine's head has.
const READ: usize = 4096;

/// How long, and how many octets of it, a machine is still listened to after its last answer.
const FAREWELL: (Duration, usize) = (Duration::from_secs(2), 256 * 1024);

/// Reads requests and answers them, until one side ends it, or the machine takes too little for too
/// long.
pub(super) async fn converse(stream: TcpStream, server: &Server) {
    // One that is gone already has nothing to say.
    let Ok(peer) = stream.peer_addr() else { return };
    let pace = Pace::default();
    let socket = Socket::new(stream, &pace);
    tokio::select! {
        // What went wrong is told by the download that it cut short.
        _ = exchange(&socket, server, peer.ip()) => {}
        () = pace.too_slow(server.settings.stall, server.settings.least) => {}
    }
}

/// What a machine said.
enum Heard {
    Request(Box<Request>),
    Refused(StatusCode),
    /// And will say nothing more.
    Nothing,
}

/// Takes the next head out of `octets`, and reads more of them as long as there is none.
async fn next_request(socket: &Socket<'_>, octets: &mut Vec<u8>) -> io::Result<Heard> {
    loop {
        match parse(octets) {
            Parsed::Whole(request, length) => {
                octets.drain(..length);
                return Ok(Heard::Request(request));
            }
            Parsed::Refused(status) => return Ok(Heard::Refused(status)),
            Parsed::Partial if socket.receive(octets, READ).await? == 0 => {
                return Ok(Heard::Nothing);
            }
            Parsed::Partial => {}
        }
    }
}

async fn exchange(socket: &Socket<'_>, server: &Server, peer: IpAddr) -> io::Result<()> {
    let mut octets = Vec::new();
    loop {
        let next = timeout(server.settings.header, next_request(socket, &mut octets)).await;
        let persists = match next.unwrap_or(Ok(Heard::Nothing))? {
            Heard::Nothing => return Ok(()),
            Heard::Request(request) => {
                let response = answer(server, &request, peer).await;
                let framing = Framing::of(&request, &response);
                let persists = request.persists && framing != Framing::Connection;
                reply(socket, response, framing, request.is_old, persists).await?;
                persists
            }
            Heard::Refused(status) => {
                reply(socket, refusal(status), Framing::Length(0), false, false).await?;
                false
            }
        };
        if !persists {
            if !octets.is_empty() {
                say_farewell(socket).await;
            }
            return Ok(());
        }
    }
}

/// Sends one answer.
async fn reply(
    socket: &Socket<'_>,
    response: Response<Body>,
    framing: Framing,
    is_old: bool,
    persists: bool,
) -> io::Result<()> {
    let date = fmt_http_date(SystemTime::now());
    let mut head = head(&response, framing, is_old, persists, &date);
    match (framing, response.into_body()) {
        (Framing::Nothing, _) | (_, Body::Nothing) => socket.send(&head, false).await,
        (_, Body::Text(text)) => {
            head.extend(text);
            socket.send(&head, false).await
        }
        (_, Body::Part(part)) => {
            socket.cork(true)?;
            socket.send(&head, false).await?;
            send_part(socket, part).await?;
            socket.cork(false)
        }
        (_, Body::Remote(remote)) => {
            socket.send(&head, false).await?;
            pass_on(socket, *remote, framing).await
        }
    }
}

/// Sends what another server sends.
async fn pass_on(socket: &Socket<'_>, mut remote: RemoteBody, framing: Framing) -> io::Result<()> {
    while let Some(octets) = remote.next().await? {
        // An empty chunk would be the last one.
        if octets.is_empty() {
            continue;
        }
        if framing == Framing::Chunks {
            socket.send(format!("{:x}\r\n", octets.len()).as_bytes(), true).await?;
            socket.send(&octets, true).await?;
            socket.send(b"\r\n", false).await?;
        } else {
            socket.send(&octets, false).await?;
        }
        remote.passed_on(octets.len());
    }
    if framing == Framing::Chunks {
        socket.send(b"0\r\n\r\n", false).await?;
    }
    remote.done();
    Ok(())
}

/// Listens for a moment without answering: a socket that is closed while there is something unread
/// resets its connection, and takes along what the machine has not read yet.
async fn say_farewell(socket: &Socket<'_>) {
    socket.finish();
    let (time, most) = FAREWELL;
    let listen = async {
        let (mut heard, mut octets) = (0, Vec::new());
        while heard < most {
            octets.clear();
            match socket.receive(&mut octets, READ).await {
                Ok(count) if count > 0 => heard += count,
                _ => return,
            }
        }
    };
    // Late or not, it is over.
    let _ = timeout(time, listen).await;
}
