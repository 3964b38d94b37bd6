# SPDX-License-Identifier: GPL-2.0-only
"""Names of hosts and network namespaces for rows that are written.

Rows of a single host are written without the host's name and so have exactly the
documented fields; rows of several hosts need it.  Must not do I/O.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ipttrace.trace.row import FIELDS

# The field appended to FIELDS if there are several hosts.
HOST = "host"


@dataclass(frozen=True, slots=True)
class Labels:
    """Names of hosts and namespaces, untrusted.

    `hosts`: by number; `netns`: of namespaces by host and inode; `alone`: of
    namespaces by inode, if there is one host.  The mappings may grow while in use.
    """

    hosts: Sequence[str] = ()
    netns: Mapping[tuple[int, int], str] = field(default_factory=dict)
    alone: Mapping[int, str] = field(default_factory=dict)

    @property
    def several(self) -> bool:
        """Is there more than one host?"""
        return len(self.hosts) > 1

    @property
    def fields(self) -> tuple[str, ...]:
        """FIELDS, followed by `host` if there are several hosts."""
        return (*FIELDS, HOST) if self.several else FIELDS

    def host(self, number: int) -> str:
        """Returns the host's name, or its number if it has none."""
        return self.hosts[number] if number < len(self.hosts) else str(number)

    def name(self, host: int, inode: int) -> str | None:
        """Returns the namespace's name; None if it has none."""
        return self.netns.get((host, inode)) or self.alone.get(inode)


LabelSource = Mapping[int, str] | Labels | None
"""Labels, or the names of one host's namespaces by inode."""


def labels_of(names: LabelSource) -> Labels:
    """Returns `names` as Labels."""
    if isinstance(names, Labels):
        return names
    return Labels() if names is None else Labels(alone=names)
