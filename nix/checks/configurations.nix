# Configurations of programs.portcullis, and what becomes of each: which assertions fail and which warnings are given,
# by words of them. Read by evaluate.nix (nixpkgs' lib alone) and whole.nix (all of NixOS).
{ lib }:

let
  enabled = {
    programs.portcullis.enable = true;
  };
  with' = more: lib.recursiveUpdate enabled more;
in
{
  good = {
    iptables.module = enabled;
    nftables.module = with' { networking.nftables.enable = true; };
    # The package's rule of polkit lets the helper ask it.
    firewalld.module = with' {
      services.firewalld.enable = true;
      # NixOS' own module asserts it.
      networking.nftables.enable = true;
    };
    no-firewall.module = with' { networking.firewall.enable = false; };
    users.module = with' {
      programs.portcullis.users = [ "bob" ];
      programs.portcullis.groups = [ "wheel" ];
      security.polkit.extraConfig = "// The site's.";
    };
    locked.module = with' { security.lockKernelModules = true; };
    named-chain.module = with' {
      networking.firewall.enable = false;
      programs.portcullis.settings.firewall = {
        family = "ip";
        table = "filter";
        chain = "ufw-user-input";
      };
    };
    every-setting.module = with' {
      programs.portcullis.settings = {
        interfaces = [
          "enp*"
          "eth?"
        ];
        http-ports = [
          64172
          "8000-8099"
        ];
        max-seconds = 3600;
        full-dhcp = true;
        raw-dhcp = true;
        leases = 4;
        leases-per-user = 2;
        questions-per-user = 2;
        mark.tag = 1358954496;
        mark.mask = 4278190080;
        firewall.family = "inet";
        firewall.table = "filter";
        firewall.chain = "input";
      };
    };
    # A newer helper's key, which this module does not know.
    unknown-setting.module = with' { programs.portcullis.settings.of-tomorrow = 3; };
    disabled.module = { };

    # What the tests of a whole system run with (nix/generated/standard.json).
    standard.module = with' {
      programs.portcullis = {
        users = [ "bob" ];
        groups = [ "netboot" ];
        extraPolkitRules = ''
          polkit.addRule(function (action, subject) {
              if (action.id == "org.portcullis.netboot1.open" && action.lookup("http-port") == "8080") {
                  return polkit.Result.NO;
              }
          });
        '';
        settings = {
          interfaces = [ "eth*" ];
          max-seconds = 43200;
          leases-per-user = 2;
        };
      };
    };
  };

  refused = {
    filter-output = {
      module = with' {
        networking.nftables.enable = true;
        networking.firewall.filterOutput.enabled = true;
      };
      says = [ "networking.firewall.filterOutput.enabled = false" ];
    };
    legacy-iptables = {
      module =
        { pkgs, ... }:
        with' {
          networking.firewall.package = pkgs.iptables-legacy;
        };
      says = [ "networking.nftables.enable = true" ];
    };
    no-polkit = {
      module = with' { security.polkit.enable = false; };
      says = [ "security.polkit.enable = true" ];
    };
  };

  warned = {
    pixiecore = {
      module = with' { services.pixiecore.enable = true; };
      says = [ "services.pixiecore.enable = false" ];
    };
    atftpd = {
      module = with' { services.atftpd.enable = true; };
      says = [ "services.atftpd.enable = false" ];
    };
  };

  # Not even a value of its type: the module system says which option, and what it takes.
  wrong = {
    interface = with' { programs.portcullis.settings.interfaces = [ "a-name-that-is-too-long" ]; };
    quote = with' { programs.portcullis.settings.interfaces = [ "eth\"0" ]; };
    low-port = with' { programs.portcullis.settings.http-ports = [ 80 ]; };
    port-range = with' { programs.portcullis.settings.http-ports = [ "8000" ]; };
    max-seconds = with' { programs.portcullis.settings.max-seconds = 5; };
    leases = with' { programs.portcullis.settings.leases = 0; };
    questions-per-user = with' { programs.portcullis.settings.questions-per-user = 9; };
    full-dhcp = with' { programs.portcullis.settings.full-dhcp = "yes"; };
    mark = with' { programs.portcullis.settings.mark.tag = 0; };
    mask = with' { programs.portcullis.settings.mark.tag = 1; };
    family = with' {
      programs.portcullis.settings.firewall = {
        family = "ip6";
        table = "filter";
        chain = "input";
      };
    };
    chain = with' {
      programs.portcullis.settings.firewall = {
        family = "ip";
        table = "filter";
        chain = "a b";
      };
    };
    users = with' { programs.portcullis.users = "bob"; };
    option = with' { programs.portcullis.openFirewall = true; };
  };
}
