//! What Nix and NixOS are told: the flake, the package, the module.
//!
//! In `make test`, with Debian's nix and nothing of nixpkgs: every file is parsed, and what two files have
//! to say alike is compared. With `make test-nix NIXPKGS_LIB=...` (the tests that are ignored here) the module
//! and the flake are evaluated by nixpkgs' own lib, in many configurations, and what is generated from
//! them is compared with what is in the repository (`UPDATE=1` writes it). Options of NixOS are those
//! that nix/checks/nixos.nix declares, and with `NIXOS_MODULES=...` once more those of NixOS itself;
//! nothing is built.

// A test speaks by failing.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use portcullis_helper::config::{Config, check_text};
use portcullis_lab::{
    Needs, host, need,
    repository::{assert_made, files, read, workspace},
};
use serde_json::Value;

/// What the tests of a whole system run with.
const STANDARD: &str = "nix/generated/standard.json";
/// The page of the options.
const OPTIONS: &str = "docs/nixos-options.md";

/// A program of nix' as any user, with a store and state of its own in `place`.
fn nix_in(place: &Path, program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(workspace()).env("HOME", place);
    for (name, folder) in [
        ("NIX_STORE_DIR", "store"),
        ("NIX_STATE_DIR", "state"),
        ("NIX_LOG_DIR", "log"),
        ("NIX_CONF_DIR", "configuration"),
    ] {
        command.env(name, place.join(folder));
    }
    // Nothing is built, so nobody is needed to build it.
    let settings = "build-users-group =\nexperimental-features = nix-command flakes";
    command.env("NIX_CONFIG", settings).output().unwrap()
}

/// nix-instantiate, with a store that holds nothing and is gone afterwards.
fn nix(arguments: &[&str]) -> Output {
    nix_in(tempfile::tempdir().unwrap().path(), "nix-instantiate", arguments)
}

/// The folder lib of nixpkgs, for tests that `make test-nix` runs.
fn nixpkgs_lib() -> String {
    std::env::var("NIXPKGS_LIB").expect("make test-nix NIXPKGS_LIB=.../nixpkgs/lib")
}

/// The folder nixos/modules of nixpkgs, if it was given.
fn nixos_modules() -> Option<String> {
    std::env::var("NIXOS_MODULES").ok().filter(|folder| !folder.is_empty())
}

/// Writes a line past the capture of the test runner.
fn tell(line: &str) {
    std::io::Write::write_all(&mut std::io::stderr(), format!("test-nix: {line}\n").as_bytes())
        .unwrap();
}

/// An attribute of nix/checks/evaluate.nix: its value, or what nix said.
fn evaluate(attribute: &str) -> Result<Value, String> {
    let lib = nixpkgs_lib();
    let modules = nixos_modules().unwrap_or_else(|| "null".to_owned());
    let file = "nix/checks/evaluate.nix";
    let arguments = ["--arg", "lib", &lib, "--arg", "modules", &modules, "-A", attribute];
    let arguments = [&["--eval", "--strict", "--json", file], arguments.as_slice()].concat();
    let output = nix(&arguments);
    if output.status.success() {
        return Ok(serde_json::from_slice(&output.stdout).unwrap());
    }
    Err(String::from_utf8_lossy(&output.stderr).into_owned())
}

fn evaluated(attribute: &str) -> Value {
    evaluate(attribute).unwrap_or_else(|said| panic!("{attribute}: {said}"))
}

fn object(value: &Value) -> &serde_json::Map<String, Value> {
    value.as_object().unwrap()
}

/// The texts of a list.
fn texts(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap()).collect()
}

/// A value as TOML, as far as the helper's file goes. nixpkgs has a program for it (remarshal); what counts is
/// what the helper reads.
fn toml(value: &Value) -> String {
    let (tables, keys): (Vec<_>, Vec<_>) =
        object(value).iter().partition(|(_, value)| value.is_object());
    let mut text: String = keys.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
    for (name, table) in tables {
        text += &format!("[{name}]\n{}", toml(table));
    }
    text
}

/// What the helper makes of a generated file.
fn helper_reads(file: &Value) -> Result<Config, String> {
    check_text(Path::new("helper.toml"), &toml(&file["value"])).map_err(|error| error.to_string())
}

/// What writes what is generated.
const MAKE: &str = "make test-nix NIXPKGS_LIB=...";

