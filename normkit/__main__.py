"""`python -m normkit` is the `normkit` command."""

from normkit.cli import app

app(prog_name="normkit")
