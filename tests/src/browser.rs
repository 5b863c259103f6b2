//! A browser without a window: Chromium, told what to do over a pair of pipes (Chrome DevTools
//! Protocol, `--remote-debugging-pipe`: JSON texts, each ended by a NUL).
//!
//! Guarantees: it asks nobody on the internet, keeps nothing, and ends with this value; every wait
//! ends, and one that ends in vain shows what was on the page. What the browser itself complains of
//! (an exception, something that the page's policy forbids) is kept in [`Browser::complaints`].

use std::{
    fs::File,
    io::{ErrorKind, Read, Write},
    os::fd::AsFd,
    process::Stdio,
    time::{Duration, Instant},
};

use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::stat::Mode,
    unistd::mkfifo,
};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    LabError, Result,
    netns::Netns,
    process::{Process, mortal},
};

/// Longest wait for an answer, or for something to appear, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at the page.
const LOOK: Duration = Duration::from_millis(50);

/// A browser with one page.
#[derive(Debug)]
pub struct Browser {
    // Dropped first, since it works in the directory.
    process: Process,
    orders: File,
    answers: File,
    read: Vec<u8>,
    number: u64,
    page: Option<String>,
    complaints: Vec<String>,
    _directory: TempDir,
}

/// How a page is looked at.
#[derive(Clone, Copy, Debug)]
pub struct Look {
    /// CSS pixels.
    pub width: u32,
    /// CSS pixels.
    pub height: u32,
    /// Whether its user prefers light on dark.
    pub dark: bool,
}

