# SPDX-License-Identifier: GPL-2.0-only
"""Exports of rows to a file, in a thread, with a progress bar.

Must not feed traces or change the store.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Final

import numpy as np
from textual.widgets import ProgressBar
from textual.worker import get_current_worker

from ipttrace.tui.app.base import BaseApp
from ipttrace.tui.messages import ExportEnded, ExportProgress
from ipttrace.tui.widgets.export_dialog import Choice, ExportDialog, ExportRequest
from ipttrace.view.export import Export, ExportError
from ipttrace.view.labels import Labels

MARKED, VIEW, ALL = range(3)  # the dialog's choices
_PORTION: Final = 1 << 16


def new_name(ending: str) -> str:
    """A name for a new file, with the current time in it."""
    return f"ipttrace-{time.strftime('%Y%m%d-%H%M%S')}.{ending}"


class Exports:
    """The export command; one export at a time."""

    def __init__(self, app: BaseApp) -> None:
        self._app = app
        self._bar: ProgressBar | None = None
        self.running = False

    def ask(self) -> None:
        """Opens the dialog, unless an export is running."""
        app = self._app
        if self.running:
            app.show_notice("an export is running: Esc stops it", error=True)
            return
        selection = app.shown.selection
        choices = [
            Choice("marked rows", len(app.view.marks)),
            Choice("matching the filter", selection.end - selection.first),
            Choice("everything held", len(app.store)),
        ]
        chosen = MARKED if choices[MARKED].rows else VIEW if app.shown.filters.text else ALL
        title = "export rows"
        if app.switcher.current != "trace":
            title += ", not the list in this view"
        app.push_screen(ExportDialog(choices, chosen, new_name("csv"), title), self.start)

    def start(self, request: ExportRequest | None) -> None:
        """Starts the export that the dialog returned; None: the user has cancelled it."""
        if request is None:
            return
        app = self._app
        if request.choice == MARKED:
            seqs = [np.array(sorted(app.view.marks), np.int64)]
        elif request.choice == VIEW:
            selection = app.shown.selection
            seqs = [
                selection.seqs(at, min(at + _PORTION, selection.end))
                for at in range(selection.first, selection.end, _PORTION)
            ]
        else:
            seqs = [np.arange(app.store.first, app.store.end, dtype=np.int64)]
        export = Export(
            app.store,
            seqs,
            request.format,
            request.path,
            names=Labels(app.feeds.hosts(), app.feeds.netns_names()),
            about=app.feeds.hello(),
            overwrite=request.overwrite,
        )
        self.running = True
        app.run_worker(
            partial(self._run, export),
            group="export",
            exclusive=True,
            exit_on_error=False,
            thread=True,
        )

    def _run(self, export: Export) -> None:
        """In a thread of its own."""
        app, worker = self._app, get_current_worker()

        def progress(done: int, total: int) -> None:
            app.post_message(ExportProgress(done, total))

        try:
            complete = export.run(progress, lambda: worker.is_cancelled)
        except ExportError as error:
            app.post_message(ExportEnded(str(error), error=True))
        except Exception as bug:  # shown on the screen, which must go on
            app.post_message(ExportEnded(f"the export failed: {bug}", error=True))
        else:
            text = export.outcome if complete else "the export was stopped: no file was written"
            app.post_message(ExportEnded(text))

    def show_progress(self, message: ExportProgress) -> None:
        """Shows the progress bar."""
        if self._bar is None:
            # Mounted only while needed: even an idle one redraws itself all the time.
            self._bar = ProgressBar(message.total, id="progress", show_eta=False)
            self._app.screen_stack[0].mount(self._bar, before="#status")
        self._bar.update(progress=message.done)

    def end(self, message: ExportEnded) -> None:
        """Removes the progress bar and shows the outcome."""
        self.running = False
        if self._bar is not None:
            self._bar.remove()
            self._bar = None
        self._app.show_notice(message.text, error=message.error)

    def stop(self) -> bool:
        """Stops the running export.  False: none is running."""
        if self.running:
            self._app.workers.cancel_group(self._app, "export")
        return self.running
