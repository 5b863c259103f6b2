//! What `portcullis nixos` builds: from a flake reference or a file to kernel, ramdisk and command line.
//!
//! Guarantees: nix is asked for two things of a system, `toplevel` and `netbootRamdisk`, in one run, and
//! what it says of a failure is passed on; which of its results is which follows from what is in
//! them, since nix numbers them as it likes. Trusts nix and what it builds, as far as the user does.
//! Never evaluates or builds anything itself.

mod links;
pub mod new;
mod nix;
mod watch;
mod workshop;

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

pub use links::Links;
pub use nix::Screen;
pub use watch::Watched;
pub use workshop::{State, Told, Workshop};

use crate::{
    cli::Nixos,
    exit::{Code, Failure},
    source::Order,
};

/// Commands and flakes are experimental features of nix; without effect where they are not any more.
const FEATURES: [&str; 2] = ["--extra-experimental-features", "nix-command flakes"];
/// What is built of a system, by nixpkgs' names: the system itself, which has the kernel and its
/// parameters (nixos/modules/system/activation/top-level.nix), and its ramdisk
/// (nixos/modules/installer/netboot/netboot.nix).
const PARTS: [&str; 2] = ["config.system.build.toplevel", "config.system.build.netbootRamdisk"];
/// Where a flake has its systems.
const SYSTEMS: &str = "nixosConfigurations";
/// Results and their names begin so.
const RESULT: &str = "result";

/// What is built, and how.
#[derive(Clone, Debug)]
pub struct Recipe {
    target: Target,
    /// Further arguments for nix.
    more: Vec<OsString>,
    /// Added to the system's own command line.
    cmdline: Option<String>,
    /// Shown on the machine's screen.
    message: Option<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    /// A system of a flake.
    Flake {
        /// Reference, as nix reads it.
        flake: String,
        /// Attribute path; unknown as long as none was named.
        system: Option<String>,
    },
    /// What a file evaluates to.
    File {
        path: PathBuf,
        /// Attribute path to the system.
        system: Option<String>,
    },
}

/// One build.
#[derive(Clone, Debug)]
pub struct Build {
    /// What is to be served.
    pub order: Order,
    /// The system's store path.
    pub toplevel: PathBuf,
}

impl Recipe {
    /// What the arguments ask for.
    #[must_use]
    pub fn new(arguments: &Nixos) -> Self {
        let reference = arguments.reference.as_deref();
        let target = match &arguments.file {
            Some(path) => Target::File {
                // So that nix takes no name for an option.
                path: std::path::absolute(path).unwrap_or_else(|_| path.clone()),
                system: reference.map(str::to_owned),
            },
            None => Target::flake(reference.unwrap_or(".")),
        };
        Self {
            target,
            more: arguments.nix.clone(),
            cmdline: arguments.cmdline.clone(),
            message: arguments.bootmsg.clone(),
        }
    }

    /// As a person would write it.
    #[must_use]
    pub fn name(&self) -> String {
        match &self.target {
            Target::Flake { flake, system: None } => flake.clone(),
            Target::Flake { flake, system: Some(system) } => {
                let prefix = format!("{SYSTEMS}.\"");
                let short = system.strip_prefix(&prefix).and_then(|rest| rest.strip_suffix('"'));
                format!("{flake}#{}", short.unwrap_or(system))
            }
            Target::File { path, .. } => path.display().to_string(),
        }
    }

    /// Chooses the flake's only system, if none was named.
    ///
    /// # Errors
    /// nix fails, or there are several or none.
    pub async fn choose(&mut self, screen: &mut Screen<'_>) -> Result<(), Failure> {
        let Target::Flake { flake, system: system @ None } = &mut self.target else {
            return Ok(());
        };
        let mut command = program("nix")?;
        command.args(FEATURES).args(["eval", "--json"]).arg(format!("{flake}#{SYSTEMS}"));
        command.args(["--apply", "builtins.attrNames"]).args(&self.more);
        let said = nix::run(command, screen, flake).await.map_err(|failure| failure.advise(GIT))?;
        let names: Vec<String> = serde_json::from_slice(&said).map_err(|error| {
            Failure::new(Code::Nix, format!("nix did not list the systems of {flake}: {error}"))
        })?;
        match names.as_slice() {
            [only] => {
                *system = Some(quoted(only));
                Ok(())
            }
            [] => Err(Failure::new(Code::Nix, format!("{flake} has no {SYSTEMS}"))),
            several => Err(several.iter().fold(
                Failure::new(Code::Usage, format!("{flake} has several systems: name one")),
                |failure, name| failure.advise(format!("portcullis nixos {flake}#{name}")),
            )),
        }
    }

