# Whole systems in virtual machines, with NixOS' test driver, by name.
{ pkgs, module }:

pkgs.lib.optionalAttrs pkgs.stdenv.hostPlatform.isx86_64 {
  serve-iptables = pkgs.testers.runNixOSTest (
    import ./serve.nix {
      inherit module;
      backend = "iptables";
    }
  );
  serve-nftables = pkgs.testers.runNixOSTest (
    import ./serve.nix {
      inherit module;
      backend = "nftables";
    }
  );
}
