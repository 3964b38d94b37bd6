# SPDX-License-Identifier: GPL-2.0-only
"""The user's editor on a copy of the rules."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ipttrace.cli.outcome import Failed

if TYPE_CHECKING:
    from ipttrace.whatif.snapshot.model import Snapshot


def edited(snapshot: Snapshot) -> Snapshot:
    """Returns the snapshot with its rules as the user edits them, a file for each kind.

    Raises Failed, WhatIfError.
    """
    from ipttrace.whatif.snapshot import files

    command = shlex.split(os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi")
    if not snapshot.rulesets:
        raise Failed("there are no rules to edit")
    with tempfile.TemporaryDirectory(prefix="ipttrace-") as folder:
        paths = []
        for number, one in enumerate(snapshot.rulesets, 1):
            path = Path(folder, f"{number}-{one.kind}.rules")
            path.write_bytes(one.text.encode("utf-8", "surrogateescape"))
            paths.append(path)
        try:
            done = subprocess.run([*command, *map(str, paths)], check=False)
        except OSError as error:
            raise Failed(f"cannot run {command[0]}: {error.strerror}") from None
        if done.returncode:
            raise Failed(f"{command[0]} ended with status {done.returncode}: nothing is changed")
        texts = [files.read_file(str(path)) for path in paths]
    pairs = zip(snapshot.rulesets, texts, strict=True)
    rulesets = [replace(one, text=text, source=f"edited {one.kind}") for one, text in pairs]
    for one in rulesets:
        files.check(one)
    return replace(snapshot, rulesets=tuple(one for one in rulesets if one.text.strip()))
