//! Other web servers: an API that is asked about machines, files that are passed on, recipes and
//! https. The servers are real, slow, failing and malformed ones; so is the program where it says
//! `portcullis`. Section numbers are those of the description of Pixiecore that docs/pixiecore.md
//! follows.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what failed by panicking")]

mod facts;

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener},
    os::unix::fs::symlink,
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use axum::{
    Router,
    body::Body,
    http::{Request, Response},
};
use bytes::Bytes;
use facts::Facts;
use futures_util::StreamExt as _;
use portcullis::{
    event::{Fact, Firmware, Ignored},
    http::{Settings, serve_http},
    mac::MacAddr,
    source::{Source as _, Step, Traits, api::Api},
};

const MAC: MacAddr = MacAddr([0x52, 0x54, 0, 0x12, 0x34, 0xfe]);
const OTHER: MacAddr = MacAddr([0x52, 0x54, 0, 0, 0, 0x0a]);

/// Everything that is asked of the service: method, path with query, and one header.
type Log = Arc<Mutex<Vec<String>>>;

/// A web service on loopback that answers with what `answer` makes of a path and its query.
struct Service {
    address: SocketAddr,
    log: Log,
    runtime: tokio::runtime::Runtime,
}

impl Service {
    fn start<F>(answer: impl Fn(String, Request<Body>) -> F + Clone + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = listener.local_addr().unwrap();
        let log = Log::default();
        let entries = Arc::clone(&log);
        let router: Router = Router::new().fallback(move |request: Request<Body>| {
            let path = request.uri().to_string();
            entries.lock().unwrap().push(format!("{} {path}", request.method()));
            answer(path, request)
        });
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, router).await.unwrap();
        });
        Self { address, log, runtime }
    }

    /// A service that gives every path the same answer.
    fn saying(status: u16, body: &'static str) -> Self {
        Self::start(move |_, _| async move { response(status, body) })
    }

    fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    fn asked(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    fn api(&self, path: &str, timeout: Duration) -> Api {
        Api::new(&format!("{}{path}", self.url()), timeout, None, None).unwrap()
    }

    /// What the API says for a machine, in words: the kernel's address, or why there is nothing.
    fn says(&self, api: &Api, mac: MacAddr, step: Step) -> Result<String, String> {
        let said = self.runtime.block_on(api.generation(mac, step));
        said.map(|generation| {
            generation.kernel.as_ref().map_or("script", |kernel| kernel.name()).to_owned()
        })
        .map_err(|refusal| refusal.to_string())
    }
}

