import json
import subprocess
import sys

import pytest
from typer.testing import CliRunner

import normkit
from normkit import doctor
from normkit.cli import app


def run(*arguments):
    return CliRunner().invoke(app, list(arguments))


def test_help_lists_the_commands():
    result = run("--help")
    assert result.exit_code == 0
    assert all(word in result.output for word in ("doctor", "claims", "bench", "probe", "release", "check", "grade"))
    assert run("no-such-command").exit_code == 2


def test_version_is_the_packages():
    assert run("--version").output == f"normkit {normkit.__version__}\n"


def test_python_m_normkit_is_the_same_command_and_help_is_light():
    code = (
        "import sys, runpy; sys.argv = ['normkit', '--help']\n"
        "try: runpy.run_module('normkit', run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'numba', 'numpy', 'plotly', 'ipywidgets', 'transformers', 'jsonschema'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    assert out.stdout.startswith("Usage: normkit")


def test_doctor_prints_the_report_or_json():
    result = run("doctor")
    assert result.exit_code == 0
    assert "The core works" in result.output
    findings = json.loads(run("doctor", "--json").output)
    assert {f["name"] for f in findings} >= {"python", "numpy", "torch", "chromium", "data"}
    assert set(findings[0]) == {"part", "name", "state", "detail", "fix"}


def test_doctor_exits_with_1_when_the_core_is_broken_but_not_for_an_extra(monkeypatch):
    monkeypatch.setattr(doctor, "examine", lambda: [doctor.Finding("core", "numpy", "missing", "gone", "pip")])
    assert run("doctor").exit_code == 1
    monkeypatch.setattr(doctor, "examine", lambda: [doctor.Finding("probe", "torch", "missing", "gone", "pip")])
    assert run("doctor").exit_code == 0


def test_doctor_fix_writes_the_settings_first(monkeypatch, tmp_path):
    write = doctor.write_overrides
    monkeypatch.setattr(doctor, "write_overrides", lambda: write(tmp_path))
    assert run("doctor", "--fix").exit_code == 0
    assert json.loads(doctor.overrides_path(tmp_path).read_text()) == doctor.OVERRIDES


@pytest.mark.parametrize(("arguments", "wanted"), [
    ((), {"json_output": False, "only": None, "theme": None, "write": False}),
    (("--json", "--only", "x", "--theme", "depth", "--write"),
     {"json_output": True, "only": "x", "theme": "depth", "write": True}),
])  # fmt: skip
def test_claims_hands_its_options_and_exit_code_over(monkeypatch, arguments, wanted):
    from normkit import ledger

    got = {}
    monkeypatch.setattr(ledger, "main", lambda **options: got.update(options) or 3)
    assert run("claims", *arguments).exit_code == 3
    assert got == wanted


@pytest.mark.parametrize("wrong", ["control-nul", "???"])
def test_claims_with_an_unknown_id_says_which_there_are(wrong):
    result = run("claims", "--only", wrong)
    assert result.exit_code == 2
    assert wrong in result.output
    assert "control-null" in result.output


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with a small GPT-2 of three blocks and a word-level tokenizer, as Hugging Face saves them."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("tiny")
    words = {word: i for i, word in enumerate(["<end>", "<unk>", "one", "two", "three"])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", unk_token="<unk>")
    fast.save_pretrained(folder)
    config = transformers.GPT2Config(
        vocab_size=5, n_positions=16, n_embd=8, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=0
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def test_probe_measures_the_model_of_a_folder(tiny):
    from normkit.probing.folder import load

    result = run("probe", str(tiny), "--text", "one two three", "--text", "two one three", "--json")
    assert result.exit_code == 0, result.output
    state = json.loads(result.stdout)
    assert len(state["variance"]) == 2
    assert len(state["variance"][0]) == 4
    model, tokenizer = load(tiny)
    assert type(model).__name__ == "GPT2LMHeadModel", "the class that the folder's config names, not a headless one"
    ids = tokenizer("one two three", return_tensors="pt").input_ids
    tables = model.transformer.wte.weight[ids[0]] + model.transformer.wpe.weight[: ids.shape[1]]
    assert state["variance"][0][0] == pytest.approx(tables.square().mean().item(), rel=1e-5)  # float32 sums


def test_probe_prints_a_line_for_each_layer(tiny):
    result = run("probe", str(tiny), "--text", "one two three")
    lines = result.stdout.splitlines()
    assert "3 layers, 1 runs" in lines[0]
    assert lines[1].split()[:3] == ["layer", "variance", "gradient"]
    assert [line.split()[0] for line in lines[2:]] == ["0", "1", "2", "3"]
    assert len(lines[-1].split()) < len(lines[2].split()), "the last layer has no step after it"


@pytest.mark.parametrize(
    ("configs", "reason"),
    [
        ({}, "found none"),
        ({"pooling": {}}, "found none"),  # the config of a part, not of a model
        ({"a": {"model_type": "bert"}, "b": {"model_type": "bert"}}, "must hold one"),
    ],
)
def test_probe_says_what_is_wrong_with_a_folder(tmp_path, configs, reason):
    for name, config in configs.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(config))
    result = run("probe", str(tmp_path))
    assert result.exit_code == 2
    assert reason in result.stderr


@pytest.mark.parametrize("source", ["no-such-package", "org/model", "json.decoder", "numbers"])
def test_probe_downloads_nothing(source):
    result = run("probe", source)
    assert result.exit_code == 2
    assert "neither a folder nor an installed package; models are not downloaded" in result.stderr
