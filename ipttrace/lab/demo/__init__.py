# SPDX-License-Identifier: GPL-2.0-only
"""`ipttrace demo`: a lab network, its traffic and an agent on the host, isolated from it.

- ``processes``: starts and ends the demo's processes
- ``network``: the network and traffic in there

Must not import tui, view or textual.
"""
