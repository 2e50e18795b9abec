"""One run of a command: what it reads and writes, with what settings, and what there is to say of it."""

from __future__ import annotations

import contextlib
import inspect
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scanpy_scvipyro import __version__
from scanpy_scvipyro.cli import _inputs, _options, _outputs, _summary, _surroundings
from scanpy_scvipyro.cli._messages import Messages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from anndata import AnnData

SETTINGS = "scanpy_scvipyro"
"""Entry of .uns with the settings of the commands that a file went through."""
_NOT_STORED = {"output", "out", "summary", "overwrite", "config", "quiet", "threads", "checkpoint"}


class Run:
    """Reads cells, calls the function with its options, and writes what came of it."""

    def __init__(
        self,
        command: str,
        function: Callable[..., Any],
        values: dict[str, Any],
        without: Sequence[str],
        outputs: _outputs.Outputs,
    ) -> None:
        self.command, self.function, self.values, self.claim = command, function, values, outputs.claim
        self.arguments = _options.arguments_of(function, values, without=without)
        self.messages = Messages(quiet=values["quiet"])
        self.places: dict[str, Path] = {}
        self.n_threads = 0
        self.start, self.seconds = time.perf_counter(), dict[str, float]()
        self.sizes: dict[str, int] = {}
        self.elbo: dict[str, float] = {}

    def read(self, *, batch_key: str | None = None) -> AnnData:
        """Read the input, or all inputs as one, in which cells without a batch get the name of their file."""
        paths = self.values["input"]
        with self.timed("read"):
            if isinstance(paths, Path):
                adata = _inputs.read(paths, self.messages.say)
            else:
                adata = _inputs.read_together(paths, batch_key, self.values["join"], self.messages.say)
        self.check_class(adata)
        return adata

    def check_class(self, adata: AnnData) -> None:
        """Refuse a model of a user's own class, which needs the class."""
        from scanpy_scvipyro import storage

        key = self.arguments.get("key")
        model = adata.uns.get(key) if key is not None else None
        module = model.get("module") if isinstance(model, dict) else None
        if module is not None and module not in storage.OURS:
            raise ValueError(
                f"{key!r} is a model of a class {module} of your own, which the command line cannot import; go on in "
                f"Python: {_options.public_name(self.function)}(adata, module={module})."
            )

    def call(self, adata: AnnData, *args: Any, instead: Callable[..., Any] | None = None, **more: Any) -> Any:
        """Call the function, or another one that takes the same; keep settings, and numbers of what it did."""
        if self.values["quiet"] and "progress_bar" in inspect.signature(self.function).parameters:
            more["progress_bar"] = False
        self.sizes |= {"n_cells": adata.n_obs, "n_genes": adata.n_vars}
        with self.timed("work"):
            returned = (instead or self.function)(adata, *args, **self.arguments, **more)
        settings = adata.uns.setdefault(SETTINGS, {})
        settings[self.command] = _storable(self.values | self.arguments) | {"version": __version__}
        if "summary" in self.places:
            key = self.arguments["key" if "key" in self.arguments else "key_added"]
            sizes, self.elbo = _summary.of_model(adata, key)
            self.sizes |= sizes
        return returned

    def write(self, adata: AnnData, name: str = "output") -> None:
        """Write an AnnData in the format that the suffix names."""
        with self.timed("write"):
            _outputs.write(adata, self.places[name])

    def settings(self) -> dict[str, Any]:
        """Return all options by name, with those that were chosen here, in types that JSON has."""
        return {name: _plain(value, str) for name, value in (self.values | self.arguments).items()}

    def summary(self) -> dict[str, Any]:
        """Return what was done to what, how long it took, and how it went."""
        return {
            "command": self.command,
            "settings": self.settings(),
            "sizes": self.sizes,
            "seconds": {name: round(seconds, 3) for name, seconds in self.seconds.items()},
            "elbo": self.elbo,
            "warnings": self.messages.warnings,
        } | _summary.of_machine(self.n_threads)

    @contextlib.contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add up the seconds that a part of the run takes."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - start


@contextlib.contextmanager
def running(
    command: str, function: Callable[..., Any], values: dict[str, Any], *, without: Sequence[str], places: Sequence[str]
) -> Iterator[Run]:
    """Run with these options; its outputs appear at the end, all or none. ``places`` are the options that name them."""
    with _outputs.Outputs(overwrite=values["overwrite"]) as outputs:
        run = Run(command, function, values, without, outputs)
        run.places |= {name: outputs.claim(values[name]) for name in places if values[name] is not None}
        with run.messages.shown(), _surroundings.limited(values["threads"], run.messages.say) as run.n_threads:
            yield run
        run.seconds["total"] = time.perf_counter() - run.start
        if "summary" in run.places:
            text = json.dumps(run.summary(), indent=2, ensure_ascii=False)
            run.places["summary"].write_text(f"{text}\n", encoding="utf-8")
    for name in outputs.names:
        run.messages.say(f"wrote {name}")


def _plain(value: Any, of_path: Callable[[Path], str]) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(part, of_path) for part in value]
    return of_path(value) if isinstance(value, Path) else value


def _storable(settings: dict[str, Any]) -> dict[str, Any]:
    """Leave out what says nothing of the content: folders, where it went, with how many threads."""
    named = {name: _plain(value, lambda path: path.name) for name, value in settings.items() if name not in _NOT_STORED}
    return {
        name: np.array(value) if isinstance(value, list) else value
        for name, value in named.items()
        if value not in (None, [])
    }
