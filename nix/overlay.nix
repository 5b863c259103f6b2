# pkgs.portcullis, and pkgs.pixiecore-compat: the same, under the name pixiecore as well.
final: _prev: {
  portcullis = final.callPackage ./package.nix { };
  pixiecore-compat = final.portcullis.override { withPixiecoreName = true; };
}
