# SPDX-License-Identifier: GPL-2.0-only
"""The table of faults, in the order of docs/kernel-tests.md.

A fault compiles without a warning: it leaves no variable and no function unused.  White space
in a text to replace stands for any other, so that a text of several lines is written in one.
"""

from __future__ import annotations

from typing import Final

from ipttrace.lab.kernels import DEBUG
from tests.mutations.fault import Fault

_LOG: Final = "tests/vm/test_kernel_log.py::test_"
_STRANGERS: Final = "tests/vm/test_strangers.py::test_"
_REFUSALS: Final = "tests/vm/test_refusals.py::test_"
_BYTES: Final = "tests/vm/test_packet_bytes.py::test_"
_CPUS: Final = "tests/vm/test_cpus.py::test_"
_HOOKS: Final = "tests/vm/test_hooks.py::test_"
_UNLOADING: Final = "tests/vm/patching/test_unloading.py::test_"
_SOCKETS: Final = f"{_STRANGERS}other_programs_sockets_do_not_wait_while_it_arms_and_disarms"
_SWAPPED: Final = (
    "tests/vm/test_swapped.py::"
    "test_filters_replaced_in_a_flood_are_neither_used_after_their_end_nor_kept"
)
_PROGRAMS: Final = (
    "tests/vm/stress/test_programs.py::"
    "test_a_program_reads_nothing_but_its_record_and_runs_under_rcu"
)

_THE_KERNELS_LOG: Final = (
    Fault(
        name="unknown-never-silenced",
        file="kmod/hits.c",
        text=(
            "return ipttrace_session_flipped_all() || ipttrace_follow_has(skb) || "
            "(ipttrace_kprobes_hit() && !ipttrace_flaggers_any(net));"
        ),
        instead="return ipttrace_follow_has(skb);",
        tests=(
            f"{_LOG}fragments_of_a_traced_datagram_are_not_logged",
            f"{_LOG}copies_that_a_rule_makes_after_nat_are_not_logged",
            f"{_LOG}a_packet_that_is_on_its_way_when_a_filter_is_set_is_not_logged",
            f"{_LOG}swapping_filters_during_a_flood_logs_nothing",
        ),
    ),
    Fault(
        name="trace-rule-not-noticed",
        file="kmod/flaggers.c",
        text="test_bit(netns_hash(net), flaggers.netns) ||",
        instead="",
        tests=(f"{_LOG}a_trace_rule_that_is_added_during_a_capture_logs_each_packet",),
    ),
    Fault(
        name="silenced-without-kprobes",
        file="kmod/hits.c",
        text="(ipttrace_kprobes_hit() && !ipttrace_flaggers_any(net))",
        instead="!ipttrace_flaggers_any(net)",
        tests=(f"{_LOG}a_trace_rule_logs_each_packet_although_kprobes_are_switched_off",),
    ),
    Fault(
        name="trace-leaves-stale-entry",
        file="kmod/flaggers.c",
        text="if (!skb->nf_trace) ipttrace_follow_del(skb);",
        instead="(void)skb;",
        tests=(f"{_LOG}each_packet_of_anothers_trace_rule_is_logged",),
    ),
    Fault(
        name="followed-without-flag",
        file="kmod/handlers.c",
        text=(
            "if (ipttrace_follow_has(skb)) { if (skb->nf_trace) return true; "
            "ipttrace_follow_del(skb); }"
        ),
        instead="if (ipttrace_follow_has(skb)) return true;",
        tests=(f"{_LOG}each_packet_of_anothers_trace_rule_is_logged",),
    ),
    Fault(
        name="followed-despite-nftables",
        file="kmod/follow.c",
        text="return !ipttrace_nft_traces() || found == (address | follow_print(skb));",
        instead="return true;",
        tests=(
            "tests/vm/test_users_nftrace.py::"
            "test_packets_that_nftables_traces_are_not_taken_for_those_of_the_filter",
        ),
    ),
    Fault(
        name="silenced-by-family",
        file="kmod/hits.c",
        text="ipttrace_set_arg(regs, 0, (unsigned long)&silent_net);",
        instead="(void)&silent_net; ipttrace_set_arg(regs, 1, 0);",
        tests=(f"{_LOG}a_logger_bound_to_no_family_hears_nothing",),
    ),
)