    /// Builds it; `links` becomes a folder of links to the results, which keeps them from nix's
    /// garbage collector as long as it is there.
    ///
    /// # Errors
    /// [`Code::Nix`]: it cannot be built, or is no system that boots from the network.
    pub async fn build(&self, links: &Path, screen: &mut Screen<'_>) -> Result<Build, Failure> {
        let (name, words) = self.command(links);
        let mut command = program(name)?;
        command.args(words);
        let run = nix::run(command, screen, &self.name()).await;
        let about = match &self.target {
            Target::Flake { .. } => GIT,
            Target::File { .. } => SCRIPT,
        };
        run.map_err(|failure| failure.advise(IMPORT).advise(about))?;
        self.read(links)
    }

    /// The program, and its arguments.
    fn command(&self, links: &Path) -> (&'static str, Vec<OsString>) {
        let path = |system: &Option<String>, part: &str| {
            system.iter().map(String::as_str).chain([part]).collect::<Vec<_>>().join(".")
        };
        let mut words: Vec<OsString> = FEATURES.map(OsString::from).to_vec();
        let program = match &self.target {
            Target::Flake { flake, system } => {
                words.push("build".into());
                words.extend(PARTS.map(|part| format!("{flake}#{}", path(system, part)).into()));
                "nix"
            }
            Target::File { path: file, system } => {
                words.push(file.into());
                words.extend(
                    PARTS.iter().flat_map(|part| ["--attr".into(), path(system, part).into()]),
                );
                "nix-build"
            }
        };
        words.extend(["--out-link".into(), links.join(RESULT).into()]);
        words.extend(self.more.iter().cloned());
        (program, words)
    }

    /// What was built.
    fn read(&self, links: &Path) -> Result<Build, Failure> {
        let fault = |text: String| Failure::new(Code::Nix, format!("{}: {text}", self.name()));
        let mut results: Vec<PathBuf> = fs::read_dir(links)
            .and_then(|entries| {
                entries.map(|entry| fs::canonicalize(entry?.path())).collect::<Result<_, _>>()
            })
            .map_err(|error| fault(format!("nix's results cannot be read: {error}")))?;
        // A system has an initrd, too, of its own: only its parameters tell it from the ramdisk.
        let is_system = |path: &PathBuf| path.join("kernel-params").is_file();
        let system = results.iter().position(is_system).map(|at| results.swap_remove(at));
        let ramdisk = results.into_iter().find(|path| path.join("initrd").is_file());
        let (Some(toplevel), Some(ramdisk)) = (system, ramdisk) else {
            let text = "nix built no system with kernel-params, and a ramdisk with initrd";
            return Err(fault(text.to_owned()).advise(IMPORT));
        };
        let kernel = toplevel.join("kernel");
        let kernel = fs::canonicalize(&kernel)
            .map_err(|error| fault(format!("the kernel {}: {error}", kernel.display())))?;
        let parameters = fs::read_to_string(toplevel.join("kernel-params"))
            .map_err(|error| fault(format!("the kernel's parameters cannot be read: {error}")))?;
        let cmdline = self.full_cmdline(&toplevel, parameters.trim());
        if cmdline.contains(char::is_control) {
            return Err(fault("the kernel's parameters are more than one line".to_owned()));
        }
        let order = Order {
            kernel,
            initrds: vec![ramdisk.join("initrd")],
            cmdline: Some(cmdline),
            message: self.message.clone(),
            ..Order::default()
        };
        Ok(Build { order, toplevel })
    }

    /// The template of the command line.
    fn full_cmdline(&self, toplevel: &Path, parameters: &str) -> String {
        let own = format!("init={}/init {parameters}", toplevel.display());
        // What the system says is text; only what the user wrote is a template.
        let own = own.trim().replace("{{", "{{\"{{\"}}");
        let more = self.cmdline.as_deref().map(str::trim).filter(|text| !text.is_empty());
        [own.as_str()].into_iter().chain(more).collect::<Vec<_>>().join(" ")
    }

