//! Recipes: from a distribution's name and version to addresses. The recipes themselves, noted on one
//! day from the projects' documentation, are data: `data/quick.json`.
//!
//! Guarantees: a version that a recipe does not list is tried all the same, since lists grow old; a
//! name that could change the meaning of an address is refused.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use serde::Deserialize;
use serde_json::Value;

use super::url;
use crate::{
    exit::{Code, Failure},
    fetch::Fetcher,
};

/// Octets of an index: stream metadata of Fedora CoreOS has 40 kB.
const INDEX: usize = 4 << 20;
/// For an index to be read whole.
const TIME: Duration = Duration::from_secs(30);

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Data {
    /// The day when the recipes were noted from their projects' documentation.
    noted: String,
    /// What that means, for people.
    #[serde(rename = "origin")]
    _origin: String,
    recipes: BTreeMap<String, Recipe>,
}

/// One distribution. `{mirror}`, `{version}`, `{arch}` and the names of `lookups` stand for their
/// values in every text.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Recipe {
    /// Which documentation it follows.
    source: String,
    versions: Vec<String>,
    /// The version if none is named.
    default: Option<String>,
    arch: String,
    mirror: String,
    /// A document in which `lookups` are found.
    index: Option<String>,
    /// A JSON pointer (RFC 6901) if it begins with a slash, else the end of a word.
    lookups: BTreeMap<String, String>,
    kernel: String,
    initrds: Vec<String>,
    cmdline: String,
    /// An iPXE script instead of a kernel.
    script: Option<String>,
    /// What machines are given there for which no iPXE is at hand, by DHCP option 93.
    programs: BTreeMap<u16, String>,
}

/// What a recipe comes to.
#[derive(Debug, PartialEq, Eq)]
pub enum Dish {
    /// To be opened by [`super::open`].
    Linux {
        /// Address.
        kernel: PathBuf,
        /// Addresses.
        initrds: Vec<PathBuf>,
        /// A template with `ID`.
        cmdline: String,
    },
    /// To be opened by [`super::open_script`].
    Script(Scripted),
}

/// An iPXE script, and what there is for machines that cannot run it.
#[derive(Debug, PartialEq, Eq)]
pub struct Scripted {
    /// A template with `ID`.
    pub script: String,
    /// Programs by architecture, see [`crate::image::Generation::instead`].
    pub programs: Vec<(u16, PathBuf)>,
}

/// What a person chose.
#[derive(Clone, Copy, Debug, Default)]
pub struct Choice<'a> {
    /// One of [`names`].
    pub recipe: &'a str,
    /// Version, or the recipe's own.
    pub version: Option<&'a str>,
    /// Architecture in the distribution's spelling, or the recipe's own.
    pub arch: Option<&'a str>,
    /// Address without a slash at the end, or the recipe's own.
    pub mirror: Option<&'a str>,
    /// More for the command line.
    pub cmdline: Option<&'a str>,
}

fn data() -> Result<Data, Failure> {
    // A test reads it, too.
    serde_json::from_str(include_str!("../../data/quick.json"))
        .map_err(|error| Failure::new(Code::Internal, format!("the recipes: {error}")))
}

/// The recipes that there are.
///
/// # Errors
/// Never, in a program whose tests have passed.
pub fn names() -> Result<Vec<String>, Failure> {
    Ok(data()?.recipes.into_keys().collect())
}

