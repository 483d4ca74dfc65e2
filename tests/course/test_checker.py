import json
import re

import numpy as np
import pytest
from jupyter_client.manager import start_new_kernel
from tiny_assignment import RIGHT, WRONG, cell, source_notebook, write

from normkit import course
from normkit.course import checker, release


@pytest.fixture
def names(tmp_path, monkeypatch):
    """What a student's notebook holds after its setup cell, next to a released notebook."""
    release.release(write(tmp_path / "source.ipynb", source_notebook()), tmp_path / "tiny.ipynb")
    monkeypatch.setenv("NORMKIT_NOTEBOOK", str(tmp_path / "tiny.ipynb"))
    return {"np": np, "course": course}


@pytest.mark.parametrize(("question", "message"), [(q, m) for q in WRONG for m in WRONG[q]])
def test_each_wrong_answer_is_told_its_own_mistake(names, question, message):
    exec(WRONG[question][message], names)
    assert checker.verdict(question, names) == (False, f"{question}: not yet. {message}")


def test_the_solution_is_right_and_told_what_it_showed(names):
    for question, code in RIGHT.items():
        exec(code, names)
        assert checker.verdict(question, names) == (True, f"{question}: right. {question} is what you have just shown.")


def test_what_is_unsolved_or_unknown_is_said_so(names, tmp_path):
    student = json.loads((tmp_path / "tiny.ipynb").read_text())
    for question in ("q1", "q2"):
        exec("".join(cell(student, question)["source"]), names)
        assert checker.verdict(question, names) == (False, f"{question}: not answered yet.")
    names["growth"] = 17
    assert checker.verdict("q2", names) == (False, "q2: not yet: yours is 17.")
    with pytest.raises(ValueError, match="no question 'q9'; it has q1, q2"):
        checker.verdict("q9", names)


CALL = r"q1: not yet: case 1 of 5, rms_norm\(array of shape \(3, 8\) from -[\d.]+ to [\d.]+\): "


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("", "q1: not yet: name 'rms_norm' is not defined; run .* your answer's cell, and keep the name"),
        ("def rmsnorm(x, eps=1e-6): return x", "q1: not yet: name 'rms_norm' is not defined; run"),
        ("def rms_norm(x, eps=1e-6): x / 2", CALL + "your function returned None. Does it end with return"),
        ("def rms_norm(x, eps=1e-6): print(x.shape)", CALL + "your function returned None. .* printed"),
        ("def rms_norm(x, eps=1e-6): return 1 / 0", CALL + "your code raised ZeroDivisionError: division by zero"),
        ("def rms_norm(x, eps=1e-6): return y", CALL + "your code raised NameError: name 'y' is not defined"),
        ("def rms_norm(x): return 0 * x + 1", CALL + "yours is 1 at index"),
        ("def rms_norm(x, eps=1e-6): raise ValueError", CALL + "your code raised ValueError.$"),
        ("def rms_norm(x, eps=1e-6): return x.mean(-1)", CALL + r"the shape should be \(3, 8\), yours is \(3,\)"),
        ("def rms_norm(x, eps=1e-6): return (v for v in x)", CALL + "an array .* yours is generator"),
        ("rms_norm = 3", CALL.replace("rms_norm", "your function") + "your code raised TypeError: 'int' object"),
        ("def rms_norm(x, eps=1e-6): raise SystemExit", "q1: not yet: the check stopped with SystemExit;"),
        ("np = 3", "q1: not yet: the check stopped with AttributeError: .*; run the setup cell again"),
        (
            "def rms_norm(x, eps=1e-6): return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6)",
            r"q1: not yet: case 5 of 5, rms_norm\(array of shape \(2, 3, 4\) from .*, 0.5\): yours is \S+ at index",
        ),
    ],
)
def test_an_unlucky_student_is_told_what_to_do_next(names, code, said, capsys):
    exec(code, names)
    right, text = checker.verdict("q1", names)
    assert not right and re.match(said, text), text


def test_a_stopped_check_leaves_nothing_behind(names):
    def rms_norm(x, eps=1e-6):
        raise KeyboardInterrupt  # what the kernel raises in an endless loop when it is interrupted

    with pytest.raises(KeyboardInterrupt):
        checker.verdict("q1", names | {"rms_norm": rms_norm})
    exec(RIGHT["q1"], names)
    assert checker.verdict("q1", names)[0]


def test_a_message_never_tells_the_right_value(names):
    """Whatever number it names is the student's own, a shape, an index or about the inputs."""
    exec(RIGHT["q1"], names)
    right = names["rms_norm"]
    names["rms_norm"] = lambda x, eps=1e-6: right(x, eps) + 1000
    said = checker.verdict("q1", names)[1]
    assert re.search(r"yours is 100\d\.\d+ at index \(0, 0\)\.$|yours is 99\d\.\d+ at index \(0, 0\)\.$", said)
    names["growth"] = 1000.5
    assert checker.verdict("q2", names)[1] == "q2: not yet: yours is 1000.5."


