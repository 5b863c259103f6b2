//! A web server that has the image, for those who pass it on to the machines and keep a copy: nginx on a
//! computer of its own on their LAN. Its log tells how many octets it has sent.

use std::{fs::Permissions, os::unix::fs::PermissionsExt as _, path::PathBuf, time::Duration};

use portcullis_lab::{
    LabError, Result, download,
    host::SOON,
    lan::Lan,
    load::{Enough, http},
    netns::Netns,
    process::{Process, wait_until},
};

use crate::servers::{Body, IMAGE, Images, Server, address, alone, mac};

/// Its address on the LAN.
const ADDRESS: &str = "192.0.2.3";

/// The server that has the image, and where the one that passes it on keeps its copy.
#[derive(Debug)]
pub struct Origin {
    // Dropped in this order: what runs, then where it runs.
    _nginx: Process,
    _netns: Netns,
    log: PathBuf,
    /// Of whoever passes it on.
    cache: PathBuf,
    /// The image has another address each time that it is to be new to nginx.
    turn: u32,
}

/// How nginx keeps what it passes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proxy {
    /// The file as one: a machine that comes second waits for the whole.
    Whole,
    /// In slices of 4 MiB: it waits for one.
    Slices,
}

impl Origin {
    fn start(lan: &Lan, images: &Images, label: &str) -> Result<Self> {
        let netns = Netns::new("origin")?;
        lan.attach(&netns, "eth0", Some(&format!("{ADDRESS}/24")))?;
        let log = images.path().join(format!("{label}-origin.log"));
        let http = format!(
            "log_format octets '$body_bytes_sent'; access_log {} octets;
server {{ listen {ADDRESS}:80; root {}; }}",
            log.display(),
            images.path().display()
        );
        let (configuration, _) = images.nginx(&format!("{label}-origin"), &http)?;
        let nginx = alone(&netns, "nginx", &["-e", "/dev/null", "-c", &configuration])?;
        let ready =
            || netns.sh("ss -Hlnt 'sport = :80'").is_ok_and(|listening| !listening.is_empty());
        if !wait_until(SOON, ready) {
            return Err(LabError("the server that has the image does not listen".to_owned()));
        }
        let cache = cache(images, label)?;
        Ok(Self { _nginx: nginx, _netns: netns, log, cache, turn: 0 })
    }

    /// Octets that it has sent.
    pub fn sent(&self) -> u64 {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        log.lines().filter_map(|line| line.parse::<u64>().ok()).sum()
    }

    /// Where nginx has it.
    pub fn path(&self) -> String {
        format!("/{IMAGE}?{}", self.turn)
    }

    /// Removes what was kept.
    fn forget(&self) -> Result<()> {
        let failed = |error| LabError::of(self.cache.display(), error);
        for entry in std::fs::read_dir(&self.cache).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            let removed = if path.is_dir() {
                std::fs::remove_dir_all(&path)
            } else {
                std::fs::remove_file(&path)
            };
            removed.map_err(failed)?;
        }
        Ok(())
    }
}

impl Server {
    /// nginx as a caching proxy before another one.
    pub fn proxy(images: &Images, how: Proxy) -> Result<Self> {
        let (name, label) = match how {
            Proxy::Whole => ("nginx", "whole"),
            Proxy::Slices => ("nginx by slices", "slices"),
        };
        let slices = match how {
            Proxy::Whole => "proxy_cache_key $uri$is_args$args; proxy_cache_valid 200 1h;",
            Proxy::Slices => {
                "slice 4m; proxy_set_header Range $slice_range; \
                 proxy_cache_key $uri$is_args$args$slice_range; proxy_cache_valid 200 206 1h;"
            }
        };
        let http = format!(
            "access_log off; proxy_cache_path {} keys_zone=copies:10m max_size=8g use_temp_path=off;
upstream origin {{ server {ADDRESS}:80; keepalive 8; }}
server {{ listen 192.0.2.2:80; location / {{ proxy_pass http://origin; proxy_http_version 1.1;
proxy_set_header Connection ''; proxy_buffers 16 256k; proxy_buffer_size 256k; proxy_busy_buffers_size 1m;
proxy_cache copies; proxy_cache_lock on; proxy_cache_lock_timeout 600s; proxy_cache_lock_age 600s;
{slices} }} }}",
            cache(images, label)?.display()
        );
        let (configuration, how) = images.nginx(&format!("{label}-proxy"), &http)?;
        let words = ["-e", "/dev/null", "-c", &configuration].map(str::to_owned);
        let mut server = Self::rival(name, "nginx", &words, "'sport = :80'")?;
        server.origin = Some(Origin::start(&server.lan, images, label)?);
        Ok(Self { how, ..server })
    }

    /// Portcullis before another server.
    pub fn portcullis_before_another(images: &Images) -> Result<Self> {
        let mut server = Self::ours_alone()?;
        server.origin = Some(Origin::start(&server.lan, images, "ours")?);
        server.how = format!(
            "portcullis boot http://{ADDRESS}/{IMAGE}, else as above; a copy of an earlier run is used if that \
             server, asked anew, says that it is the same, and if its SHA-256 is"
        );
        server.relay(None)?;
        Ok(server)
    }

    /// Passes on what another server has, which it has never seen, or which is `kept`, by nginx in its
    /// cache, by us from an earlier run, and this one began so long ago.
    pub fn relay(&mut self, kept: Option<Duration>) -> Result<()> {
        let Some(origin) = &mut self.origin else {
            return Err(LabError(format!("{} passes nothing on", self.name)));
        };
        origin.turn += 1;
        origin.forget()?;
        self.begin_relay()?;
        // The disk writes nothing of before while the next figure is taken.
        nix::unistd::sync();
        if let Some(rest) = kept {
            let (to, path) = self.url(0);
            let got = self.machines.run(|| http::fetch(address(0), to, &path, Enough::ALL))?;
            got.map_err(|error| LabError::of(self.name, error))?;
            if let Body::Ours(ours) = &self.body {
                let kept = |event: &serde_json::Value| event["fact"] == "fetched";
                let is_kept = || {
                    let client = ours.client.as_ref();
                    client.is_some_and(|client| client.events().iter().any(kept))
                };
                if !wait_until(4 * SOON, is_kept) {
                    return Err(LabError("Portcullis keeps no copy".to_owned()));
                }
            }
            nix::unistd::sync();
            self.begin_relay()?;
            std::thread::sleep(rest);
        }
        Ok(())
    }

    /// Starts our program anew; nginx runs on.
    fn begin_relay(&mut self) -> Result<Duration> {
        let (Body::Ours(_), Some(origin)) = (&self.body, &self.origin) else {
            return Ok(Duration::ZERO);
        };
        let cache = format!("XDG_CACHE_HOME={}", origin.cache.display());
        let url = format!("http://{ADDRESS}/{IMAGE}");
        let time = self.start("env", &[&cache, "portcullis", &url], SOON)?;
        let Body::Ours(ours) = &mut self.body else { return Ok(time) };
        if let Some(client) = &ours.client {
            let path = download::kernel_path(&self.machines, "eth0", client)?;
            ours.path = path.replace(&download::MAC.replace(':', "-"), &mac(0));
        }
        Ok(time)
    }
}

/// Where copies are kept; everybody may write there.
fn cache(images: &Images, label: &str) -> Result<PathBuf> {
    let path = images.path().join(format!("{label}-cache"));
    std::fs::create_dir_all(&path)
        .and_then(|()| std::fs::set_permissions(&path, Permissions::from_mode(0o777)))
        .map_err(|error| LabError::of(path.display(), error))?;
    Ok(path)
}