/// Follows a recipe; may fetch an index.
///
/// # Errors
/// Unknown recipe, a version that is needed and not given, or an index that does not help.
pub async fn prepare(choice: Choice<'_>) -> Result<Dish, Failure> {
    let data = data()?;
    let usage = |text: String| Failure::new(Code::Usage, text);
    let recipe = data.recipes.get(choice.recipe).ok_or_else(|| {
        let names: Vec<_> = data.recipes.keys().map(String::as_str).collect();
        usage(format!("there is no recipe for {}, only for {}", choice.recipe, names.join(", ")))
    })?;
    let known = format!(
        "versions of {} noted on {}: {} (others are tried as they are written)",
        choice.recipe,
        data.noted,
        recipe.versions.join(", ")
    );
    let version = choice.version.or(recipe.default.as_deref()).ok_or_else(|| {
        usage(format!("which version of {}?", choice.recipe)).advise(known.clone())
    })?;
    let arch = choice.arch.unwrap_or(&recipe.arch);
    for word in [Some(version), choice.arch].into_iter().flatten() {
        let plain =
            |octet: u8| octet.is_ascii_alphanumeric() || matches!(octet, b'.' | b'-' | b'_');
        if word.starts_with('.') || word.is_empty() || !word.bytes().all(plain) {
            return Err(usage(format!("\"{word}\" is no version or architecture")).advise(known));
        }
    }
    let mirror = choice.mirror.unwrap_or(&recipe.mirror).trim_end_matches('/');
    url::parse(mirror).map_err(|error| usage(format!("--mirror: {error}")))?;
    let mut values: Vec<(&str, String)> = vec![
        ("mirror", mirror.to_owned()),
        ("version", version.to_owned()),
        ("arch", arch.to_owned()),
    ];
    if let Some(index) = &recipe.index {
        let found = look_up(&filled(index, &values), recipe, &values).await;
        values.extend(found.map_err(|failure| failure.advise(known))?);
    }
    Ok(match &recipe.script {
        Some(script) => Dish::Script(Scripted {
            script: filled(script, &values),
            programs: (recipe.programs.iter())
                .map(|(arch, place)| (*arch, filled(place, &values).into()))
                .collect(),
        }),
        None => {
            let own = filled(&recipe.cmdline, &values);
            let words = [own.as_str(), choice.cmdline.unwrap_or_default().trim()];
            let words: Vec<_> = words.into_iter().filter(|words| !words.is_empty()).collect();
            Dish::Linux {
                kernel: filled(&recipe.kernel, &values).into(),
                initrds: recipe.initrds.iter().map(|one| filled(one, &values).into()).collect(),
                cmdline: words.join(" "),
            }
        }
    })
}

/// Whose name stands for its own site.
const XYZ: &str = "netboot.xyz";
/// The script of its own that its site has for iPXE's signed build (roles/netbootxyz/tasks,
/// generate_disks_secureboot.yml), and the site, which is such a script, too (index.html).
const XYZ_SIGNED: &str = "autoexec.ipxe";
const XYZ_SITE: &str = "https://boot.netboot.xyz";
/// What netboot.xyz offers for each kind of machine: label in the script, and files, the first that
/// starts is taken (its README, "Bootloader Downloads").
///
/// The last one is preferred for machines that have no iPXE yet: it needs no driver of its own.
const XYZ_FILES: [(&str, [&str; 3], &[u16]); 3] = [
    ("bios", ["netboot.xyz.lkrn", "netboot.xyz-undionly.kpxe", "netboot.xyz.kpxe"], &[0]),
    ("efi", ["netboot.xyz.efi", "netboot.xyz-snp.efi", "netboot.xyz-snponly.efi"], &[7, 9]),
    (
        "arm64",
        ["netboot.xyz-arm64.efi", "netboot.xyz-arm64-snp.efi", "netboot.xyz-arm64-snponly.efi"],
        &[11],
    ),
];

