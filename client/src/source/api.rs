//! A web service that says what each machine boots: version 1 of Pixiecore's API.
//!
//! `GET BASE/v1/boot/MAC`; anything but 200 means that the machine is left alone. What a machine says
//! of itself is added as a query where the user's address asks for it (`KEYS`), since a service that
//! knows version 1 only may not expect one. Guarantees: one slow
//! answer keeps no other machine waiting; a machine gets one answer for the run of one boot, so that
//! kernel, initrds and command line belong together; an answer is checked whole before anything of
//! it is used. Trusts the service to choose what machines run; trusts it with files of this computer
//! (`file://`) only if nobody on the network can speak in its name.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use futures_util::future::{BoxFuture, FutureExt as _};
use http::Uri;
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::{OnceCell, Semaphore};

use super::{
    Refusal, Source, Step, Traits, add_efi_image,
    cache::Cache,
    check_script,
    open::check_length,
    open_blob,
    opener::{name_elsewhere, remote},
    token,
    url::{self, Location},
};
use crate::{
    exit::{Code, Failure},
    image::{Generation, Payload, Remote, Script},
    mac::MacAddr,
    sign::Signer,
    template::Template,
};

/// Machines whose answers are kept: as many as are remembered otherwise.
const BOOTS: usize = 4096;
/// Questions at once. The next one waits.
const QUESTIONS: usize = 256;
/// Octets of an answer: scripts are short.
const ANSWER: usize = 1 << 20;
/// An answer that nobody came for is asked for again: EDK2's longest pause between two DISCOVERs is
/// 32 s.
const FRESH: Duration = Duration::from_secs(60);
/// What the address may ask to be told of a machine, as in `http://host/?arch&uuid`: additions to
/// version 1. `arch` is DHCP option 93, `firmware` is pxe, ipxe or http, `uuid` is DHCP option 97; what a
/// machine does not say is left out.
const KEYS: [&str; 3] = ["arch", "firmware", "uuid"];

/// The service, and what it said.
#[derive(Debug)]
pub struct Api {
    /// Asks, also for files, and has their copies.
    cache: Cache,
    /// Ends with a slash.
    base: Uri,
    /// Which of [`KEYS`] it wants to be told.
    keys: Vec<&'static str>,
    /// Relative addresses are relative to this: `BASE/v1`.
    context: Uri,
    timeout: Duration,
    /// The user's own stub for EFI programs.
    stub: Option<PathBuf>,
    signer: Option<Arc<Signer>>,
    /// Machines fetch files from their servers themselves.
    direct: bool,
    token: String,
    questions: Semaphore,
    boots: Mutex<BTreeMap<MacAddr, Boot>>,
    traits: Mutex<BTreeMap<MacAddr, Traits>>,
}

/// One boot of one machine.
#[derive(Debug)]
struct Boot {
    begun: Instant,
    /// The machine has fetched its script: what it asks for next belongs to another boot.
    scripted: bool,
    answer: Arc<OnceCell<Result<Arc<Generation>, Refusal>>>,
}

impl Boot {
    fn new() -> Self {
        Self { begun: Instant::now(), scripted: false, answer: Arc::default() }
    }

    /// Whether a machine that takes this step is to be asked about anew.
    fn is_over(&self, step: Step) -> bool {
        match (step, self.answer.get()) {
            (Step::File, _) | (_, None) => false,
            (_, Some(Err(_))) => true,
            (Step::Script, Some(Ok(_))) => false,
            (Step::Discover, Some(Ok(_))) => self.scripted || self.begun.elapsed() > FRESH,
        }
    }
}

