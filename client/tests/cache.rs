//! Files of other web servers that many machines want: one download, copies that are kept, and servers
//! that fail in the middle. The server is a real one on loopback that stops and breaks off where a test
//! says; the machines are curl, and sockets where curl would be too quick.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what failed by panicking")]

mod facts;

use std::{
    collections::BTreeMap,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream},
    os::unix::fs::FileExt as _,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex},
    time::{Duration, Instant},
};

use facts::{Facts, SOON};
use portcullis::{
    event::Fact,
    fetch,
    http::{Settings, serve_http},
    image::{Generation, Remote},
    source::{
        Same,
        cache::{self, Cache, Store},
    },
};

const MIB: usize = 1 << 20;

/// Content in which every misplaced octet shows.
fn content(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at * 31 + at / 251).to_le_bytes()[0]).collect()
}

/// How the server behaves.
#[derive(Clone, Default)]
struct Manner {
    content: Vec<u8>,
    /// Fields of each answer, such as `ETag: "a"`.
    fields: Vec<String>,
    /// Sends no octet from this one on before it is let go.
    hold: Option<usize>,
    /// Breaks off there, once.
    cut: Option<usize>,
    /// What it is from then on.
    after: Option<Box<Manner>>,
    /// Tells no length.
    chunked: bool,
    /// Nor where it ends.
    unframed: bool,
    /// The length that it tells, if it is another one.
    lie: Option<u64>,
}

impl Manner {
    fn new(content: Vec<u8>, etag: &str) -> Self {
        Self { content, fields: vec![format!("ETag: {etag}")], ..Self::default() }
    }

    fn etag(&self) -> Option<&str> {
        self.fields.iter().find_map(|field| field.strip_prefix("ETag: "))
    }
}

#[derive(Default)]
struct State {
    manner: Mutex<Manner>,
    changed: Condvar,
    /// Status and the fields of the request that matter.
    log: Mutex<Vec<String>>,
}

/// A web server.
struct Origin {
    address: SocketAddr,
    state: Arc<State>,
}

impl Origin {
    fn start(manner: Manner) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State { manner: Mutex::new(manner), ..State::default() });
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let state = Arc::clone(&shared);
                // A machine that leaves is no fault of the server.
                std::thread::spawn(move || state.answer(stream.unwrap()));
            }
        });
        Self { address, state }
    }

    fn change(&self, change: impl FnOnce(&mut Manner)) {
        change(&mut self.state.manner.lock().unwrap());
        self.state.changed.notify_all();
    }

    fn log(&self) -> Vec<String> {
        self.state.log.lock().unwrap().clone()
    }
}

impl State {
    fn answer(&self, mut stream: TcpStream) -> std::io::Result<()> {
        let mut head = BTreeMap::new();
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        let method = lines.next().unwrap()?.split(' ').next().unwrap().to_owned();
        for line in lines {
            let line = line?;
            let Some((name, value)) = line.split_once(": ") else { break };
            head.insert(name.to_lowercase(), value.to_owned());
        }
        let manner = self.manner.lock().unwrap().clone();
        let length = manner.content.len();
        let field = |name: &str| head.get(name).map(String::as_str);
        let same = manner.etag().is_some() && field("if-none-match") == manner.etag();
        let first = field("range")
            .filter(|_| field("if-range").is_none_or(|tag| Some(tag) == manner.etag()))
            .and_then(|range| range.strip_prefix("bytes=")?.split('-').next()?.parse().ok());
        let status = if same { 304 } else { first.map_or(200, |_: usize| 206) };
        let asked: Vec<_> = ["range", "if-range", "if-none-match"]
            .iter()
            .filter_map(|name| Some(format!(" {name}={}", field(name)?)))
            .collect();
        self.log.lock().unwrap().push(format!("{method} {status}{}", asked.concat()));
        let start = first.unwrap_or_default();
        let mut answer = format!("HTTP/1.1 {status} X\r\nConnection: close\r\n");
        for field in &manner.fields {
            answer += &format!("{field}\r\n");
        }
        if status == 206 {
            answer += &format!("Content-Range: bytes {start}-{}/{length}\r\n", length - 1);
        }
        let told = manner.lie.unwrap_or((length - start) as u64);
        match (status, manner.chunked) {
            (304, _) => {}
            (_, true) => answer += "Transfer-Encoding: chunked\r\n",
            _ if manner.unframed => {}
            _ => answer += &format!("Content-Length: {told}\r\n"),
        }
        stream.write_all(format!("{answer}\r\n").as_bytes())?;
        if method == "HEAD" || status == 304 {
            return Ok(());
        }
        let mut at = start;
        while at < length {
            let mut now = self.manner.lock().unwrap();
            while now.hold.is_some_and(|hold| hold <= at) {
                now = self.changed.wait(now).unwrap();
            }
            if now.cut.is_some_and(|cut| cut <= at) {
                now.cut = None;
                if let Some(after) = now.after.take() {
                    *now = *after;
                }
                return Ok(());
            }
            let stops = [now.hold, now.cut].into_iter().flatten().filter(|stop| *stop > at);
            let end = stops.chain([length, at + MIB / 4]).min().unwrap();
            drop(now);
            let part = &manner.content[at..end];
            if manner.chunked {
                stream.write_all(format!("{:x}\r\n", part.len()).as_bytes())?;
            }
            stream.write_all(part)?;
            if manner.chunked {
                stream.write_all(b"\r\n")?;
            }
            at = end;
        }
        if manner.chunked { stream.write_all(b"0\r\n\r\n") } else { Ok(()) }
    }
}

