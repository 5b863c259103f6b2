//! `portcullis nixos --new DIR`: a flake to begin with, with the user's own SSH key and a host name.
//!
//! Guarantees: nothing that exists is written over; whatever a key or a name holds, it is text in the
//! file and no Nix. Of a key only the public half is taken.

use std::{
    env, fs,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use crate::{
    cli::{Nixos, Starter},
    exit::{Code, Failure},
};

/// The only file that is written.
const FLAKE: &str = "flake.nix";
/// More than a person has, and enough for a group.
const KEYS: usize = 16;
/// Beginnings of OpenSSH's key types (sshd(8), "AUTHORIZED_KEYS FILE FORMAT").
const TYPES: [&str; 3] = ["ssh-", "ecdsa-sha2-", "sk-"];
/// Host name where the directory's is none.
const HOST: &str = "netboot";
/// nixpkgs' name for this kind of computer: most machines are of the same kind.
const SYSTEM: &str = if cfg!(target_arch = "aarch64") { "aarch64-linux" } else { "x86_64-linux" };

/// Writes it; returns what a person is told.
///
/// # Errors
/// [`Code::Usage`]: no key, a bad name, or something is there; [`Code::Internal`]: it cannot be written.
pub fn write(folder: &Path, arguments: &Nixos) -> Result<Vec<String>, Failure> {
    let host = match &arguments.host_name {
        Some(name) if is_host_name(name) => name.clone(),
        Some(name) => {
            let text = format!("{name:?} is no host name: letters, digits and - make one");
            return Err(Failure::new(Code::Usage, text));
        }
        None => std::path::absolute(folder)
            .ok()
            .and_then(|path| path.file_name()?.to_str().map(str::to_owned))
            .filter(|name| is_host_name(name))
            .unwrap_or_else(|| HOST.to_owned()),
    };
    let keys = match &arguments.ssh_key {
        Some(key) => given_key(key)?,
        None => own_keys(env::var_os("HOME").map(PathBuf::from).as_deref())?,
    };
    let path = folder.join(FLAKE);
    let failed = |error: io::Error| {
        let code = match error.kind() {
            io::ErrorKind::AlreadyExists => Code::Usage,
            _ => Code::Internal,
        };
        Failure::new(code, format!("{} cannot be written: {error}", path.display()))
            .advise("nothing is written over: name another folder")
    };
    fs::create_dir_all(folder).map_err(failed)?;
    let text = flake(arguments.kind, &host, &keys);
    fs::File::create_new(&path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(failed)?;
    Ok(explanation(folder, arguments.kind, &host, &keys))
}

/// Three lines.
fn explanation(folder: &Path, kind: Starter, host: &str, keys: &[String]) -> Vec<String> {
    let names: Vec<_> = keys.iter().map(|key| comment(key)).collect();
    let what = match kind {
        Starter::Installer => "NixOS' installer",
        Starter::System => "a small NixOS that lives in memory",
    };
    let path = folder.display();
    let git = fs::canonicalize(folder)
        .is_ok_and(|path| path.ancestors().any(|place| place.join(".git").exists()));
    // A flake in a git repository is what git knows of it.
    let add = if git { format!("git -C {path} add {FLAKE}; ") } else { String::new() };
    let reference = match folder.is_absolute() || folder.starts_with(".") {
        true => path.to_string(),
        false => format!("./{path}"),
    };
    vec![
        format!(
            "Wrote {path}/{FLAKE}: {what}, named {host}, open to root by SSH with {}.",
            names.join(", ")
        ),
        format!("Build and serve it: {add}portcullis nixos {reference}#{host}"),
        "When the machine is up, its screen tells its address: ssh root@ADDRESS".to_owned(),
    ]
}

fn flake(kind: Starter, host: &str, keys: &[String]) -> String {
    let (imports, more) = match kind {
        Starter::Installer => ("(modulesPath + \"/installer/netboot/netboot-minimal.nix\")", ""),
        Starter::System => (
            "(modulesPath + \"/installer/netboot/netboot.nix\")",
            "            # Drivers and firmware for whatever machine it meets.\n            \
             hardware.enableAllHardware = true;\n            \
             hardware.enableRedistributableFirmware = true;\n",
        ),
    };
    let keys: String = keys.iter().map(|key| format!("              {}\n", string(key))).collect();
    let host = string(host);
    format!(
        r#"{{
  description = "A system that machines boot over the network: portcullis nixos";

  # Which nixpkgs is written down in flake.lock at the first build; nix flake update takes a newer one.
  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs = {{ nixpkgs, ... }}: {{
    nixosConfigurations.{host} = nixpkgs.lib.nixosSystem {{
      # The processor of the machines; another one than this computer's needs a builder for it.
      system = "{SYSTEM}";
      modules = [
        ({{ config, modulesPath, pkgs, ... }}: {{
          imports = [ {imports} ];

          config = {{
            networking.hostName = {host};

            # Whoever has one of these keys may log in as root.
            services.openssh.enable = true;
            users.users.root.openssh.authorizedKeys.keys = [
{keys}            ];
{more}
            # What else the system should have, for example:
            # environment.systemPackages = [ pkgs.git ];
            # console.keyMap = "de";

            system.stateVersion = config.system.nixos.release;
          }};
        }})
      ];
    }};
  }};
}}
"#
    )
}

