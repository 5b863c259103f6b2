# What the module makes of each configuration, as data: `make test-nix` reads it (tests/tests/nix.rs).
# `lib`: path of nixpkgs' own lib folder. `modules`: path of its nixos/modules, for `real` alone.
{
  lib,
  modules ? null,
}:

let
  folder = lib;
in
let
  lib = import folder;
  configurations = import ./configurations.nix { inherit lib; };

  # `cross`: for another processor, where the helper cannot be run while building.
  evaluateFor =
    {
      release ? "new",
      cross ? false,
      module ? ../module.nix,
      modules ? null,
    }:
    configuration:
    lib.evalModules {
      modules = [
        (import ./nixos.nix {
          inherit
            cross
            lib
            modules
            release
            ;
        })
        module
        configuration
      ];
    };
  evaluate = evaluateFor { };

  # What NixOS appends to a packaged unit: the text that systemd.services writes, without its environment.
  dropIn =
    service:
    lib.concatStrings (
      [
        "[Unit]\n\n[Service]\n"
        (lib.optionalString (!service.restartIfChanged) "X-RestartIfChanged=false\n")
      ]
      ++ lib.mapAttrsToList (name: value: "${name}=${toString value}\n") service.serviceConfig
    );

  result =
    arguments: module:
    let
      inherit (evaluateFor arguments module) config;
      crossed = (evaluateFor (arguments // { cross = true; }) module).config;
    in
    {
      failed = map (one: one.message) (lib.filter (one: !one.assertion) config.assertions);
      inherit (config) warnings;
      # What the file is made of, and what is done with it before it is put in its place.
      etc = lib.mapAttrs (name: file: {
        inherit (file.source) script;
        inherit (crossed.environment.etc.${name}.source) value;
      }) config.environment.etc;
      firewall = {
        inherit (config.networking) firewall nftables;
      };
      modules = config.boot.kernelModules;
      packages = {
        bus = map toString config.services.dbus.packages;
        profile = map toString config.environment.systemPackages;
        units = map toString config.systemd.packages;
      };
      polkit = {
        inherit (config.security.polkit) enable extraConfig;
      };
      units = lib.mapAttrs (_: dropIn) config.systemd.services;
      inherit (config.users) users groups;
    };

  # What is the module's among what NixOS' own modules add.
  oursOnly =
    result:
    let
      named = lib.filterAttrs (name: _: lib.hasPrefix "portcullis" name);
    in
    removeAttrs result [ "firewall" ]
    // {
      etc = named result.etc;
      groups = named result.groups;
      packages = lib.mapAttrs (_: lib.filter (lib.hasInfix "-portcullis-")) result.packages;
      units = named result.units;
      users = named result.users;
    };

  # What becomes of a configuration with NixOS' own modules, and what filters with this one and without it.
  realResult =
    one:
    let
      of = more: (evaluateFor { inherit modules; } { imports = [ one more ]; }).config;
      enabled = of { };
      filters = config: {
        inherit (config.networking) firewall nftables;
        firewalld = { inherit (config.services.firewalld) enable settings; };
        services = lib.filterAttrs (
          name: _: lib.elem name [ "firewall" "firewalld" "nftables" ]
        ) config.systemd.services;
      };
    in
    {
      real = oursOnly (result { inherit modules; } one);
      declared = oursOnly (result { } one);
      filters = filters enabled;
      without = filters (of { programs.portcullis.enable = lib.mkForce false; });
      rules = enabled.environment.etc."polkit-1/rules.d/10-nixos.rules".text or "";
    };

  inherit (plain._module.args) pkgs;
  plain = evaluate { programs.portcullis.enable = true; };
in
{
  results = lib.mapAttrs (
    _: kind: lib.mapAttrs (_: one: result { } one.module // { says = one.says or [ ]; }) kind
  ) { inherit (configurations) good refused warned; };

  realModules = import ./real-modules.nix;
  real = lib.mapAttrs (_: kind: lib.mapAttrs (_: one: realResult one.module) kind) {
    inherit (configurations) good refused warned;
  };

  # Releases that have neither networking.firewall.backend nor firewalld.
  old = lib.mapAttrs (_: one: result { release = "old"; } one.module) {
    inherit (configurations.good) iptables nftables standard;
  };

  # Each has to end in an error, and is evaluated by itself: -A wrong.NAME
  wrong = lib.mapAttrs (_: result { }) configurations.wrong;
  wrongNames = lib.attrNames configurations.wrong;

  options =
    lib.filter (one: lib.hasPrefix "programs.portcullis." one.name && one.visible && !one.internal)
      (lib.optionAttrSetToDocList plain.options);

  package =
    let
      made = plain.config.programs.portcullis.package.arguments;
    in
    {
      inherit (made)
        buildPhase
        env
        installPhase
        version
        ;
      source = "${made.src}";
    };

  # The flake's outputs, with this nixpkgs in place of the whole one.
  flake =
    let
      self = (import ../../flake.nix).outputs {
        inherit self;
        nixpkgs = {
          legacyPackages = lib.genAttrs [ "x86_64-linux" "aarch64-linux" ] (_: pkgs);
          lib = lib // {
            nixosSystem = { modules, ... }: evaluate { imports = lib.remove ../module.nix modules; };
          };
        };
      };
    in
    {
      outputs = lib.mapAttrs (_: output: if lib.isFunction output then "function" else lib.attrNames output) self;
      apps = lib.mapAttrs (_: app: app.program) self.apps.x86_64-linux;
      packages = lib.mapAttrs (_: package: package.outPath) self.packages.x86_64-linux;
      checks = lib.mapAttrs (_: check: check.name) self.checks.x86_64-linux;
      shell = self.devShells.x86_64-linux.default.PORTCULLIS_IPXE_DIR;
      # The module that the flake offers takes the flake's package.
      package =
        (evaluateFor { module = self.nixosModules.default; } { programs.portcullis.enable = true; })
        .config.programs.portcullis.package.outPath;
    };

  # The tests with virtual machines: each node's configuration, and the script.
  machines = lib.mapAttrs (_: test: {
    inherit (test) testScript;
    failed = lib.mapAttrs (_: node: (result { } node).failed) test.nodes;
  }) (import ../tests { inherit pkgs; module = ../module.nix; });

  version = lib.version;
}