impl Api {
    /// A service at `address`, that is given `timeout` for each answer; EFI programs are made with
    /// `stub`, or the system's, and signed if there is a `signer`. Nothing is asked yet.
    ///
    /// # Errors
    /// It is no http or https address, or asks for what it cannot be told.
    pub fn new(
        address: &str,
        timeout: Duration,
        stub: Option<PathBuf>,
        signer: Option<Arc<Signer>>,
    ) -> Result<Self, Failure> {
        let fault = |error| Failure::new(Code::Usage, format!("the API's address: {error}"));
        let (address, query) = address.split_once('?').unwrap_or((address, ""));
        let key = |word| KEYS.into_iter().find(|&key| key == word);
        let keys: Option<_> = query.split('&').filter(|word| !word.is_empty()).map(key).collect();
        let keys = keys.ok_or_else(|| {
            fault(format!("of its query only these are known, without values: {}", KEYS.join(", ")))
        })?;
        let slash = if address.ends_with('/') { "" } else { "/" };
        let base = url::parse(&format!("{address}{slash}")).map_err(fault)?;
        let context = url::parse(&format!("{base}v1")).map_err(fault)?;
        Ok(Self {
            cache: Cache::default(),
            base,
            keys,
            context,
            timeout,
            stub,
            signer,
            direct: false,
            token: token()?,
            questions: Semaphore::new(QUESTIONS),
            boots: Mutex::default(),
            traits: Mutex::default(),
        })
    }

    /// Machines are to fetch what lies on web servers from there themselves.
    #[must_use]
    pub fn direct(self, direct: bool) -> Self {
        Self { direct, ..self }
    }

    /// Files of web servers are shared by these copies.
    #[must_use]
    pub fn cache(self, cache: Cache) -> Self {
        Self { cache, ..self }
    }

    async fn ask(&self, mac: MacAddr) -> Result<Arc<Generation>, Refusal> {
        let refusal = |what: String| Refusal(format!("the API {what}"));
        let query = self.query(mac);
        let address = url::parse(&format!("{}v1/boot/{mac}{query}", self.base)).map_err(refusal)?;
        // Never closed.
        let _turn = self.questions.acquire().await;
        let answer = self.cache.fetcher().whole(&address, ANSWER, self.timeout).await;
        let answer = answer.map_err(|error| Refusal(format!("{address}: {error}")))?;
        self.read(&answer)
            .map(Arc::new)
            .map_err(|error| Refusal(format!("the answer of {address} cannot be used: {error}")))
    }

    /// What the service is told of a machine.
    fn query(&self, mac: MacAddr) -> String {
        let all = self.traits.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(traits) = all.get(&mac) else { return String::new() };
        let words: Vec<_> = self
            .keys
            .iter()
            .filter_map(|&key| {
                let value = match key {
                    "arch" => traits.arch.to_string(),
                    "firmware" => traits.firmware.word().to_owned(),
                    "uuid" => traits.uuid.clone()?,
                    _ => return None,
                };
                Some(format!("{key}={value}"))
            })
            .collect();
        if words.is_empty() { String::new() } else { format!("?{}", words.join("&")) }
    }

    /// The answer's meaning, whole: what cannot be served is an error here.
    ///
    /// # Errors
    /// What is wrong with it, in words that may repeat the answer's own.
    pub fn read(&self, json: &[u8]) -> Result<Generation, String> {
        let answer: Answer = serde_json::from_slice(json).map_err(|error| error.to_string())?;
        let token = self.token.clone();
        if let Some(script) = answer.script.filter(|script| !script.is_empty()) {
            let script = Some(Script::AsItIs(script.into()));
            return Ok(Generation { token, script, ..Generation::default() });
        }
        let kernel = answer.kernel.filter(|kernel| !kernel.is_empty());
        let kernel = self.payload(&kernel.ok_or("it names no kernel and no ipxe-script")?)?;
        let initrds = answer.initrd.unwrap_or_default();
        let initrds =
            initrds.iter().map(|initrd| self.payload(initrd)).collect::<Result<_, _>>()?;
        let cmdline = cmdline(answer.cmdline.unwrap_or_default())?;
        let mut names = Vec::new();
        let cmdline = Template::parse(&cmdline, "URL", |name| {
            names.push(name);
            names.len() - 1
        })
        .map_err(|error| format!("cmdline: {error}"))?;
        check_length(&cmdline)?;
        let others = names.iter().map(|name| self.payload(name)).collect::<Result<_, _>>()?;
        let message = answer.message.filter(|message| !message.is_empty());
        let kernel = Some(kernel);
        let rest = Generation::default();
        let mut generation =
            Generation { token, kernel, initrds, cmdline, others, message, ..rest };
        name_elsewhere(&mut generation);
        add_efi_image(&mut generation, self.stub.as_deref(), self.signer.as_ref())
            .map_err(|failure| failure.message)?;
        check_script(&generation).map_err(|failure| failure.message)?;
        Ok(generation)
    }

