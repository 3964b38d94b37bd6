# SPDX-License-Identifier: GPL-2.0-only
"""Every iptables rule that every packet hits, live.

Data travels one way, from top to bottom; a file imports only what is below it in the
second list:

- capture/: the privileged half, an engine in and a stream out
- stream/: frames, all that crosses
- trace/: frames to rows, pure
- view/, tui/: rows as text, files, packets and on the screen

- cli/: the commands
- whatif/, guard/: a packet sent through a copy of the rules; calls that are denied
- tui/, link/, lab/: the screen; starting an agent here or by ssh; places to trace in
- capture/, view/
- trace/
- stream/
- text.py, netfilter.py, rule_words.py, files.py, ready.py, start.py, namespaces.py,
  checksums.py: foreign text made safe; netfilter's numbers and names; the words of a rule;
  files where others can write too; waiting for descriptors; how another Python of this
  package is started; new namespaces for a process; the Internet checksum

docs/internals.md draws the whole; import-linter's contracts in pyproject.toml hold it.
"""

__version__ = "0.1.0"