/// Words between backticks in the sentence of README.md that begins with `start`.
fn quoted_in_readme(start: &str) -> BTreeSet<String> {
    let readme = read("README.md");
    let (_, rest) = readme.split_once(start).unwrap();
    let (sentence, _) = rest.split_once("The error names").unwrap();
    sentence.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

#[test]
fn every_nix_file_parses() {
    need!(Needs::Tool("nix-instantiate"));
    let mut found = files(workspace());
    found.retain(|path| path.extension().is_some_and(|extension| extension == "nix"));
    for needed in ["flake.nix", "default.nix", "nix/module.nix", "nix/tests/serve.nix"] {
        assert!(found.contains(&workspace().join(needed)), "{needed} is not among {found:?}");
    }
    for path in found {
        let output = nix(&["--parse", path.to_str().unwrap()]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {said}", path.display());
    }
    assert!(!nix(&["--parse", "-E", "{ a = 1 }"]).status.success());
}

#[test]
fn the_package_sets_what_the_client_reads_when_it_is_built() {
    let sources = files(&workspace().join("client/src"));
    let between = |text: &str, start: &str, end: char| -> Vec<String> {
        let found = text.split(start).skip(1);
        found.map(|rest| rest.split(end).next().unwrap().to_owned()).collect()
    };
    let read_by_client: BTreeSet<_> = sources
        .iter()
        .flat_map(|path| between(&fs::read_to_string(path).unwrap(), "option_env!(\"", '"'))
        .collect();
    let set: BTreeSet<_> =
        between(&read("nix/package.nix"), "\n    env.", ' ').into_iter().collect();
    assert!(read_by_client.len() >= 2, "{read_by_client:?}");
    assert_eq!(set, read_by_client);
}

/// Nix gets the same files as everybody else; only the places differ.
#[test]
fn what_is_installed_differs_by_its_prefix_alone() {
    need!(Needs::Built("portcullis"), Needs::Built("portcullis-helper"), Needs::Tool("make"));
    let standard: Value = serde_json::from_str(&read(STANDARD)).unwrap();
    let package = standard["packages"]["bus"][0].as_str().unwrap();
    let installed = |prefix: &str| -> BTreeMap<PathBuf, String> {
        let stage = tempfile::tempdir().unwrap();
        host::install(stage.path(), prefix).unwrap();
        let root = stage.path().join(prefix.trim_start_matches('/'));
        files(&root)
            .into_iter()
            .map(|path| {
                let text = String::from_utf8(fs::read(&path).unwrap()).unwrap_or_default();
                (path.strip_prefix(&root).unwrap().to_owned(), text.replace(prefix, "PREFIX"))
            })
            .collect()
    };
    let (usual, nix) = (installed("/usr"), installed(package));
    assert!(usual.len() > 10, "{usual:?}");
    let unit = &nix[Path::new("lib/systemd/system/portcullis-helper.service")];
    assert!(unit.contains("ExecStart=PREFIX/libexec/portcullis-helper\n"), "{unit}");
    assert_eq!(usual, nix);
}

#[test]
fn the_module_loads_the_kernel_modules_that_readme_names() {
    let module = read("nix/module.nix");
    let (_, list) = module.split_once("boot.kernelModules = ").unwrap();
    let (list, _) = list.split_once("];").unwrap();
    let listed: BTreeSet<_> = list.split('"').skip(1).step_by(2).map(str::to_owned).collect();
    assert_eq!(listed, quoted_in_readme("each start (modules-load.d(5); `boot.kernelModules`)"));
}

#[test]
#[ignore = "needs nixpkgs: make test-nix"]
fn nixpkgs_is_named() {
    let lib = nixpkgs_lib();
    let git = Command::new("git").args(["-C", &lib, "rev-parse", "HEAD"]).output().unwrap();
    let commit = String::from_utf8_lossy(&git.stdout).trim().to_owned();
    let version = evaluated("version");
    tell(&format!("nixpkgs' lib {version}, commit {commit}"));
    let Some(modules) = nixos_modules() else {
        return tell("NixOS' own modules are left out: no NIXOS_MODULES");
    };
    for file in texts(&evaluated("realModules")) {
        let hash = ["hash-object", &format!("{modules}/{file}")];
        let git = Command::new("git").args(hash).output().unwrap();
        assert!(git.status.success(), "{}", String::from_utf8_lossy(&git.stderr));
        let blob = String::from_utf8_lossy(&git.stdout).trim().to_owned();
        tell(&format!("nixos/modules/{file}, blob {blob}"));
    }
}

#[test]
#[ignore = "needs nixpkgs: make test-nix"]
fn good_configurations_are_taken_and_open_nothing() {
    let results = evaluated("results.good");
    let results = object(&results);
    assert!(results.len() >= 9);
    let firewall = &results["disabled"]["firewall"];
    for (name, result) in results {
        assert_eq!(texts(&result["failed"]), [""; 0], "{name}");
        assert_eq!(texts(&result["warnings"]), [""; 0], "{name}");
        // The options of the firewall are as without the module, but for what a case itself sets.
        let mut expected = firewall.clone();
        if ["nftables", "firewalld"].contains(&name.as_str()) {
            for key in ["backend", "package"] {
                expected["firewall"][key] = result["firewall"]["firewall"][key].clone();
            }
            expected["nftables"]["enable"] = true.into();
        }
        expected["firewall"]["enable"] = result["firewall"]["firewall"]["enable"].clone();
        assert_eq!(result["firewall"], expected, "{name}");
        if name == "disabled" {
            for unchanged in ["etc", "units", "users", "groups"] {
                assert!(object(&result[unchanged]).is_empty(), "{unchanged}");
            }
            continue;
        }
        // What NixOS installs of the package, and what it adds to it.
        let packages = object(&result["packages"]);
        let package = &texts(&packages["bus"])[0];
        assert!(packages.values().all(|list| texts(list) == [*package]), "{packages:?}");
        assert_eq!(result["polkit"]["enable"], true);
        let file = &result["etc"]["portcullis/helper.toml"];
        let check = format!("{package}/libexec/portcullis-helper --check-config /nix/store/");
        assert!(file["script"].as_str().unwrap().starts_with(&check), "{file}");
        let unit = result["units"]["portcullis-helper"].as_str().unwrap();
        // A third capability, where raw-dhcp says so, as the drop-in gives it elsewhere.
        let raw = match name.as_str() {
            "every-setting" => {
                "AmbientCapabilities=CAP_NET_RAW\nCapabilityBoundingSet=CAP_NET_RAW\n"
            }
            _ => "",
        };
        assert_eq!(unit, format!("[Unit]\n\n[Service]\nX-RestartIfChanged=false\n{raw}"));
        let user = &result["users"]["portcullis"];
        assert_eq!((&user["isSystemUser"], &user["group"]), (&true.into(), &"portcullis".into()));
        assert_eq!(result["modules"].as_array().unwrap().is_empty(), name != "locked", "{name}");
    }
    let locked = texts(&results["locked"]["modules"]).into_iter().map(str::to_owned).collect();
    assert_eq!(quoted_in_readme("each start (modules-load.d(5); `boot.kernelModules`)"), locked);

    // A site's rules are asked before the groups'; the users are members of the package's own group.
    let users = &results["users"];
    let rules = users["polkit"]["extraConfig"].as_str().unwrap();
    let place = |text: &str| rules.find(text).unwrap_or_else(|| panic!("no {text} in {rules}"));
    assert!(place("// The site's.") < place("var groups = [\"wheel\"];"), "{rules}");
    assert_eq!(texts(&users["groups"]["portcullis"]["members"]), ["bob"]);
    assert_eq!(results["iptables"]["polkit"]["extraConfig"], "");
}

#[test]
#[ignore = "needs nixpkgs: make test-nix"]
fn a_generated_file_is_what_the_helper_reads() {
    let results = evaluated("results.good");
    let file = |name: &str| &results[name]["etc"]["portcullis/helper.toml"];
    assert_eq!(helper_reads(file("iptables")), Ok(Config::default()), "the module's defaults");
    let every = r#"
        interfaces = ["enp*", "eth?"]
        http-ports = [64172, "8000-8099"]
        max-seconds = 3600
        full-dhcp = true
        raw-dhcp = true
        leases = 4
        leases-per-user = 2
        questions-per-user = 2
        mark = { tag = 0x51000000, mask = 0xff000000 }
        firewall = { family = "inet", table = "filter", chain = "input" }
    "#;
    let every = check_text(Path::new("helper.toml"), every).map_err(|error| error.to_string());
    assert_eq!(helper_reads(file("every-setting")), every);
    // Every key of the helper is among the settings of that case.
    let example = read("systemd/helper.toml");
    let keys: BTreeSet<_> = example
        .lines()
        .filter_map(|line| line.strip_prefix('#'))
        .filter(|line| !line.starts_with(' '))
        .map(|line| line.trim_start_matches('[').split([' ', ']']).next().unwrap())
        .filter(|key| !["tag", "mask", "family", "table", "chain"].contains(key))
        .collect();
    let set: BTreeSet<_> =
        object(&file("every-setting")["value"]).keys().map(String::as_str).collect();
    assert_eq!(set, keys);
    // What the module lets through is left to the helper, which reads the file when the system is built.
    let refused = helper_reads(file("unknown-setting")).unwrap_err();
    assert!(refused.contains("unknown field `of-tomorrow`"), "{refused}");
}

#[test]
#[ignore = "needs nixpkgs: make test-nix"]
fn what_cannot_work_is_said_with_what_to_do() {
    for (kind, said) in [("refused", "failed"), ("warned", "warnings")] {
        let results = evaluated(&format!("results.{kind}"));
        assert!(object(&results).len() >= 2);
        for (name, result) in object(&results) {
            let sentences = texts(&result[said]);
            let [sentence] = sentences.as_slice() else { panic!("{name}: {sentences:?}") };
            for words in texts(&result["says"]) {
                assert!(sentence.contains(words), "{name}: no {words} in: {sentence}");
            }
            let other = if said == "failed" { "warnings" } else { "failed" };
            assert_eq!(texts(&result[other]), [""; 0], "{name}");
        }
    }
}

#[test]
#[ignore = "needs nixpkgs: make test-nix"]
fn a_value_that_is_none_names_its_option() {
    let names = evaluated("wrongNames");
    assert!(texts(&names).len() >= 14);
    for name in texts(&names) {
        let said = evaluate(&format!("wrong.{name}")).unwrap_err();
        assert!(said.contains("`programs.portcullis."), "{name}: {said}");
        let reason = ["is not of type", "does not exist", "was accessed but has no value defined"];
        assert!(reason.iter().any(|reason| said.contains(reason)), "{name}: {said}");
    }
}

#[test]
#[ignore = "needs nixpkgs: make test-nix"]
fn older_releases_evaluate() {
    let (old, new) = (evaluated("old"), evaluated("results.good"));
    for (name, result) in object(&old) {
        assert_eq!(texts(&result["failed"]), [""; 0], "{name}");
        assert!(result["firewall"]["firewall"].get("backend").is_none());
        for same in ["etc", "polkit", "units", "users", "groups", "packages"] {
            assert_eq!(result[same], new[name][same], "{name}: {same}");
        }
    }
}

/// NixOS' own modules of firewall, polkit and bus make the same of every configuration as what is
/// declared in their places; and what filters is, to the last script, what it is without ours.
#[test]
#[ignore = "needs nixpkgs' modules: make test-nix NIXOS_MODULES=..."]
fn with_nixos_own_modules_it_is_the_same_and_they_are_as_without_it() {
    if nixos_modules().is_none() {
        return;
    }
    let kinds = evaluated("real");
    for (kind, results) in object(&kinds) {
        for (name, result) in object(results) {
            assert_eq!(result["real"], result["declared"], "{kind}: {name}");
            assert_eq!(result["filters"], result["without"], "{kind}: {name}");
            let failed = texts(&result["real"]["failed"]);
            assert_eq!(failed.is_empty(), kind != "refused", "{kind}: {name}: {failed:?}");
        }
    }
    let good = &kinds["good"];
    for (name, services) in [
        ("iptables", &["firewall"][..]),
        ("nftables", &["nftables"]),
        ("firewalld", &["firewalld", "nftables"]),
        ("no-firewall", &[]),
    ] {
        let filters: Vec<_> = object(&good[name]["filters"]["services"]).keys().collect();
        assert_eq!(filters, services, "{name}");
    }
    let table = &good["nftables"]["filters"]["nftables"]["tables"]["nixos-fw"]["content"];
    assert!(table.as_str().unwrap().contains("\nchain input-allow {"), "{table}");

    // polkit's file as it is written: NixOS' administrators, the site's rules, the groups'.
    let rules = good["users"]["rules"].as_str().unwrap();
    let place = |text: &str| rules.find(text).unwrap_or_else(|| panic!("no {text} in {rules}"));
    assert!(place("unix-group:wheel") < place("// The site's."), "{rules}");
    assert!(place("// The site's.") < place("var groups = [\"wheel\"];"), "{rules}");
}

#[test]
#[ignore = "needs nixpkgs: make test-nix"]
fn the_standard_configuration_is_the_one_that_is_tested() {
    let mut standard = evaluated("results.good.standard");
    for unused in ["failed", "warnings", "firewall", "says"] {
        object(&standard).get(unused).unwrap();
        standard.as_object_mut().unwrap().remove(unused);
    }
    let text = serde_json::to_string_pretty(&standard).unwrap() + "\n";
    assert_made(STANDARD, &text, MAKE);
}

#[test]
#[ignore = "needs nixpkgs: make test-nix"]
fn the_page_of_the_options_is_theirs() {
    let mut page =
        "<!-- made by `make test-nix` from nix/module.nix; UPDATE=1 makes it again -->\n\n\
        # Options of programs.portcullis\n\nHow they are used: [nixos.md](nixos.md).\n"
            .to_owned();
    let text = |value: &Value| {
        value["text"].as_str().or(value.as_str()).map(|text| text.trim_end().to_owned())
    };
    let options = evaluated("options");
    for option in options.as_array().unwrap() {
        let name = option["name"].as_str().unwrap();
        let description =
            text(&option["description"]).unwrap_or_else(|| panic!("{name} says nothing"));
        // {option}`x` and {file}`x` are the manual's own.
        let description = description.replace("{option}`", "`").replace("{file}`", "`");
        write!(page, "\n## {name}\n\n{description}\n\n").unwrap();
        writeln!(page, "*Type:* {}", option["type"].as_str().unwrap()).unwrap();
        for (title, key) in [("Default", "default"), ("Example", "example")] {
            match text(&option[key]) {
                Some(value) if value.contains('\n') => {
                    write!(page, "\n*{title}:*\n```nix\n{value}\n```\n").unwrap();
                }
                Some(value) => write!(page, "\n*{title}:* `{value}`\n").unwrap(),
                None => {}
            }
        }
    }
    assert!(page.contains("\n## programs.portcullis.settings.firewall.chain\n"));
    assert_made(OPTIONS, &page, MAKE);
}

#[test]
#[ignore = "needs nixpkgs: make test-nix"]
fn the_flake_and_the_package_evaluate() {
    let flake = evaluated("flake");
    let package = flake["package"].as_str().unwrap();
    assert_eq!(flake["packages"]["default"], package);
    assert_eq!(flake["apps"]["default"], format!("{package}/bin/portcullis"));
    for output in ["apps", "checks", "devShells", "packages"] {
        assert_eq!(texts(&flake["outputs"][output]), ["aarch64-linux", "x86_64-linux"], "{output}");
    }
    for output in ["nixosModules", "overlays"] {
        assert_eq!(texts(&flake["outputs"][output]), ["default"], "{output}");
    }
    let checks: Vec<_> = object(&flake["checks"]).keys().map(String::as_str).collect();
    assert_eq!(
        checks,
        ["module", "package", "pixiecore-compat", "serve-iptables", "serve-nftables"]
    );

    let package = evaluated("package");
    assert!(package["buildPhase"].as_str().unwrap().contains("\nmake build\n"));
    assert!(package["installPhase"].as_str().unwrap().contains("\nmake install PREFIX=\"$out\"\n"));
    assert_eq!(package["version"], env!("CARGO_PKG_VERSION"));
}

/// In place of nixpkgs: its lib, and packages that nobody builds.
const NIXPKGS: &str = "{
  outputs = { self }:
    let
      lib = import ./lib;
      nixos = import ./checks/nixos.nix { inherit lib; cross = false; release = \"new\"; };
      evaluate = modules: lib.evalModules { modules = [ nixos ] ++ modules; };
    in
    {
      lib = lib // { nixosSystem = { modules, ... }: evaluate modules; };
      legacyPackages =
        lib.genAttrs [ \"x86_64-linux\" \"aarch64-linux\" ] (_: (evaluate [ ])._module.args.pkgs);
    };
}
";

/// Flakes have rules of their own (what may be in an input, where files may be): by nix' own command.
#[test]
#[ignore = "needs nixpkgs: make test-nix"]
fn nix_itself_shows_the_flake() {
    let place = tempfile::tempdir().unwrap();
    let (flake, nixpkgs) = (place.path().join("flake"), place.path().join("nixpkgs"));
    for folder in [&flake, &nixpkgs] {
        fs::create_dir(folder).unwrap();
    }
    let copy = |from: &Path, to: &Path| {
        let copied = Command::new("cp").arg("-rT").args([from, to]).status().unwrap();
        assert!(copied.success(), "{}", from.display());
    };
    for part in ["flake.nix", "Cargo.toml", "Cargo.lock", "nix"] {
        copy(&workspace().join(part), &flake.join(part));
    }
    copy(Path::new(&nixpkgs_lib()), &nixpkgs.join("lib"));
    for part in ["checks", "overlay.nix"] {
        copy(&workspace().join("nix").join(part), &nixpkgs.join(part));
    }
    fs::write(nixpkgs.join("flake.nix"), NIXPKGS).unwrap();
    let path = |folder: &Path| format!("path:{}", folder.display());
    let (flake, nixpkgs) = (path(&flake), path(&nixpkgs));
    let arguments = ["flake", "show", "--json", "--no-write-lock-file", "--override-input"];
    let arguments = [arguments.as_slice(), &["nixpkgs", &nixpkgs, &flake]].concat();
    let output = nix_in(place.path(), "nix", &arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let shown: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["apps"]["x86_64-linux"]["default"]["type"], "app", "{shown:#}");
    assert_eq!(shown["nixosModules"]["default"]["type"], "nixos-module", "{shown:#}");
    let package = &shown["packages"]["aarch64-linux"]["default"];
    assert_eq!(package["type"], "derivation", "{shown:#}");
    assert_eq!(shown["checks"]["x86_64-linux"]["module"]["name"], "portcullis-module", "{shown:#}");
}

/// What nix would build from is a whole workspace, and nothing that a build leaves behind.
#[test]
#[ignore = "needs nixpkgs: make test-nix"]
fn the_packages_source_is_whole() {
    let place = tempfile::tempdir().unwrap();
    let (file, lib) = ("nix/checks/evaluate.nix", nixpkgs_lib());
    let arguments =
        ["--eval", "--strict", "--json", "--read-write-mode", file, "--arg", "lib", &lib];
    let arguments = [arguments.as_slice(), &["-A", "package"]].concat();
    let output = nix_in(place.path(), "nix-instantiate", &arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let package: Value = serde_json::from_slice(&output.stdout).unwrap();
    let source = PathBuf::from(package["source"].as_str().unwrap());
    for left_out in ["target", ".cache", ".git", "docs", "nix"] {
        assert!(!source.join(left_out).exists(), "{left_out}");
    }
    let out = place.path().join("out");
    let run = |program: &str, arguments: &[&str]| {
        let output = Command::new(program)
            .args(arguments)
            .current_dir(&source)
            .env("BUILD", host::built().unwrap())
            .env("out", &out)
            .env_remove("MAKEFLAGS")
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program}: {said}");
        output.stdout
    };
    let metadata = ["metadata", "--format-version=1", "--locked", "--offline", "--no-deps"];
    let metadata = run(env!("CARGO"), &metadata);
    let metadata: Value = serde_json::from_slice(&metadata).unwrap();
    assert!(metadata["packages"].as_array().unwrap().len() >= 5);
    // What is done with it once it is built, word for word.
    let script = format!("runHook() {{ :; }}\n{}", package["installPhase"].as_str().unwrap());
    run("bash", &["-euc", &script]);
    assert!(out.join("share/polkit-1/rules.d/50-portcullis.rules").exists());
}

/// Each script of a virtual machine's test is Python, and its machines' configurations are taken.
#[test]
#[ignore = "needs nixpkgs: make test-nix"]
fn tests_with_virtual_machines_are_well_formed() {
    let machines = evaluated("machines");
    assert_eq!(object(&machines).len(), 2);
    for (name, test) in object(&machines) {
        for (node, failed) in object(&test["failed"]) {
            assert_eq!(texts(failed), [""; 0], "{name}: {node}");
        }
        let script = tempfile::NamedTempFile::new().unwrap();
        fs::write(script.path(), test["testScript"].as_str().unwrap()).unwrap();
        let compiled = Command::new("python3")
            .args(["-c", "import sys; compile(open(sys.argv[1]).read(), sys.argv[1], 'exec')"])
            .arg(script.path())
            .output()
            .unwrap();
        assert!(compiled.status.success(), "{}", String::from_utf8_lossy(&compiled.stderr));
    }
}