    /// The folder on this computer that it is made of.
    ///
    /// # Errors
    /// It lies elsewhere.
    pub fn folder(&self) -> Result<PathBuf, Failure> {
        let elsewhere = |name: &str| {
            Failure::new(Code::Usage, format!("--watch: {name} is no folder of this computer"))
        };
        let (folder, mark) = match &self.target {
            Target::File { path, .. } => {
                return path.parent().map(Path::to_owned).ok_or_else(|| elsewhere(&self.name()));
            }
            Target::Flake { flake, .. } => (local(flake).ok_or_else(|| elsewhere(flake))?, flake),
        };
        let folder = fs::canonicalize(folder).map_err(|_| elsewhere(mark))?;
        let up = |name: &str| folder.ancestors().find(|place| place.join(name).exists());
        // What git knows is what a flake is made of, also beside the folder that flake.nix is in.
        let root = up(".git").or_else(|| up("flake.nix"));
        root.map(Path::to_owned).ok_or_else(|| elsewhere(mark))
    }
}

impl Target {
    fn flake(reference: &str) -> Self {
        let (flake, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        let system = match fragment {
            "" => None,
            path if path.contains(['.', '"']) => Some(path.to_owned()),
            name => Some(quoted(name)),
        };
        let flake = if flake.is_empty() { "." } else { flake };
        Self::Flake { flake: flake.to_owned(), system }
    }
}

/// What a system for the network has to import.
const IMPORT: &str = "a system that boots from the network imports \
    (modulesPath + \"/installer/netboot/netboot-minimal.nix\"), or netboot.nix there: \
    portcullis nixos --new DIR writes one";

/// What is easily forgotten of flakes.
const GIT: &str = "of a flake in a git repository nix sees what git knows alone: git add";
/// What the recipe of NixOS' wiki has in the place of a system.
const SCRIPT: &str = "the file's value must be a NixOS system, and no script that runs pixiecore: let \
    the wiki's file end in sys, not run-pixiecore";

/// The attribute path of a flake's system.
fn quoted(name: &str) -> String {
    format!("{SYSTEMS}.\"{name}\"")
}

/// The folder that a flake reference names, if it is one of this computer.
fn local(flake: &str) -> Option<&Path> {
    let place = flake.split('?').next().unwrap_or_default();
    let place = ["path:", "git+file:"]
        .into_iter()
        .find_map(|scheme| place.strip_prefix(scheme))
        .map_or(place, |path| path.strip_prefix("//").unwrap_or(path));
    let written = place.starts_with(['.', '/']);
    written.then(|| Path::new(place))
}

/// Places where nix is found beside PATH.
const PLACES: [&str; 2] = ["/run/current-system/sw/bin", "/nix/var/nix/profiles/default/bin"];

fn program(name: &str) -> Result<Command, Failure> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(PLACES.map(PathBuf::from))
        .map(|place| place.join(name))
        .find(|path| path.is_file())
        .map(Command::new)
        .ok_or_else(|| {
            Failure::new(Code::Nix, format!("the program {name} is not in PATH: is nix installed?"))
                .advise(
                    "Debian, Ubuntu: apt install nix-bin; elsewhere: https://nixos.org/download",
                )
                .advise("what was built already needs no nix: portcullis boot ./result")
        })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn recipe(target: Target) -> Recipe {
        Recipe { target, more: vec!["--impure".into()], cmdline: None, message: None }
    }

    #[test]
    fn a_reference_names_a_flake_and_a_system_in_it() {
        for (reference, flake, system, name) in [
            (".#installer", ".", Some("nixosConfigurations.\"installer\""), ".#installer"),
            ("#a-b", ".", Some("nixosConfigurations.\"a-b\""), ".#a-b"),
            ("github:me/x?ref=y", "github:me/x?ref=y", None, "github:me/x?ref=y"),
            (
                "/x#nixosConfigurations.a",
                "/x",
                Some("nixosConfigurations.a"),
                "/x#nixosConfigurations.a",
            ),
            ("x#hosts.\"a.b\"", "x", Some("hosts.\"a.b\""), "x#hosts.\"a.b\""),
        ] {
            let target = Target::flake(reference);
            let wanted =
                Target::Flake { flake: flake.to_owned(), system: system.map(str::to_owned) };
            assert_eq!(target, wanted);
            assert_eq!(recipe(target).name(), name);
        }
    }

