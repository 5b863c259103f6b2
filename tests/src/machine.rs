//! A computer that boots from the network: QEMU, in software emulation.
//!
//! Guarantees: unless it is given a disk it has none, so that it reaches userspace by the network or not
//! at all; it ends with its owner; what it says on its serial console is kept.

use std::{
    io::{self, Write as _},
    net::Shutdown,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{
    LabError, Result,
    lan::Lan,
    plain_rom,
    process::{Process, finish, mortal},
    repository::script,
};

/// What the machine boots with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// SeaBIOS with the iPXE ROM of QEMU's network card.
    Bios,
    /// The same as a plain PXE ROM, that is no iPXE ([`plain_rom`]).
    BiosPlain,
    /// OVMF with its own PXE stack: the card has no ROM.
    Uefi,
    /// The same with PXE switched off, so that only HTTP boot is left.
    UefiHttp,
    /// OVMF with Secure Boot on, which knows these keys alone.
    Secure(Keys),
    /// The same with PXE switched off.
    SecureHttp(Keys),
    /// A PC with OVMF for 32 bit and its own PXE stack.
    Uefi32,
    /// The same with PXE switched off.
    Uefi32Http,
    /// arm64 with AAVMF, the same firmware as OVMF, and its own PXE stack.
    Arm64,
    /// The same with PXE switched off.
    Arm64Http,
}

impl Firmware {
    /// Longest time to userspace, emulated, on a busy machine. Usual: 15 to 30 s, arm64 a minute.
    fn patience(self) -> Duration {
        match self {
            Self::Bios | Self::BiosPlain | Self::Uefi | Self::UefiHttp => BOOT,
            // The only build of OVMF for 32 bit wants SMM, which takes its time in emulation.
            Self::Uefi32 | Self::Uefi32Http | Self::Arm64 | Self::Arm64Http => 4 * BOOT,
            // The same, and GRUB fetches a kernel block by block.
            Self::Secure(_) | Self::SecureHttp(_) => 4 * BOOT,
        }
    }

    /// The machines of the laboratory's image for it; see [`image_for`].
    #[must_use]
    pub fn processor(self) -> &'static str {
        match self {
            Self::Bios | Self::BiosPlain | Self::Uefi | Self::UefiHttp => "amd64",
            Self::Secure(_) | Self::SecureHttp(_) => "amd64",
            Self::Uefi32 | Self::Uefi32Http => "i386",
            Self::Arm64 | Self::Arm64Http => "arm64",
        }
    }
}

/// Whose signatures a machine with Secure Boot takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// Microsoft's, as on a machine from the shop.
    Microsoft,
    /// Those of [`TEST_KEY`].
    Test,
}

impl Keys {
    /// Template of OVMF's variables with these keys enrolled (package ovmf).
    #[must_use]
    pub fn variables(self) -> &'static str {
        match self {
            Self::Microsoft => "/usr/share/OVMF/OVMF_VARS_4M.ms.fd",
            Self::Test => "/usr/share/OVMF/OVMF_VARS_4M.snakeoil.fd",
        }
    }
}

/// A key that everybody has, encrypted with the password "snakeoil", and its certificate (package
/// ovmf).
pub const TEST_KEY: [&str; 2] =
    ["/usr/share/ovmf/PkKek-1-snakeoil.key", "/usr/share/ovmf/PkKek-1-snakeoil.pem"];
/// OVMF's code for Secure Boot, which keeps the variables to itself by system management mode.
pub const OVMF_SECURE: &str = "/usr/share/OVMF/OVMF_CODE_4M.secboot.fd";
/// OVMF's code and the template of its variables.
pub const OVMF: [&str; 2] = ["/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"];
/// What every machine has in its SMBIOS table: a serial number with characters that mean something
/// elsewhere, and a UUID.
pub const SERIAL: &str = "PC \"7\"/42";
/// See [`SERIAL`].
pub const UUID: &str = "00112233-4455-6677-8899-aabbccddeeff";
/// The same of OVMF for 32 bit.
pub const OVMF32: [&str; 2] =
    ["/usr/share/OVMF/OVMF32_CODE_4M.secboot.fd", "/usr/share/OVMF/OVMF32_VARS_4M.fd"];
/// The same of AAVMF.
pub const AAVMF: [&str; 2] = ["/usr/share/AAVMF/AAVMF_CODE.fd", "/usr/share/AAVMF/AAVMF_VARS.fd"];
/// What a machine has of memory, MiB, unless it is told otherwise.
pub const MEMORY: u32 = 512;
/// Longest time to userspace of a PC, emulated, on a busy machine.
pub const BOOT: Duration = Duration::from_secs(150);

