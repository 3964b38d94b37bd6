# SPDX-License-Identifier: GPL-2.0-only
"""The app: its life, its commands and its keys.

- `trace_app`: `TraceApp`, which ties keys to commands
- `keys`: the keys
- `configuration`: the user's settings, checked; the default file
- `base`: `BaseApp`: feeds the streams, draws views and bars
- `counting`: the tallies behind the views: of all rows, and of the filter's
- `notice`: the line for what must not be overlooked
- `columns`, `filtering`, `agents`, `playback`, `exports`, `recordings`,
  `asking`: the commands
- `answer`: what the rules answer, over the other views
- `moment`: times that a user types
- `help`, `help_words`: the help screen, and what it says besides the keys
- `key_order`: keys take effect in the order in which they are pressed
- `exit_on_hangup`: the process ends after its terminal has gone

Must not touch the kernel or parse bytes, and must not write to stdout or stderr: the
summary is what `TraceApp.run()` returns.
"""

from ipttrace.tui.app.trace_app import TraceApp

__all__ = ["TraceApp"]
