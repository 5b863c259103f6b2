//! The kernel command line inside a `netboot.ipxe` of a NixOS build. A pure parser.
//!
//! Such a script has one `kernel FILE ARGUMENTS...` line (nixpkgs, nixos/modules/installer/netboot/
//! netboot.nix). Of the arguments, `initrd=...` is for the boot loader, which gets its own, and
//! `${cmdline}` is the place where a caller adds more: both are left out. Nothing is executed: any
//! other reference to an iPXE variable is an error, since it would mean something else here.

/// Why there is no command line in the script.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScriptError {
    /// It does not begin with `#!ipxe`.
    #[error("not an iPXE script (its first line is not #!ipxe)")]
    NotIpxe,
    /// No line loads a kernel.
    #[error("no line begins with the word kernel")]
    NoKernel,
    /// More than one line loads a kernel: which one is meant depends on the script's run.
    #[error("several lines begin with the word kernel, so which one is meant is not known")]
    SeveralKernels,
    /// A variable that only iPXE could fill in.
    #[error("the command line refers to the iPXE variable {0}, which only iPXE could fill in")]
    Variable(String),
}

/// The kernel's arguments, separated by single blanks as iPXE would pass them on.
///
/// # Errors
/// See [`ScriptError`].
pub fn cmdline(script: &str) -> Result<String, ScriptError> {
    let mut lines = script.lines();
    if !lines.next().is_some_and(|line| line.trim_end().starts_with("#!ipxe")) {
        return Err(ScriptError::NotIpxe);
    }
    let mut kernels = lines.filter_map(|line| {
        let mut words = line.split_whitespace();
        (words.next() == Some("kernel")).then_some(words)
    });
    let words = kernels.next().ok_or(ScriptError::NoKernel)?;
    if kernels.next().is_some() {
        return Err(ScriptError::SeveralKernels);
    }
    let mut kept = Vec::new();
    for word in arguments(words) {
        // A failure branch (`|| goto shell`) ends the command.
        if word == "||" || word == "&&" {
            break;
        }
        if word.starts_with("initrd=") || word == "${cmdline}" {
            continue;
        }
        if word.contains("${") {
            return Err(ScriptError::Variable(word.to_owned()));
        }
        kept.push(word);
    }
    Ok(kept.join(" "))
}

/// What follows the options and the file name of a `kernel` command (ipxe, image_cmd.c:
/// `--name NAME`, `--timeout MS`, `--autofree`).
fn arguments<'a>(words: impl Iterator<Item = &'a str>) -> impl Iterator<Item = &'a str> {
    let mut words = words.peekable();
    while let Some(option) = words.next_if(|word| word.starts_with('-')) {
        if matches!(option, "--name" | "-n" | "--timeout" | "-t") {
            words.next();
        }
    }
    words.skip(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_script_of_a_nixos_build() {
        let script = "#!ipxe\n\
            # Use the cmdline variable to allow the user to specify custom kernel params\n\
            # when chainloading this script from other iPXE scripts like netboot.xyz\n\
            kernel bzImage init=/nix/store/abc-nixos-system-nixos-24.05/init initrd=initrd \
            nohibernate loglevel=4 ${cmdline}\n\
            initrd initrd\n\
            boot\n";
        assert_eq!(
            cmdline(script).as_deref(),
            Ok("init=/nix/store/abc-nixos-system-nixos-24.05/init nohibernate loglevel=4")
        );
    }

    #[test]
    fn options_of_the_kernel_command_and_its_failure_branch_are_not_arguments() {
        let script =
            "#!ipxe\r\n  kernel --name k -t 500 --autofree http://h/Image a=b  quiet || shell\r\n";
        assert_eq!(cmdline(script).as_deref(), Ok("a=b quiet"));
        assert_eq!(cmdline("#!ipxe\nkernel bzImage\n").as_deref(), Ok(""));
    }

    #[test]
    fn what_cannot_be_known_is_an_error() {
        assert_eq!(cmdline("kernel bzImage a"), Err(ScriptError::NotIpxe));
        assert_eq!(cmdline(""), Err(ScriptError::NotIpxe));
        assert_eq!(cmdline("#!ipxe\n# kernel bzImage\nboot\n"), Err(ScriptError::NoKernel));
        assert_eq!(cmdline("#!ipxe\nkernel a\nkernel b\n"), Err(ScriptError::SeveralKernels));
        assert_eq!(
            cmdline("#!ipxe\nkernel a ip=${ip}\n"),
            Err(ScriptError::Variable("ip=${ip}".to_owned()))
        );
    }
}
