"""What all commands have in common: options of a function and of the program, their help, and settings from a file."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from scanpy_scvipyro._validate import did_you_mean
from scanpy_scvipyro.cli import _options
from scanpy_scvipyro.cli._listed import SUMMARIES
from scanpy_scvipyro.cli._run import Run, running

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

COMMANDS: dict[str, Command] = {}


class Input(click.Argument):
    """Something to read, which the help explains."""

    def __init__(self, name: str, text: str, *, several: bool = False) -> None:
        super().__init__([name], type=click.Path(path_type=Path), nargs=-1 if several else 1, required=True)
        self.text = text

    def get_help_record(self, ctx: click.Context) -> tuple[str, str]:
        return self.make_metavar(ctx), self.text


class Output(click.Option):
    """Something to write, in a format that the suffix names."""

    def __init__(self, names: Sequence[str], suffixes: Sequence[str], text: str, **options: Any) -> None:
        super().__init__(names, type=_Suffixed(suffixes), help=text, **options)


class _Suffixed(click.Path):
    def __init__(self, suffixes: Sequence[str]) -> None:
        super().__init__()
        self.suffixes = tuple(suffixes)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(str(super().convert(value, param, ctx)))
        if path.suffix not in self.suffixes:
            self.fail(f"{str(path)!r} ends in none of: {', '.join(self.suffixes)}.", param, ctx)
        return path


class Command(click.Command):
    """A command that calls one function of the package, with its options in sections by where they come from."""

    def __init__(self, name: str, sections: dict[str, list[click.Parameter]], **options: Any) -> None:
        super().__init__(name, params=[param for params in sections.values() for param in params], **options)
        self.sections = sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        helped = [param for param in self.get_params(ctx) if param not in self.params]
        for title, params in self.sections.items():
            rows = [param.get_help_record(ctx) for param in [*params, *(helped if title == "Program" else [])]]
            with formatter.section(title):
                formatter.write_dl([row for row in rows if row is not None])


def command(
    name: str,
    function: Callable[..., Any],
    files: Sequence[click.Parameter],
    *,
    without: Sequence[str] = (),
    example: str,
) -> Callable[[Callable[[Run], None]], Command]:
    """Make a command of what it does with the cells that it reads; its docstring becomes the help.

    Arguments of ``function`` are options of the command, but those in ``without``, which ``files`` stand for.
    """

    def decorate(work: Callable[[Run], None]) -> Command:
        def callback(**values: Any) -> None:
            places = [param.name for param in made.params if isinstance(param, Output) and param.name]
            with running(name, function, values, without=without, places=places) as run:
                work(run)

        sections: dict[str, list[click.Parameter]] = {
            "Files": [*files, _overwrite()],
            f"Options of {_options.public_name(function)}": [*_options.options_of(function, without=without)],
            "Program": _program_options(),
        }
        made = COMMANDS[name] = Command(
            name,
            sections,
            callback=callback,
            help=f"{SUMMARIES[name]}\n\n{work.__doc__ or ''}",
            epilog=f"\b\nExample:\n{example}",
            context_settings={"help_option_names": ["-h", "--help"]},
        )
        return made

    return decorate


def _overwrite() -> click.Option:
    return click.Option(["--overwrite"], is_flag=True, help="Replace outputs that exist; by default they are refused.")


def _program_options() -> list[click.Parameter]:
    return [
        click.Option(
            ["--config"],
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            is_eager=True,
            callback=_read_config,
            help='TOML file with options by name (batch_key = "sample"), in a table of the command\'s name or outside '
            "of tables, for all commands. The command line wins.",
        ),
        Output(
            ["--summary"],
            (".json",),
            "Write settings, versions, sizes, times, peak memory, ELBO and warnings of this run there.",
            metavar="FILE.json",
        ),
        click.Option(
            ["--threads"],
            type=click.IntRange(min=1),
            help="Processors to use; by default those that this process may.",
        ),
        click.Option(["--quiet", "-q"], is_flag=True, help="Write nothing to stderr but errors."),
    ]


def _read_config(ctx: click.Context, option: click.Parameter, path: Path | None) -> Path | None:
    """Take values for options that are not on the command line from a file."""
    if path is None:
        return None
    try:
        content = tomllib.loads(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise click.BadParameter(f"{str(path)!r} is no TOML: {error}.", ctx, option) from error
    tables = {name: table for name, table in content.items() if isinstance(table, dict)}
    for name in tables:
        if name not in COMMANDS:
            raise click.BadParameter(f"[{name}] is no command. {did_you_mean(name, COMMANDS)}", ctx, option)
    own = {param.name: param for param in ctx.command.params if param.name != "config"}
    of_any = {param.name for other in COMMANDS.values() for param in other.params} - {"config"}
    table = tables.get(ctx.command.name or "", {})
    values: dict[str, Any] = {}
    for name, value in [*((n, v) for n, v in content.items() if n not in tables), *table.items()]:
        plain = name.replace("-", "_")
        if plain not in (own if name in table else of_any):
            raise click.BadParameter(f"{name!r} is no option. {did_you_mean(plain, own)}", ctx, option)
        if plain in own:
            param = own[plain]
            takes_several = getattr(param, "multiple", False) or param.nargs != 1
            if isinstance(value, list) != takes_several:
                if not takes_several:
                    raise click.BadParameter(f"{name!r} takes one value, and {value!r} is a list.", ctx, option)
                value = [value]
            values[plain] = value
    ctx.default_map = values
    return path
