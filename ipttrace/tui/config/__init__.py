# SPDX-License-Identifier: GPL-2.0-only
"""The user's config file: columns, theme, keys and colours of the screen.

- `file`: where it is, whose it is, read and written with that user's rights
- `toml`: what is wrong with it and in which line; a table replaced in its text
- `settings`: what it holds, checked against what the screen has

The file is foreign input.  Must not import widgets, nor know what the screen has.
"""
