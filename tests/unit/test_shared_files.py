# SPDX-License-Identifier: GPL-2.0-only
"""A folder's inside is its own: what several other folders import is meant for that."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

from tests.paths import PROJECT

PACKAGE = PROJECT / "ipttrace"

# Files made to be used by several folders, and what they are to them.
SHARED = {
    "stream/record.py": "the layout of records",
    "stream/frames.py": "what a frame is",
    "stream/decoder.py": "bytes to frames",
    "stream/messages.py": "the other frames' objects",
    "capture/netlink/engine.py": "what flips, for the BPF engine too",
    "capture/netlink/calls.py": "runs of chains as records",
    "capture/netlink/events.py": "what a chain's run is",
    "capture/netlink/names.py": "long names",
    "trace/row.py": "a row",
    "trace/drops/explain.py": "what a drop means",
    "trace/drops/where.py": "places in the kernel's code",
    "trace/sockets/words.py": "what a stage of a socket means",
    "trace/session.py": "a trace",
    "trace/selection.py": "the rows that are shown",
    "trace/decode/headers.py": "columns of packet headers",
    "trace/decode/protocol.py": "names of protocols' numbers",
    "trace/query/until.py": "the row that ends a trace",
    "trace/query/from_row.py": "queries made from rows",
    "view/text.py": "rows as text",
    "view/labels.py": "names of hosts and namespaces",
    "view/formats.py": "the formats by name",
    "tui/rows/filter_words.py": "filters in words",
    "tui/config/settings.py": "what the config file sets",
    "tui/config/toml.py": "the config file's text",
    "tui/config/file.py": "the config file",
    "tui/widgets/strips.py": "lists drawn line by line",
    "tui/widgets/figures.py": "numbers in few cells",
    "tui/widgets/ledger.py": "lists of figures",
    "tui/widgets/bar.py": "a bar of pieces",
    "capture/agent.py": "the agent",
    "capture/hello.py": "both clocks",
    "capture/request.py": "what an agent is asked for",
    "capture/filter/pcap.py": "EXPR compiled",
    "capture/filter/headers.py": "EXPR asked about bytes",
    "capture/filter/nft.py": "EXPR in nftables' terms",
    "capture/kernel/module.py": "the module, found and built",
    "capture/libbpf/btf.py": "what the kernel's BTF says",
    "capture/libbpf/counters.py": "counters of BPF programs",
    "capture/libbpf/filter.py": "EXPR for BPF programs",
    "capture/libbpf/objects.py": "loaded BPF programs",
    "capture/libbpf/ring.py": "a BPF ring",
    "capture/netlink/nft/dump.py": "a ruleset's snapshot",
    "capture/netlink/nft/rewrites.py": "what targets change of packets",
    "capture/netlink/nft/wire.py": "netlink attributes",
    "capture/netlink/legacy/tables.py": "the legacy tables' priorities",
    "capture/errors.py": "the error of everything that captures",
    "capture/netns.py": "network namespaces by name",
    "capture/rules/netlink_watch.py": "rule texts over netlink",
    "link/ssh/command.py": "command lines of ssh",
    "trace/query/error.py": "errors with their position",
    "whatif/answer/ask.py": "a packet's answer",
    "whatif/answer/words.py": "an answer in words",
    "whatif/answer/way.py": "ways beside each other",
    "whatif/copy/running.py": "a copy that runs",
    "whatif/packet/recorded.py": "packets of recordings",
    "whatif/packet/repair.py": "where a packet's headers end",
    "whatif/packet/spec.py": "a packet to send",
    "whatif/packet/words.py": "a packet in words",
    "whatif/snapshot/files.py": "files of rules",
    "whatif/snapshot/here.py": "this host's network and rules",
    "whatif/snapshot/model.py": "a network and its rules",
    "whatif/whynot/explain.py": "why not",
    "whatif/whynot/place.py": "a rule in words",
    "whatif/whynot/words.py": "why not, in words",
    "lab/kernels/error.py": "the lab's error",
    "lab/network/ns.py": "network namespaces",
    "lab/network/addresses.py": "the lab's addresses",
    "lab/traffic/mix.py": "the background traffic",
}


def imported(path: Path) -> set[Path]:
    """The files of the package that this one imports."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("ipttrace"):
            continue
        folder = PROJECT / str(node.module).replace(".", "/")
        for name in node.names:
            for one in (folder / f"{name.name}.py", folder.with_suffix(".py")):
                if one.exists():
                    found.add(one)
                    break
    return found


def test_no_other_file_is_imported_by_more_than_one_other_folder() -> None:
    importers: dict[str, set[Path]] = defaultdict(set)
    for path in PACKAGE.rglob("*.py"):
        for one in imported(path):
            if not path.is_relative_to(one.parent) and one.parent != PACKAGE:
                importers[one.relative_to(PACKAGE).as_posix()].add(path.parent)
    several = {name for name, folders in importers.items() if len(folders) > 1}
    assert several == set(SHARED)