fn response(status: u16, body: impl Into<Body>) -> Response<Body> {
    Response::builder().status(status).body(body.into()).unwrap()
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn section_7_the_call_is_a_plain_get_of_v1_boot_mac() {
    let service = Service::start(|_, request: Request<Body>| async move {
        let plain = ["cookie", "authorization", "content-length", "content-type"]
            .iter()
            .all(|name| !request.headers().contains_key(*name));
        response(if plain { 200 } else { 500 }, r#"{"kernel":"k"}"#)
    });
    for (path, asked) in [("", "/v1"), ("/", "/v1"), ("/a/b", "/a/b/v1"), ("/a/", "/a/v1")] {
        let api = service.api(path, SECOND);
        assert_eq!(service.says(&api, MAC, Step::Discover).as_deref(), Ok("k"));
        let asked = format!("GET {asked}/boot/52:54:00:12:34:fe");
        assert_eq!(service.asked().last(), Some(&asked));
    }
}

#[test]
fn the_service_is_told_of_a_machine_what_its_address_asks_for() {
    let service = Service::saying(200, r#"{"kernel":"k"}"#);
    let uuid = "00112233-4455-6677-8899-aabbccddeeff";
    let traits = |uuid: Option<&str>| Traits {
        arch: 11,
        firmware: Firmware::Pxe,
        uuid: uuid.map(str::to_owned),
    };
    for (query, uuid, told) in [
        ("", Some(uuid), String::new()),
        ("?uuid&arch", Some(uuid), format!("?uuid={uuid}&arch=11")),
        ("/?arch&firmware&uuid", None, "?arch=11&firmware=pxe".to_owned()),
        ("/?uuid", None, String::new()),
    ] {
        let api = service.api(query, SECOND);
        api.meet(MAC, &|| traits(uuid));
        assert_eq!(service.says(&api, MAC, Step::Discover).as_deref(), Ok("k"));
        let asked = format!("GET /v1/boot/52:54:00:12:34:fe{told}");
        assert_eq!(service.asked().last(), Some(&asked));
    }
    // Nothing is known of a machine that has not asked.
    let api = service.api("?arch", SECOND);
    service.says(&api, OTHER, Step::Script).unwrap();
    assert!(service.asked().last().unwrap().ends_with(&OTHER.to_string()));
}

#[test]
fn section_7_one_answer_for_the_run_of_one_boot() {
    let service = Service::saying(200, r#"{"kernel":"k"}"#);
    let api = service.api("", SECOND);
    let boot = [Step::Discover, Step::Discover, Step::Script, Step::File, Step::File];
    for step in boot {
        service.says(&api, MAC, step).unwrap();
    }
    assert_eq!(service.asked().len(), 1, "{:?}", service.asked());
    service.says(&api, MAC, Step::Discover).unwrap();
    assert_eq!(service.asked().len(), 2, "the next boot is asked about anew");
    service.says(&api, OTHER, Step::Discover).unwrap();
    assert_eq!(service.asked().len(), 3, "and so is another machine");
}

#[test]
fn section_7_anything_but_200_leaves_the_machine_alone_and_is_asked_again() {
    for status in [204, 400, 404, 500, 503] {
        let service = Service::start(move |_, _| async move { response(status, "") });
        let api = service.api("", SECOND);
        let refusal = service.says(&api, MAC, Step::Discover).unwrap_err();
        assert!(refusal.contains(&status.to_string()), "{refusal}");
        service.says(&api, MAC, Step::Discover).unwrap_err();
        assert_eq!(service.asked().len(), 2, "{status}");
    }
}

#[test]
fn section_7_redirects_are_followed_and_a_loop_of_them_ends() {
    let service = Service::start(|path, _| async move {
        let target = match path.as_str() {
            "/v1/boot/52:54:00:12:34:fe" => "../../there?x=1",
            "/there?x=1" => return response(200, r#"{"kernel":"k"}"#),
            _ => "#again",
        };
        Response::builder().status(302).header("location", target).body(Body::empty()).unwrap()
    });
    let api = service.api("", SECOND);
    assert_eq!(service.says(&api, MAC, Step::Discover).as_deref(), Ok("k"));
    let refusal = service.says(&api, OTHER, Step::Discover).unwrap_err();
    assert!(refusal.contains("too often"), "{refusal}");
}

#[test]
fn section_7_malformed_answers_are_refused_with_the_reason() {
    for (body, reason) in [
        ("", "cannot be used"),
        ("<html>", "cannot be used"),
        ("{}", "no kernel"),
        (r#"{"kernel":"k","initrd":"i"}"#, "cannot be used"),
        (r#"{"kernel":"k","cmdline":"{{ X }}"}"#, "URL"),
    ] {
        let service = Service::saying(200, body);
        let refusal = service.says(&service.api("", SECOND), MAC, Step::Discover).unwrap_err();
        assert!(refusal.contains(reason), "{body}: {refusal}");
    }
    let service = Service::start(|_, _| async { response(200, vec![b' '; (1 << 20) + 1]) });
    let refusal = service.says(&service.api("", SECOND), MAC, Step::Discover).unwrap_err();
    assert!(refusal.contains("longer than 1048576"), "{refusal}");
    let closed = Api::new("http://127.0.0.1:1", SECOND, None, None).unwrap();
    let refusal = service.says(&closed, MAC, Step::Discover).unwrap_err();
    assert!(refusal.contains("refused"), "{refusal}");
}

#[test]
fn section_7_a_slow_answer_ends_in_time_and_keeps_nobody_waiting() {
    let service = Service::start(|path: String, _| async move {
        if path.ends_with("fe") {
            tokio::time::sleep(Duration::from_secs(30)).await;
        }
        response(200, r#"{"kernel":"k"}"#)
    });
    let api = Arc::new(service.api("", SECOND));
    let slow = Arc::clone(&api);
    let began = Instant::now();
    let slow =
        service.runtime.spawn(async move { slow.generation(MAC, Step::Discover).await.map(drop) });
    std::thread::sleep(Duration::from_millis(100));
    service.says(&api, OTHER, Step::Discover).unwrap();
    assert!(began.elapsed() < SECOND, "{:?}", began.elapsed());
    let refusal = service.runtime.block_on(slow).unwrap().unwrap_err().to_string();
    assert!(refusal.contains("no answer within 1s"), "{refusal}");
    assert!((SECOND..5 * SECOND).contains(&began.elapsed()), "{:?}", began.elapsed());
}

/// A server of ours in front of a service.
struct Front {
    address: SocketAddr,
    token: String,
    facts: Arc<Facts>,
}

impl Front {
    fn of(service: &Service) -> Self {
        let api = service.api("", SECOND);
        let token = portcullis::source::Source::token(&api).to_owned();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let settings = Settings::new(SocketAddrV4::new(Ipv4Addr::LOCALHOST, address.port()));
        let facts = Arc::new(Facts::default());
        let serving = serve_http(listener, settings, Arc::new(api), facts.clone(), facts.clone());
        service.runtime.spawn(serving);
        Self { address, token, facts }
    }

    /// curl's output for one of the machine's files.
    fn curl(&self, file: &str, arguments: &[&str]) -> Output {
        let url = format!("http://{}/{}/52-54-00-12-34-fe/{file}", self.address, self.token);
        let output =
            Command::new("curl").args(["-s", "-S"]).args(arguments).arg(url).output().unwrap();
        println!("{file} {arguments:?}: {output:?}");
        output
    }
}

fn content() -> Vec<u8> {
    (0..3_000_000_u32).map(|at| (at / 7).to_le_bytes()[0]).collect()
}

/// A file server beside the API: understands one simple range.
async fn files(path: String, request: Request<Body>) -> Response<Body> {
    let answer = Response::builder().header("etag", "\"one\"").header("accept-ranges", "bytes");
    match path.as_str() {
        "/whole" => {
            let all = Bytes::from(content());
            let range = request.headers().get("range").map(|range| range.to_str().unwrap());
            let first = range.and_then(|range| range.strip_prefix("bytes=")?.split('-').next());
            match first.map(|first| first.parse::<usize>().unwrap()) {
                Some(first) if first >= all.len() => answer
                    .status(416)
                    .header("content-range", format!("bytes */{}", all.len()))
                    .body(Body::empty())
                    .unwrap(),
                Some(first) => answer
                    .status(206)
                    .header(
                        "content-range",
                        format!("bytes {first}-{}/{}", all.len() - 1, all.len()),
                    )
                    .body(all.slice(first..).into())
                    .unwrap(),
                None => answer.body(all.into()).unwrap(),
            }
        }
        "/endless" => {
            let chunks = [Bytes::from_static(b"one"), Bytes::from_static(b"two")];
            let chunks = chunks.map(Ok::<_, std::io::Error>);
            answer.body(Body::from_stream(futures_util::stream::iter(chunks))).unwrap()
        }
        "/broken" => {
            let first = Ok(Bytes::from(vec![0; 1000]));
            let chunks = [first, Err(std::io::Error::other("gone"))];
            // The header must have gone before it breaks off.
            let later = |chunk| async {
                tokio::time::sleep(Duration::from_millis(200)).await;
                chunk
            };
            let body = Body::from_stream(futures_util::stream::iter(chunks).then(later));
            answer.header("content-length", 5000).body(body).unwrap()
        }
        boot if boot.contains("/v1/boot/") => response(
            200,
            r#"{"kernel":"/whole","initrd":["/endless","/missing","/broken"],
                "cmdline":"seed={{ URL \"/whole\" }}","message":"hi"}"#,
        ),
        _ => response(404, "no"),
    }
}

#[test]
fn section_7_the_script_names_files_of_ours_only() {
    let service = Service::start(files);
    let front = Front::of(&service);
    let script = String::from_utf8(front.curl("boot.ipxe", &[]).stdout).unwrap();
    let ours = format!("http://{}/{}/52-54-00-12-34-fe/", front.address, front.token);
    assert!(script.contains("echo Portcullis: hi\n"), "{script}");
    assert!(script.contains(&format!("seed={ours}other0 ||")), "{script}");
    assert!(!script.contains(&service.url()), "{script}");
}

#[test]
fn a_file_of_another_server_is_passed_on_with_length_ranges_and_resume() {
    let service = Service::start(files);
    let front = Front::of(&service);
    let all = content();
    let got = front.curl("kernel", &["-i"]).stdout;
    let end = got.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let header = String::from_utf8(got[..end].to_vec()).unwrap().to_lowercase();
    assert!(got[end + 4..] == all, "the octets differ");
    assert!(header.contains("content-length: 3000000\r\n"), "{header}");
    assert!(header.contains("etag: \"one\""), "{header}");
    assert!(!header.contains("transfer-encoding"), "{header}");
    front.facts.wait(1, |fact| matches!(fact, Fact::TransferDone { sent: 3_000_000, .. }));
    assert!(front.curl("other0", &[]).stdout == all, "the octets of the extra file differ");

    let rest = front.curl("kernel", &["-r", "2999990-"]).stdout;
    assert_eq!(rest, all[2_999_990..]);
    let head = front.curl("kernel", &["-I"]).stdout;
    let head = String::from_utf8(head).unwrap().to_lowercase();
    assert!(head.contains("content-length: 3000000\r\n"), "{head}");
    let beyond = front.curl("kernel", &["-o", "/dev/null", "-r", "3000000-", "-w", "%{http_code}"]);
    assert_eq!(beyond.stdout, b"416");
}

#[test]
fn a_server_that_does_not_tell_a_length_is_passed_on_and_said() {
    let service = Service::start(files);
    let front = Front::of(&service);
    assert_eq!(front.curl("initrd0", &[]).stdout, b"onetwo");
    front.facts.wait(
        1,
        |fact| matches!(fact, Fact::Upstream { problem, .. } if problem.contains("length")),
    );
    front.facts.wait(1, |fact| matches!(fact, Fact::TransferDone { sent: 6, .. }));
}

#[test]
fn a_server_that_fails_or_breaks_off_is_said_and_nothing_is_filled_up() {
    let service = Service::start(files);
    let front = Front::of(&service);
    let missing = front.curl("initrd1", &["-o", "/dev/null", "-w", "%{http_code}"]);
    assert_eq!(missing.stdout, b"502");
    front.facts.wait(1, |fact| matches!(fact, Fact::Upstream { file, problem } if problem.contains("404") && file.ends_with("/missing")));
    let broken = front.curl("initrd2", &["-o", "/dev/null"]);
    assert!(matches!(broken.status.code(), Some(18 | 56)), "{broken:?}");
    front.facts.wait(
        1,
        |fact| matches!(fact, Fact::TransferEnded { reason, .. } if reason.contains("broke off")),
    );
    let absent = front.curl("initrd3", &["-o", "/dev/null", "-w", "%{http_code}"]);
    assert_eq!(absent.stdout, b"404");
}

#[test]
fn section_7_a_refusal_at_the_script_is_a_404_that_is_told() {
    let service = Service::saying(500, "");
    let front = Front::of(&service);
    let refused = front.curl("boot.ipxe", &["-o", "/dev/null", "-w", "%{http_code}"]);
    assert_eq!(refused.stdout, b"404");
    front.facts.wait(1, |fact| matches!(fact, Fact::Ignored(Ignored::Source { .. })));
}

#[test]
fn memory_does_not_grow_with_what_is_passed_on() {
    let service = Service::start(|path: String, _| async move {
        if path.contains("/v1/boot/") {
            return response(200, r#"{"kernel":"/big"}"#);
        }
        let chunk = Bytes::from(vec![7; 1 << 16]);
        let chunks = futures_util::stream::iter(
            std::iter::repeat_n(chunk, 1 << 14).map(Ok::<_, std::io::Error>),
        );
        let body = Body::from_stream(chunks);
        Response::builder().header("content-length", 1 << 30).body(body).unwrap()
    });
    let front = Front::of(&service);
    // A slow reader: 1 GiB is offered, and nobody takes it.
    let path = format!("/{}/52-54-00-12-34-fe/kernel", front.token);
    let mut stream = std::net::TcpStream::connect(front.address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    stream.read_exact(&mut [0; 1000]).unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kilobytes: u64 = peak.trim().trim_end_matches(" kB").trim().parse().unwrap();
    assert!(kilobytes < 200_000, "{peak}");
}

/// The program with a bus that there is not: whatever comes so far that the helper is asked ends
/// with exit code 22.
fn portcullis(program: &Path, environment: &[(&str, &str)], arguments: &[&str]) -> (i32, String) {
    let ipxe = tempfile::tempdir().unwrap();
    std::fs::write(ipxe.path().join("undionly.kpxe"), b"loader").unwrap();
    let output = Command::new(program)
        .args(arguments)
        .args(["-i", "lo", "--ipxe-dir"])
        .arg(ipxe.path())
        .env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/nonexistent")
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    println!("{arguments:?}: {:?}\n{said}", output.status);
    (output.status.code().unwrap(), said)
}

const PROGRAM: &str = env!("CARGO_BIN_EXE_portcullis");

/// The first sectors of a bzImage, as far as they are looked at.
fn bzimage() -> Vec<u8> {
    let mut image = vec![0; 8192];
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image
}

#[test]
fn section_14_the_wikis_own_command_line_runs_as_pixiecore() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).display().to_string();
    std::fs::write(at("bzImage"), bzimage()).unwrap();
    std::fs::write(at("initrd"), b"cpio").unwrap();
    symlink(PROGRAM, at("pixiecore")).unwrap();
    let line = [
        "boot",
        &at("bzImage"),
        &at("initrd"),
        "--cmdline",
        "init=/nix/store/x/init loglevel=4",
        "--debug",
        "--dhcp-no-bind",
        "--port",
        "64172",
        "--status-port",
        "64172",
    ];
    let (code, said) = portcullis(Path::new(&at("pixiecore")), &[], &line);
    assert_eq!(code, 22, "{said}");
    assert!(said.contains("--dhcp-no-bind shares UDP 67"), "{said}");
}

#[test]
fn section_1_1_boot_takes_addresses_and_checks_them_before_anything_is_asked() {
    let service = Service::start(|path: String, _| async move {
        match path.as_str() {
            "/k" | "/i" => response(200, bzimage()),
            "/page" => response(200, "<html>not here</html>"),
            "/empty" => response(200, ""),
            _ => response(404, ""),
        }
    });
    let url = |path: &str| format!("{}{path}", service.url());
    let run = |arguments: &[&str]| portcullis(Path::new(PROGRAM), &[], arguments);
    assert_eq!(run(&["boot", &url("/k"), &url("/i")]).0, 22);
    let extra = format!("seed={{{{ ID \"{}\" }}}}", url("/i"));
    assert_eq!(run(&["boot", &url("/k"), "--cmdline", &extra]).0, 22);
    for (kernel, initrd, reason) in [
        ("/missing", "/i", "404"),
        ("/page", "/i", "not a kernel"),
        ("/k", "/missing", "404"),
        ("/k", "/empty", "empty"),
    ] {
        let (code, said) = run(&["boot", &url(kernel), &url(initrd)]);
        assert_eq!(code, 30, "{said}");
        assert!(said.contains(reason), "{said}");
    }
}

#[test]
fn section_1_3_quick_fetches_from_the_mirror_that_is_named() {
    let service = Service::start(|path: String, _| async move {
        let local = "http://x.invalid";
        match path.as_str() {
            path if path.contains("/dists/stable/") => response(200, bzimage()),
            path if path.ends_with(".json") => response(
                200,
                format!(
                    r#"{{"architectures":{{"x86_64":{{"artifacts":{{"metal":{{"formats":{{"pxe":
                    {{"kernel":{{"location":"{local}/k"}}}}}}}}}}}}}}}}"#
                ),
            ),
            "/noble/SHA256SUMS" => response(
                200,
                "00 *ubuntu-24.04.3-desktop-amd64.iso\n11 *ubuntu-24.04.3-live-server-amd64.iso\n",
            ),
            path if path.starts_with("/noble/netboot/amd64/") => response(200, bzimage()),
            path if path.starts_with("/ipxe/") => response(200, "ipxe"),
            _ => response(404, ""),
        }
    });
    let url = service.url();
    let run = |words: &[&str]| {
        let words = [&["quick"], words, &["--mirror", &url]].concat();
        portcullis(Path::new(PROGRAM), &[], &words)
    };
    assert_eq!(run(&["debian", "stable"]).0, 22);
    assert_eq!(run(&["ubuntu", "noble"]).0, 22);
    assert_eq!(run(&["xyz"]).0, 22);
    let (code, said) = run(&["debian", "oldstable"]);
    assert_eq!(code, 30, "{said}");
    let (code, said) = run(&["coreos", "stable"]);
    assert_eq!(code, 30, "{said}");
    assert!(said.contains("initramfs") && said.contains("testing, next"), "{said}");
}

