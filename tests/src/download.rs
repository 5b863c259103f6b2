//! Downloads as a machine makes them: in small steps, at its own pace, and patient with a network
//! that loses packets for a while.
//!
//! Guarantees: what is returned came whole; a download that stands still for `PATIENCE` fails.

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use socket2::{Domain, Socket, Type};

use crate::{
    LabError, Result,
    host::{Client, SOON},
    netns::Netns,
    probe,
    process::wait_until,
};

/// Hardware address of the machine that downloads.
pub const MAC: &str = "02:00:00:00:00:07";
/// Longest standstill.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long before a TFTP client says its last word again.
const RETRY: Duration = Duration::from_millis(500);

/// The path of the kernel: what an iPXE on `interface` of `from` is told to load from is beside it.
pub fn kernel_path(from: &Netns, interface: &str, client: &Client) -> Result<String> {
    let mut discover = vec![0; 236];
    discover[..4].copy_from_slice(&[1, 1, 6, 0]);
    discover[10] = 0x80;
    discover[28..34].copy_from_slice(&[2, 0, 0, 0, 0, 7]);
    // Cookie; DISCOVER; PXEClient; BIOS; iPXE with HTTP and bzImage (RFC 2132, RFC 4578, iPXE's 175).
    discover.extend(b"\x63\x82\x53\x63\x35\x01\x01\x3c\x20PXEClient:Arch:00000:UNDI:002001");
    discover.extend(b"\x5d\x02\x00\x00\x4d\x04iPXE\xaf\x06\x13\x01\x01\x18\x01\x01\xff");
    let nobody = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68);
    let everybody = SocketAddrV4::new(Ipv4Addr::BROADCAST, 67);
    let mut told = None;
    let mut asked = Instant::now() - SOON;
    wait_until(SOON, || {
        if asked.elapsed() > Duration::from_secs(2) {
            asked = Instant::now();
            let _asked_again_if_lost =
                probe::broadcast(from, interface, nobody, everybody, &discover);
        }
        let offered = |event: &serde_json::Value| event["mac"] == MAC && event["form"] == "script";
        told = client.events().iter().find(|event| offered(event)).map(|event| {
            let url = event["file"].as_str().unwrap_or_default();
            let path = url.splitn(4, '/').nth(3).unwrap_or_default();
            format!("/{}", path.replace("boot.ipxe", "kernel"))
        });
        told.is_some()
    });
    told.ok_or_else(|| LabError(format!("iPXE is told nothing:\n{}", client.stdout())))
}

/// Fetches `path` in steps of at most 64 KiB, with a rest after each.
pub fn http(from: &Netns, to: SocketAddr, path: &str, rest: Duration) -> Result<Vec<u8>> {
    let fetch = || -> std::io::Result<Vec<u8>> {
        let mut stream = connect(to)?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: lab\r\nConnection: close\r\n\r\n")?;
        let mut bytes = Vec::new();
        let mut step = vec![0; 1 << 16];
        loop {
            match stream.read(&mut step)? {
                0 => return Ok(bytes),
                length => bytes.extend(step.iter().take(length)),
            }
            std::thread::sleep(rest);
        }
    };
    let answer = from.run(fetch)?.map_err(|error| LabError::of(path, error))?;
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").map_or(0, |at| at + 4);
    let (head, body) = answer.split_at(end);
    let head = String::from_utf8_lossy(head).to_lowercase();
    let whole = format!("content-length: {}\r\n", body.len());
    if head.starts_with("http/1.1 200") && head.contains(&whole) {
        Ok(body.to_vec())
    } else {
        Err(LabError(format!("{path}: {} octets after\n{head}", body.len())))
    }
}

/// A connection with a small window, so that the other side cannot send everything at once.
pub fn connect(to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.set_recv_buffer_size(1 << 16)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect_timeout(&to.into(), SOON)?;
    Ok(socket.into())
}

/// Fetches a file block by block (RFC 1350), with a rest after each.
pub fn tftp(from: &Netns, to: SocketAddr, file: &str, rest: Duration) -> Result<Vec<u8>> {
    let failed = |why: &dyn std::fmt::Display| LabError(format!("tftp {file}: {why}"));
    from.run(|| {
        let socket = UdpSocket::bind("0.0.0.0:0").map_err(|error| failed(&error))?;
        socket.set_read_timeout(Some(RETRY)).map_err(|error| failed(&error))?;
        let mut word = [b"\0\x01", file.as_bytes(), b"\0octet\0"].concat();
        let (mut server, mut block) = (to, 1_u16);
        let mut bytes = Vec::new();
        let mut buffer = [0; 1024];
        let mut heard = Instant::now();
        loop {
            socket.send_to(&word, server).map_err(|error| failed(&error))?;
            // An old block again is no reason to say anything again.
            let data = loop {
                match socket.recv_from(&mut buffer) {
                    Ok((length, sender)) => match buffer.get(..length) {
                        Some([0, 3, high, low, data @ ..])
                            if u16::from_be_bytes([*high, *low]) == block =>
                        {
                            server = sender;
                            break Some(data);
                        }
                        Some([0, 5, _, _, text @ ..]) => {
                            return Err(failed(&String::from_utf8_lossy(text)));
                        }
                        _ => {}
                    },
                    Err(_) if heard.elapsed() > PATIENCE => return Err(failed(&"no answer")),
                    Err(_) => break None,
                }
            };
            let Some(data) = data else { continue };
            heard = Instant::now();
            bytes.extend(data);
            word = [[0, 4], block.to_be_bytes()].concat();
            block = block.wrapping_add(1);
            if data.len() < 512 {
                socket.send_to(&word, server).map_err(|error| failed(&error))?;
                return Ok(bytes);
            }
            std::thread::sleep(rest);
        }
    })?
}
