# SPDX-License-Identifier: GPL-2.0-only
"""The lab's kernels: Debian's kernel packages, unpacked into a cache.

Packages are downloaded with ``apt-get download`` and unpacked with ``dpkg -x``
into ``<cache>/kernels/<release>/{boot,lib/modules,usr}``, headers and kbuild
included, so that ``make -C kernel.headers M=...`` builds modules.  The cache is
``$IPTTRACE_CACHE``, else ``$XDG_CACHE_HOME/ipttrace``, else ``~/.cache/ipttrace``.

- ``cache``: finds a kernel in the cache, or adds it
- ``apt``: finds and downloads Debian's packages
- ``debug``: builds the debug kernel from Debian's source
- ``arrange``: gives the packages of every release one layout
- ``fit``: makes the headers of a newer Debian work on this host
- ``tools``: runs what unpacks and prepares
- ``image``: unpacks a bzImage, for a faster boot
- ``error``: KernelError

Must not install anything, nor import tui, view or textual.
"""

from __future__ import annotations

from ipttrace.lab.kernels.cache import (
    DEBUG,
    DEFAULT,
    SERIES,
    Kernel,
    Progress,
    available,
    cache_dir,
    ensure,
    find,
    show_progress,
)
from ipttrace.lab.kernels.error import KernelError

__all__ = [
    "DEBUG",
    "DEFAULT",
    "SERIES",
    "Kernel",
    "KernelError",
    "Progress",
    "available",
    "cache_dir",
    "ensure",
    "find",
    "show_progress",
]
