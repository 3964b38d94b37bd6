# SPDX-License-Identifier: GPL-2.0-only
"""The kernel engine: traces legacy iptables with a module of its own.

- engine: brings up and takes down all of the following
- module: finds, builds, inserts and removes the module (kmod/)
- programs: loads and pins the BPF programs (bpf/)
- control: arms and disarms the module over generic netlink
- rings: reads the perf rings
- cpus: hears of CPUs that go off and on, for the rings
- calls: splits the calls in them into records
"""
