# SPDX-License-Identifier: GPL-2.0-only
"""The addresses of the lab network's nodes, named ROLE4 and ROLE6.

Must not import anything of ipttrace.
"""

from __future__ import annotations

from typing import Final

#   client ──────── lan0  router  wan0 ──────── server
#   10.1.0.2     10.1.0.1      10.2.0.1     10.2.0.2
#   fd00:1::2   fd00:1::1      fd00:2::1   fd00:2::2
CLIENT4: Final = "10.1.0.2"
CLIENT6: Final = "fd00:1::2"
GUEST4: Final = "10.1.0.66"  # the client's second address, which the router drops
GUEST6: Final = "fd00:1::66"
ROUTER4: Final = "10.1.0.1"
ROUTER6: Final = "fd00:1::1"
UPLINK4: Final = "10.2.0.1"
UPLINK6: Final = "fd00:2::1"
SERVER4: Final = "10.2.0.2"
SERVER6: Final = "fd00:2::2"
