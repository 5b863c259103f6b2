//! Dependency policy: licences, sources and bans, from Cargo's own metadata; and the helper's
//! dependencies are counted and each has a reason.

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::Command,
};

use portcullis_lab::repository::{self, read, workspace};
use serde_json::Value;

/// Terms that may be linked into a program under MIT OR Apache-2.0.
const LICENCES: [&str; 9] = [
    "MIT",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Crates that must not come in by a side door, each with its reason.
const BANNED: [(&str, &str); 5] = [
    ("openssl-sys", "TLS is rustls: ARCHITECTURE.md"),
    ("async-std", "one runtime: tokio"),
    ("rustables", "GPL-3, and falls short: ARCHITECTURE.md"),
    ("nftnl-sys", "C library: ARCHITECTURE.md"),
    ("async-io", "one runtime: tokio"),
];

/// With a page for a command that does not exist yet, which nobody will remember to list.
#[test]
fn what_is_installed_is_uninstalled() {
    let directory = tempfile::tempdir().expect("a directory");
    let build = directory.path().join("build");
    let generated = build.join("generated");
    std::fs::create_dir_all(&generated).expect("a directory");
    let programs = ["portcullis", "portcullis-helper"].map(|name| build.join(name));
    let pages = ["portcullis.1", "portcullis-boot.1", "portcullis-new.1", "portcullis.bash"];
    let completions = ["_portcullis", "portcullis.fish"];
    let texts = pages.iter().chain(&completions).map(|name| generated.join(name));
    for file in programs.into_iter().chain(texts) {
        let made = Command::new("install").args(["-m755", "/dev/null"]).arg(file).status();
        assert!(made.expect("install starts").success());
    }
    let root = directory.path().join("root");
    let make = |goal: &str| {
        let made = Command::new("make")
            .args(["--silent", goal, "PIXIECORE=yes"])
            .arg(format!("DESTDIR={}", root.display()))
            .arg(format!("BUILD={}", build.display()))
            .current_dir(workspace())
            .output()
            .expect("make starts");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    };
    let files = || {
        let found = Command::new("find").arg(&root).args(["!", "-type", "d"]).output();
        String::from_utf8(found.expect("find starts").stdout).expect("names")
    };
    make("install");
    assert!(files().lines().count() > 15, "{}", files());
    assert!(files().contains("portcullis-new.1") && files().contains("bin/pixiecore"));
    make("uninstall");
    assert_eq!(files(), "");
}

fn metadata() -> Value {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--offline"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .current_dir(workspace())
        .output()
        .expect("cargo metadata starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).expect("cargo metadata is JSON")
}

fn packages(metadata: &Value) -> &[Value] {
    metadata["packages"].as_array().expect("packages")
}

/// Whether one of the alternatives of an SPDX expression is allowed. Handles what occurs: OR, AND,
/// `/` as an old OR, and brackets around either.
fn allowed(expression: &str) -> bool {
    expression
        .replace(['(', ')'], "")
        .replace('/', " OR ")
        .split(" AND ")
        .all(|part| part.split(" OR ").any(|term| LICENCES.contains(&term.trim())))
}

#[test]
fn every_licence_is_allowed() {
    assert!(!allowed("GPL-3.0-or-later"));
    assert!(!allowed("MIT AND GPL-3.0-only"));
    assert!(allowed("(MIT OR Apache-2.0) AND Unicode-3.0"));
    let metadata = metadata();
    let refused: Vec<_> = packages(&metadata)
        .iter()
        .filter(|package| !package["license"].as_str().is_some_and(allowed))
        .map(|package| format!("{} {}", package["name"], package["license"]))
        .collect();
    assert!(refused.is_empty(), "licences not allowed: {refused:#?}");
}

#[test]
fn every_source_is_the_registry() {
    let metadata = metadata();
    let strange: Vec<_> = packages(&metadata)
        .iter()
        .filter(|package| match package["source"].as_str() {
            None => package["manifest_path"]
                .as_str()
                .is_none_or(|path| !Path::new(path).starts_with(workspace())),
            Some(source) => !source.starts_with("registry+"),
        })
        .map(|package| package["id"].to_string())
        .collect();
    assert!(strange.is_empty(), "from somewhere else: {strange:#?}");
}

#[test]
fn every_direct_dependency_is_pinned() {
    let metadata = metadata();
    let mut seen = 0;
    for package in packages(&metadata).iter().filter(|package| package["source"].is_null()) {
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            if !dependency["source"].is_null() {
                let requirement = dependency["req"].as_str().expect("requirement");
                assert!(
                    requirement.starts_with('='),
                    "{} is not pinned: {requirement}",
                    dependency["name"]
                );
                seen += 1;
            }
        }
    }
    assert!(seen > 20, "the list of dependencies is not the whole list");
}

#[test]
fn nothing_banned_comes_in() {
    let metadata = metadata();
    let names: BTreeSet<_> =
        packages(&metadata).iter().filter_map(|package| package["name"].as_str()).collect();
    assert!(names.contains("zbus"), "the list of packages is not the whole list");
    for (name, reason) in BANNED {
        assert!(!names.contains(name), "{name} is banned: {reason}");
    }
}

#[test]
fn each_dependency_of_the_helper_has_a_reason() {
    let metadata = metadata();
    let readme = read("helper/README.md");
    let helper = packages(&metadata)
        .iter()
        .find(|package| package["name"] == "portcullis-helper")
        .expect("the helper is a package");
    let direct = helper["dependencies"].as_array().expect("dependencies");
    assert!(!direct.is_empty());
    for dependency in direct.iter().filter(|dependency| dependency["kind"].is_null()) {
        let name = dependency["name"].as_str().expect("name");
        assert!(
            readme.contains(&format!("| `{name}` |")),
            "helper/README.md gives no reason for `{name}` (a row that begins with | `{name}` |)"
        );
    }
}

/// The helper's sources, without their tests, by name.
fn sources() -> Vec<(String, String)> {
    let source = |path: PathBuf| {
        let text = std::fs::read_to_string(&path).expect("text");
        let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default().to_owned();
        (path.display().to_string(), code)
    };
    repository::files(&workspace().join("helper/src")).into_iter().map(source).collect()
}

/// What no line of the helper may say, and why it would matter: docs/faults.md.
#[test]
fn the_helper_names_no_process_asks_no_time_of_day_and_starts_and_writes_nothing() {
    let forbidden = [
        ("unix-process", "a subject that can be raced"),
        ("new_for_owner", "a subject that can be raced"),
        ("new_for_pid", "a subject that can be raced"),
        ("SystemTime", "a clock that is set"),
        ("Realtime", "a clock that is set"),
        ("process::Command", "a program that is started"),
        ("execv", "a program that is started"),
        ("fs::write", "a file that is written"),
        ("File::create", "a file that is written"),
        ("OpenOptions", "a file that is written"),
        ("feature =", "permission as a build option"),
        ("debug_assertions", "permission as a build option"),
        ("transmute", "a number that becomes anything"),
    ];
    let sources = sources();
    assert!(sources.len() > 20, "these are not all");
    for (path, code) in &sources {
        for (word, why) in forbidden {
            assert!(!code.contains(word), "{path}: {word}: {why}");
        }
    }
    assert!(!read("helper/Cargo.toml").contains("[features]"));
}

#[test]
fn polkit_keeps_no_answer_and_its_rule_looks_at_session_and_group_alone() {
    let policy = read("polkit/org.portcullis.netboot1.policy");
    let defaults: Vec<_> =
        policy.lines().map(str::trim).filter(|line| line.starts_with("<allow_")).collect();
    assert_eq!(defaults.len(), 9, "three for each of three actions");
    assert!(defaults.iter().all(|line| line.contains(">auth_admin<")), "{defaults:?}");
    let looked_at = |rule: &str, object: &str| -> BTreeSet<String> {
        let object = format!("{object}.");
        let uses = rule.split(&object).skip(1);
        uses.map(|rest| rest.chars().take_while(|c| c.is_ascii_alphanumeric()).collect()).collect()
    };
    let rule = read("polkit/50-portcullis.rules");
    assert_eq!(looked_at(&rule, "action"), BTreeSet::from(["id".to_owned()]));
    let subject = ["active", "isInGroup", "local"].map(str::to_owned);
    assert_eq!(looked_at(&rule, "subject"), BTreeSet::from(subject));
    // The helper's own user with firewalld, and nothing else.
    let rule = read("polkit/50-portcullis-firewalld.rules");
    assert_eq!(looked_at(&rule, "subject"), BTreeSet::from(["user".to_owned()]));
    assert!(rule.contains("subject.user == \"portcullis\""), "{rule}");
    let actions: Vec<_> = rule.split("action.id == ").skip(1).collect();
    let config = "\"org.fedoraproject.FirewallD1.config";
    assert!(actions.len() == 2 && actions.iter().all(|rest| rest.starts_with(config)), "{rule}");
}
