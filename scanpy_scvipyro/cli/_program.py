"""The program: its commands, which are imported when they are called for, so that ``--help`` is quick."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from scanpy_scvipyro import __version__
from scanpy_scvipyro.cli import _exit, _surroundings
from scanpy_scvipyro.cli._listed import SUMMARIES

if TYPE_CHECKING:
    from scanpy_scvipyro.cli._command import Command


class Program(click.Group):
    """Commands by name; errors become exit codes."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(SUMMARIES)

    def get_command(self, ctx: click.Context, cmd_name: str) -> Command | None:
        if cmd_name not in SUMMARIES:
            return None
        _surroundings.prepare()

        from scanpy_scvipyro.cli.commands import COMMANDS

        return COMMANDS[cmd_name]

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(SUMMARIES.items()))

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Complete names of commands without importing them."""
        from click.shell_completion import CompletionItem

        found = [CompletionItem(name, help=text) for name, text in SUMMARIES.items() if name.startswith(incomplete)]
        return [*found, *click.Command.shell_complete(self, ctx, incomplete)]

    def invoke(self, ctx: click.Context) -> Any:
        with _exit.codes():
            return super().invoke(ctx)


app = Program(
    name="scanpy-scvipyro",
    help="scVI for Scanpy: latent codes free of batch effects, and imputed counts, from raw single-cell counts.",
    epilog="\b\nExit codes: 0 done; 1 bad input, or training failed; 2 wrong usage; 3 out of\n"
    "memory or disk; 130 interrupted. Messages go to stderr. Outputs appear whole\nor not at all.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    params=[
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            help="Print the version and exit.",
            callback=lambda ctx, _, asked: _print_version(ctx) if asked else None,
        )
    ],
)


def _print_version(ctx: click.Context) -> None:
    click.echo(__version__)
    ctx.exit()