impl Browser {
    /// Starts it in a network namespace.
    pub fn start(netns: &Netns) -> Result<Self> {
        let failed = |error: &dyn std::fmt::Display| LabError::of("a browser", error);
        let directory = tempfile::Builder::new()
            .prefix("portcullis-browser-")
            .tempdir()
            .map_err(|error| failed(&error))?;
        let pipe = |name: &str| {
            let path = directory.path().join(name);
            mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR).map_err(|error| failed(&error))?;
            // Both ends, so that opening waits for nobody.
            let file = File::options().read(true).write(true).open(&path);
            Ok((path, file.map_err(|error| failed(&error))?))
        };
        let (orders_path, orders) = pipe("orders")?;
        let (answers_path, answers) = pipe("answers")?;
        let mut command = mortal("sh");
        command
            .args([
                "-c",
                "orders=$1 answers=$2; shift 2; exec chromium \"$@\" 3<\"$orders\" 4>\"$answers\"",
                "sh",
            ])
            .args([orders_path, answers_path])
            .args(["--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu"])
            .args(["--disable-quic", "--no-first-run", "--disable-background-networking"])
            .args(["--disable-component-update", "--disable-sync", "--hide-scrollbars"])
            .arg(format!("--user-data-dir={}", directory.path().join("profile").display()))
            .arg("about:blank")
            .env("HOME", directory.path())
            .env_remove("DBUS_SESSION_BUS_ADDRESS")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let process = netns.spawn(command)?;
        let mut browser = Self {
            process,
            orders,
            answers,
            read: Vec::new(),
            number: 0,
            page: None,
            complaints: Vec::new(),
            _directory: directory,
        };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }))?;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let page = browser.call("Target.attachToTarget", attach)?;
        browser.page = page["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}))?;
        }
        Ok(browser)
    }

    /// Goes to an address.
    pub fn open(&mut self, url: &str) -> Result<()> {
        let answer = self.call("Page.navigate", json!({ "url": url }))?;
        match answer["errorText"].as_str() {
            Some(error) => Err(LabError::of(url, error)),
            None => self.wait("document.readyState === 'complete'").map(|_| ()),
        }
    }

    /// What an expression of JavaScript is on the page.
    pub fn eval(&mut self, expression: &str) -> Result<Value> {
        let wish = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", wish)?;
        match answer.get("exceptionDetails") {
            Some(details) => Err(LabError::of(expression, details)),
            None => Ok(answer["result"]["value"].clone()),
        }
    }

    /// The same as text.
    pub fn text(&mut self, expression: &str) -> Result<String> {
        let value = self.eval(expression)?;
        Ok(value.as_str().map_or_else(|| value.to_string(), str::to_owned))
    }

    /// Waits until an expression is something and not nothing.
    pub fn wait(&mut self, expression: &str) -> Result<Value> {
        let begun = Instant::now();
        loop {
            // A page that is just being replaced has nothing to say.
            let value = self.eval(expression).unwrap_or_default();
            let nothing = [Value::Null, false.into(), 0.into(), "".into()];
            if !nothing.contains(&value) {
                return Ok(value);
            }
            if begun.elapsed() > PATIENCE {
                let shown = self.text("document.body.innerText").unwrap_or_default();
                let complaints = self.complaints.join("\n");
                return Err(LabError(format!("never: {expression}\n{shown}\n{complaints}")));
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Presses a key, as its name in `KeyboardEvent.key`; those that type a letter type it.
    pub fn press(&mut self, key: &str) -> Result<()> {
        let code = match key {
            "Enter" => 13,
            "Escape" => 27,
            "Tab" => 9,
            "ArrowDown" => 40,
            "ArrowUp" => 38,
            _ => 0,
        };
        let text = match key {
            "Enter" => "\r",
            _ if key.chars().count() == 1 => key,
            _ => "",
        };
        let event = |kind: &str, text: &str| json!({ "type": kind, "key": key, "windowsVirtualKeyCode": code, "text": text });
        self.call("Input.dispatchKeyEvent", event("keyDown", text))?;
        self.call("Input.dispatchKeyEvent", event("keyUp", ""))?;
        Ok(())
    }

    /// Looks at the page in this way from now on.
    pub fn look(&mut self, look: Look) -> Result<()> {
        let Look { width, height, dark } = look;
        let window =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", window)?;
        let scheme = if dark { "dark" } else { "light" };
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call("Emulation.setEmulatedMedia", media)?;
        Ok(())
    }

    /// The page as a picture (PNG), as it is looked at.
    pub fn picture(&mut self) -> Result<Vec<u8>> {
        let answer = self.call("Page.captureScreenshot", json!({ "format": "png" }))?;
        base64(answer["data"].as_str().unwrap_or_default())
            .ok_or_else(|| LabError("the browser's picture is no base64".to_owned()))
    }

    /// What the browser has complained of.
    #[must_use]
    pub fn complaints(&self) -> &[String] {
        &self.complaints
    }

    /// One order and its answer.
    pub fn call(&mut self, method: &str, parameters: Value) -> Result<Value> {
        self.number += 1;
        let number = self.number;
        let mut order = json!({ "id": number, "method": method, "params": parameters });
        if let Some(page) = &self.page {
            order["sessionId"] = page.as_str().into();
        }
        let failed = |error: std::io::Error| LabError::of(method, error);
        self.orders.write_all(format!("{order}\0").as_bytes()).map_err(failed)?;
        let end = Instant::now() + PATIENCE;
        loop {
            let message = self.message(end).map_err(failed)?;
            self.listen(&message);
            if message["id"] == number {
                return match message.get("error") {
                    Some(error) => Err(LabError::of(method, error)),
                    None => Ok(message["result"].clone()),
                };
            }
        }
    }

    fn message(&mut self, end: Instant) -> std::io::Result<Value> {
        loop {
            if let Some(at) = self.read.iter().position(|byte| *byte == 0) {
                let message: Vec<_> = self.read.drain(..=at).collect();
                let text = message.strip_suffix(b"\0").unwrap_or_default();
                return serde_json::from_slice(text).map_err(std::io::Error::other);
            }
            let left = end.saturating_duration_since(Instant::now());
            let left = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut ears = [PollFd::new(self.answers.as_fd(), PollFlags::POLLIN)];
            if poll(&mut ears, left)? == 0 {
                let ended = self.process.wait(Duration::ZERO).ok().flatten();
                let text = format!("the browser does not answer (ended: {ended:?})");
                return Err(std::io::Error::new(ErrorKind::TimedOut, text));
            }
            let mut bytes = [0; 1 << 16];
            let count = self.answers.read(&mut bytes)?;
            self.read.extend(bytes.iter().take(count));
        }
    }

    fn listen(&mut self, message: &Value) {
        let parameters = &message["params"];
        let complaint = match message["method"].as_str() {
            Some("Runtime.exceptionThrown") => &parameters["exceptionDetails"],
            Some("Log.entryAdded") if parameters["entry"]["level"] == "error" => {
                &parameters["entry"]
            }
            _ => return,
        };
        self.complaints.push(complaint.to_string());
    }
}

/// RFC 4648 section 4.
fn base64(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut word, mut bits) = (0_u32, 0);
    for letter in text.trim_end_matches('=').bytes() {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        word = (word << 6 | u32::from(value)) & 0xff_ffff;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            bytes.extend((word >> bits).to_be_bytes().last());
        }
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_come_in_base64() {
        // RFC 4648 section 10.
        for (text, bytes) in
            [("", ""), ("Zg==", "f"), ("Zm8=", "fo"), ("Zm9v", "foo"), ("Zm9vYmFy", "foobar")]
        {
            assert_eq!(base64(text).as_deref(), Some(bytes.as_bytes()), "{text}");
        }
        assert_eq!(base64("+/+/").as_deref(), Some([0xfb, 0xff, 0xbf].as_slice()));
        assert_eq!(base64("Zm9?"), None);
    }
}