/// One run of the program: what it serves is the origin's `/k`.
struct Run {
    address: SocketAddr,
    facts: Arc<Facts>,
    remote: Remote,
    runtime: tokio::runtime::Runtime,
}

/// What lies at the address, and whether it was chosen at the start, as it is now.
struct Wanted {
    path: &'static str,
    facts: fetch::Facts,
}

/// As an API names it.
const UNKNOWN: Wanted = Wanted { path: "/k", facts: fetch::Facts { length: None, etag: None } };

impl Run {
    fn start(origin: &Origin, settings: Option<cache::Settings>, wanted: Wanted) -> Self {
        let address = format!("http://{}{}", origin.address, wanted.path).parse().unwrap();
        let remote = Remote {
            name: "k".to_owned(),
            address,
            facts: wanted.facts,
            direct: false,
            cache: settings.map(Cache::new).unwrap_or_default(),
        };
        let (token, kernel) = ("t".to_owned(), Some(remote.clone().into()));
        let generation = Arc::new(Generation { token, kernel, ..Generation::default() });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.unwrap();
        let facts = Arc::new(Facts::default());
        let settings = Settings::new(SocketAddrV4::new(Ipv4Addr::LOCALHOST, address.port()));
        let source = Arc::new(Same(generation));
        runtime.spawn(serve_http(listener, settings, source, facts.clone(), facts.clone()));
        Self { address, facts, remote, runtime }
    }

    fn url(&self) -> String {
        format!("http://{}/t/52-54-00-12-34-fe/kernel", self.address)
    }

    fn curl(&self, arguments: &[&str]) -> Child {
        let mut command = Command::new("curl");
        command.args(["-s", "-S", "-m", "60"]).args(arguments).arg(self.url());
        command.stdout(Stdio::piped()).spawn().unwrap()
    }

    /// The octets that a machine gets, and curl's exit code.
    fn get(&self, arguments: &[&str]) -> (Vec<u8>, i32) {
        let output = self.curl(arguments).wait_with_output().unwrap();
        (output.stdout, output.status.code().unwrap())
    }

    /// Begins to read, by hand, and reads nothing by itself.
    fn open(&self, fields: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let request = "GET /t/52-54-00-12-34-fe/kernel HTTP/1.1\r\nHost: x\r\n";
        stream.write_all(format!("{request}{fields}\r\n").as_bytes()).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    }

    fn facts(&self, wanted: impl Fn(&Fact) -> bool) -> usize {
        self.facts.count(wanted)
    }

    #[track_caller]
    fn wait(&self, count: usize, wanted: impl Fn(&Fact) -> bool) {
        self.facts.wait(count, wanted);
    }
}

fn started(fact: &Fact) -> bool {
    matches!(fact, Fact::TransferStarted { .. })
}

fn fetched(fact: &Fact) -> bool {
    matches!(fact, Fact::Fetched { .. })
}

fn reused(fact: &Fact) -> bool {
    matches!(fact, Fact::Reused { .. })
}

fn upstream(fact: &Fact, word: &str) -> bool {
    matches!(fact, Fact::Upstream { problem, .. } if problem.contains(word))
}

/// The octets behind the head, `count` of them.
fn body(stream: &mut TcpStream, count: usize) -> Vec<u8> {
    let mut octets = Vec::new();
    while !octets.ends_with(b"\r\n\r\n") {
        let mut one = [0];
        stream.read_exact(&mut one).unwrap();
        octets.extend(one);
    }
    let mut body = vec![0; count];
    stream.read_exact(&mut body).unwrap();
    body
}

