//! The promises, the tests that prove each of them, and what is not proven. Trusts that a test shows
//! what its name says.

/// A file, and tests in it.
pub type Proof = (&'static str, &'static [&'static str]);
/// Those of one column.
pub type Proofs = &'static [Proof];

/// One promise and what proves it.
pub struct Promise {
    /// In one sentence.
    pub text: &'static str,
    /// Behind NixOS' nftables firewall.
    pub nftables: Proofs,
    /// Behind NixOS' iptables firewall.
    pub iptables: Proofs,
    /// On a host without a firewall.
    pub none: Proofs,
    /// Where no firewall has a part in it: fake kernel, or pure code.
    pub apart: Proofs,
    /// What is not proven yet, if anything.
    pub gap: &'static str,
}

const BOOT: &str = "tests/tests/boot.rs";
const SECURE: &str = "tests/tests/secureboot.rs";
const FW_BESIDE: &str = "tests/tests/firewall/beside.rs";
const FW_CHANGES: &str = "tests/tests/firewall/changes.rs";
const FW_DOORS: &str = "tests/tests/firewall/doors.rs";
const FW_ENDS: &str = "tests/tests/firewall/ends.rs";
const FW_OTHERS: &str = "tests/tests/firewall/others.rs";
const INJECT: &str = "tests/tests/inject.rs";
const KEEP: &str = "tests/tests/keep.rs";
pub const KILL: &str = "tests/tests/kill.rs";
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

// Every attack is a test of its own; each runs behind both flavours.
const ATTACKS_BESIDE: Proof = (
    "tests/tests/attacks/beside.rs",
    &[
        "p8_a_shared_socket_gives_no_more_than_another",
        "p8_a_raw_socket_hears_and_sends_nothing",
        "p8_the_boot_server_sends_boot_answers_alone_from_the_shared_port",
    ],
);
const ATTACKS_DATAGRAMS: Proof = (
    "tests/tests/attacks/datagrams.rs",
    &[
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
        "p8_ipv6",
    ],
);
const ATTACKS_FULL: Proof = (
    "tests/tests/attacks/full.rs",
    &["p8_full_dhcp_from_its_port_alone", "p8_addresses_are_handed_out_with_full_dhcp_alone"],
);
const ATTACKS_HOLDER: Proof = (
    "tests/tests/attacks/holder.rs",
    &[
        "p8_another_mark",
        "p8_a_locked_filter_stays",
        "p8_an_accepted_connection_connects_elsewhere",
        "p8_a_lease_that_has_ended_is_mute",
    ],
);

/// Each system call of the helper fails once, behind both flavours.
const EVERY_FAULT: &[&str] = &[
    "p5_a_fault_in_any_call_of_an_opening_leaves_nothing",
    "p5_a_kernel_that_refuses_from_any_call_on_leaves_nothing_to_the_next_helper",
    "p5_a_fault_in_any_call_of_a_closing_leaves_the_ports_closed_and_the_sweep_nothing",
    "p5_a_fault_in_any_call_of_a_look_or_a_repair_is_neither_a_revocation_nor_left",
];

/// P1 to P12, in order.
pub const PROMISES: [Promise; 12] = [
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
            (FW_ENDS, &["p2_no_conntrack_entry_keeps_the_port_open_for_an_earlier_peer"]),
        ],
        iptables: &[
            (KILL, &["p2_client_killed_iptables", "p2_client_killed_at_any_moment_iptables"]),
            (SYSTEM, &["p2_a_lease_ends_with_its_program_its_session_and_the_bus"]),
            (FW_ENDS, &["p2_no_conntrack_entry_keeps_the_port_open_for_an_earlier_peer"]),
        ],
        none: &[
            (
                FW_OTHERS,
                &[
                    "p2_without_a_firewall_there_is_nothing_to_open_and_an_ended_lease_is_still_deaf",
                ],
            ),
            (FW_ENDS, &["p2_a_lease_is_closed_even_when_its_rules_cannot_be_removed"]),
        ],
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
                FW_ENDS,
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
                FW_ENDS,
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
            (FW_DOORS, &["p4_closed_open_closed_and_nothing_is_left"]),
            (FW_ENDS, &["p4_a_table_left_by_a_restored_listing_is_replaced_and_swept"]),
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
            (FW_DOORS, &["p4_closed_open_closed_and_nothing_is_left"]),
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
        none: &[(FW_OTHERS, &["p4_without_a_firewall_nothing_is_left"])],
        apart: &[],
        gap: "Every test of `kill.rs` and `system.rs` compares the ruleset, too.",
    },
    Promise {
        text: "An opening is one transaction; a fault at any step leaves nothing.",
        nftables: &[(FW_ENDS, &["p5_a_refused_transaction_leaves_nothing"]), (INJECT, EVERY_FAULT)],
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
                FW_CHANGES,
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
                FW_CHANGES,
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
                FW_DOORS,
                &[
                    "p7_neighbour_ports_the_second_interface_and_ipv6_stay_closed",
                    "p7_a_foreign_mark_opens_nothing",
                ],
            ),
            (KEEP, &["p7_a_lease_does_not_outlive_its_interface_or_address"]),
        ],
        iptables: &[(
            FW_DOORS,
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
            ATTACKS_BESIDE,
            ATTACKS_DATAGRAMS,
            ATTACKS_FULL,
            ATTACKS_HOLDER,
            (FW_ENDS, &["p8_an_ended_lease_is_cut_both_ways"]),
            (REAL, &["p8_a_socket_that_is_moved_ends_its_lease"]),
            (KEEP, &["p8_revoked_from_a_hostile_client_nftables"]),
        ],
        iptables: &[
            ATTACKS_BESIDE,
            ATTACKS_DATAGRAMS,
            ATTACKS_FULL,
            ATTACKS_HOLDER,
            (FW_ENDS, &["p8_an_ended_lease_is_cut_both_ways"]),
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
            (FW_DOORS, &["p9_one_lease_ends_and_the_other_goes_on"]),
            (ONCE, &["p9_one_beside_another_is_refused_and_takes_nothing_from_it"]),
            (KEEP, &["p9_two_users_serve_two_networks_and_neither_touches_the_other"]),
        ],
        iptables: &[
            (FW_DOORS, &["p9_one_lease_ends_and_the_other_goes_on"]),
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
                FW_BESIDE,
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
            (FW_DOORS, &["p10_net_admin_alone_is_enough"]),
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
