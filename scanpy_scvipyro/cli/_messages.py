"""What a run says to stderr, and the warnings among it, for the summary."""

from __future__ import annotations

import contextlib
import io
import warnings
from typing import TYPE_CHECKING, Any

from scanpy_scvipyro.cli import _exit

if TYPE_CHECKING:
    from collections.abc import Iterator

_MARK = "WARNING: "
"""Before each warning in Scanpy's log."""
_OF_OTHERS = ("Writing zarr v2 data", "Variable names are not unique", "Consolidated metadata", "Transforming to str")


class Messages(io.TextIOBase):
    """Takes Scanpy's log and Python's warnings, line by line."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self.warnings: list[str] = []

    def say(self, message: str) -> None:
        """Say something, unless the run is quiet."""
        if not self.quiet:
            _exit.say(message)

    def write(self, text: str) -> int:
        """Take what a logger writes."""
        for line in text.splitlines():
            if line.startswith(_MARK):
                self.warnings.append(line.removeprefix(_MARK))
            self.say(line)
        return len(text)

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Take the messages of everything that is called inside."""
        from scanpy import settings

        before = settings.logfile, settings.verbosity
        settings.logfile, settings.verbosity = self, "info"
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # changes that packages announce to each other
                warnings.filterwarnings("default", category=UserWarning)
                warnings.filterwarnings("default", category=RuntimeWarning)
                for start in _OF_OTHERS:
                    warnings.filterwarnings("ignore", message=start)
                warnings.showwarning = self._take  # type: ignore[assignment]
                yield
        finally:
            settings.logfile, settings.verbosity = before

    def _take(self, message: Warning | str, *_: Any) -> None:
        self.write(_MARK + " ".join(str(message).split()))
