# NixOS: the helper on the system bus, its user, its policy and its configuration.
#
# Guarantees: being enabled opens no port and changes no option of the firewall; a port is opened by the helper,
# while somebody serves whom polkit allows it. Unit, bus policy, actions and the group's rule are the package's own
# files. Evaluates on releases without networking.firewall.backend, too.
{
  config,
  lib,
  pkgs,
  ...
}:

let
  inherit (lib) literalExpression mkOption types;
  cfg = config.programs.portcullis;
  format = pkgs.formats.toml { };

  firewall = config.networking.firewall;
  firewalld = config.services.firewalld.enable or false;
  backend =
    firewall.backend or (
      if firewalld then
        "firewalld"
      else if config.networking.nftables.enable or false then
        "nftables"
      else
        "iptables"
    );

  written = format.generate "helper.toml" (lib.filterAttrs (_: value: value != null) cfg.settings);
  # The helper itself reads its file once, when the system is built: a bad value stops the build, not the helper.
  checked = pkgs.runCommand "helper.toml" { } ''
    ${cfg.package}/libexec/portcullis-helper --check-config ${written}
    cp ${written} $out
  '';

  # The same conditions as in the package's own rule, polkit/50-portcullis.rules.
  groupsRule = ''
    polkit.addRule(function (action, subject) {
        var groups = ${builtins.toJSON cfg.groups};
        if (action.id == "org.portcullis.netboot1.open" && subject.active && subject.local &&
            groups.some(function (group) { return subject.isInGroup(group); })) {
            return polkit.Result.YES;
        }
    });
  '';

  interface = types.strMatching "[A-Za-z0-9_.:@*?-]{1,15}" // {
    description = "name of an interface, or a pattern with * and ?";
    descriptionClass = "conjunction";
  };
  ports = types.either (types.ints.between 1024 65535) (types.strMatching "[0-9]+-[0-9]+") // {
    description = "port from 1024 to 65535, or a range such as \"8000-8099\"";
  };
  name = types.strMatching "[A-Za-z0-9_./-]{1,64}" // {
    description = "name of a table or chain";
  };

  settings = types.submodule {
    # What a newer helper knows and this module does not.
    freeformType = format.type;

    options = {
      interfaces = mkOption {
        type = types.listOf interface;
        default = [ "*" ];
        example = [ "enp*" ];
        description = ''
          Interfaces that may be served on: `*` stands for any characters, `?` for one. An empty list allows none.
        '';
      };

      http-ports = mkOption {
        type = types.listOf ports;
        default = [ "1024-65535" ];
        example = [ 64172 ];
        description = "TCP ports that may be opened for boot images.";
      };

      max-seconds = mkOption {
        type = types.ints.between 10 604800;
        default = 604800;
        example = 3600;
        description = "The longest lease, in seconds. A lease ends with its program in any case.";
      };

      full-dhcp = mkOption {
        type = types.bool;
        default = false;
        description = ''
          Whether a request may ask for full DHCP, which hands out addresses (`portcullis boot --dhcp-server`): it
          can redirect the traffic of every machine on the network that asks for one. polkit is asked about it by
          an action of its own, `org.portcullis.netboot1.open-dhcp`, and wants an administrator's password.
        '';
      };

      raw-dhcp = mkOption {
        type = types.bool;
        default = false;
        description = ''
          Whether the helper may hear DHCP by a raw socket where a DHCP server of this host keeps UDP 67 to itself
          (dnsmasq with neither `bind-interfaces` nor `bind-dynamic`). It is given CAP_NET_RAW for that.
        '';
      };

      leases = mkOption {
        type = types.ints.between 1 128;
        default = 64;
        description = "Leases of all users at once.";
      };

      leases-per-user = mkOption {
        type = types.ints.between 1 128;
        default = 8;
        description = "Leases of one user at once.";
      };

      questions-per-user = mkOption {
        type = types.ints.between 1 8;
        default = 1;
        description = "Requests of one user that wait for polkit's answer at once, each from another program.";
      };

      mark = mkOption {
        type = types.nullOr (
          types.submodule {
            options = {
              tag = mkOption {
                type = types.ints.between 1 4294967295;
                example = 1509949440;
                description = "The value of these bits: not 0, and within the mask.";
              };
              mask = mkOption {
                type = types.ints.between 1 4294967295;
                example = 4278190080;
                description = "Which bits: 4 to 24 without a gap, from the highest on.";
              };
            };
          }
        );
        default = null;
        description = ''
          The bits of packet and socket marks that are the helper's; `null` for its own choice, `0x5a000000` of
          `0xff000000`. Change them only where they meet somebody else's (VPNs, Kubernetes, policy routing), and
          while no lease is open. Nix has no hexadecimal numbers: the example is that choice.
        '';
      };

      firewall = mkOption {
        type = types.nullOr (
          types.submodule {
            options = {
              family = mkOption {
                type = types.enum [
                  "inet"
                  "ip"
                ];
                description = "Family of the table; `ip` is also what iptables makes.";
              };
              table = mkOption {
                type = name;
                example = "filter";
                description = "The table.";
              };
              chain = mkOption {
                type = name;
                example = "input";
                description = "An input chain, or one that an input chain of the same table jumps to.";
              };
            };
          }
        );
        default = null;
        description = ''
          The chain that openings go into, at its head, on a host whose firewall is not that of NixOS
          ({option}`networking.firewall.enable` is `false`). `null` where it is.
        '';
      };
    };
  };
