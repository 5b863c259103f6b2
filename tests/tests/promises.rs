//! Which test proves which promise, on which firewall: README's table and docs/promises.md are made
//! here. And the lines that the helper's audit rests on.
//!
//! Guarantees: every test that the table names is in the sources, is a test, is not ignored, is run
//! by `tests/scripts/levels`, and runs behind the firewall of its column; README shows what is
//! written here; each line that helper/README.md quotes is where it says. After a change: `UPDATE=1 cargo test -p portcullis-tests --test promises`.
//! Trusts that a test shows what its name says.

// A test speaks by failing.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

/// A file, and tests in it.
type Proofs = &'static [(&'static str, &'static [&'static str])];

/// One promise and what proves it.
struct Promise {
    /// In one sentence.
    text: &'static str,
    /// Behind NixOS' nftables firewall.
    nftables: Proofs,
    /// Behind NixOS' iptables firewall.
    iptables: Proofs,
    /// On a host without a firewall.
    none: Proofs,
    /// Where no firewall has a part in it: fake kernel, or pure code.
    apart: Proofs,
    /// What is not proven yet, if anything.
    gap: &'static str,
}

const ATTACKS: &str = "tests/tests/attacks.rs";
const BOOT: &str = "tests/tests/boot.rs";
const SECURE: &str = "tests/tests/secureboot.rs";
const FIREWALL: &str = "tests/tests/firewall.rs";
const INJECT: &str = "tests/tests/inject.rs";
const KEEP: &str = "tests/tests/keep.rs";
const KILL: &str = "tests/tests/kill.rs";
const RELOAD: &str = "tests/tests/reload.rs";
const DEB: &str = "tests/tests/deb.rs";
const VIA: &str = "tests/tests/once.rs";
const SYSTEM: &str = "tests/tests/system.rs";
const AUTHORITY: &str = "helper/tests/contract/authority.rs";
const CONFIG: &str = "helper/tests/contract/config.rs";
const CROWD: &str = "helper/tests/contract/crowd.rs";
const ENDING: &str = "helper/tests/contract/ending.rs";
const OPENING: &str = "helper/tests/contract/opening.rs";
const ONCE: &str = "helper/tests/contract/once.rs";
const PROCESS: &str = "helper/tests/contract/process.rs";
const REAL: &str = "helper/tests/contract/real.rs";
const SHAPE: &str = "helper/tests/contract/shape.rs";
const SOCKETS: &str = "helper/tests/contract/sockets.rs";

/// Every attack is a test of its own; each runs behind both flavours.
const EVERY_ATTACK: &[&str] = &[
    "p8_disconnect_and_bind_to_another_device",
    "p8_packet_info_names_another_interface",
    "p8_packet_info_names_a_foreign_source",
    "p8_segmentation_offload_smuggles_a_second_message",
    "p8_a_datagram_that_must_be_fragmented",
    "p8_a_large_datagram_from_the_tftp_port",
    "p8_ip_options",
    "p8_an_address_from_the_boot_server_port",
    "p8_an_address_from_the_dhcp_port",
    "p8_a_nak",
    "p8_a_message_without_cookie",
    "p8_a_request_in_the_name_of_a_client",
    "p8_the_dhcp_port_to_any_other_port",
    "p8_the_tftp_port_to_dhcp_clients",
    "p8_an_unmarked_socket_to_dhcp_clients",
    "p8_to_the_host_itself",
    "p8_another_mark",
    "p8_a_locked_filter_stays",
    "p8_an_accepted_connection_connects_elsewhere",
    "p8_ipv6",
    "p8_a_lease_that_has_ended_is_mute",
    "p8_full_dhcp_from_its_port_alone",
    "p8_addresses_are_handed_out_with_full_dhcp_alone",
    "p8_a_shared_socket_gives_no_more_than_another",
    "p8_a_raw_socket_hears_and_sends_nothing",
    "p8_the_boot_server_sends_boot_answers_alone_from_the_shared_port",
];

/// Each system call of the helper fails once, behind both flavours.
const EVERY_FAULT: &[&str] = &[
    "p5_a_fault_in_any_call_of_an_opening_leaves_nothing",
    "p5_a_kernel_that_refuses_from_any_call_on_leaves_nothing_to_the_next_helper",
    "p5_a_fault_in_any_call_of_a_closing_leaves_the_ports_closed_and_the_sweep_nothing",
    "p5_a_fault_in_any_call_of_a_look_or_a_repair_is_neither_a_revocation_nor_left",
];