fn settings(folder: &Path) -> Option<cache::Settings> {
    let folder = folder.join("portcullis");
    Some(cache::Settings { folder, keep: true, limit: cache::LIMIT })
}

/// The addresses of which copies are kept.
fn kept(folder: &Path) -> Vec<String> {
    let store = Store::open(&folder.join("portcullis"), cache::budget(cache::LIMIT)).unwrap();
    store.list().unwrap().into_iter().map(|(record, _)| record.url).collect()
}

/// What lies in the folder, whatever it is.
fn left(folder: &Path) -> usize {
    std::fs::read_dir(folder.join("portcullis")).map_or(0, Iterator::count)
}

#[test]
fn eight_machines_at_once_are_one_download_and_each_starts_at_its_own_offset() {
    let folder = tempfile::tempdir().unwrap();
    let all = content(12 * MIB);
    let hold = Some(MIB);
    let origin = Origin::start(Manner { hold, ..Manner::new(all.clone(), "\"a\"") });
    let run = Run::start(&origin, settings(folder.path()), UNKNOWN);
    let machines: Vec<_> = (0..8).map(|_| run.curl(&[])).collect();
    run.wait(8, started);
    // Its server holds the rest back: what is there comes all the same, from wherever a machine begins.
    let mut late = run.open("Range: bytes=500000-\r\n");
    assert_eq!(body(&mut late, 1000), all[500_000..501_000]);
    assert_eq!(run.get(&["-r", "7-9"]), (all[7..10].to_vec(), 0));
    assert_eq!(origin.log(), ["GET 200"]);
    // What is far from being there is asked for by itself.
    let mut far = run.open("Range: bytes=11000000-\r\n");
    let end = Instant::now() + SOON;
    while origin.log().len() < 2 {
        assert!(Instant::now() < end);
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(origin.log(), ["GET 200", "GET 206 range=bytes=11000000-"]);
    origin.change(|manner| manner.hold = None);
    let got = machines.into_iter().map(|machine| machine.wait_with_output().unwrap());
    assert!(got.map(|output| output.stdout).all(|octets| octets == all), "the octets differ");
    assert_eq!(body(&mut far, 1000), all[11_000_000..11_001_000]);
    let mut rest = vec![0; all.len() - 501_000];
    late.read_exact(&mut rest).unwrap();
    assert!(rest == all[501_000..], "the octets of the late one differ");
    run.wait(1, |fact| {
        let length = all.len() as u64;
        matches!(fact, Fact::Fetched { octets, kept: true, .. } if *octets == length)
    });
    assert_eq!(origin.log().iter().filter(|line| *line == "GET 200").count(), 1);
}

#[test]
fn a_machine_that_takes_nothing_and_one_that_leaves_keep_nobody_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let all = content(24 * MIB);
    let hold = Some(MIB);
    let origin = Origin::start(Manner { hold, ..Manner::new(all.clone(), "\"a\"") });
    let run = Run::start(&origin, settings(folder.path()), UNKNOWN);
    // The first one, for which the download was begun, leaves; the second one stops reading.
    let mut first = run.open("");
    body(&mut first, 1000);
    let mut stalled = run.open("");
    body(&mut stalled, 1000);
    drop(first);
    origin.change(|manner| manner.hold = None);
    assert!(run.get(&[]) == (all, 0), "the octets differ");
    run.wait(1, fetched);
    assert_eq!(origin.log().len(), 1, "{:?}", origin.log());
}