_OTHER_USERS: Final = (
    Fault(
        name="close-takes-mutex",
        file="kmod/netlink.c",
        text="ipttrace_armed_socket_gone(gone->net, gone->portid);",
        # Whoever asks for the status takes the mutex.
        instead=(
            "{ struct ipttrace_status status; ipttrace_control_status(&status, NULL); } "
            "ipttrace_armed_socket_gone(gone->net, gone->portid);"
        ),
        tests=(f"{_SOCKETS}[close]",),
    ),
    Fault(
        name="no-parallel-ops",
        file="kmod/netlink.c",
        text=".parallel_ops = true,",
        instead="",
        tests=(f"{_SOCKETS}[ask]",),
    ),
    Fault(
        name="unprivileged-watch",
        file="kmod/netlink.c",
        text=".doit = netlink_watch, .flags = GENL_ADMIN_PERM,",
        instead=".doit = netlink_watch,",
        tests=(
            f"{_STRANGERS}a_user_without_privileges_hears_nothing_of_other_namespaces_rules",
            f"{_REFUSALS}every_command_needs_root",
        ),
    ),
    Fault(
        name="socket-inherited",
        file="ipttrace/capture/kernel/control.py",
        text="self._socket.bind(FAMILY, Message)",
        instead=(
            "self._socket.bind(FAMILY, Message); os.set_inheritable(self._socket.fileno(), True)"
        ),
        tests=(f"{_STRANGERS}nothing_that_an_agent_starts_inherits_what_holds_the_tracing",),
    ),
    Fault(
        name="addresses-as-they-are",
        file="ipttrace/capture/kernel/engine.py",
        text="if not self._options.raw_addresses: self.addresses.hide(taken)",
        instead="",
        tests=(
            "tests/vm/test_addresses.py::"
            "test_a_packet_is_recognised_by_a_number_that_is_no_address",
        ),
    ),
)

_PROGRAMS_AND_FILTERS: Final = (
    Fault(
        name="no-run-context",
        file="kmod/programs.c",
        text=(
            "struct bpf_trace_run_ctx run_ctx = {}; struct bpf_run_ctx *old; rcu_read_lock(); "
            "old = ipttrace_run_ctx_set(&run_ctx); bpf_prog_run(prog, context); "
            "ipttrace_run_ctx_reset(old);"
        ),
        instead="rcu_read_lock(); bpf_prog_run(prog, context);",
        tests=(f"{_REFUSALS}a_program_under_our_name_that_asks_for_its_cookie_does_no_harm",),
        kills=True,
    ),
    Fault(
        name="any-place",
        file="kmod/programs.c",
        text=(
            "if (ipttrace_prog_sleepable(prog) || prog->kprobe_override || "
            "prog->expected_attach_type || prog->aux->attach_btf_id ||"
        ),
        instead="if (prog->kprobe_override || prog->aux->attach_btf_id ||",
        tests=(
            f"{_REFUSALS}a_program_under_our_name_for_another_place_is_refused[multi]",
            f"{_REFUSALS}a_program_under_our_name_for_another_place_is_refused[sleepable]",
        ),
    ),
    Fault(
        name="any-name",
        file="kmod/programs.c",
        text="strcmp(prog->aux->name, program_names[which])",
        instead="!program_names[which]",
        tests=(f"{_REFUSALS}another_kprobe_program_is_refused",),
    ),
    Fault(
        name="any-pin",
        file="kmod/programs.c",
        text="if (!roots) {",
        instead="if (false && !roots) {",
        tests=(f"{_REFUSALS}a_pin_that_others_can_replace_is_refused",),
    ),
    Fault(
        name="no-wait-for-rcu",
        file="kmod/session.c",
        text="rcu_assign_pointer(ipttrace_session.filter, filter); synchronize_rcu();",
        instead="rcu_assign_pointer(ipttrace_session.filter, filter);",
        tests=(_SWAPPED,),
        kills=True,
    ),
    Fault(
        name="filter-never-freed",
        file="kmod/control.c",
        text="ipttrace_filter_put(old);",
        instead="(void)old;",
        tests=(_SWAPPED,),
    ),
)