/// P1 to P12, in order.
const PROMISES: [Promise; 12] = [
    Promise {
        text: "No port opens without polkit's decision for this caller and this request; polkit absent, slow or gone: denied.",
        nftables: &[(SYSTEM, &["p1_what_polkit_does_not_grant_is_not_opened"])],
        iptables: &[
            (SYSTEM, &["p1_the_password_is_asked_for_on_the_terminal"]),
            (KEEP, &["p1_polkit_may_restart_but_not_change_its_mind"]),
        ],
        none: &[],
        apart: &[
            (
                AUTHORITY,
                &[
                    "p1_polkit_is_asked_about_the_caller_and_exactly_this_request",
                    "p1_full_dhcp_is_a_question_of_its_own",
                    "p1_open_without_a_yes_opens_nothing_and_says_why",
                    "p1_without_polkit_nothing_opens",
                    "p1_a_caller_without_the_flag_for_a_dialog_gets_none",
                    "p1_a_slow_polkit_is_no_polkit_for_a_question_without_a_dialog",
                    "p1_a_caller_killed_during_the_dialog_gets_nothing",
                    "p1_a_departure_that_is_seen_before_the_grant_leaves_nothing",
                ],
            ),
            (
                ENDING,
                &[
                    "p1_a_yes_that_comes_while_the_helper_stops_opens_nothing",
                    "p1_a_permission_that_is_withdrawn_ends_its_leases",
                ],
            ),
            ("helper/src/authority.rs", &["p1_only_a_plain_yes_is_a_yes"]),
            (
                ONCE,
                &[
                    "p1_the_one_caller_opens_what_the_site_allows_and_nobody_is_asked",
                    "p1_the_caller_is_who_the_kernel_and_the_starting_tool_both_name",
                    "p1_the_program_refuses_a_start_that_nobody_was_asked_about",
                ],
            ),
        ],
        gap: "A helper for one run (`--via`) asks nobody: there the decision is that of sudo, pkexec or run0, which have started it for this caller.",
    },
    Promise {
        text: "Client exit, SIGKILL, or leaving the bus: refused again from outside at once, and the ruleset is what it was, within 1 s.",
        nftables: &[
            (KILL, &["p2_client_killed_nftables", "p2_client_killed_at_any_moment_nftables"]),
            (FIREWALL, &["p2_no_conntrack_entry_keeps_the_port_open_for_an_earlier_peer"]),
        ],
        iptables: &[
            (KILL, &["p2_client_killed_iptables", "p2_client_killed_at_any_moment_iptables"]),
            (SYSTEM, &["p2_a_lease_ends_with_its_program_its_session_and_the_bus"]),
            (FIREWALL, &["p2_no_conntrack_entry_keeps_the_port_open_for_an_earlier_peer"]),
        ],
        none: &[(
            FIREWALL,
            &[
                "p2_without_a_firewall_there_is_nothing_to_open_and_an_ended_lease_is_still_deaf",
                "p2_a_lease_is_closed_even_when_its_rules_cannot_be_removed",
            ],
        )],
        apart: &[
            (ENDING, &["p2_the_owner_leaves_and_only_its_lease_ends"]),
            (ONCE, &["p2_it_ends_with_its_caller_and_everything_with_it"]),
        ],
        gap: "The kills in `make test` are 10 rounds each; 1,000 are `make soak`, which fails when more than half of them take longer than the second; refused at once holds in every round.",
    },
    Promise {
        text: "Helper killed: refused at once. Helper hung and the last holder of the sockets dead: refused at once (UDP 67 heard by a raw socket: within 10 s). Helper hung: its watchdog ends it.",
        nftables: &[
            (
                KILL,
                &[
                    "p3_helper_killed_nftables",
                    "p3_client_killed_while_the_helper_hangs_nftables",
                    "p3_helper_killed_at_any_moment_nftables",
                ],
            ),
            (
                FIREWALL,
                &[
                    "p3_without_its_holder_the_port_is_closed",
                    "p3_where_a_raw_socket_hears_a_helper_that_hangs_lets_in_for_ten_seconds",
                    "p3_without_its_helper_the_port_is_closed_and_the_sweep_removes_the_rest",
                ],
            ),
            (SYSTEM, &["p3_the_helper_comes_when_called_and_leaves_nothing_when_it_goes"]),
            (
                PROCESS,
                &[
                    "p3_killed_the_helper_takes_its_table_along_and_the_sweep_the_rest",
                    "p3_terminated_the_helper_closes_and_tells",
                ],
            ),
            (ONCE, &["p3_killed_it_leaves_nothing_and_so_does_its_guard"]),
        ],
        iptables: &[
            (
                KILL,
                &[
                    "p3_helper_killed_iptables",
                    "p3_client_killed_while_the_helper_hangs_iptables",
                    "p3_helper_killed_at_any_moment_iptables",
                ],
            ),
            (
                FIREWALL,
                &[
                    "p3_without_its_holder_the_port_is_closed",
                    "p3_where_a_raw_socket_hears_a_helper_that_hangs_lets_in_for_ten_seconds",
                    "p3_without_its_helper_the_port_is_closed_and_the_sweep_removes_the_rest",
                ],
            ),
            (SYSTEM, &["p3_a_hung_helper_is_ended_by_its_watchdog"]),
        ],
        none: &[],
        apart: &[(
            ENDING,
            &["p3_a_stop_closes_everything_and_says_so", "p3_the_helper_ends_with_its_bus"],
        )],
        gap: "Without a firewall a port whose helper died stays reachable as long as its holder lives, as any socket does there.",
    },
    Promise {
        text: "Nothing of ours is left and everything else is unchanged (`nft -s -a list ruleset`, counters aside).",
        nftables: &[
            (
                FIREWALL,
                &[
                    "p4_closed_open_closed_and_nothing_is_left",
                    "p4_a_table_left_by_a_restored_listing_is_replaced_and_swept",
                ],
            ),
            (REAL, &["p4_a_lease_lives_and_leaves_the_firewall_as_it_was"]),
            (VIA, &["p4_a_run_through_pkexec_and_its_text_agent_leaves_nothing_whatever_ends_it"]),
            (DEB, &["p4_purged_the_package_leaves_nothing"]),
            (
                BOOT,
                &[
                    "p4_uefi_machine_boots_by_a_complete_offer_behind_nftables",
                    "p4_uefi_machine_boots_by_http_without_tftp_and_ipxe_behind_nftables",
                    "p4_bios_machine_boots_behind_nftables_while_an_ordinary_dhcp_client_notices_nothing",
                    "p4_bios_machine_with_a_plain_pxe_rom_boots_through_undionly_behind_nftables",
                    "p4_bios_machine_boots_a_recipe_from_a_mirror_behind_nftables",
                    "p4_arm64_machine_boots_one_program_by_tftp_behind_nftables",
                    "p4_32_bit_uefi_machine_boots_by_http_without_tftp_behind_nftables",
                ],
            ),
            (
                SECURE,
                &[
                    "p4_secure_boot_takes_what_was_signed_with_the_users_key_by_tftp_and_by_http",
                    "p4_secure_boot_takes_debians_chain_where_the_router_names_this_computer",
                ],
            ),
        ],
        iptables: &[
            (VIA, &["p4_a_run_through_sudo_leaves_nothing_whatever_ends_it"]),
            (FIREWALL, &["p4_closed_open_closed_and_nothing_is_left"]),
            (
                BOOT,
                &[
                    "p4_bios_machine_boots_behind_iptables",
                    "p4_uefi_machine_boots_by_the_boot_server_behind_iptables",
                    "p4_uefi_machine_boots_an_efi_program_by_tftp_and_by_http_and_bios_is_left_alone",
                    "p4_uefi_machine_boots_what_a_web_service_says_behind_iptables",
                    "p4_arm64_machine_boots_by_http_without_tftp_behind_iptables",
                    "p4_32_bit_uefi_machine_boots_one_program_by_tftp_behind_iptables",
                ],
            ),
            (
                SECURE,
                &[
                    "p4_secure_boot_refuses_what_is_not_signed_and_the_client_says_so",
                    "p4_debians_grub_asks_the_router_and_the_client_says_what_to_set_there",
                ],
            ),
        ],
        none: &[(FIREWALL, &["p4_without_a_firewall_nothing_is_left"])],
        apart: &[],
        gap: "Every test of `kill.rs` and `system.rs` compares the ruleset, too.",
    },
    Promise {
        text: "An opening is one transaction; a fault at any step leaves nothing.",
        nftables: &[
            (FIREWALL, &["p5_a_refused_transaction_leaves_nothing"]),
            (INJECT, EVERY_FAULT),
        ],
        iptables: &[(INJECT, EVERY_FAULT)],
        none: &[],
        apart: &[(
            OPENING,
            &[
                "p5_a_failure_at_any_step_leaves_nothing",
                "p5_what_a_lost_answer_has_left_open_is_swept",
            ],
        )],
        gap: "Where the kernel carries a transaction out and its answer is lost, the rules stand until the next sweep, within half a second; no socket is left for them.",
    },
    Promise {
        text: "Firewall reload during a lease: served again within 1 s, the reload never disturbed.",
        nftables: &[
            (
                FIREWALL,
                &[
                    "p6_the_rules_come_back_and_the_reload_is_never_disturbed",
                    "p6_a_reload_is_told_from_a_revocation_and_is_repaired",
                ],
            ),
            (REAL, &["p6_a_reload_of_the_firewall_is_repaired"]),
            (RELOAD, &["p6_reloaded_under_downloads_nftables"]),
            (KEEP, &["p6_a_lease_follows_the_host_to_its_other_firewall"]),
        ],
        iptables: &[
            (
                FIREWALL,
                &[
                    "p6_the_rules_come_back_and_the_reload_is_never_disturbed",
                    "p6_a_reload_is_told_from_a_revocation_and_is_repaired",
                ],
            ),
            (RELOAD, &["p6_reloaded_under_downloads_iptables"]),
            (KEEP, &["p6_a_lease_follows_the_host_to_its_other_firewall"]),
        ],
        none: &[],
        apart: &[(ENDING, &["p6_a_reload_is_repaired_and_a_revocation_is_not"])],
        gap: "Ten reloads under downloads in `make test`, which prints the times and allows 10 s on a busy machine; 100 are `make soak`, which fails when more than half of them take longer than the second.",
    },
    Promise {
        text: "Only these ports, only this interface; the neighbour port and the second interface stay closed.",
        nftables: &[
            (
                FIREWALL,
                &[
                    "p7_neighbour_ports_the_second_interface_and_ipv6_stay_closed",
                    "p7_a_foreign_mark_opens_nothing",
                ],
            ),
            (KEEP, &["p7_a_lease_does_not_outlive_its_interface_or_address"]),
        ],
        iptables: &[(
            FIREWALL,
            &[
                "p7_neighbour_ports_the_second_interface_and_ipv6_stay_closed",
                "p7_a_foreign_mark_opens_nothing",
            ],
        )],
        none: &[(SOCKETS, &["p7_nothing_comes_in_by_another_interface_not_even_unbound"])],
        apart: &[(OPENING, &["p7_only_what_was_asked_for_is_opened"])],
        gap: "",
    },
    Promise {
        text: "A socket that was handed over gives no other privilege, hands out no address (full DHCP granted apart), and is cut when its lease ends.",
        nftables: &[
            (ATTACKS, EVERY_ATTACK),
            (FIREWALL, &["p8_an_ended_lease_is_cut_both_ways"]),
            (REAL, &["p8_a_socket_that_is_moved_ends_its_lease"]),
            (KEEP, &["p8_revoked_from_a_hostile_client_nftables"]),
        ],
        iptables: &[
            (ATTACKS, EVERY_ATTACK),
            (FIREWALL, &["p8_an_ended_lease_is_cut_both_ways"]),
            (
                KEEP,
                &[
                    "p8_revoked_from_a_hostile_client_iptables",
                    "p8_a_running_tftp_transfer_ends_with_its_lease",
                ],
            ),
        ],
        none: &[(
            SOCKETS,
            &[
                "p8_sockets_are_marked_confined_and_locked",
                "p8_a_raw_socket_hears_what_a_shared_one_would_and_nothing_after_its_lease",
            ],
        )],
        apart: &[(ENDING, &["p8_a_lease_ends_when_a_socket_leaves_its_interface"])],
        gap: "A running TFTP transfer has a socket of the user's own: a hostile program may finish it.",
    },
    Promise {
        text: "One user cannot end, read or starve another's lease; quotas hold.",
        nftables: &[
            (FIREWALL, &["p9_one_lease_ends_and_the_other_goes_on"]),
            (ONCE, &["p9_one_beside_another_is_refused_and_takes_nothing_from_it"]),
            (KEEP, &["p9_two_users_serve_two_networks_and_neither_touches_the_other"]),
        ],
        iptables: &[
            (FIREWALL, &["p9_one_lease_ends_and_the_other_goes_on"]),
            (SYSTEM, &["p9_a_lease_is_its_users_and_the_managers"]),
        ],
        none: &[
            (
                SOCKETS,
                &[
                    "p9_nobody_can_move_a_socket_onto_a_lease",
                    "p9_a_socket_of_another_lease_takes_no_broadcast",
                    "p9_a_moved_socket_does_not_make_a_server_of_the_host_deaf",
                ],
            ),
            (
                FIREWALL,
                &[
                    "p9_nothing_that_its_holder_does_with_a_shared_socket_makes_the_other_server_deaf",
                ],
            ),
        ],
        apart: &[
            (
                AUTHORITY,
                &[
                    "p9_a_lease_is_its_users_on_every_connection",
                    "p9_a_foreign_lease_is_no_lease_unless_polkit_lets_manage",
                    "p9_one_users_quota_and_question_are_not_anothers",
                    "p9_check_is_limited_per_user",
                    "p9_list_is_limited_per_user_where_polkit_has_to_be_asked",
                ],
            ),
            (
                CONFIG,
                &[
                    "p9_the_sites_quotas_hold",
                    "p9_one_user_has_as_many_questions_as_the_site_allows_and_one_per_connection",
                ],
            ),
            (
                CROWD,
                &[
                    "p9_fifty_users_at_once_get_their_own_and_nobody_elses",
                    "p9_a_caller_that_never_reads_is_in_nobodys_way",
                ],
            ),
            (ENDING, &["p9_only_the_connection_that_has_it_is_told"]),
            (
                "helper/tests/contract/model.rs",
                &["p9_whatever_the_order_everybody_has_what_the_model_says"],
            ),
            (
                OPENING,
                &[
                    "p9_one_interface_and_port_has_one_lease",
                    "p9_quotas_hold_and_a_mark_rests_while_its_sockets_live",
                ],
            ),
            (SHAPE, &["p9_everybody_may_ask_and_nobody_else_may_be_the_helper"]),
        ],
        gap: "",
    },
    Promise {
        text: "Exposure of the unit at most 2.0, uid not 0, exactly CAP_NET_ADMIN and CAP_NET_BIND_SERVICE in the shipped unit.",
        nftables: &[
            (ONCE, &["p10_both_of_its_processes_have_an_unused_uid_and_two_capabilities"]),
            (SYSTEM, &["p10_neither_client_nor_helper_has_more_than_it_needs"]),
            (FIREWALL, &["p10_net_admin_alone_is_enough"]),
        ],
        iptables: &[],
        none: &[(
            PROCESS,
            &[
                "p10_root_becomes_the_helpers_user_with_exactly_two_capabilities",
                "p10_the_helper_refuses_to_run_with_more_or_less_than_it_needs",
            ],
        )],
        apart: &[],
        gap: "A site may add CAP_NET_RAW, by a drop-in and by its configuration together (`raw_dhcp_takes_the_sites_word_and_the_drop_in` in `system.rs`, where the exposure is at most 2.0, too).",
    },
    Promise {
        text: "Malformed D-Bus arguments and packets: a clear error or silence, never a crash, never a change.",
        nftables: &[],
        iptables: &[],
        none: &[],
        apart: &[
            (OPENING, &["p11_what_is_no_request_is_refused_and_changes_nothing"]),
            (
                "helper/src/request.rs",
                &["p11_any_dictionary_is_a_request_within_limits_or_invalid"],
            ),
            ("helper/src/config/file.rs", &["p11_any_file_is_within_limits_or_wrong"]),
            ("helper/src/attribute.rs", &["p11_any_bytes_are_read_without_a_crash"]),
            ("helper/src/rtnetlink.rs", &["p11_any_bytes_are_read_without_a_crash"]),
            (
                "helper/tests/contract/hostile.rs",
                &[
                    "p11_whatever_is_called_with_whatever_the_helper_lives_and_opens_nothing",
                    "p11_whatever_is_called_with_whatever_the_process_keeps_neither_memory_nor_descriptors",
                ],
            ),
            (
                "tests/fuzz/src/lib.rs",
                &[
                    "p11_every_property_holds_for_its_corpus",
                    "p11_every_property_holds_for_what_is_near_its_corpus",
                ],
            ),
        ],
        gap: "",
    },
    Promise {
        text: "Every decision is in the journal with fixed fields: who, what, where, how long, why it ended.",
        nftables: &[(SYSTEM, &["p12_every_decision_is_in_the_journal"])],
        iptables: &[],
        none: &[(
            PROCESS,
            &[
                "p12_each_decision_is_one_entry_with_its_fields",
                "p12_a_standard_error_that_nobody_reads_does_not_stop_the_helper",
            ],
        )],
        apart: &[(
            "helper/src/log.rs",
            &["p12_every_field_and_kind_is_documented_and_no_other_is"],
        )],
        gap: "",
    },
];