#[test]
fn a_kept_copy_is_used_if_its_server_says_that_it_is_the_same_and_its_octets_are() {
    let folder = tempfile::tempdir().unwrap();
    let all = content(MIB);
    let origin = Origin::start(Manner::new(all.clone(), "\"a\""));
    let get = || {
        let run = Run::start(&origin, settings(folder.path()), UNKNOWN);
        let got = run.get(&[]);
        if run.facts(reused) == 0 {
            run.wait(1, fetched);
        }
        (got, run)
    };
    assert!(get().0 == (all.clone(), 0));
    let url = format!("http://{}/k", origin.address);
    assert_eq!(kept(folder.path()), [url.as_str()]);

    let (got, run) = get();
    assert!(got == (all.clone(), 0), "the octets of the copy differ");
    assert_eq!((run.facts(reused), run.facts(fetched)), (1, 0));
    assert_eq!(origin.log(), ["GET 200", "GET 304 if-none-match=\"a\""]);
    drop(run);

    // An octet changes on the disk.
    let place = std::fs::read_dir(folder.path().join("portcullis")).unwrap().next().unwrap();
    let place = place.unwrap().path();
    let file = std::fs::File::options().write(true).open(&place).unwrap();
    file.write_all_at(&[!all[777_777]], 777_777).unwrap();
    let (got, run) = get();
    assert!(got == (all.clone(), 0), "the octets fetched anew differ");
    assert!(run.facts(|fact| upstream(fact, "fetched anew")) == 1);
    assert_eq!((run.facts(reused), run.facts(fetched)), (0, 1));
    drop(run);

    // The file changes on its server.
    let new = content(MIB + 7).into_iter().rev().collect::<Vec<_>>();
    origin.change(|manner| *manner = Manner::new(new.clone(), "\"b\""));
    assert!(get().0 == (new.clone(), 0), "the octets of the new one differ");
    assert_eq!(origin.log().last().unwrap(), "GET 200 if-none-match=\"a\"");
    assert!(get().0 == (new, 0));
    assert_eq!(origin.log().last().unwrap(), "GET 304 if-none-match=\"b\"");
    assert_eq!(kept(folder.path()), [url.as_str()]);
}

#[test]
fn a_kept_copy_of_what_was_chosen_at_the_start_is_looked_at_before_a_machine_asks() {
    let folder = tempfile::tempdir().unwrap();
    let all = content(MIB);
    let origin = Origin::start(Manner::new(all.clone(), "\"a\""));
    let run = || {
        let facts = fetch::Facts { length: Some(MIB as u64), etag: Some("\"a\"".to_owned()) };
        let run = Run::start(&origin, settings(folder.path()), Wanted { path: "/k", facts });
        run.runtime.block_on(run.remote.cache.prepare(&run.remote));
        run
    };
    let first = run();
    assert_eq!(origin.log(), [""; 0], "there is nothing to ask about, and nothing is fetched");
    assert!(first.get(&[]) == (all.clone(), 0));
    first.wait(1, fetched);
    drop(first);

    let later = run();
    let looked = ["GET 200", "HEAD 304 if-none-match=\"a\""];
    assert_eq!((origin.log(), later.facts(|_| true)), (looked.map(str::to_owned).to_vec(), 0));
    for _ in 0..2 {
        assert!(later.get(&[]) == (all.clone(), 0));
    }
    assert_eq!((origin.log().len(), later.facts(reused)), (2, 1), "said once, with a machine");
    drop(later);

    let place = std::fs::read_dir(folder.path().join("portcullis")).unwrap().next().unwrap();
    let file = std::fs::File::options().write(true).open(place.unwrap().path()).unwrap();
    file.write_all_at(&[!all[777_777]], 777_777).unwrap();
    let damaged = run();
    assert!(damaged.get(&[]) == (all, 0), "the octets fetched anew differ");
    assert_eq!(damaged.facts(|fact| upstream(fact, "fetched anew")), 1);
    assert_eq!(origin.log().last().unwrap(), "GET 200");
}

/// The one file in the folder, to be damaged.
fn only_copy(folder: &Path) -> std::fs::File {
    let mut files = std::fs::read_dir(folder.join("portcullis")).unwrap();
    let path = files.next().unwrap().unwrap().path();
    assert!(files.next().is_none());
    std::fs::File::options().write(true).open(path).unwrap()
}

/// A run for what was chosen at the start and has this tag, with an earlier run's copy to be looked at.
fn chosen(origin: &Origin, folder: &Path, length: usize, etag: &str) -> Run {
    let facts = fetch::Facts { length: Some(length as u64), etag: Some(etag.to_owned()) };
    let run = Run::start(origin, settings(folder), Wanted { path: "/k", facts });
    run.runtime.block_on(run.remote.cache.prepare(&run.remote));
    run
}

