# An ordinary user of a NixOS desktop boots a BIOS and a UEFI machine on a LAN with a plain DHCP server, while somebody
# else on that LAN tries the ports: before, during and after; and the firewall is reloaded meanwhile.
{ backend, module }:

{ lib, pkgs, ... }:

let
  # The way of NixOS' own netboot tests: an image that the test driver can talk to once it is up.
  build =
    (pkgs.nixos [
      (pkgs.path + "/nixos/modules/installer/netboot/netboot.nix")
      (pkgs.path + "/nixos/modules/testing/test-instrumentation.nix")
    ]).config.system.build;
  image = pkgs.symlinkJoin {
    name = "netboot";
    paths = [
      build.kernel
      build.netbootIpxeScript
      build.netbootRamdisk
    ];
  };

  unit = if backend == "nftables" then "nftables.service" else "firewall.service";

  # romfile: QEMU's iPXE for BIOS; none for UEFI, so that the firmware's own network boot is used.
  machine =
    flags:
    lib.concatStringsSep " " (
      [
        "${pkgs.qemu_test}/bin/qemu-system-x86_64 -machine accel=kvm:tcg -cpu max -m 2048 -boot order=n"
        "-netdev vde,id=lan,sock=$QEMU_VDE_SOCKET_1"
      ]
      ++ flags
    );
  bios = machine [ "-device virtio-net-pci,netdev=lan,mac=52:54:00:00:00:01" ];
  uefi = machine [
    "-device virtio-net-pci,netdev=lan,mac=52:54:00:00:00:02,romfile="
    "-drive if=pflash,format=raw,unit=0,readonly=on,file=${pkgs.OVMF.firmware}"
    "-drive if=pflash,format=raw,unit=1,readonly=on,file=${pkgs.OVMF.variables}"
  ];
in
{
  name = "portcullis-serve-${backend}";

  nodes = {
    server =
      { pkgs, ... }:
      {
        imports = [ module ];
        virtualisation.vlans = [
          1
          2
        ];
        networking.nftables.enable = backend == "nftables";
        programs.portcullis.enable = true;
        programs.portcullis.users = [ "alice" ];
        users.users = lib.genAttrs [ "alice" "bob" ] (_: {
          isNormalUser = true;
        });
        # A session at the machine itself, as polkit's rule asks for.
        services.getty.autologinUser = "alice";
        environment.etc.netboot.source = image;
        environment.systemPackages = [
          pkgs.diffutils
          pkgs.nftables
        ];
        specialisation.rejecting.configuration.networking.firewall.rejectPackets = true;
      };

    # What a home router does.
    dhcp = {
      virtualisation.vlans = [ 1 ];
      networking.firewall.enable = false;
      services.dnsmasq.enable = true;
      services.dnsmasq.settings = {
        port = 0;
        interface = "eth1";
        dhcp-range = [ "192.168.1.100,192.168.1.200" ];
      };
    };

    attacker = {
      virtualisation.vlans = [ 1 ];
    };

    # On the network that nobody serves.
    elsewhere = {
      virtualisation.vlans = [ 2 ];
    };
  };

  testScript = ''
    start_all()
    server.wait_for_unit("multi-user.target")
    dhcp.wait_for_unit("dnsmasq.service")
    attacker.wait_for_unit("multi-user.target")
    elsewhere.wait_for_unit("multi-user.target")
    server.wait_until_tty_matches("1", "alice@server")
    # The first reload of the iptables flavour changes the order of its chains, and no later one does.
    server.succeed("systemctl reload ${unit}")
    server.succeed("nft -s list ruleset >/tmp/before")
    second = server.succeed("ip -4 -oneline address show eth2").split()[3].split("/")[0]


    def reach(port):
        return f"curl --silent --output /dev/null --connect-timeout 3 http://server:{port}/"


    def closed():
        attacker.fail(reach(64172))
        server.wait_until_succeeds("nft -s list ruleset | cmp - /tmp/before")


    def serve():
        server.succeed("rm -f /tmp/log")
        server.send_chars("portcullis boot /etc/netboot -i eth1 --json >/tmp/log 2>&1\n")
        server.wait_until_succeeds("grep --quiet '\"event\":\"ready\"' /tmp/log")


    def boots(command):
        machine = create_machine(command)
        machine.start()
        machine.wait_for_unit("multi-user.target")
        machine.succeed("grep --quiet init=/nix/store /proc/cmdline")
        machine.shutdown()


    with subtest("enabled opens nothing"):
        closed()
        server.fail("systemctl is-active portcullis-helper.service")

    with subtest("who is not named is asked for a password, and there is nobody to give it"):
        status, said = server.execute("su bob -c 'portcullis boot /etc/netboot -i eth1' 2>&1")
        assert status == 12, said
        closed()

    with subtest("machines boot"):
        serve()
        boots("${bios}")
        boots("${uefi}")

    with subtest("these ports and this interface only"):
        attacker.succeed(reach(64172))
        attacker.fail(reach(64173))
        elsewhere.fail(f"curl --connect-timeout 3 http://{second}:64172/")

    with subtest("a reload of the firewall does not end it"):
        helper = server.succeed("systemctl show --value --property MainPID portcullis-helper.service")
        server.succeed(
            "/run/booted-system/specialisation/rejecting/bin/switch-to-configuration test 2>&1"
            " | grep --fixed-strings ${unit}"
        )
        attacker.wait_until_succeeds(reach(64172))
        after = server.succeed("systemctl show --value --property MainPID portcullis-helper.service")
        assert after == helper, "the rebuild has restarted the helper"
        server.succeed("/run/booted-system/bin/switch-to-configuration test")
        attacker.wait_until_succeeds(reach(64172))

    with subtest("Ctrl-C closes"):
        server.send_key("ctrl-c")
        server.wait_until_fails("pgrep --exact portcullis")
        closed()

    with subtest("killed, it is closed, too"):
        serve()
        server.succeed("pkill --signal KILL --exact portcullis")
        closed()
  '';
}
