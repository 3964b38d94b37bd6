# SPDX-License-Identifier: GPL-2.0-only
"""Asks for the passwords of sudo on other hosts."""

from __future__ import annotations

import getpass
import os

from ipttrace.link.base import LinkError


class Passwords:
    """Asks once per host; reuses another host's password only if the user says so."""

    def __init__(self) -> None:
        self._last: tuple[str, str] | None = None  # host and password

    def ask(self, host: str) -> str:
        """Returns the password that the user types.  Raises LinkError."""
        hint = ""
        if self._last is not None and self._last[0] != host:
            hint = f" (Enter: same as for {self._last[0]})"
        password = ask_secret(host, f"sudo password for {host}{hint}: ")
        if not password and hint and self._last is not None:
            password = self._last[1]
        self._last = host, password
        return password


def ask_secret(host: str, prompt: str) -> str:
    """Returns what the user types at the terminal, without echo.

    Raises LinkError if there is no terminal.
    """
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        raise LinkError(
            f"{host}: sudo needs a password, and there is no terminal to ask on:"
            " log in as root (root@HOST), or let sudo run ipttrace there without a password"
        ) from None
    try:
        return getpass.getpass(prompt)
    except EOFError:
        raise LinkError(f"{host}: no password for sudo was entered") from None
