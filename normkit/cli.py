"""The `normkit` command. Each command imports what it needs when it runs, so that `normkit --help` is quick."""

import json
import sys
from pathlib import Path
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


@app.command()
def claims(
    as_json: JSON = False,
    only: Annotated[str | None, typer.Option(help="Run one claim, by its id.")] = None,
    theme: Annotated[str | None, typer.Option(help="Run one theme's claims, e.g. depth.")] = None,
    write: Annotated[bool, typer.Option("--write", help="Put the verdicts into data/ledger.json.")] = False,
):
    """Run the papers' claims and print a verdict for each; exit code 1 if a claim raised an error."""
    from normkit import ledger

    raise typer.Exit(ledger.main(json_output=as_json, only=only, theme=theme, write=write))


@app.command()
def bench(
    as_json: JSON = False,
    only: Annotated[str | None, typer.Option(help="Run one piece of work, by its name.")] = None,
):
    """Time normkit beside its peers and the copy bandwidth, after checking every variant against float64."""
    from normkit import bench

    raise typer.Exit(bench.main(json_output=as_json, only=only))


@app.command()
def release(
    source: Annotated[Path, typer.Argument(help="A source notebook, or a folder of them.")],
    destination: Annotated[Path, typer.Argument(help="The student version: a file, or a folder.")],
    student: Annotated[str, typer.Option(help="Whose parameters it has.")] = "anyone",
    roster: Annotated[
        Path | None, typer.Option(help="File of student ids, one a line: DESTINATION/ID/ for each.")
    ] = None,
):
    """Write the student version of an assignment: no solutions, no hidden cells, and parameters of the student's own."""
    from normkit.course import commands

    raise typer.Exit(commands.release(source, destination, student, roster))


@app.command()
def check(file: Annotated[Path, typer.Argument(help="An assignment that you have worked on.")]):
    """Run your assignment and say, question by question, what is right and which mistake the rest looks like."""
    from normkit.course import commands

    raise typer.Exit(commands.check(file))


@app.command()
def grade(
    folder: Annotated[Path, typer.Argument(help="Submissions: DIR/ID.ipynb, or DIR/ID/*.ipynb.")],
    master: Annotated[
        Path | None, typer.Option(help="The source notebook; looked for in notebooks/assignments.")
    ] = None,
    out: Annotated[Path, typer.Option(help="CSV, one column a question.")] = Path("grades.csv"),
    json_out: Annotated[Path | None, typer.Option("--json", help="Everything, checked against a schema.")] = None,
    canvas: Annotated[Path | None, typer.Option(help="CSV for Canvas' gradebook.")] = None,
    moodle: Annotated[Path | None, typer.Option(help="CSV for Moodle's grade import.")] = None,
    gradescope: Annotated[
        Path | None, typer.Option(help="Folder for Gradescope's results.json, one a student.")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Submissions graded at a time.")] = 2,
    dask: Annotated[str | None, typer.Option(help="Address of a Dask scheduler, to grade there instead.")] = None,
    cell_seconds: Annotated[float, typer.Option(min=1, help="Wall clock for a cell.")] = 120,
    seconds: Annotated[float, typer.Option(min=1, help="Wall clock for a submission.")] = 1200,
    memory_mb: Annotated[int, typer.Option(min=512, help="Address space of a submission.")] = 4096,
    afresh: Annotated[
        bool, typer.Option("--afresh", help="Do not go on where an earlier run was; new hidden inputs.")
    ] = False,
):
    """Grade a folder of submissions, each in its own sandbox; a run that was cut short goes on where it was."""
    from normkit.course import commands

    forms = {"json": json_out, "canvas": canvas, "moodle": moodle, "gradescope": gradescope}
    limits = {"cell_s": cell_seconds, "total_s": seconds, "memory_mb": memory_mb}
    raise typer.Exit(
        commands.grade(folder, master, out=out, forms=forms, workers=workers, dask=dask, limits=limits, afresh=afresh)
    )


@app.command()
def probe(
    source: Annotated[str, typer.Argument(help="Folder of a Hugging Face model, or a package that ships one.")],
    text: Annotated[list[str] | None, typer.Option(help="A text to probe on; repeat it for more runs.")] = None,
    as_json: JSON = False,
):
    """Measure a real model layer by layer (mean over the texts): variance, gradient, update, norm, angle, entropy."""
    import normkit
    from normkit.files import text as sentences
    from normkit.probing.folder import load

    try:
        model, tokenizer = load(source)
        batch = tokenizer(text or sentences()[:8], return_tensors="pt", padding=True, truncation=True)
        profile = normkit.probe(model, batch, name=source)
    except ValueError as problem:
        print(problem, file=sys.stderr)
        raise typer.Exit(2) from None
    typer.echo(json.dumps(profile.to_dict(), indent=1) if as_json else _table(profile))


def _table(profile):
    """One line a layer; a quantity of the step from layer l to l+1 stands on line l."""
    from normkit.profile import QUANTITIES

    means = {q: getattr(profile, q).mean(0) for q in QUANTITIES if getattr(profile, q) is not None}
    lines = [repr(profile), "layer " + "".join(f"{q:>12}" for q in means)]
    for layer in range(profile.layers + 1):
        cells = (f"{m[layer]:12.4g}" if layer < len(m) else " " * 12 for m in means.values())
        lines.append(f"{layer:5} " + "".join(cells))
    return "\n".join(lines)