const BEGIN: &str = "<!-- made by tests/tests/promises.rs; UPDATE=1 makes it again -->\n";
const END: &str = "<!-- end of what is made -->\n";

/// A flavour's name in the sources, and how else a test shows that it runs behind it.
const NFTABLES: (&str, &[&str]) =
    ("nftables", &["Flavour::Nftables", "NIXOS", "owned_nixos_table"]);
const IPTABLES: (&str, &[&str]) = ("iptables", &["Flavour::Iptables"]);
const NO_FIREWALL: (&str, &[&str]) = ("", &["(None)", "two_wires()", "machine_with_user()"]);

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Whether the pages are to be made right instead of being found wrong.
fn updating() -> bool {
    std::env::var_os("UPDATE").is_some_and(|value| value == "1")
}

fn read(path: &str) -> String {
    let path: PathBuf = workspace().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The tests of a source file that are run, each with its body. Those that `both_flavours!` makes
/// have the flavour before their names, as in the output of a run.
fn tests(source: &str) -> BTreeMap<String, String> {
    let body = |name: &str| {
        let start = source.find(&format!("fn {name}("))?;
        let rest = &source[start..];
        // Ends at the next closing brace of the function's own depth.
        let line = source[..start].rfind('\n').map_or(0, |newline| newline + 1);
        let indent: String = source[line..].chars().take_while(|c| *c == ' ').collect();
        let end = rest.find(&format!("\n{indent}}}\n")).unwrap_or(rest.len());
        Some(rest[..end].to_owned())
    };
    let mut found = BTreeMap::new();
    let mut lines = source.lines().map(str::trim);
    while let Some(line) = lines.next() {
        if line == "both_flavours!(" {
            for name in lines.by_ref().take_while(|line| *line != ");") {
                let name = name.trim_end_matches(',');
                for (flavour, _) in [NFTABLES, IPTABLES] {
                    found.extend(body(name).map(|body| (format!("{flavour}::{name}"), body)));
                }
            }
        } else if line == "#[test]" || line.starts_with("#[tokio::test") {
            let mut ignored = false;
            let name = lines.by_ref().find_map(|line| {
                ignored |= line.starts_with("#[ignore");
                let name = line.trim_start_matches("async ").strip_prefix("fn ")?;
                Some(name.split('(').next()?.to_owned())
            });
            let name = name.filter(|_| !ignored);
            found.extend(name.and_then(|name| Some((name.clone(), body(&name)?))));
        }
    }
    found
}

/// Why a file's tests are not run by `make test`, if so.
fn left_out(path: &str) -> Option<String> {
    let levels = read("tests/scripts/levels");
    if let Some(name) = path.strip_prefix("helper/tests/contract/") {
        let module = format!("mod {};", name.trim_end_matches(".rs"));
        let main = read("helper/tests/contract/main.rs");
        return (!main.contains(&module)).then(|| format!("{path} is in no module"));
    }
    // Of the test program: `firewall/named.rs` is a part of `firewall.rs`.
    let name = path.strip_prefix("tests/tests/")?.split(['/', '.']).next()?;
    // Level 4 runs all but those that other levels name.
    let others = levels.lines().find(|line| line.contains(") ;; *) echo")).unwrap();
    let elsewhere = others.split(['(', ')', '|', ' ']).any(|word| word == name);
    let named = levels.lines().any(|line| {
        line.contains(&format!("--test {name}"))
            || line.trim_start().starts_with("laboratory ")
                && line.split_whitespace().any(|word| word == name)
    });
    (elsewhere && !named).then(|| format!("{path} is on no level"))
}

/// What is wrong with one column of a promise.
fn faults(number: usize, proofs: Proofs, column: Option<(&str, &[&str])>) -> Vec<String> {
    let mut faults = Vec::new();
    for (path, names) in proofs {
        let tests = tests(&read(path));
        faults.extend(left_out(path));
        for name in *names {
            let place = format!("P{number}: {path}: {name}");
            let plain = tests.get(*name);
            let flavour = column.map_or("", |(flavour, _)| flavour);
            let of_both = tests.get(&format!("{flavour}::{name}"));
            match (plain, of_both, column) {
                (None, None, _) => faults.push(format!("{place} is no test that is run")),
                (Some(body), _, Some((_, signs)))
                    if !signs.iter().any(|sign| body.contains(sign)) =>
                {
                    faults.push(format!("{place} has none of {signs:?}: wrong column?"));
                }
                _ => {}
            }
        }
    }
    faults
}

/// How many tests in which file, for a glance.
fn cell(proofs: Proofs) -> String {
    let files = proofs.iter().map(|(path, names)| {
        let (_, file) = path.rsplit_once('/').unwrap();
        format!("{} in [{file}]({path})", names.len())
    });
    let files: Vec<_> = files.collect();
    if files.is_empty() { "-".to_owned() } else { files.join(", ") }
}

fn table() -> String {
    let mut text = "\
| | promise | NixOS nftables | NixOS iptables | no firewall | any firewall |
|---|---|---|---|---|---|
"
    .to_owned();
    for (number, promise) in (1..).zip(&PROMISES) {
        let columns = [promise.nftables, promise.iptables, promise.none, promise.apart].map(cell);
        let link = format!("[P{number}](docs/promises.md#p{number})");
        text += &format!("| {link} | {} | {} |\n", promise.text, columns.join(" | "));
    }
    text
}

/// The page with every test by its name.
fn page() -> String {
    let mut text = "\
# Promises

Each promise, the tests that prove it behind each firewall, and what is not proven. Made by `tests/tests/promises.rs`
(`UPDATE=1 cargo test -p portcullis-tests --test promises` makes it again), which also checks that each test is there and is run.
"
    .to_owned();
    for (number, promise) in (1..).zip(&PROMISES) {
        text += &format!("\n## P{number}\n\n{}\n\n", promise.text);
        for (column, proofs) in [
            ("NixOS nftables", promise.nftables),
            ("NixOS iptables", promise.iptables),
            ("no firewall", promise.none),
            ("any firewall", promise.apart),
        ] {
            for (path, names) in proofs {
                let names: Vec<_> = names.iter().map(|name| format!("`{name}`")).collect();
                text += &format!("* {column}, [{path}](../{path}): {}\n", names.join(", "));
            }
        }
        if !promise.gap.is_empty() {
            text += &format!("* **What is open:** {}\n", promise.gap);
        }
    }
    text
}

#[test]
fn every_test_that_proves_a_promise_is_there_and_is_run() {
    let mut wrong = Vec::new();
    for (number, promise) in (1..).zip(&PROMISES) {
        wrong.extend(faults(number, promise.nftables, Some(NFTABLES)));
        wrong.extend(faults(number, promise.iptables, Some(IPTABLES)));
        wrong.extend(faults(number, promise.none, Some(NO_FIREWALL)));
        wrong.extend(faults(number, promise.apart, None));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn what_is_no_test_is_not_taken_for_one() {
    let source = "
both_flavours!(
    p1_twice,
);
fn p1_twice(flavour: Flavour) {}
#[test]
#[ignore = \"slow\"]
fn p1_ignored() {}
// #[test]
fn p1_helper() {}
mod tests {
    #[tokio::test(flavor = \"current_thread\")]
    async fn p1_inside() {
        Flavour::Iptables
    }
    fn other() { Flavour::Nftables }
}
";
    let found = tests(source);
    let names: Vec<_> = found.keys().collect();
    assert_eq!(names, ["iptables::p1_twice", "nftables::p1_twice", "p1_inside"]);
    let body = &found["p1_inside"];
    assert!(body.contains("Iptables") && !body.contains("Nftables"), "{body}");
    assert_eq!(faults(1, &[(KILL, &["p1_absent"])], None).len(), 1);
    let misplaced = faults(2, &[(KILL, &["p2_client_killed_iptables"])], Some(NFTABLES));
    assert_eq!(misplaced.len(), 1, "{misplaced:?}");
}

#[test]
fn the_readme_shows_this_table() {
    let readme = read("README.md");
    let (before, rest) = readme.split_once(BEGIN).unwrap();
    let (shown, after) = rest.split_once(END).unwrap();
    let table = table();
    if shown != table && updating() {
        let text = [before, BEGIN, &table, END, after].concat();
        return fs::write(workspace().join("README.md"), text).unwrap();
    }
    assert!(shown == table, "README's table is not what this file says: UPDATE=1 writes it");
}

#[test]
fn the_page_of_promises_is_this() {
    let path = workspace().join("docs/promises.md");
    let page = page();
    if updating() {
        fs::write(&path, &page).unwrap();
    }
    let shown = fs::read_to_string(path).unwrap();
    assert!(shown == page, "docs/promises.md is not what this file says: UPDATE=1 writes it");
}

/// The anchors of a page: `[FILE:LINE](FILE#LLINE) `WORDS``, where exactly one line of the file, this
/// one, has the words. Gives the page with the right numbers, and how many anchors it has.
fn with_right_lines(page: &str, source: impl Fn(&str) -> String) -> (String, usize) {
    let mut parts = page.split("#L");
    let mut right = parts.next().unwrap().to_owned();
    let mut count = 0;
    for part in parts {
        let (_, quote) = part.split_once(") `").unwrap();
        let (quote, rest) = quote.split_once('`').unwrap();
        let label = right.rfind('[').unwrap();
        let (file, _) = right[label + 1..].split_once(':').unwrap();
        let file = file.to_owned();
        let text = source(&file);
        let mut lines = (1..).zip(text.lines()).filter(|(_, line)| line.contains(quote));
        let (line, _) = lines.next().unwrap_or_else(|| panic!("{file} has no line with {quote}"));
        assert_eq!(lines.next(), None, "{file} has more than one line with {quote}");
        right.truncate(label);
        right += &format!("[{file}:{line}]({file}#L{line}) `{quote}`{rest}");
        count += 1;
    }
    (right, count)
}

#[test]
fn an_anchor_follows_its_words() {
    let source = |file: &str| {
        assert_eq!(file, "src/a.rs");
        "one\ntwo\n".to_owned()
    };
    let page = "a [src/a.rs:9](src/a.rs#L8) `two`, b";
    let (right, count) = with_right_lines(page, source);
    assert_eq!((right.as_str(), count), ("a [src/a.rs:2](src/a.rs#L2) `two`, b", 1));
    for wrong in ["`o`", "`three`"] {
        let page = page.replace("`two`", wrong);
        let result = std::panic::catch_unwind(|| with_right_lines(&page, source));
        assert!(result.is_err(), "{wrong}");
    }
}

/// The auditor's questions are answered by lines that are there and say what is quoted.
#[test]
fn the_audit_names_lines_that_are_there() {
    let page = read("helper/README.md");
    let (right, count) = with_right_lines(&page, |file| read(&format!("helper/{file}")));
    assert!(count > 30, "{count} anchors are not all");
    if right != page && updating() {
        return fs::write(workspace().join("helper/README.md"), right).unwrap();
    }
    assert_eq!(page, right, "UPDATE=1 writes it");
}

/// What is wrong with a page of faults: rows `| F1 | what | what happens | FILE: `TEST`, `TEST`; FILE: ... |`,
/// the last cell `-` where the third says why there is no test.
fn wrong_rows(page: &str, source: impl Fn(&str) -> String) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut numbers = Vec::new();
    for row in page.lines() {
        let cells: Vec<_> = row.split('|').map(str::trim).collect();
        let [_, number, _, outcome, proofs, _] = *cells else { continue };
        if !number.starts_with(['F', 'M']) {
            continue;
        }
        numbers.push(number.to_owned());
        if proofs == "-" {
            let reason = outcome.starts_with("no test: ");
            wrong.extend((!reason).then(|| format!("{number}: neither test nor reason")));
            continue;
        }
        for proof in proofs.split("; ") {
            let Some((path, names)) = proof.split_once(": `") else {
                wrong.push(format!("{number}: {proof}"));
                continue;
            };
            wrong.extend(left_out(path));
            let tests = tests(&source(path));
            for name in names.trim_end_matches('`').split("`, `") {
                let of_both = format!("nftables::{name}");
                if !tests.contains_key(name) && !tests.contains_key(&of_both) {
                    wrong.push(format!("{number}: {path}: {name} is no test that is run"));
                }
            }
        }
    }
    let all = |letter, last| (1..=last).map(move |number| format!("{letter}{number}"));
    let expected: Vec<_> = all('F', 36).chain(all('M', 33)).collect();
    wrong.extend((numbers != expected).then(|| format!("not F1 to F36, M1 to M33: {numbers:?}")));
    wrong
}

#[test]
fn every_fault_and_mistake_has_a_test_or_a_reason() {
    let page = read("docs/faults.md");
    let wrong = wrong_rows(&page, read);
    assert!(wrong.is_empty(), "{wrong:#?}");
    // What is wrong is found.
    for (right, wrong) in [
        ("`p1_without_polkit_nothing_opens`, `p1_open", "`p1_absent`, `p1_open"),
        ("no test: neither NixOS", "neither NixOS"),
        ("| F7 |", "| F8 |"),
    ] {
        assert!(page.contains(right), "{right}");
        assert!(!wrong_rows(&page.replacen(right, wrong, 1), read).is_empty(), "{wrong}");
    }
}

/// What tests/scripts/helper-size counts is what the audit's page says.
#[test]
fn the_audit_says_how_long_the_helper_is() {
    let script = workspace().join("tests/scripts/helper-size");
    let output = std::process::Command::new(script).output().unwrap();
    let output = String::from_utf8(output.stdout).unwrap();
    let (mut firewall, mut all) = (0, 0);
    for line in output.lines() {
        let (lines, file) = line.trim().split_once(' ').unwrap();
        let lines: usize = lines.parse().unwrap();
        match file {
            "in all" => all = lines,
            file if file.starts_with("firewall/") => firewall += lines,
            _ => {}
        }
    }
    assert!(firewall > 0 && all > firewall, "{output}");
    let page = read("helper/README.md");
    let (before, rest) = page.split_once("lines it is **").unwrap();
    let (_, after) = rest.split_once(" of them the firewall's").unwrap();
    let length = format!("lines it is **{all} lines**, {firewall} of them the firewall's");
    let right = [before, &length, after].concat();
    if right != page && updating() {
        return fs::write(workspace().join("helper/README.md"), right).unwrap();
    }
    assert_eq!(page, right, "UPDATE=1 writes it");
}

/// Links in the repository's own pages lead to files that are there.
#[test]
fn links_lead_somewhere() {
    let mut seen = 0;
    for page in [
        "README.md",
        "ARCHITECTURE.md",
        "SECURITY.md",
        "helper/README.md",
        "helper/JOURNAL.md",
        "docs/faults.md",
        "docs/soak.md",
    ] {
        let text = read(page);
        let folder = workspace().join(page).parent().unwrap().to_path_buf();
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            let target = link.split('#').next().unwrap();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            assert!(folder.join(target).exists(), "{page}: {target}");
            seen += 1;
        }
    }
    assert!(seen > 50, "{seen} links are not all");
}
