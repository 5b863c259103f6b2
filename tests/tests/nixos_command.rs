//! `portcullis nixos` with the real nix: flakes and files that are built without fetching anything, in a
//! store of the user's own; edited, built anew and booted. And the recipe of NixOS' wiki.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test says what failed by panicking")]

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::signal::Signal;
use portcullis_lab::{
    Needs,
    download::{self, kernel_path},
    host::{Client, SOON, Site},
    machine::{Firmware, Machine, OVMF},
    need_host,
    nixos::Flavour,
    process::{Process, wait_until},
    pty::Pty,
    repository::read,
    scene::{HOST, HTTP, Scene},
};
use serde_json::Value;

/// Longest time that nix may take on a busy machine.
const BUILD: Duration = Duration::from_secs(120);
/// nix with commands and flakes.
const NIX: &str = "nix --extra-experimental-features 'nix-command flakes'";

/// A derivation that runs a script of the host's own shell, into a folder.
const MAKE: &str = r#"
  make = name: script: derivation {
    inherit name;
    system = "x86_64-linux";
    builder = "/bin/sh";
    PATH = "/usr/bin:/bin";
    args = [ "-c" "set -eu; mkdir $out\n${script}" ];
  };
"#;

/// What a NixOS system has to be built of it, as nixpkgs names and lays it out, from the laboratory's
/// kernel and initrd. A machine tells the edition by its command line and by a file of its initrd.
fn builds(edition: &str) -> String {
    let text = r#"{
        kernel = make "linux" "cp /mnt/bzImage $out/";
        toplevel = make "nixos-system-machine" ''
          echo init >$out/init
          echo initrd >$out/initrd
          ln -s ${kernel}/bzImage $out/kernel
          printf %s "console=ttyS0 panic=1 loglevel=4 no_timer_check edition=EDITION" >$out/kernel-params
        '';
        netbootRamdisk = make "initrd" ''
          cp /mnt/initrd $out/initrd
          chmod u+w $out/initrd
          echo EDITION >extra
          echo extra | cpio --quiet -o -H newc | gzip -9n >>$out/initrd
        '';
      }"#;
    text.replace("EDITION", edition)
}

/// A flake with these systems.
fn flake(names: &[&str], edition: &str) -> String {
    let systems: String = names
        .iter()
        .map(|name| {
            format!("nixosConfigurations.{name}.config.system.build = rec {};\n", builds(edition))
        })
        .collect();
    format!("{{ outputs = {{ self }}: let {MAKE} in {{\n{systems} }}; }}\n")
}

/// In nixpkgs' place: as much as the wiki's file and a new flake ask of it.
fn nixpkgs() -> String {
    format!(
        r#"{{ outputs = {{ self }}: let {MAKE}
          pkgs = {{
            system = "x86_64-linux";
            pixiecore-compat = import ./pixiecore-compat.nix {{
              runCommand = name: _: script: make name script;
              portcullis = make "portcullis" "mkdir $out/bin; ln -s /usr/bin/portcullis $out/bin/";
            }};
            writers.writeBash = name: text: derivation {{
              inherit name text;
              system = "x86_64-linux";
              builder = "/bin/sh";
              PATH = "/usr/bin:/bin";
              args = [ "-c" "{{ echo '#!/bin/bash'; printf %s \"$text\"; }} >$out; chmod 755 $out" ];
            }};
          }};
          nixosSystem = {{ system, modules }}: let
            said = (builtins.head modules {{
              inherit config pkgs;
              lib = {{ }};
              modulesPath = "/modules";
            }});
            config.system.nixos.release = "26.11";
            config.system.build = rec {};
          in {{ inherit config pkgs said; }};
        in {{
          lib = {{ inherit nixosSystem; }};
          legacyPackages.x86_64-linux = pkgs;
        }}; }}"#,
        builds("stub")
    )
}

/// alice's nix: a store, and everything else that it keeps, in one folder.
struct Home<'a> {
    folder: tempfile::TempDir,
    scene: &'a Scene,
}

