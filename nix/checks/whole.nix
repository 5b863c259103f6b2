# The configurations with all of NixOS around them: the assertions and warnings that they should meet, and each
# helper.toml built, which is to say read by the helper. A check of the flake; wants a store and a full nixpkgs.
{ pkgs, nixpkgs }:

let
  inherit (nixpkgs) lib;
  configurations = import ./configurations.nix { inherit lib; };

  of =
    one:
    (lib.nixosSystem {
      inherit (pkgs.stdenv.hostPlatform) system;
      modules = [
        ../module.nix
        one.module
        {
          boot.loader.grub.device = "nodev";
          fileSystems."/".device = "/dev/null";
          system.stateVersion = lib.trivial.release;
        }
      ];
    }).config;

  # What else is wrong with such a system is not the module's.
  ours = lib.filter (lib.hasInfix "portcullis");
  failed = config: ours (map (one: one.message) (lib.filter (one: !one.assertion) config.assertions));
  warned = config: ours config.warnings;

  misses =
    texts: one:
    lib.filter (word: !lib.any (lib.hasInfix word) texts) one.says;

  problems =
    lib.mapAttrsToList (name: one: map (text: "${name} is refused: ${text}") (failed (of one))) configurations.good
    ++ lib.mapAttrsToList (
      name: one: map (word: "${name} is not refused with ${word}") (misses (failed (of one)) one)
    ) configurations.refused
    ++ lib.mapAttrsToList (
      name: one: map (word: "${name} is not warned of with ${word}") (misses (warned (of one)) one)
    ) configurations.warned;

  files =
    lib.mapAttrsToList (_: one: (of one).environment.etc."portcullis/helper.toml".source)
      (removeAttrs configurations.good [
        "disabled"
        # The helper refuses it, which is the point of reading it here.
        "unknown-setting"
      ]);
in

lib.throwIf (lib.flatten problems != [ ]) (lib.concatLines (lib.flatten problems)) (
  pkgs.runCommand "portcullis-module" { inherit files; } "touch $out"
)