    #[test]
    fn nix_is_asked_for_both_parts_at_once() {
        let (program, words) = recipe(Target::flake(".#a")).command(Path::new("/l"));
        assert_eq!(program, "nix");
        assert_eq!(
            words,
            [
                "--extra-experimental-features",
                "nix-command flakes",
                "build",
                ".#nixosConfigurations.\"a\".config.system.build.toplevel",
                ".#nixosConfigurations.\"a\".config.system.build.netbootRamdisk",
                "--out-link",
                "/l/result",
                "--impure",
            ]
        );
        let file = Target::File { path: "/s.nix".into(), system: Some("hosts.a".to_owned()) };
        let (program, words) = recipe(file).command(Path::new("/l"));
        assert_eq!(program, "nix-build");
        assert_eq!(
            words[2..],
            [
                "/s.nix",
                "--attr",
                "hosts.a.config.system.build.toplevel",
                "--attr",
                "hosts.a.config.system.build.netbootRamdisk",
                "--out-link",
                "/l/result",
                "--impure",
            ]
        );
    }

    /// A store with a system and its ramdisk, and links to them in this order.
    fn built(parameters: &str, names: [&str; 2]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["linux", "system", "ramdisk", "links"] {
            fs::create_dir(at(name)).unwrap();
        }
        for file in ["linux/bzImage", "system/init", "system/initrd", "ramdisk/initrd"] {
            fs::write(at(file), file).unwrap();
        }
        fs::write(at("system/kernel-params"), parameters).unwrap();
        symlink(at("linux/bzImage"), at("system/kernel")).unwrap();
        for (name, result) in names.into_iter().zip(["result", "result-1"]) {
            symlink(at(name), at("links").join(result)).unwrap();
        }
        folder
    }

    #[test]
    fn the_results_are_told_apart_by_what_is_in_them() {
        for names in [["system", "ramdisk"], ["ramdisk", "system"]] {
            let folder = built("a=1 {{ b }}\n", names);
            let root = fs::canonicalize(folder.path()).unwrap();
            let mut recipe = recipe(Target::flake("."));
            recipe.cmdline = Some(" host={{ HOSTNAME }} ".to_owned());
            let build = recipe.read(&root.join("links")).unwrap();
            assert_eq!(build.order.kernel, root.join("linux/bzImage"));
            assert_eq!(build.order.initrds, [root.join("ramdisk/initrd")]);
            assert_eq!(build.toplevel, root.join("system"));
            let wanted = format!(
                "init={}/system/init a=1 {{{{\"{{{{\"}}}} b }}}} host={{{{ HOSTNAME }}}}",
                root.display()
            );
            assert_eq!(build.order.cmdline.unwrap(), wanted);
        }
    }

    #[test]
    fn what_is_no_system_for_the_network_is_told_what_it_lacks() {
        let folder = built("", ["linux", "ramdisk"]);
        let failure = recipe(Target::flake(".#a")).read(&folder.path().join("links")).unwrap_err();
        assert_eq!(failure.code, Code::Nix as u8);
        assert!(failure.advice[0].contains("netboot-minimal.nix"), "{failure:?}");
        let folder = built("a\nb", ["system", "ramdisk"]);
        let failure = recipe(Target::flake(".")).read(&folder.path().join("links")).unwrap_err();
        assert!(failure.message.contains("one line"), "{failure}");
    }

    #[test]
    fn only_flakes_of_this_computer_can_be_watched() {
        let folder = tempfile::tempdir().unwrap();
        let root = fs::canonicalize(folder.path()).unwrap();
        fs::create_dir_all(root.join("sub/deep")).unwrap();
        fs::write(root.join("sub/flake.nix"), "").unwrap();
        let found = |flake: String| recipe(Target::flake(&flake)).folder();
        let path = root.display();
        for flake in [
            format!("{path}/sub"),
            format!("path:{path}/sub/deep#a"),
            format!("git+file://{path}/sub?ref=x#a"),
        ] {
            assert_eq!(found(flake.clone()).unwrap(), root.join("sub"), "{flake}");
        }
        fs::create_dir(root.join(".git")).unwrap();
        assert_eq!(found(format!("{path}/sub")).unwrap(), root);
        for flake in ["github:me/x", "nixpkgs", "https://x/y"] {
            assert_eq!(found(flake.to_owned()).unwrap_err().code, Code::Usage as u8, "{flake}");
        }
        let file = Target::File { path: root.join("sub/system.nix"), system: None };
        assert_eq!(recipe(file).folder().unwrap(), root.join("sub"));
    }
}
