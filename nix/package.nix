# Both programs and their data files, built and installed by the Makefile, as everywhere else.
#
# What NixOS' module needs of it: share/dbus-1, share/polkit-1 and lib/systemd/system, in which the Makefile
# has written this package's own store paths. Nothing is patched.
{
  lib,
  stdenv,
  rustPlatform,
  rustc,
  hwdata,
  ipxe,
  systemd,
}:

let
  # The newest feature of the language that is used came with this one.
  oldestRust = (lib.importTOML ../Cargo.toml).workspace.package.rust-version;

  # What the build reads. Not what a build leaves behind, and not the documentation, whose changes then build nothing.
  needed = [
    "Cargo.lock"
    "Cargo.toml"
    "LICENSE-APACHE"
    "LICENSE-MIT"
    "Makefile"
    "client"
    "dbus"
    "helper"
    "polkit"
    "systemd"
    "tests"
  ];
in

lib.throwIf (lib.versionOlder rustc.version oldestRust)
  "portcullis needs Rust ${oldestRust}, and this nixpkgs has ${rustc.version}: take a newer nixpkgs for this package (nixos-25.11 or later), for example by the flake's own packages"

  rustPlatform.buildRustPackage
  {
    pname = "portcullis";
    inherit ((lib.importTOML ../Cargo.toml).workspace.package) version;

    src = lib.cleanSourceWith {
      name = "portcullis-source";
      src = ../.;
      filter =
        path: _type:
        let
          relative = lib.removePrefix (toString ../. + "/") (toString path);
        in
        lib.elem (lib.head (lib.splitString "/" relative)) needed;
    };

    cargoLock.lockFile = ../Cargo.lock;

    # Looked into first, before the directories of the running system (client/src/loaders.rs, oui.rs, source/efi.rs).
    env.PORTCULLIS_IPXE_DIR = "${ipxe}";
    env.PORTCULLIS_OUI = "${hwdata}/share/hwdata/oui.txt";
    env.PORTCULLIS_STUB_DIR = "${systemd}/lib/systemd/boot/efi";

    buildPhase = ''
      runHook preBuild
      make build
      runHook postBuild
    '';

    # The tests want a system bus, root and network namespaces: `make test`.
    doCheck = false;

    installPhase = ''
      runHook preInstall
      make install PREFIX="$out"
      runHook postInstall
    '';

    meta = {
      description = "Boots another machine over the network, without sudo";
      longDescription = ''
        A small privileged helper, asked over D-Bus and allowed by polkit, opens exactly the netboot ports of
        the firewall on one interface and hands the bound sockets to the user's own process, which serves the
        boot image. The helper is not reachable without NixOS' module (programs.portcullis).
      '';
      license = with lib.licenses; [
        mit
        asl20
      ];
      mainProgram = "portcullis";
      platforms = lib.platforms.linux;
      # The manual pages are written by a program that was just built.
      broken = !stdenv.buildPlatform.canExecute stdenv.hostPlatform;
    };
  }
