"""Options of a command from the signature and the docstring of a function, so that they cannot drift apart."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from scanpy_scvipyro import _arguments, _validate

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

# Python objects, and what the program itself decides: --quiet hides bars, and files are named by options of their own.
_OF_PYTHON = {"adata", "copy", "logger", "callbacks", "module", "progress_bar"}
_LISTS = {"Iterable", "Sequence", "list", "tuple"}
_KINDS = {"int": int, "float": float, "str": str, "bool": bool, "Path": str, "PathLike": str}
# Names of categories, as in _names: text finds numbers, too.
_OF_NAMES = {"Name": (str, False), "Names": (str, True)}


@dataclass(frozen=True)
class Kind:
    """What an argument takes that can be written on a command line."""

    types: frozenset[type]
    choices: tuple[str, ...] = ()
    takes_one: bool = False
    takes_several: bool = False
    may_be_none: bool = False

    @property
    def is_writable(self) -> bool:
        """Whether there is anything to write."""
        return bool(self.types or self.choices)


class Value(click.ParamType):  # type: ignore[type-arg]
    """One of several kinds of values: choices, numbers, text, or ``none``."""

    def __init__(self, kind: Kind, *, takes_none: bool) -> None:
        names: dict[type, str] = {str: "TEXT"} if str in kind.types else {int: "INTEGER", float: "FLOAT"}
        self.kind, self.takes_none = kind, takes_none
        self.name = "|".join([*kind.choices, *(names[t] for t in names if t in kind.types), *["none"] * takes_none])

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Take the first kind that fits, numbers before text."""
        if not isinstance(value, str) or value in self.kind.choices:
            return value
        if self.takes_none and value == "none":
            return _NONE
        for number in (int, float):
            if number in self.kind.types:
                try:
                    return number(value)
                except ValueError:
                    continue
        if str not in self.kind.types:
            self.fail(f"{value!r} is none of: {self.name.replace('|', ', ')}.", param, ctx)
        return value

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return f"[{self.name}]" if "|" in self.name else self.name

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[Any]:
        from click.shell_completion import CompletionItem

        return [CompletionItem(choice) for choice in self.kind.choices if choice.startswith(incomplete)]


class _None:
    """Stands for None where an option was given, which click takes for one that was not."""

    def __str__(self) -> str:
        return "none"


_NONE = _None()


def options_of(function: Callable[..., Any], *, without: Iterable[str] = ()) -> list[click.Option]:
    """Options for all arguments of a function that can be written on a command line."""
    texts = descriptions(function)
    return [
        _option(parameter, kind, texts.get(parameter.name, ""))
        for parameter in inspect.signature(function).parameters.values()
        if parameter.name not in {*_OF_PYTHON, *without}
        and (kind := kind_of(parameter.annotation, parameter.name)).is_writable
    ]


def arguments_of(
    function: Callable[..., Any], values: dict[str, Any], *, without: Iterable[str] = ()
) -> dict[str, Any]:
    """Arguments to call a function with, from the values of its options; what was left out has its default."""
    arguments = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.name not in values or parameter.name in without:
            continue
        value, kind = values[parameter.name], kind_of(parameter.annotation, parameter.name)
        if isinstance(value, tuple):
            if not value:
                continue
            value = value[0] if kind.takes_one and len(value) == 1 else list(value)
        arguments[parameter.name] = None if value is _NONE else value
    return arguments


def public_name(function: Callable[..., Any]) -> str:
    """Name of a function for users."""
    namespace = function.__module__.split(".")[1]
    return ".".join(["scanpy_scvipyro", *[namespace] * (namespace in ("tl", "pl")), function.__name__])


def kind_of(annotation: Any, name: str) -> Kind:
    """Read an annotation as it is written: names that only type checkers import need no importing."""
    source = getattr(annotation, "__forward_arg__", annotation)
    return _kind(ast.parse(source, mode="eval").body, name) if isinstance(source, str) else Kind(frozenset())


def _kind(node: ast.expr, name: str) -> Kind:
    match node:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _either(_kind(left, name), _kind(right, name))
        case ast.Constant(value=None):
            return Kind(frozenset(), may_be_none=True)
        case ast.Subscript(value=ast.Name(id="Literal"), slice=values):
            choices = ast.literal_eval(ast.Tuple(getattr(values, "elts", [values]), ast.Load()))
            return Kind(frozenset(), choices, takes_one=True)
        case ast.Subscript(value=ast.Name(id=outer), slice=inner) if outer in _LISTS:
            items = _kind(inner, name)
            return Kind(items.types, items.choices, takes_several=items.is_writable)
        case ast.Subscript(value=ast.Name(id=word)) | ast.Name(id=word):
            if word in _OF_NAMES:
                of_names, several = _OF_NAMES[word]
                return Kind(frozenset([of_names]), takes_one=True, takes_several=several)
            if word in _KINDS:
                return Kind(frozenset([_KINDS[word]]), takes_one=True)
            # Other names of types stand for choices that are listed where they are checked, or for Python objects.
            return Kind(frozenset(), _validate.choices(name), takes_one=bool(_validate.choices(name)))
    return Kind(frozenset())


def _either(one: Kind, other: Kind) -> Kind:
    return Kind(
        one.types | other.types,
        one.choices + tuple(choice for choice in other.choices if choice not in one.choices),
        one.takes_one or other.takes_one,
        one.takes_several or other.takes_several,
        one.may_be_none or other.may_be_none,
    )


def _option(parameter: inspect.Parameter, kind: Kind, text: str) -> click.Option:
    name, default = f"--{parameter.name.replace('_', '-')}", parameter.default
    if kind.types == {bool}:
        return click.Option([f"{name}/--no-{name[2:]}"], default=default, show_default=True, help=text)
    is_required, takes_none = default is parameter.empty, kind.may_be_none and default is not None
    if kind.takes_several:
        text += " May be given several times."
        default = [default] if isinstance(default, str | int | float) else default
    # Click takes a default of None for a value (from 8.3).
    given = {} if is_required or default is None else {"default": default}
    type_, several = _type(kind, takes_none=takes_none), kind.takes_several
    return click.Option(
        [name], type=type_, multiple=several, required=is_required, show_default=True, help=text, **given
    )


def _type(kind: Kind, *, takes_none: bool) -> Any:
    types: Sequence[type] = sorted(kind.types, key=str)
    if not takes_none and not kind.types:
        return click.Choice(kind.choices)
    if not takes_none and not kind.choices and len(types) == 1:
        return {int: click.INT, float: click.FLOAT, str: click.STRING}[types[0]]
    return Value(kind, takes_none=takes_none)


def descriptions(function: Callable[..., Any]) -> dict[str, str]:
    """Return what the docstring says of each argument, as plain text; nothing with ``python -OO``."""
    texts: dict[str, str] = {}
    for heading, text in _arguments.documented(function.__doc__):
        texts |= dict.fromkeys(heading.split(", "), plain(text))
    return texts


def plain(text: str) -> str:
    """Take the markup out of a docstring: in one line, roles and literals as what they name."""
    text = re.sub(r"\s*:cite:[pt]:`[^`]*`", "", text)
    text = re.sub(r":math:`\\?([^`]*)`", r"\1", text)
    text = re.sub(r":\w+:`~(?:[\w.]*\.)?(\w+)`", r"\1", text)
    text = re.sub(r":\w+:`([^`]*)`", r"\1", text)
    text = re.sub(r"`([^`<]*?)\s*<[^>]*>`_+", r"\1", text)
    return " ".join(text.replace("``", "").split())
