{
  description = "Boots another machine over the network from your desktop, without sudo";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-unstable";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      systems = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      forEach = make: lib.genAttrs systems (system: make nixpkgs.legacyPackages.${system});
      packagesOf = pkgs: self.packages.${pkgs.stdenv.hostPlatform.system};
      # Each test of a whole system, by name: nix/tests.
      machines = pkgs: import ./nix/tests { inherit pkgs; module = self.nixosModules.default; };
    in
    {
      packages = forEach (pkgs: rec {
        portcullis = pkgs.callPackage ./nix/package.nix { };
        pixiecore-compat = pkgs.callPackage ./nix/pixiecore-compat.nix { inherit portcullis; };
        default = portcullis;
      });

      overlays.default = import ./nix/overlay.nix;

      nixosModules.default =
        { pkgs, ... }:
        {
          imports = [ ./nix/module.nix ];
          programs.portcullis.package = lib.mkDefault (packagesOf pkgs).portcullis;
        };

      apps = forEach (
        pkgs:
        let
          app = program: description: {
            type = "app";
            inherit program;
            meta = { inherit description; };
          };
        in
        {
          # nix run . -- boot ./result
          default = app "${(packagesOf pkgs).portcullis}/bin/portcullis" "Serves a boot image";
        }
        // lib.optionalAttrs pkgs.stdenv.hostPlatform.isx86_64 {
          # nix run .#demo
          demo =
            app "${(machines pkgs).serve-nftables.driver}/bin/nixos-test-driver"
              "Boots a BIOS and a UEFI machine from an ordinary user of a NixOS virtual machine";
        }
      );

      devShells = forEach (pkgs: {
        default = pkgs.mkShell {
          packages = with pkgs; [
            cargo
            clippy
            dbus
            dnsmasq
            iproute2
            iptables
            nftables
            qemu
            rustc
            rustfmt
          ];
          PORTCULLIS_IPXE_DIR = "${pkgs.ipxe}";
          PORTCULLIS_OUI = "${pkgs.hwdata}/share/hwdata/oui.txt";
          PORTCULLIS_STUB_DIR = "${pkgs.systemd}/lib/systemd/boot/efi";
        };
      });

      checks = forEach (
        pkgs:
        {
          package = (packagesOf pkgs).portcullis;
          inherit (packagesOf pkgs) pixiecore-compat;
          module = import ./nix/checks/whole.nix { inherit pkgs nixpkgs; };
        }
        # They want /dev/kvm.
        // machines pkgs
      );
    };
}
