# SPDX-License-Identifier: GPL-2.0-only
"""The rules view: the rules of a namespace with their hits.

- `words`: columns and the text of their cells
- `view`: the widget: order, namespace, filter
"""