/// The script for `what`, if that is `netboot.xyz` (as the recipe `xyz`), or a directory with files
/// of netboot.xyz in it or in its folder `ipxe`.
///
/// # Errors
/// The directory's name cannot be written.
pub async fn netboot_xyz(what: &Path) -> Result<Option<Scripted>, Failure> {
    if what == Path::new(XYZ) && !what.exists() {
        let choice = Choice { recipe: "xyz", ..Choice::default() };
        return Ok(match prepare(choice).await? {
            Dish::Script(script) => Some(script),
            Dish::Linux { .. } => None,
        });
    }
    let find = |name: &str| {
        [what.join(name), what.join("ipxe").join(name)].into_iter().find(|at| at.is_file())
    };
    let kinds = XYZ_FILES.map(|(kind, names, archs)| {
        (kind, names.into_iter().filter_map(find).collect::<Vec<PathBuf>>(), archs)
    });
    if kinds.iter().all(|(_, files, _)| files.is_empty()) {
        return Ok(None);
    }
    // Linux' form is for boot loaders, not for firmware.
    let firmware = |file: &&PathBuf| file.extension().is_none_or(|end| end != "lkrn");
    let mut programs = Vec::new();
    for (_, files, archs) in &kinds {
        let last = files.iter().rfind(firmware);
        programs.extend(
            last.into_iter().flat_map(|file| archs.iter().map(|arch| (*arch, file.clone()))),
        );
    }
    let mut script = String::from(
        "#!ipxe\niseq ${efi/SecureBoot} 01 && goto signed ||\niseq ${platform} efi || goto bios\n\
         iseq ${buildarch} arm64 && goto arm64 || goto efi\n",
    );
    // What Secure Boot takes is iPXE's own build; the site's script for it comes with the others.
    let signed = ("signed", find(XYZ_SIGNED).into_iter().collect(), &[][..]);
    for (kind, files, _) in kinds.into_iter().chain([signed]) {
        let _ = writeln!(script, ":{kind}");
        for file in files {
            let name = file.to_str().filter(|name| !name.contains(['"', '\\', '\n']));
            let name = name.ok_or_else(|| {
                let text = format!("{}: a name that no script can hold", file.display());
                Failure::new(Code::Source, text)
            })?;
            let _ = writeln!(script, "chain {{{{ ID \"{name}\" }}}} ||");
        }
        if kind == "signed" {
            let _ = writeln!(script, "chain --autofree {XYZ_SITE} ||");
        }
        script.push_str("goto failed\n");
    }
    script.push_str(
        ":failed\nprompt --timeout 300000 No netboot.xyz for this machine started. \
         Press a key to go on with the next boot device. || exit 1\nexit 1\n",
    );
    Ok(Some(Scripted { script, programs }))
}

/// The values that a recipe takes from its index.
async fn look_up<'a>(
    address: &str,
    recipe: &'a Recipe,
    values: &[(&str, String)],
) -> Result<Vec<(&'a str, String)>, Failure> {
    let fault = |what: String| Failure::new(Code::Source, format!("{address}: {what}"));
    let uri = url::parse(address).map_err(fault)?;
    let index = Fetcher::new().whole(&uri, INDEX, TIME).await;
    let index = index.map_err(|error| fault(error.to_string()))?;
    let text = String::from_utf8_lossy(&index);
    let mut found = Vec::with_capacity(recipe.lookups.len());
    for (name, place) in &recipe.lookups {
        let place = filled(place, values);
        let value = if place.starts_with('/') {
            let json: Value =
                serde_json::from_str(&text).map_err(|error| fault(error.to_string()))?;
            // An address, and nothing that could be a path or a template.
            let found = json.pointer(&place).and_then(Value::as_str);
            found.map(url::parse).transpose().map_err(fault)?.map(|address| address.to_string())
        } else {
            // sha256sum(1) writes a * before the name of a binary file.
            let words = text.split(|character: char| character.is_whitespace() || character == '*');
            let names = words.filter(|word| word.bytes().all(plain) && word.ends_with(&place));
            names.max().map(str::to_owned)
        };
        found.push((name.as_str(), value.ok_or_else(|| fault(format!("nothing at {place}")))?));
    }
    Ok(found)
}

/// What may stand in a version, an architecture or a file's name.
fn plain(octet: u8) -> bool {
    octet.is_ascii_alphanumeric() || matches!(octet, b'.' | b'-' | b'_')
}