#[test]
fn section_1_3_an_index_names_addresses_and_never_files_of_this_computer() {
    let index = |location: &'static str| {
        let part = serde_json::json!({ "location": location });
        let pxe = serde_json::json!({ "kernel": part, "initramfs": part, "rootfs": part });
        let json = serde_json::json!({ "architectures": { "x86_64": { "artifacts": {
            "metal": { "formats": { "pxe": pxe } } } } } })
        .to_string();
        Service::start(move |path: String, _| {
            let json = json.clone();
            async move {
                match path.as_str() {
                    "/streams/stable.json" => response(200, json),
                    _ => response(404, ""),
                }
            }
        })
    };
    for location in ["/etc/passwd", "file:///etc/passwd"] {
        let service = index(location);
        let words = ["quick", "coreos", "stable", "--mirror", &service.url()];
        let (code, said) = portcullis(Path::new(PROGRAM), &[], &words);
        assert_eq!(code, 30, "{said}");
        assert!(said.contains("neither http://"), "{said}");
    }
}

/// Ended with the test.
struct Background(Child);

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn https_is_checked_against_the_certificates_of_the_system() {
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("k"), bzimage()).unwrap();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
        .args(["-keyout", "key", "-out", "cert", "-days", "2", "-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=DNS:localhost"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .current_dir(directory.path())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert!(made.success());
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut server = Command::new("openssl")
        .args(["s_server", "-accept", &port.to_string(), "-cert", "cert", "-key", "key", "-WWW"])
        .current_dir(directory.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut said = BufReader::new(server.stdout.take().unwrap());
    let _server = Background(server);
    let mut line = String::new();
    while !line.contains("ACCEPT") {
        line.clear();
        assert!(said.read_line(&mut line).unwrap() > 0, "openssl does not listen");
    }
    let url = format!("https://localhost:{port}/k");
    let trusted = directory.path().join("cert").display().to_string();
    let program = Path::new(PROGRAM);
    let (code, said) = portcullis(program, &[("SSL_CERT_FILE", &trusted)], &["boot", &url]);
    assert_eq!(code, 22, "{said}");
    let (code, said) = portcullis(program, &[("SSL_CERT_FILE", "/dev/null")], &["boot", &url]);
    assert_eq!(code, 30, "{said}");
    assert!(said.contains("certificate"), "{said}");

    // netboot.xyz' layout.
    std::fs::create_dir(directory.path().join("ipxe")).unwrap();
    for name in ["lkrn", "kpxe", "efi", "-snponly.efi", "-arm64.efi", "-arm64-snponly.efi"] {
        let name = format!("netboot.xyz{}{name}", if name.starts_with('-') { "" } else { "." });
        std::fs::write(directory.path().join("ipxe").join(&name), &name).unwrap();
    }
    let site = format!("https://localhost:{port}");
    let xyz = ["quick", "xyz", "--mirror", &site];
    let (code, said) = portcullis(program, &[("SSL_CERT_FILE", &trusted)], &xyz);
    assert_eq!(code, 22, "{said}");
    let (code, said) = portcullis(program, &[("SSL_CERT_FILE", "/dev/null")], &xyz);
    assert_eq!(code, 30, "{said}");
    assert!(said.contains("netboot.xyz.lkrn") && said.contains("certificate"), "{said}");
}

#[test]
fn every_test_that_the_table_for_users_of_pixiecore_names_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let table = std::fs::read_to_string(root.join("../docs/pixiecore.md")).unwrap();
    let named = table.split('`').filter_map(|word| word.split_once("::"));
    let mut count = 0;
    for (file, test) in named {
        let path = match file {
            "cli" | "template" | "ipxe" => format!("src/{file}.rs"),
            "source" => "src/source/mod.rs".to_owned(),
            "api" | "quick" => format!("src/source/{file}.rs"),
            "share" => "../tests/tests/share.rs".to_owned(),
            "pixiecore_v1" => "src/pixiecore_v1.rs".to_owned(),
            "pixiecore" => "../tests/tests/pixiecore.rs".to_owned(),
            other => format!("tests/{other}.rs"),
        };
        let text = std::fs::read_to_string(root.join(path)).unwrap();
        assert!(
            text.contains(&format!("#[test]\nfn {test}()"))
                || text.contains(&format!("#[test]\n    fn {test}()")),
            "{file}::{test}"
        );
        count += 1;
    }
    assert!(count > 30, "{count} tests are named");
    // A row without a run of the real program says that there is nothing to run.
    let rows: Vec<_> = table.lines().filter(|line| line.starts_with("| ")).collect();
    let header = |row: &&&str| row.starts_with("| Pixiecore |");
    assert_eq!(rows.iter().filter(header).count(), 3, "commands, flags, the API");
    for row in rows.iter().filter(|row| !header(row)) {
        let mut cells = row.split(" | ").skip(1);
        let nothing = cells
            .next()
            .is_some_and(|here| here.starts_with("no: ") || here.starts_with("not used"));
        let runs = ["pixiecore::", "share::", "sources::"];
        assert!(nothing || runs.iter().any(|run| row.contains(run)), "no real run: {row}");
    }
}
