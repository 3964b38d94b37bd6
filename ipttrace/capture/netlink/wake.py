# SPDX-License-Identifier: GPL-2.0-only
"""What the agent waits for while the netlink engine traces.  Must not read sockets."""

from __future__ import annotations

import contextlib
import os
import select


class WakeSources:
    """The descriptors for which the agent waits; the engine's `buffers`."""

    def __init__(self, fd: int) -> None:
        """`fd`: an eventfd, which `wait` resets."""
        self.cpus = os.cpu_count() or 1
        self._epoll = select.epoll()
        self._fd = fd
        self.watch(fd)

    def watch(self, fd: int) -> None:
        """Makes `wait` return when `fd` is readable, too."""
        self._epoll.register(fd, select.EPOLLIN)

    def unwatch(self, fd: int) -> None:
        """Undoes `watch`."""
        self._epoll.unregister(fd)

    def wait(self, seconds: float) -> set[int]:
        """Waits until many messages have come, a watched fd is readable, or time is up.

        Returns the readable descriptors.
        """
        ready = {fd for fd, _ in self._epoll.poll(seconds)}
        if self._fd in ready:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_read(self._fd)
        return ready

    def close(self) -> None:
        """Closes the epoll descriptor, not the watched ones."""
        self._epoll.close()
