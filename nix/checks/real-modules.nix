# Files of nixos/modules that nixos.nix can take in the place of its own declarations.
[
  "misc/assertions.nix"
  "security/polkit.nix"
  "services/networking/firewall.nix"
  "services/networking/firewall-iptables.nix"
  "services/networking/firewall-nftables.nix"
  "services/networking/firewalld/default.nix"
  "services/networking/nftables.nix"
  "services/system/dbus.nix"
]