#[test]
fn an_octet_that_changed_in_the_middle_of_a_kept_copy_reaches_no_machine() {
    let all = content(12 * MIB + 7);
    for etag in ["\"a\"", "W/\"a\""] {
        let folder = tempfile::tempdir().unwrap();
        let origin = Origin::start(Manner::new(all.clone(), etag));
        let first = chosen(&origin, folder.path(), all.len(), etag);
        assert!(first.get(&[]) == (all.clone(), 0));
        first.wait(1, fetched);
        drop(first);

        let sound = chosen(&origin, folder.path(), all.len(), etag);
        let machines: Vec<_> = (0..8).map(|_| sound.curl(&[])).collect();
        // Behind what was looked at until now, or not: what is asked for is looked at.
        assert_eq!(sound.get(&["-r", "9000000-9000004"]).0, all[9_000_000..9_000_005]);
        assert_eq!(sound.get(&["-r", "-5"]).0, all[all.len() - 5..]);
        for machine in machines {
            assert!(machine.wait_with_output().unwrap().stdout == all, "the octets differ");
        }
        assert_eq!((sound.facts(reused), sound.facts(fetched)), (1, 0));
        assert_eq!(origin.log().len(), 2, "{:?}", origin.log());
        drop(sound);

        only_copy(folder.path()).write_all_at(&[!all[7_777_777]], 7_777_777).unwrap();
        // Two programs at once.
        let runs = [(); 2].map(|()| chosen(&origin, folder.path(), all.len(), etag));
        let machines: Vec<_> = (0..6).map(|number| runs[number % 2].curl(&[])).collect();
        for machine in machines {
            let output = machine.wait_with_output().unwrap();
            assert!(all.starts_with(&output.stdout), "no other octet is passed on");
            let is_whole = output.stdout.len() == all.len() && output.status.success();
            // Where its server says no more than that it may be the same, it begins anew.
            assert!(is_whole || etag.starts_with('W') && !output.status.success());
        }
        for run in &runs {
            assert!(run.get(&[]) == (all.clone(), 0), "the octets fetched anew differ");
            // The one may have what the other has fetched.
            run.wait(1, |fact| fetched(fact) || reused(fact));
            assert!(run.facts(|fact| upstream(fact, "fetched anew")) < 2);
        }
        let sum = |wanted: &dyn Fn(&Fact) -> bool| runs.iter().map(|run| run.facts(wanted)).sum();
        let (said, new): (usize, usize) = (sum(&|it| upstream(it, "fetched anew")), sum(&fetched));
        assert!(said > 0 && new > 0, "{said} {new}");
        drop(runs);
        assert_eq!((kept(folder.path()).len(), left(folder.path())), (1, 1));
        let again = chosen(&origin, folder.path(), all.len(), etag);
        assert!(again.get(&[]) == (all.clone(), 0) && again.facts(reused) == 1);
    }
}

#[test]
fn a_kept_copy_that_is_shorter_or_whose_hashes_changed_is_fetched_anew() {
    let all = content(3 * MIB);
    type Damage = fn(&std::fs::File);
    let damages: [(Damage, usize); 3] = [
        (|file| file.set_len(2 * MIB as u64).unwrap(), 0),
        // Its end tells nothing more of it.
        (|file| file.set_len(file.metadata().unwrap().len() - 1).unwrap(), 0),
        // The hash of the second part.
        (|file| file.write_all_at(&[0; 4], 3 * MIB as u64 + 40).unwrap(), 1),
    ];
    for (damage, said) in damages {
        let folder = tempfile::tempdir().unwrap();
        let origin = Origin::start(Manner::new(all.clone(), "\"a\""));
        let run = chosen(&origin, folder.path(), all.len(), "\"a\"");
        assert!(run.get(&[]) == (all.clone(), 0));
        run.wait(1, fetched);
        drop(run);
        damage(&only_copy(folder.path()));
        let run = chosen(&origin, folder.path(), all.len(), "\"a\"");
        assert!(run.get(&[]) == (all.clone(), 0), "the octets fetched anew differ");
        run.wait(1, fetched);
        assert_eq!(run.facts(|fact| upstream(fact, "fetched anew")), said);
        assert_eq!((run.facts(reused), kept(folder.path()).len(), left(folder.path())), (0, 1, 1));
    }
}

#[test]
fn a_kept_copy_that_gets_shorter_while_it_is_looked_at_is_never_filled_up() {
    let folder = tempfile::tempdir().unwrap();
    let all = content(40 * MIB);
    let origin = Origin::start(Manner::new(all.clone(), "\"a\""));
    let run = chosen(&origin, folder.path(), all.len(), "\"a\"");
    assert!(run.get(&[]) == (all.clone(), 0));
    run.wait(1, fetched);
    drop(run);
    let run = chosen(&origin, folder.path(), all.len(), "\"a\"");
    let mut machine = run.open("");
    assert!(body(&mut machine, 1000) == all[..1000]);
    only_copy(folder.path()).set_len(MIB as u64).unwrap();
    let mut rest = Vec::new();
    // Broken off, or from what is fetched anew.
    let _ = machine.set_read_timeout(Some(Duration::from_secs(2)));
    let _ = machine.read_to_end(&mut rest);
    assert!(all[1000..].starts_with(&rest), "octets that nobody has sent");
}

