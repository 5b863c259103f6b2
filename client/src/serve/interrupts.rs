//! The user's and the system's wish that it ends: SIGINT, SIGTERM and SIGHUP.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::{Code, Failure};

/// The user's and the system's wish that this ends.
pub(super) struct Interrupts {
    interrupt: Signal,
    terminate: Signal,
    /// The terminal is closed.
    hangup: Option<Signal>,
}

impl Interrupts {
    pub(super) fn new() -> Result<Self, Failure> {
        let watch = || -> io::Result<Self> {
            Ok(Self {
                interrupt: signal(SignalKind::interrupt())?,
                terminate: signal(SignalKind::terminate())?,
                hangup: Some(signal(SignalKind::hangup())?),
            })
        };
        watch().map_err(|error| {
            Failure::new(Code::Internal, format!("signals cannot be watched: {error}"))
        })
    }

    /// Where SIGHUP means something else.
    pub(super) fn spare_hangups(&mut self, spare: bool) {
        if spare {
            self.hangup = None;
        }
    }

    pub(super) async fn next(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = hangup => {}
        }
    }
}
