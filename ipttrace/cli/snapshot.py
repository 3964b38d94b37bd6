# SPDX-License-Identifier: GPL-2.0-only
"""`ipttrace snapshot`: a network and its rules, as whatif reads them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from ipttrace.cli import options
from ipttrace.cli.outcome import DONE, Failed


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of the arguments."""
    parser = options.Parser(
        prog="ipttrace snapshot",
        description="Writes this host's network and rules to FILE, for ipttrace whatif.",
    )
    parser.add_argument("file", nargs="?", default="-", metavar="FILE", help="default: stdout")
    parser.add_argument(
        "--netns",
        metavar="NAME",
        help="of this network namespace, by name or by the pid of a process in it",
    )
    parser.add_argument("--no-rules", action="store_true", help="only the network: needs no root")
    return parser


def run(argv: Sequence[str]) -> int:
    """Writes the snapshot; returns the exit status."""
    parsed = build_parser().parse_args(argv)
    from ipttrace import files
    from ipttrace.whatif.errors import WhatIfError
    from ipttrace.whatif.snapshot import here

    try:
        text = here.read(parsed.netns, rules=not parsed.no_rules).to_json()
        data = text.encode("utf-8", "backslashreplace")
        if parsed.file == "-":
            with os.fdopen(os.dup(1), "wb") as file:
                file.write(data)
        else:
            files.write(parsed.file, data)
    except WhatIfError as error:
        raise Failed(str(error)) from None
    except BrokenPipeError:
        return DONE
    except OSError as error:
        raise Failed(f"{parsed.file}: {error.strerror}") from None
    return DONE