#[test]
fn chunks_are_shared_while_they_come_and_kept_with_their_length() {
    let folder = tempfile::tempdir().unwrap();
    let all = content(20 * MIB + 7);
    let manner = Manner { hold: Some(MIB), chunked: true, ..Manner::new(all.clone(), "\"a\"") };
    let origin = Origin::start(manner);
    let run = Run::start(&origin, settings(folder.path()), UNKNOWN);
    // curl takes the chunks apart.
    let machines: Vec<_> = (0..8).map(|_| run.curl(&["-i"])).collect();
    run.wait(8, started);
    assert_eq!(origin.log(), ["GET 200"]);
    // What depends on the length is asked of the server, by itself.
    let mut late = run.open("Range: bytes=500000-\r\n");
    origin.change(|manner| manner.hold = None);
    // The size of the first chunk.
    assert_eq!(body(&mut late, 3).len(), 3);
    for machine in machines {
        let got = machine.wait_with_output().unwrap().stdout;
        let end = got.windows(4).position(|four| four == b"\r\n\r\n").unwrap() + 4;
        let head = String::from_utf8_lossy(&got[..end]).to_lowercase();
        assert!(head.contains("transfer-encoding: chunked") && !head.contains("content-length"));
        assert!(got[end..] == all, "the octets differ");
    }
    run.wait(1, |fact| {
        let length = all.len() as u64;
        matches!(fact, Fact::Fetched { octets, kept: true, .. } if *octets == length)
    });
    assert_eq!(run.facts(|fact| upstream(fact, "does not tell its length")), 1, "said once");
    drop(run);
    // It is no longer than it is, and whoever comes later is told how long that is.
    let kept = std::fs::read_dir(folder.path().join("portcullis")).unwrap().next().unwrap();
    let facts = kept.unwrap().metadata().unwrap();
    assert!(std::os::unix::fs::MetadataExt::blocks(&facts) * 512 < facts.len() + MIB as u64);
    let run = Run::start(&origin, settings(folder.path()), UNKNOWN);
    let got = run.get(&["-i"]).0;
    let end = got.len() - all.len();
    let head = String::from_utf8_lossy(&got[..end]).to_lowercase();
    assert!(head.contains(&format!("content-length: {}\r\n", all.len())), "{head}");
    assert!(got[end..] == all, "the octets of the copy differ");
    assert_eq!(run.facts(reused), 1);
}

#[test]
fn chunks_that_break_off_are_an_error_for_everybody_and_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let all = content(3 * MIB);
    let (hold, cut) = (Some(MIB), Some(2 * MIB));
    let origin =
        Origin::start(Manner { hold, cut, chunked: true, ..Manner::new(all.clone(), "\"a\"") });
    let run = Run::start(&origin, settings(folder.path()), UNKNOWN);
    let machines = [run.curl(&[]), run.curl(&[])];
    run.wait(2, started);
    origin.change(|manner| manner.hold = None);
    for machine in machines {
        let output = machine.wait_with_output().unwrap();
        assert!(!output.status.success() && all.starts_with(&output.stdout));
    }
    assert_eq!((origin.log().len(), run.facts(fetched)), (1, 0));
    assert!(run.get(&[]) == (all, 0), "the next one gets it whole");
}

