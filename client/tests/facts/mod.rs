//! A witness that keeps what it is told, for the tests of what comes from other web servers. Every machine is
//! admitted.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use portcullis::{
    admission::Admission,
    event::{Fact, Witness},
    mac::MacAddr,
};

/// Long enough for a busy machine.
pub const SOON: Duration = Duration::from_secs(30);

/// What was told, in its order.
#[derive(Default)]
pub struct Facts(Mutex<Vec<Fact>>);

impl Witness for Facts {
    fn fact(&self, _: MacAddr, fact: Fact) {
        self.0.lock().unwrap().push(fact);
    }
}

impl Admission for Facts {
    fn admitted(&self, _: MacAddr) -> bool {
        true
    }
}

impl Facts {
    /// How many there are of a kind.
    pub fn count(&self, wanted: impl Fn(&Fact) -> bool) -> usize {
        self.0.lock().unwrap().iter().filter(|fact| wanted(fact)).count()
    }

    /// Waits until there are so many.
    #[track_caller]
    pub fn wait(&self, count: usize, wanted: impl Fn(&Fact) -> bool) {
        let end = Instant::now() + SOON;
        while self.count(&wanted) < count {
            assert!(Instant::now() < end, "{:?}", self.0.lock().unwrap());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
