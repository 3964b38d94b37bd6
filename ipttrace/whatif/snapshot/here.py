# SPDX-License-Identifier: GPL-2.0-only
"""The snapshot of a network namespace of this host, or of another host over ssh."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Final

from ipttrace.capture import netns
from ipttrace.capture.errors import CaptureError
from ipttrace.link.ssh import command
from ipttrace.text import clean
from ipttrace.whatif.errors import WhatIfError
from ipttrace.whatif.snapshot import read as reading
from ipttrace.whatif.snapshot.model import MOST_BYTES, Snapshot, from_json

_PATIENCE: Final = 120.0  # s


def read(name: str | None = None, *, rules: bool = True) -> Snapshot:
    """Returns the snapshot of a namespace, as netns.inode finds it; None: this process's own.

    Raises WhatIfError.
    """
    if name is None:
        return reading.read(rules=rules)
    try:
        inode = netns.inode(name)
        with netns.inside(netns.path_to(name, inode), inode):
            return reading.read(rules=rules)
    except CaptureError as error:
        raise WhatIfError(str(error)) from None
    except PermissionError:
        raise WhatIfError("only root can enter another network namespace: run with sudo") from None
    except OSError as error:
        raise WhatIfError(f"the network namespace cannot be entered: {error.strerror}") from None


def read_over_ssh(host: str, program: Sequence[str], name: str | None = None) -> Snapshot:
    """Returns the snapshot of another host, where ipttrace is installed.  Raises WhatIfError."""
    arguments = ["snapshot", *(["--netns", name] if name is not None else [])]
    argv = command.one_command(host, program, arguments)
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE, timeout=_PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        raise WhatIfError(f"{host}: no snapshot within {_PATIENCE:.0f} s") from None
    except OSError as error:
        raise WhatIfError(f"cannot run ssh: {error.strerror}") from None
    if done.returncode:
        raise WhatIfError(f"{clean(host, 80)}: no snapshot (status {done.returncode})")
    if len(done.stdout) > MOST_BYTES:
        raise WhatIfError(f"{clean(host, 80)}: the snapshot is larger than {MOST_BYTES >> 20} MB")
    return from_json(done.stdout.decode("utf-8", "replace"), clean(host, 80))
