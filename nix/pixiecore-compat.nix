# bin/pixiecore that is Portcullis: for recipes that call pixiecore, such as that of NixOS' wiki, which
# then need neither sudo nor firewall rules. docs/pixiecore.md tells the differences, flag by flag.
{ runCommand, portcullis }:

runCommand "pixiecore-compat" { meta.mainProgram = "pixiecore"; } ''
  mkdir -p $out/bin
  ln -s ${portcullis}/bin/portcullis $out/bin/pixiecore
''