/// A string of Nix with this text in it (Nix manual, "String literals").
fn string(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('"', "\\\"").replace("${", "\\${");
    format!("\"{text}\"")
}

/// As NixOS' option `networking.hostName` has it, without underscores.
fn is_host_name(name: &str) -> bool {
    let edge = |octet: Option<&u8>| octet.is_some_and(u8::is_ascii_alphanumeric);
    let octets = name.as_bytes();
    octets.len() <= 63
        && edge(octets.first())
        && edge(octets.last())
        && octets.iter().all(|octet| octet.is_ascii_alphanumeric() || *octet == b'-')
}

/// The key that the user named: itself, or a file with it.
fn given_key(given: &str) -> Result<Vec<String>, Failure> {
    if let Some(key) = key(given) {
        return Ok(vec![key]);
    }
    let text = fs::read_to_string(given).map_err(|error| {
        let text = format!("--ssh-key: {given} is no public key, and no file with one: {error}");
        Failure::new(Code::Usage, text)
    })?;
    let keys = keys(&text);
    if keys.is_empty() {
        let text = format!("--ssh-key: {given} has no public key in it");
        return Err(Failure::new(Code::Usage, text).advise("the public one ends in .pub"));
    }
    Ok(keys)
}

/// The public keys in the user's own folder.
fn own_keys(home: Option<&Path>) -> Result<Vec<String>, Failure> {
    let folder = home.unwrap_or(Path::new("/nonexistent")).join(".ssh");
    let mut files: Vec<_> = fs::read_dir(&folder)
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "pub"))
        .collect();
    files.sort();
    let mut found: Vec<_> = files
        .iter()
        .filter_map(|path| fs::read_to_string(path).ok())
        .flat_map(|text| keys(&text))
        .collect();
    found.truncate(KEYS);
    if found.is_empty() {
        let text = format!("no SSH public key was found in {}", folder.display());
        return Err(Failure::new(Code::Usage, text)
            .advise("name yours: --ssh-key FILE")
            .advise("ssh-keygen makes one"));
    }
    Ok(found)
}

fn keys(text: &str) -> Vec<String> {
    text.lines().filter_map(key).take(KEYS).collect()
}

/// `ssh-ed25519 AAAA... somebody@somewhere`, without blanks around it. No certificate, and no options:
/// what they would limit is the user's to think of.
fn key(line: &str) -> Option<String> {
    let line = line.trim();
    let mut words = line.splitn(3, ' ');
    let (kind, body) = (words.next()?, words.next()?);
    let known = TYPES.iter().any(|start| kind.starts_with(start)) && !kind.contains("-cert-");
    let base64 = |octet: u8| octet.is_ascii_alphanumeric() || b"+/=".contains(&octet);
    let right = known && body.len() > 20 && body.bytes().all(base64);
    (right && !line.contains(char::is_control)).then(|| line.to_owned())
}

