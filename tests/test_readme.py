import re
from pathlib import Path

import pytest

import normkit
from normkit import ledger

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_of_verdicts_is_the_ledgers():
    table = re.search(r"<!-- ledger -->\n(.*)\n<!-- /ledger -->", README, re.DOTALL)[1]
    assert table == ledger.summary(), "put the text of normkit.ledger.summary() between the ledger marks of README.md"


def test_every_file_that_is_named_exists():
    named = re.findall(r"\]\((?!http)([^)]+)\)", README) + re.findall(
        r"`((?:notebooks|data|tests|normkit)/[\w./]+)`", README
    )
    assert len(named) > 4
    assert not [path for path in named if not (ROOT / path).exists()]


@pytest.mark.parametrize("name", sorted(set(re.findall(r"normkit\.(\w+)", README)) - {"probing", "ledger"}))
def test_every_public_name_exists(name):
    assert hasattr(normkit, name)


def test_the_example_runs():
    code = re.search(r"```python\n(import normkit.*?)```", README, re.DOTALL)[1]
    scope = {}
    exec(code, scope)
    assert scope["lab"].layers == 32
    assert set(scope["lab"].run()) >= {"variance", "gradient", "pre.variance.theory"}


def test_every_command_exists():
    from typer.main import get_command

    from normkit.cli import app

    assert set(re.findall(r"`normkit (\w+)", README)) <= set(get_command(app).commands)