impl<'a> Home<'a> {
    fn new(scene: &'a Scene) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let home = Self { folder, scene };
        home.sh("mkdir -p home run etc; chmod 700 run
                 printf 'sandbox = false\nbuild-users-group =\nsubstituters =\nflake-registry =\n' >etc/nix.conf")
            .unwrap();
        home
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Where everything is, for env(1).
    fn environment(&self) -> Vec<String> {
        [
            ("HOME", "home"),
            ("XDG_RUNTIME_DIR", "run"),
            ("NIX_STORE_DIR", "store"),
            ("NIX_STATE_DIR", "var"),
            ("NIX_LOG_DIR", "log"),
            ("NIX_CONF_DIR", "etc"),
        ]
        .map(|(name, place)| format!("{name}={}", self.at(place).display()))
        .to_vec()
    }

    /// Runs a script as alice, in her folder.
    fn sh(&self, script: &str) -> portcullis_lab::Result<String> {
        let mut command = self.scene.host.command(Some("alice"), "env");
        let script = format!("cd {} && {script}", self.folder.path().display());
        command.args(self.environment()).args(["sh", "-e", "-c", &script]);
        self.scene.host.netns().finish(command)
    }

    /// Puts a flake of this folder, or another file, in the place of the one before.
    fn write(&self, name: &str, text: &str) {
        let path = self.at(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let new = self.at("new");
        fs::write(&new, text).unwrap();
        fs::rename(new, path).unwrap();
    }

    /// Her `portcullis nixos`, or another program, without a terminal.
    fn start(&self, program: &[&str]) -> Client {
        let environment = self.environment();
        let words: Vec<&str> = std::iter::once("env")
            .chain(environment.iter().map(String::as_str))
            .chain(program.iter().copied())
            .collect();
        self.scene.host.program("alice", "setsid", &words).unwrap()
    }

    /// What the program says before it ends with this exit code.
    fn refused(&self, code: i32, program: &[&str]) -> String {
        let mut client = self.start(program);
        assert!(ends(&mut client, code), "{}{}", client.stdout(), client.stderr());
        client.stdout() + &client.stderr()
    }

    /// Links that keep builds from the garbage collector.
    fn links(&self) -> usize {
        fs::read_dir(self.at("run")).unwrap().count()
    }

    fn reference(&self, name: &str) -> String {
        self.at(name).display().to_string()
    }
}

/// Whether it ends, with this code.
fn ends(client: &mut Client, code: i32) -> bool {
    let mut status = None;
    wait_until(BUILD, || {
        status = client.end().ok();
        status.is_some()
    });
    status.is_some_and(|status| status.code() == Some(code))
}

const SERVE: [&str; 4] = ["-i", "eth0", "--json", "--no-ask-password"];

/// The states of builds, without what nix says.
fn states(client: &Client) -> Vec<String> {
    let events = client.events();
    let builds = events.iter().filter(|event| event["event"] == "build");
    let states = builds.map(|event| event["state"].as_str().unwrap().to_owned());
    states.filter(|state| state != "output").collect()
}

fn build(client: &Client, state: &str) -> Option<Value> {
    client.events().into_iter().rfind(|event| event["event"] == "build" && event["state"] == state)
}

/// The store path at the end of what is said of a build.
fn toplevel(client: &Client) -> String {
    let done = build(client, "done").unwrap();
    done["text"].as_str().unwrap().rsplit(' ').next().unwrap().to_owned()
}

fn get(scene: &Scene, path: &str) -> Vec<u8> {
    download::http(&scene.outsider, (HOST, HTTP).into(), path, Duration::ZERO).unwrap()
}

#[test]
fn a_flake_is_booted_edited_built_anew_and_booted_again() {
    need_host!(
        Needs::Tool("nix"),
        Needs::Tool("qemu-system-x86_64"),
        Needs::File(OVMF[0]),
        Needs::File("/usr/lib/ipxe/snponly.efi")
    );
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    let home = Home::new(&scene);
    home.write("flake/flake.nix", &flake(&["machine"], "one"));
    let reference = home.reference("flake");
    let mut client = home.start(
        &[&["portcullis", "nixos", &reference, "--watch", "--cmdline", "by=hand"], &SERVE[..]]
            .concat(),
    );
    let ready = client.ready_within(BUILD).unwrap();
    assert_eq!(ready["kernel"]["name"], "bzImage");
    let first = toplevel(&client);
    // The collector is real, and takes what nothing keeps.
    home.sh("nix-store --gc").unwrap();
    assert!(Path::new(&first).join("init").exists(), "collected while it is served");
    let old = kernel_path(&scene.outsider, "eth0", &client).unwrap().replace("kernel", "initrd0");
    let script = get(&scene, &old.replace("initrd0", "boot.ipxe"));
    assert!(String::from_utf8_lossy(&script).contains("edition=one"));

    let boot = |firmware, mac: &str, edition: &str, system: &str| {
        let mut machine = Machine::start(&scene.lan, firmware, mac).unwrap();
        let (cmdline, _) =
            machine.up().unwrap_or_else(|error| panic!("{error:?}\n{}", client.stdout()));
        let wanted = format!("init={system}/init ");
        assert!(cmdline.contains(&wanted), "{cmdline}");
        assert!(cmdline.contains(&format!(" edition={edition} by=hand")), "{cmdline}");
        let (extra, _) = machine.line("PORTCULLIS-EXTRA ", BUILD, BUILD).unwrap().unwrap();
        assert_eq!(extra, edition);
    };
    let initrd = get(&scene, &old);
    let old_end = initrd[initrd.len() - 512..].to_owned();
    boot(Firmware::Bios, "02:00:00:00:01:01", "one", &first);

    home.write("flake/flake.nix", &flake(&["machine"], "two"));
    assert!(
        wait_until(BUILD, || states(&client).len() == 4),
        "{}{}",
        client.stdout(),
        client.stderr()
    );
    assert_eq!(states(&client), ["started", "done", "started", "done"], "{}", client.stdout());
    let second = toplevel(&client);
    assert_ne!(first, second);
    boot(Firmware::Uefi, "02:00:00:00:01:02", "two", &second);

    // A machine that had its script before goes on with what it names, wherever the files are now.
    home.sh("nix-store --gc").unwrap();
    assert!(!Path::new(&first).exists(), "the old build is kept for ever");
    assert!(Path::new(&second).exists());
    assert!(get(&scene, &old).ends_with(&old_end), "not what the machine was told of");

    client.signal(Signal::SIGTERM).unwrap();
    assert!(ends(&mut client, 0));
    assert_eq!(home.links(), 0);
    home.sh("nix-store --gc").unwrap();
    assert!(!Path::new(&second).exists(), "something still keeps it");
    scene.assert_restored(SOON).unwrap();
}

#[test]
fn a_key_builds_anew_and_what_fails_leaves_the_build_before() {
    need_host!(Needs::Tool("nix"), Needs::Tool("nix-build"));
    let scene = Scene::start(Some(Flavour::Iptables), Site::AllowsAlice).unwrap();
    let home = Home::new(&scene);
    let value = |edition: &str| {
        format!("let {MAKE} in {{ config.system.build = rec {}; }}", builds(edition))
    };
    home.write("system.nix", &value("one"));
    let mut pty = Pty::open(Path::new("/")).unwrap();
    let mut command = scene.host.command(Some("alice"), "setsid");
    command.args(["--ctty", "env"]).args(home.environment()).args([
        "portcullis",
        "nixos",
        "-f",
        &home.reference("system.nix"),
        "-i",
        "eth0",
        "--no-ask-password",
    ]);
    command.stdin(pty.line().unwrap()).stdout(pty.line().unwrap()).stderr(pty.line().unwrap());
    let mut client: Process = scene.host.netns().spawn(command).unwrap();
    // nix writes to the terminal itself.
    pty.expect("building '", BUILD).unwrap();
    pty.expect("Ready on eth0", BUILD).unwrap();
    pty.expect("r and Enter builds anew", SOON).unwrap();
    let asked = |pty: &mut Pty, answer: &str| {
        pty.type_line("r").unwrap();
        pty.expect("anew ...", BUILD).unwrap();
        pty.expect(answer, BUILD).unwrap();
    };
    asked(&mut pty, "nothing is new");
    home.write("system.nix", &value("two"));
    asked(&mut pty, "Machines that start now get the new build");
    home.write("system.nix", "{ config = throw \"not today\"; }");
    asked(&mut pty, "not today");
    pty.expect("machines go on getting the build before", SOON).unwrap();
    home.write("system.nix", &value("two"));
    asked(&mut pty, "nothing is new");
    // Anything else that is typed is nobody's business.
    pty.type_line("rr").unwrap();
    home.write("system.nix", &value("three"));
    asked(&mut pty, "Machines that start now get the new build");
    pty.interrupt().unwrap();
    pty.expect("Closed:", SOON).unwrap();
    assert_eq!(client.wait(SOON).unwrap().and_then(|status| status.code()), Some(0));
    assert_eq!(home.links(), 0);
    scene.assert_restored(SOON).unwrap();
}

#[test]
fn a_hangup_builds_anew_without_a_terminal() {
    need_host!(Needs::Tool("nix"));
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    let home = Home::new(&scene);
    home.write("flake/flake.nix", &flake(&["a", "b"], "one"));
    let reference = home.reference("flake#b");
    let mut client = home.start(&[&["portcullis", "nixos", &reference], &SERVE[..]].concat());
    client.ready_within(BUILD).unwrap();
    let first = toplevel(&client);
    // While it builds again the ports are open: neither nix nor the builder may hold their sockets.
    let open = home.at("open");
    let look = format!("ls -l /proc/self/fd /proc/$PPID/fd >{}\n echo init", open.display());
    home.write(
        "flake/flake.nix",
        &flake(&["b"], "two").replace("echo init >", &format!("{look} >")),
    );
    client.signal(Signal::SIGHUP).unwrap();
    assert!(wait_until(BUILD, || states(&client).len() == 4), "{}", client.stdout());
    assert_eq!(states(&client), ["started", "done", "started", "done"], "{}", client.stdout());
    assert_ne!(toplevel(&client), first);
    let open = fs::read_to_string(open).unwrap();
    assert!(open.matches("/fd:").count() == 2 && open.contains("/dev/null"), "{open}");
    assert!(!open.contains("socket:"), "{open}");
    // Killed, it cannot tidy up; the next run does, and opens the ports again.
    client.signal(Signal::SIGKILL).unwrap();
    assert!(wait_until(SOON, || client.end().is_ok()));
    assert_eq!(home.links(), 1);
    scene.assert_restored(SOON).unwrap();
    let mut next = home.start(&[&["portcullis", "nixos", &reference], &SERVE[..]].concat());
    next.ready_within(BUILD).unwrap();
    assert_eq!(home.links(), 1);
    next.signal(Signal::SIGINT).unwrap();
    assert!(ends(&mut next, 0));
    assert_eq!(home.links(), 0);
}

#[test]
fn what_cannot_be_built_is_said_before_anything_is_opened() {
    need_host!(Needs::Tool("nix"), Needs::Tool("nix-build"));
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    let home = Home::new(&scene);
    home.write("flake/flake.nix", &flake(&["a", "b"], "one"));
    let broken = flake(&["a"], "one").replace("cp /mnt/bzImage", "echo 'no compiler' >&2; false");
    home.write("broken/flake.nix", &broken);
    let plain = flake(&["a"], "one").replace("netbootRamdisk", "ramdisk");
    home.write("plain/flake.nix", &plain);
    home.write("script.nix", &format!("let {MAKE} in make \"run-pixiecore\" \"true\""));
    let nixos = |code, words: &[&str]| {
        home.refused(code, &[&["portcullis", "nixos"], words, &SERVE[..]].concat())
    };
    let at = |name: &str| home.reference(name);
    for (words, code, said) in [
        (vec![at("flake")], 2, &["several systems", "flake#a", "flake#b"][..]),
        (vec![at("flake#c")], 35, &["does not provide attribute", "netboot-minimal.nix"]),
        (vec![at("broken#a")], 35, &["no compiler", "builder for '", "failed with exit code 1"]),
        (vec![at("plain#a")], 35, &["netbootRamdisk", "netboot-minimal.nix"]),
        (vec![at("missing#a")], 35, &["missing", "git add"]),
        (vec!["-f".to_owned(), at("script.nix")], 35, &["config", "end in sys"]),
        (vec!["github:a/b#c".to_owned(), "--watch".to_owned()], 2, &["no folder of this computer"]),
        (vec![at("flake#a"), "--cmdline".to_owned(), "{{ X }}".to_owned()], 2, &["{{ X }}"]),
    ] {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let told = nixos(code, &words);
        assert!(said.iter().all(|word| told.contains(word)), "{words:?}: {told}");
        let last = told.lines().rfind(|line| line.starts_with('{')).unwrap();
        let last: Value = serde_json::from_str(last).unwrap();
        assert_eq!((&last["event"], &last["exit_code"]), (&"error".into(), &code.into()));
    }
    let told = home.refused(
        35,
        &[&["PATH=/nowhere", "/usr/bin/portcullis", "nixos", &at("flake#a")], &SERVE[..]].concat(),
    );
    assert!(told.contains("the program nix is not in PATH"), "{told}");

    // Ctrl-C while it builds: the builder ends, too, and nothing is left.
    let slow =
        flake(&["a"], "one").replace("cp /mnt/bzImage", "echo $$ >/tmp/BUILDER; sleep 1000 #");
    let builder = home.at("builder");
    home.write("slow/flake.nix", &slow.replace("/tmp/BUILDER", &builder.display().to_string()));
    let mut client = home.start(&[&["portcullis", "nixos", &at("slow")], &SERVE[..]].concat());
    let written = || fs::read_to_string(&builder).is_ok_and(|pid| pid.ends_with('\n'));
    assert!(wait_until(BUILD, written), "{}", client.stdout());
    let pid = fs::read_to_string(&builder).unwrap();
    let runs = || home.sh(&format!("kill -0 {}", pid.trim())).is_ok();
    assert!(runs());
    client.signal(Signal::SIGINT).unwrap();
    assert!(ends(&mut client, 0), "{}", client.stdout());
    assert!(client.stdout().contains("nothing was opened"), "{}", client.stdout());
    assert!(wait_until(SOON, || !runs()), "the builder goes on");
    assert_eq!(home.links(), 0);
    scene.assert_restored(Duration::ZERO).unwrap();
}

/// The wiki's file as it stands, but for two words: nixpkgs comes from a folder, since nothing can be
/// fetched here, and pixiecore is the package that is Portcullis.
#[test]
fn the_recipe_of_the_wiki_runs_without_sudo() {
    need_host!(Needs::Tool("nix-build"));
    let scene = Scene::start(Some(Flavour::Iptables), Site::AllowsAlice).unwrap();
    let home = Home::new(&scene);
    home.write("nixpkgs/flake.nix", &nixpkgs());
    home.write("nixpkgs/pixiecore-compat.nix", &read("nix/pixiecore-compat.nix"));
    let wiki = read("tests/data/wiki-netboot.nix");
    let replaced = |text: String, old: &str, new: &str| {
        assert_eq!(text.matches(old).count(), 1, "{old}");
        text.replace(old, new)
    };
    let pinned = "github:nixos/nixpkgs/54644f409ab471e87014bb305eac8c50190bcf48";
    let wiki = replaced(wiki, pinned, &format!("path:{}", home.at("nixpkgs").display()));
    let recipe = replaced(wiki.clone(), "${hostPkgs.pixiecore}", "${hostPkgs.pixiecore-compat}");
    home.write("system.nix", &recipe);
    home.sh(&format!("{NIX} build -f system.nix -o run-pixiecore")).unwrap();
    let script = fs::read_to_string(home.at("run-pixiecore")).unwrap();
    assert!(
        script.contains("/bin/pixiecore \\\n") && script.contains("--dhcp-no-bind"),
        "{script}"
    );
    let run = home.reference("run-pixiecore");
    let mut client = home.start(&[&[run.as_str()], &SERVE[..]].concat());
    let ready = client.ready_within(BUILD).unwrap();
    let cmdline = ready["cmdline"].as_str().unwrap();
    assert!(cmdline.ends_with("-nixos-system-machine/init loglevel=4"), "{cmdline}");
    let kernel = kernel_path(&scene.outsider, "eth0", &client).unwrap();
    assert!(get(&scene, &kernel).len() > 1_000_000);
    client.signal(Signal::SIGTERM).unwrap();
    assert!(ends(&mut client, 0));
    scene.assert_restored(SOON).unwrap();

    // Ending in the system, the same file is built and served by one command.
    home.write("system.nix", &replaced(wiki, "in\n  run-pixiecore", "in\n  sys"));
    let file = home.reference("system.nix");
    let mut client = home.start(&[&["portcullis", "nixos", "-f", &file], &SERVE[..]].concat());
    let ready = client.ready_within(BUILD).unwrap();
    assert!(ready["cmdline"].as_str().unwrap().contains("edition=stub"), "{ready}");
    client.signal(Signal::SIGTERM).unwrap();
    assert!(ends(&mut client, 0));
}

#[test]
fn a_new_flake_has_the_users_key_and_is_served_as_it_is() {
    need_host!(Needs::Tool("nix"), Needs::Tool("nix-instantiate"), Needs::Tool("ssh-keygen"));
    let scene = Scene::start(Some(Flavour::Nftables), Site::AllowsAlice).unwrap();
    let home = Home::new(&scene);
    home.write("nixpkgs/flake.nix", &nixpkgs());
    let missing = home.sh("portcullis nixos --new pc-7").unwrap_err().0;
    assert!(missing.contains("--ssh-key"), "{missing}");
    assert!(!home.at("pc-7").exists());
    // A comment that would be Nix, were it not text.
    home.sh("mkdir home/.ssh
             ssh-keygen -q -t ed25519 -N '' -C 'a\"b\\ ${throw \"c\"}' -f home/.ssh/id")
        .unwrap();
    let key = fs::read_to_string(home.at("home/.ssh/id.pub")).unwrap();
    let stub = format!("path:{}", home.at("nixpkgs").display());
    for (folder, kind, name, import) in [
        ("pc-7", "installer", "pc-7", "netboot-minimal.nix"),
        ("b.c", "system", "netboot", "netboot.nix"),
    ] {
        let told = home.sh(&format!("portcullis nixos --new {folder} --kind {kind} 2>&1")).unwrap();
        assert_eq!(told.lines().count(), 3, "{told}");
        assert!(told.contains(&format!("portcullis nixos ./{folder}#{name}")), "{told}");
        home.sh(&format!("nix-instantiate --parse {folder}/flake.nix")).unwrap();
        let said = home.sh(&format!(
            "{NIX} eval --json ./{folder}#nixosConfigurations.{name}.said --override-input nixpkgs {stub}"
        ));
        let said: Value = serde_json::from_str(&said.unwrap()).unwrap();
        let config = &said["config"];
        assert_eq!(config["networking"]["hostName"], name);
        let keys = &config["users"]["users"]["root"]["openssh"]["authorizedKeys"]["keys"];
        assert_eq!(keys, &Value::from(vec![key.trim()]));
        assert!(said["imports"][0].as_str().unwrap().ends_with(import), "{said}");
        let before = fs::read_to_string(home.at(folder).join("flake.nix")).unwrap();
        assert!(home.sh(&format!("portcullis nixos --new {folder}")).is_err());
        let after = fs::read_to_string(home.at(folder).join("flake.nix")).unwrap();
        assert_eq!(before, after);
    }
    let reference = home.reference("pc-7");
    let nix = ["--", "--override-input", "nixpkgs", &stub];
    let mut client =
        home.start(&[&["portcullis", "nixos", &reference], &SERVE[..], &nix[..]].concat());
    let ready = client.ready_within(BUILD).unwrap();
    assert!(ready["cmdline"].as_str().unwrap().contains("edition=stub"), "{ready}");
    client.signal(Signal::SIGTERM).unwrap();
    assert!(ends(&mut client, 0));
}