    fn payload(&self, address: &str) -> Result<Payload, String> {
        match url::resolve(&self.context, address)? {
            Location::Http(address) => {
                let remote = remote(address, &self.cache);
                Ok(Remote { direct: self.direct, ..remote }.into())
            }
            Location::File(path) => self.file(&path),
        }
    }

    fn file(&self, path: &Path) -> Result<Payload, String> {
        let host = self.base.host().unwrap_or_default();
        let here = matches!(host, "localhost" | "[::1]") || host.starts_with("127.");
        if !here && self.base.scheme_str() != Some("https") {
            return Err(format!(
                "it names the file {} of this computer, which only an API on this computer, or one \
                 with https, may do",
                path.display()
            ));
        }
        open_blob(path).map(Payload::from).map_err(|error| error.failure("file").message)
    }
}

impl Source for Api {
    fn token(&self) -> &str {
        &self.token
    }

    fn meet(&self, mac: MacAddr, traits: &dyn Fn() -> Traits) {
        let mut all = self.traits.lock().unwrap_or_else(PoisonError::into_inner);
        // One that is forgotten is only told less of.
        if all.len() >= BOOTS && !all.contains_key(&mac) {
            all.pop_first();
        }
        all.insert(mac, traits());
    }

    fn generation(
        &self,
        mac: MacAddr,
        step: Step,
    ) -> BoxFuture<'_, Result<Arc<Generation>, Refusal>> {
        let mut boots = self.boots.lock().unwrap_or_else(PoisonError::into_inner);
        if boots.get(&mac).is_none_or(|boot| boot.is_over(step)) {
            if boots.len() >= BOOTS && !boots.contains_key(&mac) {
                let oldest = boots.iter().min_by_key(|(_, boot)| boot.begun).map(|(&mac, _)| mac);
                oldest.map(|mac| boots.remove(&mac));
            }
            boots.insert(mac, Boot::new());
        }
        let boot = boots.entry(mac).or_insert_with(Boot::new);
        boot.scripted |= step == Step::Script;
        let answer = Arc::clone(&boot.answer);
        // Whoever asks first asks for all; if that one is gone, the next goes on.
        async move { answer.get_or_init(|| self.ask(mac)).await.clone() }.boxed()
    }

    /// What the service has said of this boot. Whoever asks hands it over, as with a script.
    fn known(&self, mac: MacAddr) -> Option<Arc<Generation>> {
        let mut boots = self.boots.lock().unwrap_or_else(PoisonError::into_inner);
        let boot = boots.get_mut(&mac)?;
        let generation = boot.answer.get()?.as_ref().ok().cloned()?;
        boot.scripted = true;
        Some(generation)
    }
}

/// What the service says. Keys that are not known are ignored.
#[derive(Deserialize)]
struct Answer {
    kernel: Option<String>,
    initrd: Option<Vec<String>>,
    cmdline: Option<Value>,
    message: Option<String>,
    #[serde(rename = "ipxe-script")]
    script: Option<String>,
}

/// The command line as a template, from either form.
fn cmdline(value: Value) -> Result<String, String> {
    let object = match value {
        Value::Null => return Ok(String::new()),
        Value::String(text) => return Ok(text),
        Value::Object(object) => object,
        _ => return Err("cmdline is neither a text nor an object".to_owned()),
    };
    // Sorted, whatever order the map has.
    let object: BTreeMap<_, _> = object.into_iter().collect();
    let mut words = Vec::with_capacity(object.len());
    for (key, value) in object {
        words.push(match value {
            Value::Bool(_) => key,
            Value::String(text) => format!("{key}={}", quoted(&text)),
            Value::Object(inner) => match inner.get("url") {
                Some(Value::String(address)) => format!("{key}={{{{ URL {} }}}}", quoted(address)),
                _ => return Err(format!("cmdline: the object of \"{key}\" has no text \"url\"")),
            },
            _ => return Err(format!("cmdline: \"{key}\" is neither text, true, false nor object")),
        });
    }
    Ok(words.join(" "))
}

