"""Arguments that several functions share: listed and documented at one of them, and handed on by name."""

from __future__ import annotations

import functools
import inspect
import re
from typing import TYPE_CHECKING, Any, ForwardRef

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping


def taken_by(function: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Pick those of the arguments that a function or class takes by keyword only."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: arguments[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY and p.name in arguments}


def shared_with(
    first: Callable[..., Any], *, without: Iterable[str] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a function the keyword arguments of another one, with their defaults and documentation.

    It is written as ``def second(adata, arguments, *, own=...)`` and called as ``second(adata, own=..., shared=...)``:
    ``arguments`` is a dictionary of all that are passed by keyword, its own too, defaults filled in. An argument of its
    own takes the place of the shared one of that name, and so does what its docstring says of it.
    """

    def decorate(second: Callable[..., Any]) -> Callable[..., Any]:
        adata, arguments, *own = inspect.signature(second).parameters.values()
        hidden = {adata.name, arguments.name, *(p.name for p in own), *without}
        shared = [p for p in inspect.signature(first).parameters.values() if p.name not in hidden]
        signature = inspect.signature(second).replace(parameters=[adata, *own, *shared])

        @functools.wraps(second)
        def composed(*args: Any, **kwargs: Any) -> Any:
            bound = signature.bind(*args, **kwargs)
            bound.apply_defaults()
            passed = dict(bound.arguments)
            return second(passed.pop(adata.name), passed, **{p.name: passed[p.name] for p in own})

        del composed.__wrapped__
        composed.__signature__ = signature  # type: ignore[attr-defined]
        # Names in annotations are those of the module that they were written in.
        composed.__annotations__ = {
            name: ForwardRef(annotation, module=function.__module__)
            for function in (first, second)
            for name, annotation in function.__annotations__.items()
            if name in signature.parameters or name == "return"
        }
        composed.__doc__ = _with_parameters(second.__doc__, first.__doc__, [p.name for p in shared])
        return composed

    return decorate


def _with_parameters(doc: str | None, other: str | None, names: list[str]) -> str | None:
    """Add what another numpydoc docstring says of the named parameters to the end of the section "Parameters"."""
    if doc is None or other is None:  # python -OO
        return doc
    entries = []
    for heading, text in documented(other):
        if kept := [name for name in heading.split(", ") if name in names]:
            entries.append(f"{', '.join(kept)}\n{text.rstrip()}")
    section = _parameters(doc := inspect.cleandoc(doc))
    return doc.replace(section, "\n".join([section, *entries]))


def documented(doc: str | None) -> list[tuple[str, str]]:
    """Headings and texts in the section "Parameters" of a numpydoc docstring."""
    entries = re.split(r"\n(?=\S)", _parameters(inspect.cleandoc(doc or "")))
    return [(heading, text) for heading, _, text in (entry.partition("\n") for entry in entries)]


def _parameters(doc: str) -> str:
    """Entries of the section "Parameters"."""
    return re.split(r"\n\n\w+\n-{3,}\n", doc.partition("Parameters\n----------\n")[2])[0]