/// A machine that has been switched on.
#[derive(Debug)]
pub struct Machine {
    process: Process,
    directory: TempDir,
    started: Instant,
    patience: Duration,
}

impl Machine {
    /// Switches one on at a new port of the LAN.
    pub fn start(lan: &Lan, firmware: Firmware, mac: &str) -> Result<Self> {
        Self::with_disk(lan, firmware, mac, None)
    }

    /// The same with a disk, which it tries after the network: a raw image, or a directory that
    /// becomes a FAT file system. What the machine writes there is not kept.
    pub fn with_disk(
        lan: &Lan,
        firmware: Firmware,
        mac: &str,
        disk: Option<&Path>,
    ) -> Result<Self> {
        Self::switch_on(lan, firmware, mac, disk, MEMORY, &["-no-reboot"])
    }

    /// One without a disk, with so many MiB of memory, which starts anew when its system says so: the
    /// others stop then.
    pub fn with_memory(lan: &Lan, firmware: Firmware, mac: &str, mebibytes: u32) -> Result<Self> {
        Self::switch_on(lan, firmware, mac, None, mebibytes, &[])
    }

    fn switch_on(
        lan: &Lan,
        firmware: Firmware,
        mac: &str,
        disk: Option<&Path>,
        mebibytes: u32,
        more: &[&str],
    ) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("portcullis-machine-")
            .tempdir()
            .map_err(|error| LabError::of("a directory for the machine", error))?;
        let tap = lan.tap()?;
        let (program, card, machine) = match firmware {
            // The firmware talks on the serial console.
            Firmware::Bios | Firmware::BiosPlain => {
                ("qemu-system-x86_64", "", ["pc,graphics=off", "qemu64"])
            }
            // No ROM, so that the firmware drives the card.
            Firmware::Uefi | Firmware::UefiHttp => {
                ("qemu-system-x86_64", ",romfile=", ["q35,graphics=off", "qemu64"])
            }
            // Only what runs in system management mode writes the variables.
            Firmware::Uefi32
            | Firmware::Uefi32Http
            | Firmware::Secure(_)
            | Firmware::SecureHttp(_) => {
                ("qemu-system-x86_64", ",romfile=", ["q35,graphics=off,smm=on", "qemu64"])
            }
            Firmware::Arm64 | Firmware::Arm64Http => {
                ("qemu-system-aarch64", ",romfile=", ["virt", "cortex-a57"])
            }
        };
        let mut command = mortal(program);
        command
            .args([
                "-accel",
                "tcg",
                "-m",
                &mebibytes.to_string(),
                "-nodefaults",
                "-display",
                "none",
            ])
            .args(["-uuid", UUID, "-smbios", &format!("type=1,serial={SERIAL}")])
            .args(more)
            .args(["-monitor", &format!("unix:{},server,nowait", monitor(directory.path()))])
            .arg("-serial")
            .arg(format!("file:{}", console(directory.path()).display()))
            .arg("-netdev")
            // Plain frames, without the header in which virtio leaves checksums to others.
            .arg(format!("tap,id=lan,ifname={tap},script=no,downscript=no,vnet_hdr=off"))
            .arg("-device")
            .arg(format!("virtio-net-pci,netdev=lan,mac={mac},bootindex=0{card}"))
            .args(["-machine", machine[0], "-cpu", machine[1]]);
        let flash = match firmware {
            Firmware::Bios | Firmware::BiosPlain => None,
            Firmware::Uefi | Firmware::UefiHttp => Some(OVMF),
            Firmware::Secure(keys) | Firmware::SecureHttp(keys) => {
                Some([OVMF_SECURE, keys.variables()])
            }
            Firmware::Uefi32 | Firmware::Uefi32Http => Some(OVMF32),
            Firmware::Arm64 | Firmware::Arm64Http => Some(AAVMF),
        };
        if let Some([code, template]) = flash {
            let variables = directory.path().join("variables.fd");
            std::fs::copy(template, &variables).map_err(|error| LabError::of(template, error))?;
            command
                .args(["-device", "virtio-rng-pci", "-drive"])
                .arg(format!("if=pflash,format=raw,unit=0,readonly=on,file={code}"))
                .arg("-drive")
                .arg(format!("if=pflash,format=raw,unit=1,file={}", variables.display()));
        }
        if flash.is_some_and(|[code, _]| code == OVMF32[0] || code == OVMF_SECURE) {
            command.args(["-global", "driver=cfi.pflash01,property=secure,value=on"]);
        }
        if matches!(
            firmware,
            Firmware::UefiHttp
                | Firmware::Uefi32Http
                | Firmware::Arm64Http
                | Firmware::SecureHttp(_)
        ) {
            // OVMF tries PXE first, and leaves it out when told so (OvmfPkg/README).
            for protocol in ["IPv4", "IPv6"] {
                command
                    .arg("-fw_cfg")
                    .arg(format!("name=opt/org.tianocore/{protocol}PXESupport,string=n"));
            }
        }
        if let Some(disk) = disk {
            let fat = if disk.is_dir() { "fat:" } else { "" };
            command
                .arg("-drive")
                .arg(format!("if=none,id=disk,format=raw,snapshot=on,file={fat}{}", disk.display()))
                .args(["-device", "virtio-blk-pci,drive=disk,bootindex=1"]);
        }
        if firmware == Firmware::BiosPlain {
            plain_rom::disguise(&mut command, directory.path())?;
        }
        let errors = std::fs::File::create(directory.path().join("errors"))
            .map_err(|error| LabError::of("the machine's directory", error))?;
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        Ok(Self {
            process: lan.switch().spawn(command)?,
            directory,
            started: Instant::now(),
            patience: firmware.patience(),
        })
    }

    /// Presses a key of its keyboard, by QEMU's name for it (`down`, `ret`).
    pub fn press(&self, key: &str) -> Result<()> {
        let path = monitor(self.directory.path());
        UnixStream::connect(&path)
            .and_then(|mut monitor| {
                writeln!(monitor, "sendkey {key}")?;
                monitor.shutdown(Shutdown::Write)?;
                // It ends when the command is done.
                io::copy(&mut monitor, &mut io::sink())
            })
            .map(drop)
            .map_err(|error| LabError::of(path, error))
    }

    /// What it has said on its serial console.
    #[must_use]
    pub fn console(&self) -> String {
        let bytes = std::fs::read(console(self.directory.path())).unwrap_or_default();
        String::from_utf8_lossy(&bytes).replace('\r', "")
    }

    /// Waits at most `patience` for a console line that begins with `word`: the rest of the first
    /// one, and how long after switching on. `Err` with the console's end when the machine has
    /// stopped, or has been on for longer than `limit`, without it.
    pub fn line(
        &mut self,
        word: &str,
        limit: Duration,
        patience: Duration,
    ) -> Result<Option<(String, Duration)>> {
        let asked = Instant::now();
        loop {
            // Looked at before the console, so that a machine's last words are not missed.
            let ended = self.process.wait(Duration::from_millis(50))?;
            let console = self.console();
            // A line counts once it is whole.
            let whole = console.rsplit_once('\n').map_or("", |(lines, _)| lines);
            if let Some(rest) = whole.lines().find_map(|line| line.strip_prefix(word)) {
                return Ok(Some((rest.trim().to_owned(), self.started.elapsed())));
            }
            let why = match ended {
                Some(status) => format!("the machine stopped ({status})"),
                None if self.started.elapsed() > limit => format!("nothing within {limit:?}"),
                None if asked.elapsed() > patience => return Ok(None),
                None => continue,
            };
            let errors = std::fs::read_to_string(self.directory.path().join("errors"));
            let from = console.len().saturating_sub(3000);
            let tail = console.get(from..).unwrap_or(&console);
            return Err(LabError(format!(
                "{word}: {why}; its console ends:\n{tail}\n{}",
                errors.unwrap_or_default()
            )));
        }
    }

    /// Waits for userspace: the kernel's command line, and how long it took.
    pub fn up(&mut self) -> Result<(String, Duration)> {
        self.whole_line("PORTCULLIS-UP ")
    }

    /// Waits for what the initrd says of itself; see [`marker`].
    pub fn initrd(&mut self) -> Result<String> {
        self.whole_line("PORTCULLIS-INITRD ").map(|(text, _)| text)
    }

    /// Waits for what the kernel says of Secure Boot; nothing if it says nothing.
    pub fn secure_boot(&mut self) -> Result<String> {
        self.whole_line("PORTCULLIS-SECURE-BOOT").map(|(text, _)| text)
    }

    /// A line that a machine says in the time that a boot may take.
    fn whole_line(&mut self, word: &str) -> Result<(String, Duration)> {
        self.line(word, self.patience, self.patience)?
            .ok_or_else(|| LabError(format!("{word}: nothing within {:?}", self.patience)))
    }
}