def test_check_reads_the_calling_notebooks_names(names):
    names["growth"] = 2
    said = eval('course.check("q2")', names)
    assert repr(said).startswith("q2: right.") and said in said._repr_html_()
    assert "<b>" not in checker.Prose("<b>")._repr_html_(), "a student's text is text"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder in which nothing says which notebook is open; two assignments can be released to it."""
    for name in ("NORMKIT_NOTEBOOK", "JPY_SESSION_NAME", "NORMKIT_STUDENT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(checker, "assignment_at_work", None)
    (tmp_path / "sources").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def put(name, student="anyone", file=None):
        notebook = source_notebook()
        notebook.metadata["normkit"]["assignment"] = name
        source = write(tmp_path / "sources" / f"{name}.ipynb", notebook)
        return release.release(source, tmp_path / "work" / (file or f"{name}.ipynb"), student)

    return put


def found():
    own = checker.notebook_metadata()
    return own["assignment"], own.get("student")


def test_the_notebook_is_found_in_the_working_folder_and_missed_in_words(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no released assignment in work: open .* restart the kernel"):
        checker.notebook_metadata()
    # A source has no checks, and broken files count for nothing.
    write(tmp_path / "work" / "a.ipynb", source_notebook())
    write(tmp_path / "work" / "b.ipynb", ["not a notebook"])
    (tmp_path / "work" / "c.ipynb").write_bytes(b"\xff\x00")
    path = folder("tiny")
    assert found() == ("tiny", None)
    path.rename(tmp_path / "work" / "my answers.ipynb")
    assert found() == ("tiny", None)


def test_of_two_notebooks_in_a_folder_the_one_that_is_open_counts(folder, monkeypatch, tmp_path):
    folder("tiny")
    path = folder("wide")
    with pytest.raises(ValueError, match=r'tiny.ipynb, wide.ipynb lie in one .*\["NORMKIT_NOTEBOOK"\] = "tiny.ipynb"'):
        checker.notebook_metadata()
    course.variant("size", assignment="wide")  # as a setup cell does
    assert found() == ("wide", None)
    course.variant("size", assignment="tiny")
    assert found() == ("tiny", None)
    monkeypatch.setenv("JPY_SESSION_NAME", str(path))  # the server's word, but for a kernel that changed its notebook
    assert found() == ("tiny", None)
    monkeypatch.setattr(checker, "assignment_at_work", None)
    assert found() == ("wide", None)
    path.rename(tmp_path / "work" / "renamed.ipynb")
    with pytest.raises(ValueError, match=r"renamed\.ipynb, tiny\.ipynb lie in one"):
        checker.notebook_metadata()
    course.variant("size", assignment="wide")
    assert found() == ("wide", None)
    monkeypatch.setenv("NORMKIT_NOTEBOOK", "tiny.ipynb")  # the student's own word is the last one
    assert found() == ("tiny", None)


def test_copies_are_one_notebook_and_two_students_notebooks_are_not(folder):
    folder("tiny", "ada")
    folder("tiny", "ada", "tiny-Copy1.ipynb")
    assert found() == ("tiny", "ada")
    folder("tiny", "bob", "bobs.ipynb")
    with pytest.raises(ValueError, match="lie in one folder"):
        course.variant("size", assignment="tiny")  # rather than another student's parameters


def test_vs_code_says_which_notebook_it_is(folder, monkeypatch, tmp_path):
    path = folder("wide", file="elsewhere.ipynb").rename(tmp_path / "elsewhere.ipynb")
    folder("tiny")
    monkeypatch.setattr(checker, "_vscode", lambda: str(path))
    assert found() == ("wide", None)


def test_checks_that_were_damaged_are_said_so(names, tmp_path):
    path = tmp_path / "tiny.ipynb"
    student = json.loads(path.read_text())
    for text in ("", "abc", student["metadata"]["normkit"]["checks"][:-9], 7):
        student["metadata"]["normkit"]["checks"] = text
        write(path, student)
        with pytest.raises(ValueError, match="checks are damaged: get it again"):
            checker.verdict("q1", names)


def test_the_released_file_gives_nothing_away_in_plain_reading(names, tmp_path):
    text = (tmp_path / "tiny.ipynb").read_text()
    for secret in ("np.sqrt", "forgot", "HIDDEN", "just shown", "rng.normal", "growth = 2"):
        assert secret not in text


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("growth = 2", "this wrong answer passes"),
        ("growth = 3", "cannot be told from"),
        ("1 / 0", "raised ZeroDivision"),
    ],
)
def test_a_release_with_a_useless_wrong_answer_is_refused(tmp_path, code, said):
    notebook = source_notebook()
    cell(notebook, "q2-wrong-4")["source"] = code
    with pytest.raises(ValueError, match=said):
        release.release(write(tmp_path / "source.ipynb", notebook), tmp_path / "out.ipynb")
    assert not (tmp_path / "out.ipynb").exists()


def test_a_real_kernel_finds_its_notebook_checks_it_and_is_stopped_in_an_endless_loop(folder, tmp_path):
    """Opened where nothing tells the notebook's name (the classic Notebook, `jupyter execute`): the folder holds two."""
    folder("wide")
    folder("tiny")
    manager, client = start_new_kernel(kernel_name="python3", cwd=str(tmp_path / "work"))

    def shows(code, interrupt=False):
        shown = []

        def output(message):
            content = message["content"]
            shown.append(content.get("evalue") or content.get("text") or content.get("data", {}).get("text/plain", ""))
            if interrupt and "looping" in shown[-1]:
                manager.interrupt_kernel()

        client.execute_interactive(code, output_hook=output, timeout=60)
        return "".join(shown)

    try:
        setup = "import numpy as np\nfrom normkit import course\n"
        assert "lie in one folder" in shows(setup + "growth = 3.0\ncourse.check('q2')")
        shows("course.variant('size', assignment='tiny')")
        assert shows("course.check('q2')") == "q2: not yet. It is not 3.0."
        assert shows("course.check('q1')").startswith("q1: not yet: name 'rms_norm' is not defined; run")
        endless = "def rms_norm(x, eps=1e-6):\n    print('looping', flush=True)\n    while True: pass"
        assert "looping" in shows(endless + "\ncourse.check('q1')", interrupt=True)
        assert shows(RIGHT["q1"] + "\ncourse.check('q1')").startswith("q1: right.")
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