#[test]
fn within_a_run_what_was_chosen_at_the_start_is_not_asked_for_again_and_the_rest_is() {
    let folder = tempfile::tempdir().unwrap();
    let all = content(MIB);
    let origin = Origin::start(Manner::new(all.clone(), "\"a\""));
    let facts = fetch::Facts { length: Some(MIB as u64), etag: Some("\"a\"".to_owned()) };
    let run = Run::start(&origin, settings(folder.path()), Wanted { path: "/k", facts });
    for _ in 0..3 {
        assert!(run.get(&[]) == (all.clone(), 0));
        run.wait(1, fetched);
    }
    assert_eq!(run.get(&["-r", "1000000-1000004"]).0, all[1_000_000..1_000_005]);
    assert_eq!(run.get(&["-r", "-5"]).0, all[MIB - 5..]);
    assert_eq!(origin.log(), ["GET 200"]);
    let head = String::from_utf8(run.get(&["-I"]).0).unwrap().to_lowercase();
    assert!(head.contains("content-length: 1048576\r\n") && head.contains("etag: \"a\""), "{head}");

    let run = Run::start(&origin, settings(folder.path()), UNKNOWN);
    for _ in 0..2 {
        assert!(run.get(&[]) == (all.clone(), 0));
    }
    let unchanged = "GET 304 if-none-match=\"a\"";
    assert_eq!(origin.log(), ["GET 200", unchanged, unchanged]);
    origin.change(|manner| *manner = Manner::new(b"new".to_vec(), "\"b\""));
    assert_eq!(run.get(&[]), (b"new".to_vec(), 0));

    let facts = fetch::Facts { length: Some(MIB as u64), etag: Some("\"a\"".to_owned()) };
    let run = Run::start(&origin, settings(folder.path()), Wanted { path: "/k", facts });
    assert_eq!(run.get(&["-o", "/dev/null", "-w", "%{http_code}"]).0, b"502");
    assert_eq!(run.facts(|fact| upstream(fact, "since portcullis was started")), 1);
}

#[test]
fn what_may_not_be_kept_is_not_and_no_cache_leaves_nothing() {
    let all = content(MIB);
    let plain = |fields: &[&str]| Manner {
        content: all.clone(),
        fields: fields.iter().map(|field| (*field).to_owned()).collect(),
        ..Manner::default()
    };
    for (manner, path, keep, fetches) in [
        (plain(&[]), "/k", true, 1),
        (plain(&["ETag: \"a\"", "Cache-Control: no-store"]), "/k", true, 0),
        (plain(&["ETag: \"a\""]), "/k?signature=secret", true, 1),
        (plain(&["ETag: \"a\""]), "/k", false, 1),
        (Manner { chunked: true, ..plain(&[]) }, "/k", true, 1),
        // Its end could be a connection's that broke off.
        (Manner { unframed: true, ..plain(&["ETag: \"a\""]) }, "/k", true, 0),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let origin = Origin::start(Manner { hold: Some(1000), ..manner });
        let settings = settings(folder.path()).map(|it| cache::Settings { keep, ..it });
        let run = Run::start(&origin, settings, Wanted { path, ..UNKNOWN });
        let machines = [run.curl(&[]), run.curl(&[])];
        run.wait(2, started);
        if !keep {
            assert_eq!(left(folder.path()), 0, "nothing is there for a kill to leave");
        }
        origin.change(|manner| manner.hold = None);
        for machine in machines {
            assert!(machine.wait_with_output().unwrap().stdout == all, "{path}");
        }
        run.wait(fetches, fetched);
        assert_eq!(run.facts(fetched), fetches, "{path}");
        assert_eq!(run.facts(|fact| matches!(fact, Fact::Fetched { kept: true, .. })), 0);
        assert_eq!(left(folder.path()), 0, "{path}");
        let questions = if fetches == 1 { 1 } else { 2 };
        assert_eq!(origin.log().len(), questions, "{path}: {:?}", origin.log());
    }
}

