//! A shell of alice's on a real terminal (tmux), as somebody sits before it.
//!
//! Guarantees: what is read is what the terminal shows, not what was written to it; every wait ends,
//! and one that ends in vain shows the screen. The terminal is closed on drop.

use std::{os::unix::fs::PermissionsExt as _, path::Path, time::Duration};

use crate::{LabError, Result, process::wait_until, scene::Scene};

/// Longest time for anything that is waited for.
const SOON: Duration = Duration::from_secs(40);

/// The terminal and the shell.
#[derive(Debug)]
pub struct Screen<'a> {
    scene: &'a Scene,
    folder: tempfile::TempDir,
}

impl<'a> Screen<'a> {
    /// 80 columns and 24 lines, and a shell that waits.
    pub fn open(scene: &'a Scene) -> Result<Self> {
        let failed = |error| LabError::of("a folder for a terminal", error);
        let folder = tempfile::tempdir().map_err(failed)?;
        let open = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(folder.path(), open).map_err(failed)?;
        let screen = Self { scene, folder };
        screen.tmux(&["new-session", "-d", "-x", "80", "-y", "24", "PS1='$ ' sh -i"])?;
        screen.shows(&["$"])?;
        Ok(screen)
    }

    /// alice's home on it.
    #[must_use]
    pub fn home(&self) -> &Path {
        self.folder.path()
    }

    /// A command to the terminal itself; what it answers.
    pub fn tmux(&self, words: &[&str]) -> Result<String> {
        let mut command = self.scene.host.command(Some("alice"), "tmux");
        command.env("HOME", self.folder.path()).env("TERM", "screen");
        command.args(["-f", "/dev/null", "-S"]).arg(self.folder.path().join("tmux")).args(words);
        self.scene.host.netns().finish(command)
    }

    /// A key, by tmux' name.
    pub fn press(&self, key: &str) -> Result<()> {
        self.tmux(&["send-keys", key]).map(drop)
    }

    /// Types a line and Enter.
    pub fn enter(&self, line: &str) -> Result<()> {
        self.tmux(&["send-keys", "-l", line])?;
        self.press("Enter")
    }

    /// Another size.
    pub fn resize(&self, width: u16, height: u16) -> Result<()> {
        let (width, height) = (width.to_string(), height.to_string());
        self.tmux(&["resize-window", "-x", &width, "-y", &height]).map(drop)
    }

    /// What it shows, without colours.
    pub fn text(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p"])
    }

    /// The same with the escape sequences of colours and weights (ECMA-48, SGR).
    pub fn colored(&self) -> Result<String> {
        self.tmux(&["capture-pane", "-p", "-e"])
    }

    /// Waits until all of these stand on it.
    pub fn shows(&self, words: &[&str]) -> Result<()> {
        let what = format!("{words:?}");
        self.shows_that(&what, SOON, |text| words.iter().all(|word| text.contains(word)))
    }

    /// Waits at most `limit` until its text is so.
    pub fn shows_that(&self, what: &str, limit: Duration, so: impl Fn(&str) -> bool) -> Result<()> {
        let mut text = Ok(String::new());
        let there = wait_until(limit, || {
            text = self.text();
            text.as_ref().map_or(true, |text| so(text))
        });
        match text {
            Ok(text) if !there => Err(LabError(format!("no {what} on the screen:\n{text}"))),
            text => text.map(drop),
        }
    }
}

impl Drop for Screen<'_> {
    fn drop(&mut self) {
        // One whose shell has ended is closed already.
        let _closed = self.tmux(&["kill-server"]);
    }
}