/// In Go's quotation marks, as the kernel's own parser takes them off again.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => {
                quoted.push('\\');
                quoted.push(character);
            }
            '\n' => quoted.push_str("\\n"),
            '\t' => quoted.push_str("\\t"),
            control if control.is_control() => {
                // Writing to a String cannot fail.
                let _ = write!(quoted, "\\x{:02x}", u32::from(control));
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{image::NoEfiImage, source::efi_program, template::Machine};

    fn read_at(base: &str, json: &str) -> Result<Generation, String> {
        Api::new(base, FRESH, None, None).unwrap().read(json.as_bytes())
    }

    fn read(json: &str) -> Result<Generation, String> {
        read_at("http://api.example/boot", json)
    }

    fn address(payload: &Payload) -> String {
        match payload {
            Payload::Remote(remote) => remote.address.to_string(),
            Payload::Local(blob) => format!("local {}", blob.name),
        }
    }

    fn kernel(base: &str, kernel: &str) -> Result<String, String> {
        let json = serde_json::json!({ "kernel": kernel }).to_string();
        read_at(base, &json).map(|generation| address(generation.kernel.as_ref().unwrap()))
    }

    fn line(cmdline: &str) -> Result<String, String> {
        read(&format!(r#"{{"kernel":"k","cmdline":{cmdline}}}"#))
            .map(|generation| generation.cmdline.text(&Machine::at("U")))
    }

    #[test]
    fn section_7_kernel_absolute_or_relative_to_v1() {
        for (base, named, address) in [
            ("http://h", "https://o/k", "https://o/k"),
            ("http://h", "k", "http://h/k"),
            ("http://h/a", "k", "http://h/a/k"),
            ("http://h/a/", "/k", "http://h/k"),
            ("http://h/a/", "v1/k", "http://h/a/v1/k"),
            ("http://h:8080", "../k?x=1", "http://h:8080/k?x=1"),
        ] {
            assert_eq!(kernel(base, named).as_deref(), Ok(address), "{base} {named}");
        }
    }

    #[test]
    fn section_7_kernel_of_this_computer_only_for_an_api_that_nobody_can_imitate() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, "k").unwrap();
        let named = format!("file://{}", file.path().display());
        for base in ["http://127.0.0.1:1", "http://localhost", "https://h"] {
            assert!(kernel(base, &named).unwrap().starts_with("local "), "{base}");
        }
        assert!(kernel("http://h", &named).unwrap_err().contains("https"));
        assert!(kernel("http://localhost", "file:///missing").unwrap_err().contains("not exist"));
    }

    #[test]
    fn section_7_initrd_is_a_list() {
        let generation = read(r#"{"kernel":"k","initrd":["a","http://o/b"]}"#).unwrap();
        let initrds: Vec<_> = generation.initrds.iter().map(address).collect();
        assert_eq!(initrds, ["http://api.example/boot/a", "http://o/b"]);
        assert!(read(r#"{"kernel":"k","initrd":"a"}"#).is_err());
        assert!(read(r#"{"kernel":"k","initrd":null}"#).unwrap().initrds.is_empty());
    }

    #[test]
    fn section_7_cmdline_text_with_url() {
        let json = r#"{"kernel":"k","cmdline":" a=b seed={{ URL \"/seed\" }} {{URL `x`}} "}"#;
        let generation = read(json).unwrap();
        assert_eq!(generation.cmdline.text(&Machine::at("U")), "a=b seed=U/other0 U/other1");
        let others: Vec<_> = generation.others.iter().map(address).collect();
        assert_eq!(others, ["http://api.example/seed", "http://api.example/boot/x"]);
        assert!(line(r#""{{ ID \"x\" }}""#).unwrap_err().contains("URL"));
        assert!(line(r#""a\nb""#).unwrap_err().contains("control character"));
        assert!(line(r#""${net0/mac}""#).unwrap_err().contains("iPXE"));
    }

    #[test]
    fn section_7_cmdline_object_is_sorted_and_quoted() {
        let object = r#"{"z":"a \"b\" \\","quiet":true,"off":false,"a":{"url":"s"}}"#;
        assert_eq!(line(object).unwrap(), r#"a=U/other0 off quiet z="a \"b\" \\""#);
        assert_eq!(line("{}").unwrap(), "");
        for wrong in [r#"{"a":1}"#, r#"{"a":null}"#, r#"{"a":{}}"#, r#"{"a":[]}"#, "7", "[]"] {
            assert!(line(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn an_efi_program_is_made_of_files_of_this_computer_with_the_machines_addresses() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let mut kernel = crate::uki::tests::stub(0x8664);
        std::fs::write(at("stub"), &kernel).unwrap();
        kernel[0x202..0x206].copy_from_slice(b"HdrS");
        std::fs::write(at("k"), &kernel).unwrap();
        let api = Api::new("http://127.0.0.1:1", FRESH, Some(at("stub")), None).unwrap();
        let made = |initrd: &str| {
            let kernel = format!("file://{}", at("k").display());
            let cmdline = "seed={{ URL \"/seed\" }}";
            let json =
                serde_json::json!({"kernel": kernel, "initrd": [initrd], "cmdline": cmdline});
            let generation = api.read(json.to_string().as_bytes()).unwrap();
            efi_program(&generation, &Machine::at("http://h/t/m")).now_or_never().unwrap()
        };
        let program = made(&format!("file://{}", at("k").display())).unwrap();
        let length = usize::try_from(program.length).unwrap();
        let program = program.content.read_at(0, length, Vec::new()).unwrap();
        let line = b"seed=http://h/t/m/other0\0";
        assert!(program.windows(line.len()).any(|part| part == line));
        assert_eq!(made("http://h/initrd").unwrap_err(), NoEfiImage::Remote);
        let script = read(r##"{"ipxe-script":"#!ipxe"}"##).unwrap();
        assert_eq!(script.efi.unwrap_err(), NoEfiImage::Script);
    }

    #[test]
    fn section_7_message_is_kept() {
        let generation = read(r#"{"kernel":"k","message":"hello"}"#).unwrap();
        assert_eq!(generation.message.as_deref(), Some("hello"));
    }

    #[test]
    fn section_7_ipxe_script_wins_over_everything() {
        let generation = read(r##"{"kernel":7e0,"ipxe-script":"#!ipxe\nshell"}"##);
        assert!(generation.is_err(), "a key of the wrong type is an error all the same");
        let generation = read(r##"{"kernel":"k","ipxe-script":"#!ipxe\nshell"}"##).unwrap();
        let Some(Script::AsItIs(script)) = generation.script else { panic!("{generation:?}") };
        assert_eq!(script, "#!ipxe\nshell".into());
        assert!(generation.kernel.is_none());
        assert!(read(r#"{"kernel":"k","ipxe-script":""}"#).unwrap().script.is_none());
    }

    #[test]
    fn section_7_unknown_keys_are_ignored_and_an_answer_without_kernel_is_refused() {
        assert!(read(r#"{"kernel":"k","colour":["blue"]}"#).is_ok());
        assert!(read("{}").unwrap_err().contains("no kernel"));
        for wrong in ["", "[]", "null", "{", r#"{"kernel":1}"#, r#"{"kernel":"ftp://h/k"}"#] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn addresses_of_apis() {
        for wrong in ["h", "ftp://h", "http://", "http://h/?a=b", "http://h/?arch=7", "/v1"] {
            let failure = Api::new(wrong, FRESH, None, None).unwrap_err();
            assert_eq!(failure.code, 2, "{wrong}: {failure}");
        }
    }

    #[test]
    fn a_new_boot_is_one_that_asks_after_the_script_or_after_a_while() {
        let mut boot = Boot::new();
        assert!(!boot.is_over(Step::Discover), "the question is on its way");
        boot.answer.set(Ok(Arc::default())).unwrap();
        for step in [Step::Discover, Step::Script, Step::File] {
            assert!(!boot.is_over(step));
        }
        boot.scripted = true;
        assert!(boot.is_over(Step::Discover));
        assert!(!boot.is_over(Step::Script) && !boot.is_over(Step::File));
        let refused = Boot::new();
        refused.answer.set(Err(Refusal(String::new()))).unwrap();
        assert!(refused.is_over(Step::Discover) && refused.is_over(Step::Script));
        assert!(!refused.is_over(Step::File));
    }
}