#[test]
fn a_server_that_breaks_off_is_taken_up_where_it_ended_or_everybody_is_told() {
    let all = content(3 * MIB);
    let cut = Some(MIB + 7);
    let other = Manner::new(content(3 * MIB + 1), "\"b\"");
    for (manner, problem) in [
        (Manner { cut, ..Manner::new(all.clone(), "\"a\"") }, None),
        (Manner { cut, ..Manner::new(all.clone(), "W/\"a\"") }, Some("broke off")),
        (
            Manner { cut, after: Some(Box::new(other)), ..Manner::new(all.clone(), "\"a\"") },
            Some("while it was being fetched"),
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let origin = Origin::start(manner);
        let run = Run::start(&origin, settings(folder.path()), UNKNOWN);
        let (got, code) = run.get(&[]);
        assert!(all.starts_with(&got), "no octet of another file is passed on");
        let log = origin.log();
        match problem {
            None => {
                assert!((got.len(), code) == (all.len(), 0), "{code}");
                assert_eq!(log[1..], ["GET 206 range=bytes=1048583- if-range=\"a\""]);
                run.wait(1, fetched);
            }
            Some(word) => {
                assert!(matches!(code, 18 | 56), "{code}");
                let told = |fact: &Fact| matches!(fact, Fact::TransferEnded { reason, .. } if reason.contains(word));
                run.wait(1, told);
                assert_eq!(run.facts(fetched), 0);
                // The next one gets it whole.
                let now = origin.state.manner.lock().unwrap().content.clone();
                assert!(run.get(&[]) == (now, 0));
            }
        }
    }
}

#[test]
fn a_length_that_is_wrong_is_an_error_and_nothing_is_filled_up() {
    let folder = tempfile::tempdir().unwrap();
    let all = content(MIB);
    let lie = Some(2 * MIB as u64);
    let origin = Origin::start(Manner { lie, ..Manner::new(all.clone(), "W/\"a\"") });
    let run = Run::start(&origin, settings(folder.path()), UNKNOWN);
    let (got, code) = run.get(&[]);
    assert!(got == all && matches!(code, 18 | 56), "{code}");
    assert_eq!(left(folder.path()), 0);
}

#[test]
fn where_there_is_no_room_or_no_folder_each_machine_has_its_own_download() {
    let folder = tempfile::tempdir().unwrap();
    let all = content(MIB);
    // More than any disk has.
    let lie = Some(1 << 60);
    let origin = Origin::start(Manner { lie, ..Manner::new(all.clone(), "W/\"a\"") });
    let unlimited = settings(folder.path()).map(|it| cache::Settings { limit: u64::MAX, ..it });
    let run = Run::start(&origin, unlimited, UNKNOWN);
    for _ in 0..2 {
        assert!(run.get(&[]).0 == all);
    }
    assert_eq!(run.facts(|fact| upstream(fact, "disk has no room")), 1, "said once");
    assert_eq!(run.facts(|fact| upstream(fact, "XDG_CACHE_HOME")), 1, "and what to do");
    assert_eq!(left(folder.path()), 0);

    let origin = Origin::start(Manner::new(all.clone(), "\"a\""));
    let small = settings(folder.path()).map(|it| cache::Settings { limit: 1000, ..it });
    let run = Run::start(&origin, small, UNKNOWN);
    assert!(run.get(&[]) == (all.clone(), 0));
    assert_eq!(run.facts(|fact| upstream(fact, "--cache-size")), 1);

    let file = tempfile::NamedTempFile::new().unwrap();
    let run = Run::start(&origin, settings(file.path()), UNKNOWN);
    for _ in 0..2 {
        assert!(run.get(&[]) == (all.clone(), 0));
    }
    assert_eq!(run.facts(|fact| upstream(fact, "no copies can be put there")), 1);
    let run = Run::start(&origin, None, UNKNOWN);
    assert!(run.get(&[]) == (all, 0));
    assert_eq!(run.facts(|fact| matches!(fact, Fact::Upstream { .. })), 0);
}

#[test]
fn two_runs_at_once_do_not_spoil_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let all = content(4 * MIB);
    let origin = Origin::start(Manner { hold: Some(MIB), ..Manner::new(all.clone(), "\"a\"") });
    let runs = [(); 2].map(|()| Run::start(&origin, settings(folder.path()), UNKNOWN));
    let machines = [runs[0].curl(&[]), runs[1].curl(&[])];
    runs.iter().for_each(|run| run.wait(1, started));
    // A third one begins, and leaves alone what grows.
    assert_eq!(kept(folder.path()), [""; 0]);
    assert_eq!(left(folder.path()), 2);
    origin.change(|manner| manner.hold = None);
    for machine in machines {
        assert!(machine.wait_with_output().unwrap().stdout == all, "the octets differ");
    }
    runs.iter().for_each(|run| run.wait(1, fetched));
    assert_eq!((kept(folder.path()).len(), left(folder.path())), (1, 1));
}

#[test]
fn cache_lists_and_clears_what_is_kept() {
    let folder = tempfile::tempdir().unwrap();
    let cache = |action: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        command.args(["cache", action, "--json"]).env("XDG_CACHE_HOME", folder.path());
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(cache("list").contains("No copies are kept"));
    let origin = Origin::start(Manner::new(content(MIB), "\"a\""));
    let run = Run::start(&origin, settings(folder.path()), UNKNOWN);
    run.get(&[]);
    run.wait(1, fetched);
    let listed: serde_json::Value = serde_json::from_str(&cache("list")).unwrap();
    assert_eq!(listed["url"], format!("http://{}/k", origin.address));
    assert_eq!((&listed["event"], &listed["bytes"]), (&"copy".into(), &MIB.into()));
    assert!(cache("clear").contains("1 in use stayed"));
    drop(run);
    assert!(cache("clear").contains("Removed: 1 copies"));
    assert_eq!(left(folder.path()), 0);
}