/// The socket of QEMU's monitor.
fn monitor(directory: &Path) -> String {
    directory.join("monitor").display().to_string()
}

/// The file of the serial console.
fn console(directory: &Path) -> PathBuf {
    directory.join("console")
}

/// The directory of the kernel and initrd that machines boot, in the shape of a NixOS netboot build:
/// `bzImage`, `initrd`, `netboot.ipxe`; and `extra`, a second initrd. Made on first use.
pub fn image() -> Result<PathBuf> {
    image_for("amd64")
}

/// The same for another processor, by Debian's name, with `stub`, systemd's boot stub for it; arm64
/// has `Image` in the place of `bzImage`.
pub fn image_for(processor: &str) -> Result<PathBuf> {
    let mut command = script("machine-image");
    command.arg(processor);
    finish(command).map(|path| PathBuf::from(path.trim()))
}

/// What `init` prints after `PORTCULLIS-INITRD` when the machine runs our initrd.
pub fn marker(image: &Path) -> Result<String> {
    let file = image.join("marker");
    std::fs::read_to_string(&file)
        .map(|text| text.trim().to_owned())
        .map_err(|error| LabError::of(file.display(), error))
}

/// Where a BIOS machine's own system lies: a disk whose first sector says `PORTCULLIS-DISK runs` on the
/// serial console.
pub fn disk(directory: &Path) -> Result<PathBuf> {
    // xor ax,ax; mov ds,ax; mov si,0x7c16; cld; lodsb; test al,al; jz +6; mov dx,0x3f8; out dx,al;
    // jmp lodsb; hlt; jmp hlt
    let mut sector = vec![
        0x31, 0xc0, 0x8e, 0xd8, 0xbe, 0x16, 0x7c, 0xfc, 0xac, 0x84, 0xc0, 0x74, 0x06, 0xba, 0xf8,
        0x03, 0xee, 0xeb, 0xf5, 0xf4, 0xeb, 0xfd,
    ];
    sector.extend_from_slice(b"\r\nPORTCULLIS-DISK runs\r\n");
    sector.resize(510, 0);
    sector.extend_from_slice(&[0x55, 0xaa]);
    sector.resize(1 << 20, 0);
    let path = directory.join("disk");
    std::fs::write(&path, sector).map_err(|error| LabError::of(path.display(), error))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Needs, need, netns::Netns, rival::Rival};

    /// The laboratory itself: image, firmware and switch work with a server that is not ours.
    #[test]
    fn both_firmwares_boot_the_image_from_dnsmasq() {
        need!(
            Needs::Root,
            Needs::Tool("qemu-system-x86_64"),
            Needs::Tool("dnsmasq"),
            Needs::File(OVMF[0]),
            Needs::File("/usr/lib/ipxe/snponly.efi"),
        );
        let image = image().unwrap();
        let files = tempfile::tempdir().unwrap();
        for name in ["bzImage", "initrd", "netboot.ipxe"] {
            std::fs::copy(image.join(name), files.path().join(name)).unwrap();
        }
        std::fs::copy("/usr/lib/ipxe/snponly.efi", files.path().join("snponly.efi")).unwrap();
        let lan = Lan::new().unwrap();
        let router = Netns::new("router").unwrap();
        lan.attach(&router, "eth0", Some("192.0.2.1/24")).unwrap();
        router.address("eth0", "fd00::1/64").unwrap();
        let _rival = Rival::start(
            &router,
            "eth0",
            &[
                "--enable-tftp".to_owned(),
                format!("--tftp-root={}", files.path().display()),
                "--dhcp-userclass=set:ipxe,iPXE".to_owned(),
                "--dhcp-boot=tag:ipxe,netboot.ipxe".to_owned(),
                "--dhcp-boot=tag:!ipxe,snponly.efi".to_owned(),
            ],
        )
        .unwrap();
        let expected = marker(&image).unwrap();
        for (firmware, mac) in
            [(Firmware::Bios, "02:00:00:00:00:01"), (Firmware::Uefi, "02:00:00:00:00:02")]
        {
            let mut machine = Machine::start(&lan, firmware, mac).unwrap();
            let (cmdline, time) = machine.up().unwrap();
            println!("{firmware:?}: {time:.1?} to userspace");
            assert!(cmdline.contains("init=/nix/store/"), "{cmdline}");
            assert_eq!(machine.initrd().unwrap(), expected);
        }
    }
}