/// What a person calls the key.
fn comment(key: &str) -> &str {
    key.splitn(3, ' ').nth(2).unwrap_or_else(|| key.split(' ').next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJ0000000000000000000000000000000000000000 me@here";

    #[test]
    fn a_key_is_text_and_never_nix() {
        for (text, nix) in [
            ("a", "\"a\""),
            ("a\"b\\c", "\"a\\\"b\\\\c\""),
            ("${builtins.abort \"x\"}", "\"\\${builtins.abort \\\"x\\\"}\""),
            ("$${x}", "\"$\\${x}\""),
        ] {
            assert_eq!(string(text), nix);
        }
    }

    #[test]
    fn only_public_keys_are_keys() {
        assert_eq!(key(&format!("  {KEY}\r\n")).as_deref(), Some(KEY));
        let body = "A".repeat(70);
        for right in ["ssh-rsa", "ecdsa-sha2-nistp256", "sk-ssh-ed25519@openssh.com"] {
            assert!(key(&format!("{right} {body}")).is_some(), "{right}");
        }
        for wrong in [
            "-----BEGIN OPENSSH PRIVATE KEY-----",
            "b3BlbnNzaC1rZXktdjEAAAAABG5vbmUAAAAEbm9uZQAAAAAAAAABAAAAMwAAAAtzc2gtZW",
            "ssh-ed25519",
            "ssh-ed25519 short",
            "# ssh-ed25519 comment",
            &format!("ssh-ed25519-cert-v01@openssh.com {body}"),
            &format!("command=\"x\" ssh-ed25519 {body}"),
            &format!("ssh-ed25519 {body} a\u{7}b"),
        ] {
            assert_eq!(key(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn keys_are_the_users_own_or_the_one_that_is_named() {
        let home = tempfile::tempdir().unwrap();
        let failure = own_keys(Some(home.path())).unwrap_err();
        assert_eq!((failure.code, failure.advice.len()), (2, 2));
        let ssh = home.path().join(".ssh");
        fs::create_dir(&ssh).unwrap();
        fs::write(ssh.join("id_a.pub"), format!("{KEY}\n")).unwrap();
        fs::write(ssh.join("id_a"), "-----BEGIN OPENSSH PRIVATE KEY-----\n").unwrap();
        fs::write(ssh.join("id_b.pub"), KEY.replace("here", "there")).unwrap();
        let keys = own_keys(Some(home.path())).unwrap();
        assert_eq!(keys, [KEY.to_owned(), KEY.replace("here", "there")]);
        let named = |name: &str| given_key(&ssh.join(name).display().to_string());
        assert_eq!(named("id_a.pub").unwrap(), [KEY]);
        assert_eq!(given_key(KEY).unwrap(), [KEY]);
        assert!(named("id_a").unwrap_err().advice[0].contains(".pub"));
        assert!(named("missing").is_err());
    }

    #[test]
    fn host_names_are_labels() {
        for right in ["a", "pc-7", "7", &"x".repeat(63)] {
            assert!(is_host_name(right), "{right}");
        }
        for wrong in ["", "-a", "a-", "a.b", "a_b", "ä", "a b", "\"", &"x".repeat(64)] {
            assert!(!is_host_name(wrong), "{wrong}");
        }
    }

    #[test]
    fn the_explanation_has_three_lines_and_a_word_on_git_where_there_is_one() {
        let folder = tempfile::tempdir().unwrap();
        let lines = || explanation(folder.path(), Starter::Installer, "pc", &[KEY.to_owned()]);
        let [first, second, _] = lines().try_into().unwrap();
        assert!(first.contains("me@here") && second.ends_with("#pc"), "{first} {second}");
        assert!(!second.contains("git"), "{second}");
        fs::create_dir(folder.path().join(".git")).unwrap();
        assert!(lines()[1].contains("git -C"));
        let [_, second, _] = explanation(Path::new("pc"), Starter::System, "pc", &[KEY.to_owned()])
            .try_into()
            .unwrap();
        assert!(second.contains("portcullis nixos ./pc#pc"), "{second}");
    }
}
