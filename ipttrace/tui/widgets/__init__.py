# SPDX-License-Identifier: GPL-2.0-only
"""What several views use: lists, bars, input, and numbers as text.

- `figures`: numbers, bars, plots and sparklines as text
- `strips`: the base of lists that are drawn line by line
- `ledger`: a list of figures with a cursor, optionally sorted
- `bar`: the bars at the top and the bottom
- `key_line`: the keys in the last line
- `entry`: an input field that accepts printable text only
- `prompt`: a line of input with a check and completion
- `export_dialog`: which rows to export, and to which file

Must not import a view.
"""
