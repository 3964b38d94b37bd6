# SPDX-License-Identifier: GPL-2.0-only
"""The live screen, with Textual: streams, live or recorded, as rows to follow and filter.

- `app/`: the app: commands, keys, life
- `trace_view`, `flows`, `drops`, `sockets`, `totals/`, `rules/`, `neighbours/`: the views
- `rows/`: the list of rows; `detail/`: one row in full
- `widgets/`: parts that several views use
- `config/`: the user's config file
- `feed/`: from a source's bytes to a trace
- `cells`: text of an exact width; `situation`: the state of a trace; `messages`: between
  widgets; `timers`: one-shot timers; `plain`: the screen in ASCII; `key_words`: keys in texts
- `__main__`: the screen on a recording, for development

Must not import `ipttrace.capture` or touch the kernel.
"""
