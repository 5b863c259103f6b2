# pkgs.portcullis, and pkgs.pixiecore-compat: the same under the name pixiecore.
final: _prev: {
  portcullis = final.callPackage ./package.nix { };
  pixiecore-compat = final.callPackage ./pixiecore-compat.nix { };
}
