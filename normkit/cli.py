"""The `normkit` command. Each command imports what it needs when it runs, so that `normkit --help` is quick."""

import json
from typing import Annotated

import typer

import normkit

app = typer.Typer(
    help="Normalization in deep learning and reinforcement learning, to see, to test and to use.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
JSON = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


def _version(wanted: bool):
    if wanted:
        typer.echo(f"normkit {normkit.__version__}")
        raise typer.Exit


@app.callback()
def main(version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False):
    """Normalization in deep learning and reinforcement learning, to see, to test and to use."""


@app.command()
def doctor(
    as_json: JSON = False,
    fix: Annotated[bool, typer.Option("--fix", help="Write JupyterLab's settings for labs into this Python.")] = False,
):
    """Say what is installed, what is missing and how to get it; exit code 1 if the core cannot work."""
    from normkit import doctor

    if fix:
        typer.echo(f"wrote {doctor.write_overrides()}", err=True)
    findings = doctor.examine()
    typer.echo(json.dumps([vars(f) for f in findings], indent=2) if as_json else doctor.report(findings))
    raise typer.Exit(int(doctor.core_is_broken(findings)))


if __name__ == "__main__":
    app()