fn filled(text: &str, values: &[(&str, String)]) -> String {
    values
        .iter()
        .fold(text.to_owned(), |text, (name, value)| text.replace(&format!("{{{name}}}"), value))
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;
    use crate::template::Template;

    fn prepare(choice: Choice<'_>) -> Result<Dish, Failure> {
        super::prepare(choice).now_or_never().unwrap_or_else(|| panic!("waits for the network"))
    }

    #[test]
    fn every_recipe_of_the_data_is_complete() {
        let data = data().unwrap();
        assert_eq!(data.noted.len(), "2026-11-22".len());
        for (name, recipe) in &data.recipes {
            assert!(!recipe.source.is_empty(), "{name}");
            assert!(url::parse(&recipe.mirror).is_ok(), "{name}");
            assert_eq!(recipe.script.is_none(), !recipe.kernel.is_empty(), "{name}");
            assert!(recipe.default.is_some() || !recipe.versions.is_empty(), "{name}");
            let mut values = vec![("mirror", "M".to_owned())];
            values.extend([("version", "V".to_owned()), ("arch", "A".to_owned())]);
            values.extend(recipe.lookups.keys().map(|name| (name.as_str(), "L".to_owned())));
            let texts = [&recipe.kernel, &recipe.cmdline].into_iter().chain(&recipe.initrds);
            for text in texts.chain(&recipe.script).chain(recipe.programs.values()) {
                let mut number = 0;
                let template = Template::parse(&filled(text, &values), "ID", |_| {
                    number += 1;
                    number
                });
                let left =
                    template.unwrap().text(&crate::template::Machine::at("U")).replace("${", "");
                assert!(recipe.script.is_some() || !left.contains(['{', '}']), "{name}: {left}");
            }
        }
    }

    #[test]
    fn section_1_3_debian_and_the_flags_arch_mirror_and_cmdline() {
        let choice = Choice { recipe: "debian", version: Some("stable"), ..Choice::default() };
        let folder =
            "dists/stable/main/installer-amd64/current/images/netboot/debian-installer/amd64";
        assert_eq!(
            prepare(choice).unwrap(),
            Dish::Linux {
                kernel: format!("http://deb.debian.org/debian/{folder}/linux").into(),
                initrds: vec![format!("http://deb.debian.org/debian/{folder}/initrd.gz").into()],
                cmdline: String::new(),
            }
        );
        let choice = Choice {
            arch: Some("arm64"),
            mirror: Some("http://m/d/"),
            cmdline: Some(" auto "),
            ..choice
        };
        let Dish::Linux { kernel, cmdline, .. } = prepare(choice).unwrap() else { panic!() };
        assert_eq!(
            kernel,
            PathBuf::from(format!("http://m/d/{}/linux", folder.replace("amd64", "arm64")))
        );
        assert_eq!(cmdline, "auto");
    }

    #[test]
    fn section_1_3_fedora_centos_and_arch_say_where_their_second_stage_is() {
        for (recipe, version, word) in [
            ("fedora", Some("44"), "inst.stage2=http://m/releases/44/Everything/x86_64/os/"),
            ("centos", Some("10"), "inst.stage2=http://m/10-stream/BaseOS/x86_64/os/"),
            ("arch", None, "archiso_http_srv=http://m/iso/latest/"),
        ] {
            let mirror = Some("http://m");
            let choice = Choice { recipe, version, mirror, ..Choice::default() };
            let Dish::Linux { cmdline, .. } = prepare(choice).unwrap() else { panic!() };
            assert!(cmdline.split(' ').any(|one| one == word), "{cmdline}");
        }
    }

    #[test]
    fn section_1_3_xyz_has_a_file_for_each_kind_of_machine() {
        let choice = Choice { recipe: "xyz", ..Choice::default() };
        let Dish::Script(Scripted { script, programs }) = prepare(choice).unwrap() else {
            panic!()
        };
        let names: Vec<_> = programs
            .iter()
            .map(|(arch, place)| {
                (*arch, place.strip_prefix("https://boot.netboot.xyz/ipxe").unwrap())
            })
            .collect();
        // BIOS with drivers of its own or the card's; UEFI over the firmware's.
        assert_eq!(
            names,
            [
                (0, Path::new("netboot.xyz.kpxe")),
                (7, Path::new("netboot.xyz-snponly.efi")),
                (9, Path::new("netboot.xyz-snponly.efi")),
                (11, Path::new("netboot.xyz-arm64-snponly.efi")),
            ]
        );
        assert!(
            script
                .contains("\n:signed\nchain --autofree https://boot.netboot.xyz || goto failed\n")
        );
        let mut files = Vec::new();
        Template::parse(&script, "ID", |file| {
            files.push(file);
            files.len()
        })
        .unwrap();
        let endings = [".lkrn", "xyz.efi", "arm64.efi"];
        assert_eq!(files.len(), endings.len());
        for (file, ending) in files.iter().zip(endings) {
            assert!(file.starts_with("https://boot.netboot.xyz/") && file.ends_with(ending));
        }
    }

    fn netboot_xyz(what: &Path) -> Option<Scripted> {
        super::netboot_xyz(what).now_or_never().unwrap_or_else(|| panic!("waits")).unwrap()
    }

    #[test]
    fn netboot_xyz_by_its_name_is_the_recipe_and_by_a_directory_what_lies_there() {
        let choice = Choice { recipe: "xyz", ..Choice::default() };
        let Dish::Script(recipe) = prepare(choice).unwrap() else { panic!() };
        assert_eq!(netboot_xyz(Path::new("netboot.xyz")), Some(recipe));
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        assert_eq!(netboot_xyz(directory.path()), None);
        assert_eq!(netboot_xyz(Path::new("bzImage")), None);
        std::fs::create_dir(at("ipxe")).unwrap();
        for name in ["netboot.xyz.lkrn", "netboot.xyz.kpxe", "ipxe/netboot.xyz-arm64-snponly.efi"] {
            std::fs::write(at(name), b"x").unwrap();
        }
        let directory = directory.path().display();
        let Scripted { script, programs } = netboot_xyz(Path::new(&directory.to_string())).unwrap();
        assert_eq!(
            programs,
            [
                (0, format!("{directory}/netboot.xyz.kpxe").into()),
                (11, format!("{directory}/ipxe/netboot.xyz-arm64-snponly.efi").into()),
            ]
        );
        assert_eq!(
            script,
            format!(
                "#!ipxe\n\
                 iseq ${{efi/SecureBoot}} 01 && goto signed ||\n\
                 iseq ${{platform}} efi || goto bios\n\
                 iseq ${{buildarch}} arm64 && goto arm64 || goto efi\n\
                 :bios\n\
                 chain {{{{ ID \"{directory}/netboot.xyz.lkrn\" }}}} ||\n\
                 chain {{{{ ID \"{directory}/netboot.xyz.kpxe\" }}}} ||\n\
                 goto failed\n\
                 :efi\n\
                 goto failed\n\
                 :arm64\n\
                 chain {{{{ ID \"{directory}/ipxe/netboot.xyz-arm64-snponly.efi\" }}}} ||\n\
                 goto failed\n\
                 :signed\n\
                 chain --autofree https://boot.netboot.xyz ||\n\
                 goto failed\n\
                 :failed\n\
                 prompt --timeout 300000 No netboot.xyz for this machine started. Press a key to go on with the next boot device. || exit 1\n\
                 exit 1\n"
            )
        );
    }

    #[test]
    fn section_1_3_an_unknown_version_is_named() {
        let choice = Choice { recipe: "debian", ..Choice::default() };
        let failure = prepare(choice).unwrap_err();
        assert!(failure.advice.iter().any(|text| text.contains("trixie")), "{failure:?}");
        for wrong in ["../x", "", "a/b", "..", "x y", "{arch}"] {
            let failure = prepare(Choice { version: Some(wrong), ..choice }).unwrap_err();
            assert!(failure.message.contains(&format!("\"{wrong}\"")), "{failure}");
            assert_eq!(failure.code, 2);
        }
        let failure = prepare(Choice { recipe: "plan9", ..choice }).unwrap_err();
        assert!(failure.message.contains("debian, fedora"), "{failure}");
    }
}
