# SPDX-License-Identifier: GPL-2.0-only
"""What hosts and network namespaces are called where rows are written.

One host has no name in the lines, so that they are what the contract of the
fields says; rows of several can only be told apart by one.  Must not do I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ipttrace.trace.row import FIELDS

# The field that rows of several hosts have besides, after all others.
HOST = "host"


@dataclass(frozen=True, slots=True)
class Places:
    """Names, not to be believed.

    `hosts`: by number; `netns`: of namespaces by host and inode, `alone`: by
    inode, for rows of a single host.  The mappings may be filled while in use.
    """

    hosts: Sequence[str] = ()
    netns: Mapping[tuple[int, int], str] = field(default_factory=dict)
    alone: Mapping[int, str] = field(default_factory=dict)

    @property
    def several(self) -> bool:
        """Are there more hosts than one?"""
        return len(self.hosts) > 1

    @property
    def fields(self) -> tuple[str, ...]:
        """FIELDS, and `host` behind them where there are several."""
        return (*FIELDS, HOST) if self.several else FIELDS

    def host(self, number: int) -> str:
        """The host's name, or its number."""
        return self.hosts[number] if number < len(self.hosts) else str(number)

    def name(self, host: int, inode: int) -> str | None:
        """The namespace's name; None where it has none."""
        return self.netns.get((host, inode)) or self.alone.get(inode)


Named = Mapping[int, str] | Places | None


def places(names: Named) -> Places:
    """`names` of namespaces by inode, where there is one host, as Places."""
    if isinstance(names, Places):
        return names
    return Places() if names is None else Places(alone=names)
