# Portcullis: everything that is done with the source, by one word each.

PREFIX ?= /usr
DESTDIR ?=
# yes: portcullis is installed under the name pixiecore as well, whose command lines it runs.
PIXIECORE ?= no
# Where cargo puts its results, and which of them are installed.
CARGO_TARGET_DIR ?= target
BUILD ?= $(CARGO_TARGET_DIR)/release

bindir = $(PREFIX)/bin
libexecdir = $(PREFIX)/libexec
datadir = $(PREFIX)/share
# Where the bus, polkit and systemd look. They do not look below /usr/local, hence PREFIX=/usr.
INSTALLED = \
	$(bindir)/portcullis \
	$(libexecdir)/portcullis-helper \
	$(datadir)/dbus-1/system.d/org.portcullis.Netboot1.conf \
	$(datadir)/dbus-1/system-services/org.portcullis.Netboot1.service \
	$(datadir)/dbus-1/interfaces/org.portcullis.Netboot1.xml \
	$(datadir)/polkit-1/actions/org.portcullis.netboot1.policy \
	$(datadir)/polkit-1/rules.d/50-portcullis.rules \
	$(datadir)/polkit-1/rules.d/50-portcullis-firewalld.rules \
	$(PREFIX)/lib/systemd/system/portcullis-helper.service \
	$(PREFIX)/lib/sysusers.d/portcullis.conf \
	$(PREFIX)/lib/systemd/catalog/portcullis.catalog \
	$(datadir)/doc/portcullis/helper.toml.example \
	$(datadir)/doc/portcullis/raw-dhcp.conf \
	$(addprefix $(datadir)/man/man1/,portcullis.1 portcullis-[a-z]*.1) \
	$(datadir)/bash-completion/completions/portcullis \
	$(datadir)/zsh/site-functions/_portcullis \
	$(datadir)/fish/vendor_completions.d/portcullis.fish

export CARGO_TARGET_DIR

.DEFAULT_GOAL := help
.PHONY: help build demo picture screenshots test test-nix fuzz soak bench bench-instructions install uninstall deb deps clean

help: ## Shows these lines
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/make \1\t\2/p' Makefile | expand -t 24

build: ## Builds what is installed
	cargo build --release --locked -p portcullis -p portcullis-helper
	cargo run --quiet --release --locked -p portcullis --example generate -- $(BUILD)/generated

demo: ## Boots a BIOS and a UEFI machine over a virtual LAN and shows the firewall (root or sudo)
	@tests/scripts/demo

picture: ## Draws docs/boot.svg from a run of the demonstration
	@tests/scripts/demo | tee /dev/stderr | tests/scripts/picture >docs/boot.svg

screenshots: ## Takes docs/terminal-*.svg and docs/web-*.png while machines boot (root or sudo)
	@tests/scripts/screenshots

test: ## Runs every test, level by level (levels 3 and 4 as root or by sudo)
	@tests/scripts/levels

# The folder lib of nixpkgs, or of the repository nix-community/nixpkgs.lib.
NIXPKGS_LIB ?=
test-nix: ## Evaluates the NixOS module and the flake with nixpkgs' lib (NIXPKGS_LIB=folder; NIXOS_MODULES=folder for NixOS' own modules, too; UPDATE=1 writes what is generated)
	@test -e "$(NIXPKGS_LIB)/modules.nix" || { echo "make test-nix NIXPKGS_LIB=.../nixpkgs/lib: that folder is needed" >&2; exit 1; }
	cargo build --locked -p portcullis -p portcullis-helper
	@NIXPKGS_LIB="$(abspath $(NIXPKGS_LIB))" NIXOS_MODULES="$(abspath $(NIXOS_MODULES))" cargo test --locked -p portcullis-tests --test nix -- --include-ignored

SECONDS_EACH ?= 60
TARGET ?=
fuzz: ## Fuzzes what reads octets from outside (SECONDS_EACH=60, TARGET= for one of tests/fuzz/corpus)
	@tests/scripts/fuzz $(SECONDS_EACH) $(TARGET)

soak: ## Runs the long loops: 1,000 rounds of every kill and reload (root or sudo; an hour or two)
	@ROUNDS=1000 RUST_TEST_THREADS=10 tests/scripts/levels 4 kill
	@ROUNDS=1000 tests/scripts/levels 3 firewall
	@ROUNDS=100 tests/scripts/levels 4 reload

