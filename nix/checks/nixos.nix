# As much of NixOS as the module touches, for nixpkgs' lib alone: the options with the types that nixpkgs gives them
# (nixos/modules: misc/assertions, services/networking/firewall, services/system/dbus, security/polkit,
# system/boot/systemd, config/users-groups, system/etc), in our own words, and no more of what they do than the
# text of what they write. `cross`: for another processor. `release`: "new", or "old" for one without
# networking.firewall.backend and firewalld. `modules`: path of nixos/modules itself, whose files that
# real-modules.nix names then take the places of what is declared for them; the rest stays in our words.
{
  cross,
  lib,
  modules ? null,
  release,
}:

let
  inherit (lib) mkOption types;

  option = type: default: mkOption { inherit type default; };
  flag = default: option types.bool default;
  unused = option types.raw null;

  # Something with a path in the store that nobody builds.
  fake =
    name: more:
    {
      type = "derivation";
      inherit name;
      outPath = "/nix/store/${builtins.substring 0 32 (builtins.hashString "sha256" name)}-${name}";
    }
    // more;

  real = map (file: modules + "/${file}") (import ./real-modules.nix);

  # A file with this text: another text, another path.
  written =
    name: text:
    fake "${builtins.substring 0 8 (builtins.hashString "sha256" text)}-${name}" { inherit text; };

  callPackage = lib.callPackageWith (pkgs // { inherit lib; });

  pkgs = (import ../overlay.nix pkgs { }) // {
    inherit callPackage lib;
    buildEnv = { name, paths, ... }: fake name { inherit paths; };
    buildPackages = pkgs;
    formats.xml = _: {
      generate = name: value: written name (builtins.toJSON value);
      type = types.anything;
    };
    formats.toml =
      { }:
      let
        # pkgs/pkgs-lib/formats.nix
        type =
          with types;
          oneOf [
            bool
            int
            float
            str
            path
            (attrsOf type)
            (listOf type)
          ]
          // {
            description = "TOML value";
          };
      in
      {
        inherit type;
        generate = name: value: fake name { inherit value; };
      };
    lklWithFirewall.lib = fake "lkl" { };
    makeDBusConf.override = arguments: written "dbus-1" (builtins.toJSON arguments);
    mkShell = fake "shell";
    nixos = _: {
      config.system.build = {
        kernel = fake "linux-6.18" { };
        netbootIpxeScript = fake "netboot.ipxe" { };
        netbootRamdisk = fake "initrd" { };
      };
    };
    path = /nixpkgs;
    polkit = fake "polkit" { bin = fake "polkit-bin" { }; out = fake "polkit-out" { }; };
    runCommand =
      name: attributes: script:
      fake name (attributes // { inherit script; });
    runtimeShell = "/nix/store/shell";
    rustPlatform.buildRustPackage =
      arguments: fake "${arguments.pname}-${arguments.version}" { inherit arguments; };
    rustc = fake "rustc-1.91.0" { version = "1.91.0"; };
    stdenv = {
      buildPlatform.canExecute = _: !cross;
      hostPlatform = {
        isx86_64 = true;
        system = "x86_64-linux";
      };
    };
    symlinkJoin = { name, paths }: fake name { inherit paths; };
    # A test is a module of the test driver's; what it says of nodes and script is handed on.
    testers.runNixOSTest =
      test:
      let
        made = test { inherit lib pkgs; };
      in
      fake "vm-test-run-${made.name}" (made // { driver = fake "driver-${made.name}" { }; });
    writeScript = written;
    writeScriptBin = written;
    writeShellScript = written;
    writeTextFile = { name, text, ... }: written name text;
  }
  // lib.genAttrs [
    "cargo"
    "clippy"
    "coreutils"
    "dbus"
    "dbus-broker"
    "diffutils"
    "dnsmasq"
    "firewalld"
    "hwdata"
    "ipxe"
    "iproute2"
    "iptables"
    "iptables-legacy"
    "libredirect"
    "nftables"
    "nixos-firewall-tool"
    "OVMF"
    "qemu"
    "qemu_test"
    "rustfmt"
    "systemd"
  ] (name: fake name { firmware = "/nix/store/firmware.fd"; variables = "/nix/store/variables.fd"; });

  service = types.submodule {
    freeformType = types.attrsOf types.anything;
    options.restartIfChanged = flag true;
    options.serviceConfig = option (types.attrsOf types.anything) { };
  };

  user = types.submodule {
    freeformType = types.attrsOf types.anything;
    options.isSystemUser = flag false;
    options.isNormalUser = flag false;
    options.group = option types.str "";
    options.description = option types.str "";
    options.extraGroups = option (types.listOf types.str) [ ];
  };
  group = types.submodule {
    options.members = option (types.listOf types.str) [ ];
  };

  etc = types.submodule (
    { config, options, ... }:
    {
      options.text = option (types.nullOr types.lines) null;
      options.source = mkOption { type = types.path; };
      config.source = lib.mkIf (config.text != null) (lib.mkDerivedConfig options.text (written "etc"));
    }
  );

  ports = {
    allowedTCPPorts = option (types.listOf types.port) [ ];
    allowedUDPPorts = option (types.listOf types.port) [ ];
    trustedInterfaces = option (types.listOf types.str) [ ];
  };

  # What every evaluation has: of the module's, what `real` declares nothing of.
  shared.options = {
    boot.kernelModules = option (types.listOf types.str) [ ];

    environment.etc = option (types.attrsOf etc) { };
    environment.systemPackages = option (types.listOf types.package) [ ];

    security.lockKernelModules = flag false;

    services = {
      pixiecore.enable = flag false;
      atftpd.enable = flag false;
      tftpd.enable = flag false;
      dnsmasq = unused;
      getty = unused;
    };

    systemd.packages = option (types.listOf types.package) [ ];
    systemd.services = option (types.attrsOf service) { };

    users.users = option (types.attrsOf user) { };
    users.groups = option (types.attrsOf group) { };

    # Of a whole system, and of the tests with virtual machines.
    boot.loader = unused;
    fileSystems = unused;
    specialisation = unused;
    virtualisation = unused;
  };

  # In the place of `real`.
  declared =
    { config, ... }:
    {
      options = {
        assertions = option (types.listOf types.unspecified) [ ];
        warnings = option (types.listOf types.str) [ ];

        networking.firewall =
          ports
          // {
            enable = flag true;
            interfaces = option (types.attrsOf (types.submodule { options = ports; })) { };
            extraCommands = option types.lines "";
            extraInputRules = option types.lines "";
            package = option types.package (
              if config.networking.nftables.enable then pkgs.nftables else pkgs.iptables
            );
          }
          // lib.optionalAttrs (release == "new") {
            filterOutput.enabled = flag false;
            backend = option (types.enum [
              "iptables"
              "nftables"
              "firewalld"
            ]) (
              if config.services.firewalld.enable then
                "firewalld"
              else if config.networking.nftables.enable then
                "nftables"
              else
                "iptables"
            );
          };
        networking.nftables.enable = flag false;
        networking.nftables.tables = option (types.attrsOf types.anything) { };

        security.polkit.enable = flag false;
        security.polkit.extraConfig = option types.lines "";

        services = {
          dbus.packages = option (types.listOf types.path) [ ];
        }
        // lib.optionalAttrs (release == "new") { firewalld.enable = flag false; };

        system.stateVersion = unused;
      };
    };

  # What `real` asks the rest of NixOS for, and tells it.
  around = {
    options = {
      boot = {
        blacklistedKernelModules = option (types.listOf types.str) [ ];
        extraModprobeConfig = option types.lines "";
        initrd.systemd = lib.genAttrs [
          "contents"
          "groups"
          "packages"
          "storePaths"
          "targets"
          "users"
        ] (_: unused);
        kernelPackages = option types.raw {
          kernel = {
            config.isEnabled = _: true;
            version = "6.18";
          };
        };
      };
      environment.pathsToLink = option (types.listOf types.str) [ ];
      ids = option types.raw {
        gids.messagebus = 4;
        uids.messagebus = 4;
        uids.polkituser = 28;
      };
      meta = unused;
      networking.enableIPv6 = flag true;
      security.pam.services = option (types.attrsOf types.anything) { };
      security.wrapperDir = option types.str "/run/wrappers/bin";
      security.wrappers = option (types.attrsOf types.anything) { };
      services.logrotate.settings = option (types.attrsOf types.anything) { };
      system.nssModules.path = option types.str "/nix/store/nss";
      system.path = option types.package (fake "system-path" { });
      system.stateVersion = option types.str "26.05";
      systemd.tmpfiles.rules = option (types.listOf types.str) [ ];
      systemd.user = option types.anything { };
    };

    config.environment.etc = lib.genAttrs [ "hosts" "protocols" "services" ] (_: {
      text = "";
    });
    config.services.dbus.enable = true;
  };
in
{
  imports = [ shared ] ++ (if modules == null then [ declared ] else real ++ [ around ]);

  config._module.args = { inherit pkgs; };
}
