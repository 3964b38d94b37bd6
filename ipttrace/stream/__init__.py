# SPDX-License-Identifier: GPL-2.0-only
"""The stream: all that crosses from the agent to the rest, and what recordings contain.

- record.py: the layout of records, a mirror of bpf/record.h
- messages.py: the JSON objects of the other frames
- frames.py: what a frame is, and its kinds
- writer.py, decoder.py: frames to bytes and back
- budget.py: what a stream may cost its reader
- tap.py: a recording that starts in the middle of a stream
"""