_NAMESPACES: Final = (
    Fault(
        name="namespace-end-not-noticed",
        file="kmod/armed.c",
        text="if (armed.net && armed.net == net) {",
        instead="if (false && armed.net == net) {",
        tests=(
            f"{_STRANGERS}the_trace_ends_with_its_namespace_and_another_with_its_inode_is_not_traced",
        ),
    ),
    Fault(
        name="netns-id-ignored",
        file="kmod/setup.c",
        text="if (!id || nla_get_u64(id) == setup->net_id)",
        instead="if (!id || true)",
        tests=(f"{_STRANGERS}another_namespace_of_that_name_is_not_traced_after_a_pause",),
    ),
)

_PACKETS: Final = (
    Fault(
        name="linear-part-only",
        file="kmod/record.c",
        text="if (skb_copy_bits(skb, 0, entry->packet, len)) len = 0;",
        instead="len = skb_headlen(skb); memcpy(entry->packet, skb->data, len);",
        tests=(f"{_BYTES}the_data_of_a_tcp_segment_is_recorded_although_it_is_in_pages",),
    ),
    Fault(
        name="removed-vlan-tag",
        file="kmod/record.c",
        text="skb_vlan_tag_present(skb) ? skb_vlan_tag_get(skb) : 0;",
        instead="skb_vlan_tag_get(skb);",
        tests=(f"{_BYTES}a_packet_whose_vlan_tag_was_removed_has_none",),
        kernel="5.10",
    ),
    Fault(
        name="cpu-not-opened-again",
        file="ipttrace/capture/kernel/cpus.py",
        text="if pid == 0 and (event := parse(message)):",
        instead="if pid == 0 and (event := parse(message)) and not event[1]:",
        tests=(
            f"{_CPUS}a_cpu_that_was_off_is_traced_again",
            f"{_CPUS}a_cpu_that_was_off_at_the_start_is_traced_once_it_is_on",
        ),
    ),
    Fault(
        name="counter-of-32-bits",
        file="kmod/ipttrace.h",
        text="u64 silenced;",
        instead="u32 silenced;",
        tests=(
            "tests/unit/kmod/test_kmod_counters.py::"
            "test_every_counter_and_the_number_of_a_call_have_64_bits",
        ),
    ),
)

_RULES: Final = (
    Fault(
        name="generations-of-all-namespaces",
        file="kmod/ruleset.c",
        text="struct ipttrace_net *rn = net ? ruleset_net(net) : &ruleset_nowhere;",
        instead="struct ipttrace_net *rn = &ruleset_nowhere;",
        tests=(
            "tests/vm/test_ruleset.py::test_a_change_in_one_namespace_leaves_the_texts_of_another",
            f"{_STRANGERS}it_can_be_used_from_inside_a_namespace",
        ),
    ),
    Fault(
        name="certain-without-kprobes",
        file="kmod/ruleset.c",
        text=(
            "if (!READ_ONCE(ruleset.watching) || READ_ONCE(ruleset.blind)) return 0; "
            "if (!ipttrace_kprobes_hit()) { WRITE_ONCE(ruleset.blind, true); return 0; } "
            "/* At an exit"
        ),
        instead="if (!READ_ONCE(ruleset.watching)) return 0; /* At an exit",
        tests=(f"{_STRANGERS}switching_kprobes_off_is_noticed_and_no_text_is_guessed",),
    ),
    Fault(
        name="reports-not-bounded",
        file="kmod/changes.c",
        text="#define REPORT_EVERY (HZ / 50)",
        instead="#define REPORT_EVERY 0",
        tests=(f"{_STRANGERS}reports_of_changes_are_bounded_however_often_rules_change",),
    ),
)