bench: ## Measures TFTP, HTTP, DHCP, start and memory beside dnsmasq, tftpd-hpa and nginx (root or sudo; ROUNDS=5, QUICK=1)
	@tests/scripts/bench

bench-instructions: ## Counts the instructions of the hot paths beside docs/instructions.txt (UPDATE=1 writes it)
	@tests/scripts/bench instructions

install: ## Installs what was built (PREFIX=/usr, DESTDIR= for packages, PIXIECORE=yes for that name, too)
	@for program in portcullis portcullis-helper; do \
		test -x $(BUILD)/$$program || { echo "$(BUILD)/$$program is not there: run make build first" >&2; exit 1; }; \
	done
	install -Dm755 $(BUILD)/portcullis $(DESTDIR)$(bindir)/portcullis
	@test "$(PIXIECORE)" != yes || { set -x; ln -sfn portcullis $(DESTDIR)$(bindir)/pixiecore; }
	install -Dm755 $(BUILD)/portcullis-helper $(DESTDIR)$(libexecdir)/portcullis-helper
	install -Dm644 dbus/org.portcullis.Netboot1.conf $(DESTDIR)$(datadir)/dbus-1/system.d/org.portcullis.Netboot1.conf
	install -Dm644 dbus/org.portcullis.Netboot1.xml $(DESTDIR)$(datadir)/dbus-1/interfaces/org.portcullis.Netboot1.xml
	install -Dm644 polkit/org.portcullis.netboot1.policy $(DESTDIR)$(datadir)/polkit-1/actions/org.portcullis.netboot1.policy
	install -Dm644 -t $(DESTDIR)$(datadir)/polkit-1/rules.d polkit/50-portcullis.rules polkit/50-portcullis-firewalld.rules
	install -Dm644 systemd/portcullis.sysusers $(DESTDIR)$(PREFIX)/lib/sysusers.d/portcullis.conf
	install -Dm644 systemd/portcullis.catalog $(DESTDIR)$(PREFIX)/lib/systemd/catalog/portcullis.catalog
	install -Dm644 systemd/helper.toml $(DESTDIR)$(datadir)/doc/portcullis/helper.toml.example
	install -Dm644 systemd/raw-dhcp.conf $(DESTDIR)$(datadir)/doc/portcullis/raw-dhcp.conf
	install -d $(DESTDIR)$(datadir)/dbus-1/system-services $(DESTDIR)$(PREFIX)/lib/systemd/system
	tests/scripts/substitute dbus/org.portcullis.Netboot1.service.in \
		$(DESTDIR)$(datadir)/dbus-1/system-services/org.portcullis.Netboot1.service \
		libexecdir=$(libexecdir) bindir=$(bindir)
	tests/scripts/substitute systemd/portcullis-helper.service.in \
		$(DESTDIR)$(PREFIX)/lib/systemd/system/portcullis-helper.service \
		libexecdir=$(libexecdir) bindir=$(bindir)
	@if [ -d $(BUILD)/generated ]; then set -e -x; cd $(BUILD)/generated; \
		install -Dm644 -t $(DESTDIR)$(datadir)/man/man1 ./*.1; \
		install -Dm644 portcullis.bash $(DESTDIR)$(datadir)/bash-completion/completions/portcullis; \
		install -Dm644 -t $(DESTDIR)$(datadir)/zsh/site-functions _portcullis; \
		install -Dm644 -t $(DESTDIR)$(datadir)/fish/vendor_completions.d portcullis.fish; \
	fi
	@test -n "$(DESTDIR)" || echo "now: systemd-sysusers && journalctl --update-catalog && systemctl daemon-reload && systemctl reload dbus"

uninstall: ## Removes what was installed
	rm -f $(addprefix $(DESTDIR),$(INSTALLED))
	@test "$$(readlink $(DESTDIR)$(bindir)/pixiecore)" != portcullis || { set -x; rm -f $(DESTDIR)$(bindir)/pixiecore; }

deb: build ## Builds what is installed as a Debian package, and says where it is
	@packaging/deb $(BUILD) $(BUILD)

deps: ## Installs what the tests and the demonstration need (Debian)
	@tests/scripts/deps

clean: ## Removes what was built and the images of the laboratory
	cargo clean
	rm -rf .cache 2>/dev/null || tests/scripts/as-root rm -rf .cache
