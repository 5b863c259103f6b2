# Without flakes: nix-build gives the package. The module is ./nix/module.nix, the overlay ./nix/overlay.nix.
{
  pkgs ? import <nixpkgs> { },
}:

pkgs.callPackage ./nix/package.nix { }
