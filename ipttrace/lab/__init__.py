# SPDX-License-Identifier: GPL-2.0-only
"""Places to trace without touching the host's network, and kernels to trace on.

- ``kernels/``: Debian's kernels, unpacked into a cache
- ``vm/``: the throwaway VM: one command on one of these kernels
- ``network/``: the lab network: three namespaces with rules
- ``traffic/``: senders, servers and background traffic for it
- ``demo/``: network, traffic and agent on the host, in namespaces of their own
- ``guest``: network, traffic and agent in the VM, the stream on the host
- ``setup``: provides kernels and their modules in advance

Must not import tui, view or textual.
"""