_ENDS_AND_BEGINNINGS: Final = (
    Fault(
        name="earlier-drain-ends-later",
        file="kmod/control.c",
        text="if (control.state == IPTTRACE_DRAINING && time_before(now, control.drained))",
        instead="if (false && time_before(now, control.drained))",
        tests=(f"{_STRANGERS}log_lines_are_silenced_for_their_time_after_each_disarm",),
    ),
    Fault(
        name="kprobes-hold-no-switch",
        file="kmod/probes.c",
        text="int err = trace_clear();",
        instead="int err = by_ftrace ? trace_clear() : -EOPNOTSUPP;",
        tests=(
            f"{_HOOKS}if_ftrace_is_turned_off_the_error_names_the_sysctl[ftrace=0]",
            f"{_HOOKS}ftrace_cannot_be_turned_off_during_a_capture[ftrace=0]",
        ),
    ),
    Fault(
        name="kprobes-before-switch",
        file="kmod/control.c",
        text=(
            "err = ipttrace_probes_hold(extack); if (err) goto teardown_follow; "
            "/* If it fails, packets are traced without generations of rules. */ "
            "ipttrace_ruleset_setup(control.events, setup->net);"
        ),
        instead=(
            "ipttrace_ruleset_setup(control.events, setup->net); "
            "err = ipttrace_probes_hold(extack); "
            "if (err) { ipttrace_ruleset_teardown(); goto teardown_follow; }"
        ),
        tests=(f"{_HOOKS}whenever_ftrace_can_be_turned_off_no_probe_is_registered",),
        kills=True,
    ),
    Fault(
        name="tables-before-module",
        file="kmod/ruleset.c",
        text="if (!rn) return false;",
        instead="",
        tests=(f"{_UNLOADING}a_namespace_that_is_made_with_tables_is_traced",),
        kills=True,
    ),
)

_ON_THE_DEBUG_KERNEL: Final = (
    Fault(
        name="raw-irq-save",
        file="kmod/handlers.c",
        text="struct kretprobe ipttrace_table_probes[IPTTRACE_TABLES];",
        instead="""\
#undef local_irq_save
#define local_irq_save raw_local_irq_save
#undef local_irq_restore
#define local_irq_restore raw_local_irq_restore

struct kretprobe ipttrace_table_probes[IPTTRACE_TABLES];
""",
        tests=(_PROGRAMS,),
        kernel=DEBUG,
    ),
    Fault(
        name="program-outside-rcu",
        file="kmod/programs.c",
        text=(
            "rcu_read_lock(); "
            "old = ipttrace_run_ctx_set(&run_ctx); bpf_prog_run(prog, context); "
            "ipttrace_run_ctx_reset(old); "
            "rcu_read_unlock();"
        ),
        instead=(
            "old = ipttrace_run_ctx_set(&run_ctx); bpf_prog_run(prog, context); "
            "ipttrace_run_ctx_reset(old);"
        ),
        tests=(_PROGRAMS,),
        kernel=DEBUG,
    ),
    Fault(
        name="registers-not-zeroed",
        file="kmod/handlers.c",
        text="struct pt_regs context = {};",
        instead="struct pt_regs context;",
        tests=(_PROGRAMS,),
        kernel=DEBUG,
    ),
)

FAULTS: Final[tuple[Fault, ...]] = (
    *_THE_KERNELS_LOG,
    *_OTHER_USERS,
    *_PROGRAMS_AND_FILTERS,
    *_NAMESPACES,
    *_PACKETS,
    *_RULES,
    *_ENDS_AND_BEGINNINGS,
    *_ON_THE_DEBUG_KERNEL,
)
