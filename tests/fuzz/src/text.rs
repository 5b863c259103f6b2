//! Texts: scripts, templates, command lines, answers of an API; and what of them a person sees.

use std::{sync::LazyLock, time::Duration};

use portcullis::{
    board::Board,
    event::{Event, Fact, Ignored, Protocol, What},
    image::{Blob, Generation},
    ipxe,
    mac::MacAddr,
    read::Content,
    report::{json, text::Narrator},
    source::{api::Api, netboot_ipxe::cmdline},
    template::{Identity, Machine, Said, Template},
};

#[path = "../../../client/src/ipxe/reader.rs"]
mod reader;

use reader::as_ipxe_reads;

const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

fn machine() -> Machine {
    Machine { mac: MAC, ..Machine::at("http://192.0.2.2:64172/token/02-00-00-00-00-01") }
}

fn text(octets: &[u8]) -> Option<&str> {
    std::str::from_utf8(octets).ok()
}

/// A `netboot.ipxe`: an error, or words of its kernel line with nothing in them that iPXE would
/// have replaced.
pub fn netboot_ipxe(octets: &[u8]) {
    let Some(script) = text(octets) else {
        return;
    };
    if let Ok(line) = cmdline(script) {
        assert!(!line.contains("${") && !line.contains(['\n', '\t', '\r']), "{line:?}");
        assert!(!line.starts_with(' ') && !line.ends_with(' ') && !line.contains("  "));
        assert!(line.split(' ').all(|word| script.contains(word) && !word.starts_with("initrd=")));
    }
}

/// A command line with addresses in it: an error, or the same text with each place filled in; a text
/// without braces is itself.
pub fn template(octets: &[u8]) {
    let Some(written) = text(octets) else {
        return;
    };
    let mut files = Vec::new();
    let parsed = Template::parse(written, "ID", |name| {
        files.push(name);
        files.len() - 1
    });
    if let Ok(template) = parsed {
        let url = "http://u";
        let said = || Said::new(b"said");
        let identity = Identity { uuid: said(), arch: said(), serial: said(), hostname: said() };
        let machine = Machine { identity, ..Machine::at(url) };
        let filled = template.text(&machine);
        assert_eq!(template.text(&machine), filled);
        let places = (0..files.len()).filter(|n| filled.contains(&format!("{url}/other{n}")));
        assert_eq!(places.count(), files.len());
        if !written.contains("{{") {
            assert_eq!((filled.as_str(), files.len()), (written.trim(), 0));
        }
        assert_eq!(template.is_empty(), filled.is_empty());
    } else {
        assert!(written.contains("{{"));
    }
}

fn file() -> Blob {
    Blob {
        name: "file".into(),
        content: Content::new(Vec::new()),
        length: 0,
        etag: String::new(),
        last_modified: String::new(),
    }
}

/// A command line in the script that iPXE gets: refused, or in one line, and what iPXE makes of that
/// line is the command line again. No line of the script is the command line's own.
pub fn script(octets: &[u8]) {
    let Some(line) = text(octets) else {
        return;
    };
    let (line, message) = line.split_once('\0').unwrap_or((line, ""));
    let generation = Generation {
        token: "token".into(),
        kernel: Some(file().into()),
        initrds: vec![file().into()],
        cmdline: line.into(),
        message: (!message.is_empty()).then(|| message.to_owned()),
        ..Generation::default()
    };
    assert_eq!(ipxe::check_cmdline(line).is_ok(), ipxe::script(&generation, &machine()).is_ok());
    if let Ok(script) = ipxe::script(&generation, &machine()) {
        let words = ["kernel", "initrd=initrd0", line.trim_matches(' ')];
        let expected = words.join(" ");
        assert_eq!(as_ipxe_reads(&script), expected.trim_end_matches(' '));
        nothing_injected(&script, &generation);
    }
}

/// The lines of a script of ours are those that this program writes, in their order.
fn nothing_injected(script: &str, generation: &Generation) {
    let plain = Generation { cmdline: "".into(), message: None, ..generation.clone() };
    let plain = ipxe::script(&plain, &machine()).unwrap();
    let ours = |line: &&str| {
        !line.starts_with("set ")
            && !line.starts_with("echo Portcullis: ")
            && !line.starts_with("boot ")
    };
    let lines = script.split('\n').filter(ours);
    assert!(lines.eq(plain.split('\n').filter(ours)), "{script}");
    let count = |text: &str, word| text.lines().filter(|line| line.starts_with(word)).count();
    assert_eq!(count(script, "boot "), 1);
    assert!(count(script, "set ") <= 5);
    assert!(count(script, "echo Portcullis: ") <= count(&plain, "echo Portcullis: ") + 1);
    assert!(script.chars().all(|one| one == '\n' || !one.is_control()), "{script:?}");
}

static API: LazyLock<Api> = LazyLock::new(|| {
    // On another computer, over plain http: it may not name files of this one.
    Api::new("http://192.0.2.1/pixie", Duration::from_secs(1), None, None).unwrap()
});

/// An answer of an API: refused, or a script can be made of it for any machine, into which nothing
/// was injected. An API elsewhere is given no file of this computer.
pub fn api(octets: &[u8]) {
    let Ok(generation) = API.read(octets) else {
        return;
    };
    let script = ipxe::script(&generation, &machine()).unwrap();
    if generation.script.is_none() {
        nothing_injected(&script, &generation);
    }
    let payloads = generation.kernel.iter().chain(&generation.initrds).chain(&generation.others);
    for payload in payloads {
        assert!(payload.length().is_none(), "nothing of this computer is opened: {payload:?}");
    }
}

/// Whatever text a fact carries (a name that a machine asked for, an answer of an API, an error of
/// another web server): no control character of it reaches the terminal, and the JSON line is one.
pub fn terminal(octets: &[u8]) {
    let text = String::from_utf8_lossy(octets).into_owned();
    let refusal = API.read(octets).err().unwrap_or_default();
    let facts = [
        Fact::NotFound { protocol: Protocol::Tftp, file: text.clone() },
        Fact::Ignored(Ignored::Source { reason: text.clone() }),
        Fact::Ignored(Ignored::Source { reason: refusal }),
        Fact::Upstream { file: text.clone(), problem: text.clone() },
        Fact::TransferEnded { transfer: 1, sent: 0, reason: text },
    ];
    let narrator = Narrator { debug: true, live: false, several: true };
    let mut board = Board::default();
    for fact in facts {
        let event = Event { at: 1, mac: MAC, what: What::Fact(fact) };
        let told = board.apply("eth0", &event);
        for line in narrator.lines("eth0", &event, told) {
            let line = line.render(false);
            assert!(!line.chars().any(char::is_control), "{line:?}");
        }
        let line = json::machine("eth0", &event, None);
        assert!(!line.contains('\n'), "{line}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&line).unwrap()["event"], "machine");
    }
}