in

{
  options.programs.portcullis = {
    enable = lib.mkEnableOption "" // {
      description = ''
        Whether to let users boot other machines over the network without sudo (`portcullis boot`). This opens no
        port. While somebody serves whom polkit allows it, UDP 67, 69, 4011 and one TCP port are open on one
        interface, and only for the sockets of that program.
      '';
    };

    package = mkOption {
      type = types.package;
      default = pkgs.portcullis or (pkgs.callPackage ./package.nix { });
      defaultText = literalExpression "pkgs.portcullis, or what the flake builds";
      description = "The package of both programs.";
    };

    users = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "alice" ];
      description = ''
        Users who open the network boot ports without a password, at an active local session. They become members
        of the group `portcullis`. Everybody else is asked for an administrator's password. Whoever may do this can
        offer a boot image to every machine on that network.
      '';
    };

    groups = mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "wheel" ];
      description = "Further groups whose members may do the same.";
    };

    extraPolkitRules = mkOption {
      type = types.lines;
      default = "";
      example = ''
        polkit.addRule(function (action, subject) {
            if (action.id == "org.portcullis.netboot1.open" && action.lookup("interface") != "enp3s0") {
                return polkit.Result.NO;
            }
        });
      '';
      description = ''
        Rules of polkit (JavaScript) that are asked before those for {option}`programs.portcullis.users` and
        {option}`programs.portcullis.groups`. The actions are `org.portcullis.netboot1.open`, `.open-dhcp` and
        `.manage`; `action.lookup()` knows `interface`, `http-port`, `dhcp` (`bind`, `share`, `full` or `none`) and
        `max-seconds`, all as text. A rule that comes to say no ends the leases that it is about.
      '';
    };

    settings = mkOption {
      type = settings;
      default = { };
      description = ''
        What this host allows, whoever asks: {file}`/etc/portcullis/helper.toml`. It only ever narrows what polkit
        may grant. The helper reads it when it starts, and leaves ten seconds after its last lease; a file that
        it would refuse stops the build of the system.
      '';
    };
  };

  config = lib.mkIf cfg.enable {
    assertions = [
      {
        assertion = !(firewall.enable && firewall.filterOutput.enabled or false);
        message = ''
          programs.portcullis cannot work with networking.firewall.filterOutput: it refuses what the helper's sockets
          send, since that is not tracked. Set networking.firewall.filterOutput.enabled = false.
        '';
      }
      {
        assertion =
          !(
            firewall.enable
            && backend == "iptables"
            && pkgs ? iptables-legacy
            && "${firewall.package or pkgs.iptables}" == "${pkgs.iptables-legacy}"
          );
        message = ''
          programs.portcullis cannot open ports in the tables of iptables-legacy: only root may read them. Leave
          networking.firewall.package at its default (pkgs.iptables makes nf_tables rules), or set
          networking.nftables.enable = true.
        '';
      }
      {
        assertion = config.security.polkit.enable;
        message = ''
          programs.portcullis asks polkit about every request, and nothing is opened without it: set
          security.polkit.enable = true, or programs.portcullis.enable = false.
        '';
      }
    ];

    warnings =
      let
        holders = lib.filterAttrs (_: enabled: enabled) {
          pixiecore = config.services.pixiecore.enable or false;
          atftpd = config.services.atftpd.enable or false;
          tftpd = config.services.tftpd.enable or false;
        };
      in
      map (holder: ''
        services.${holder} keeps ports of network boot to itself all the time: portcullis will say that a port is
        taken (exit code 14) until it is stopped. Set services.${holder}.enable = false.
      '') (lib.attrNames holders);

    environment.systemPackages = [ cfg.package ];
    environment.etc."portcullis/helper.toml".source =
      if pkgs.stdenv.buildPlatform.canExecute pkgs.stdenv.hostPlatform then checked else written;

    services.dbus.packages = [ cfg.package ];

    security.polkit.enable = lib.mkDefault true;
    security.polkit.extraConfig = lib.mkMerge [
      cfg.extraPolkitRules
      # A site's own rules come first, whichever option they are written in.
      (lib.mkIf (cfg.groups != [ ]) (lib.mkAfter groupsRule))
    ];

    systemd.packages = [ cfg.package ];
    # A rebuild does not end what somebody serves. An idle helper leaves by itself, and the next one is the new one.
    systemd.services.portcullis-helper.restartIfChanged = false;
    # As systemd/raw-dhcp.conf.
    systemd.services.portcullis-helper.serviceConfig = lib.mkIf cfg.settings.raw-dhcp {
      CapabilityBoundingSet = "CAP_NET_RAW";
      AmbientCapabilities = "CAP_NET_RAW";
    };

    users.users.portcullis = {
      isSystemUser = true;
      group = "portcullis";
      description = "Portcullis network boot helper";
    };
    users.groups.portcullis.members = cfg.users;

    # Elsewhere the kernel loads them when they are asked for.
    boot.kernelModules = lib.mkIf (config.security.lockKernelModules or false) [
      "nft_socket"
      "nf_socket_ipv4"
      "nft_fib_inet"
      "nft_ct"
      "nft_reject_inet"
      "inet_diag"
      "tcp_diag"
      "udp_diag"
      "xfrm_user"
    ];
  };
}
