import math

import pytest

import normkit
from normkit.lesson import _widget, ask, check


def growth(**more):
    options = {"answer": lambda: 33**0.5, "why": "The root of 33 is {answer:.2f}."} | more
    return ask("The rms is nearest to", 6, 32, 2**32, **options)


def test_the_nearest_option_by_ratio_is_right():
    assert growth().commit(6) == "Right. Computed: 5.74. The root of 33 is 5.74."
    assert growth().commit(32).startswith("Not quite: you said 32. Computed: 5.74.")
    assert ask("?", 1, 100, answer=12.0).commit(100).startswith("Right")  # 12 is 8.3 times from 100 and 12 from 1


def test_a_worded_answer_is_one_of_the_options():
    question = ask("It", "grows", "falls", answer=lambda: "falls")
    assert question.commit("falls").startswith("Right")
    assert question.commit("grows").startswith("Not quite")
    with pytest.raises(ValueError, match="none of the options"):
        ask("It", "grows", "falls", answer="stays").commit("falls")


def test_the_answer_is_computed_only_when_the_learner_commits():
    asked = []
    question = ask("?", 1, 2, answer=lambda: asked.append(1) or 2.0)
    repr(question)
    _widget(question)
    assert not asked
    question.commit(1)
    assert asked == [1]


def test_the_text_form_shows_the_options_and_not_the_answer():
    assert repr(growth()) == "The rms is nearest to\n  ( ) 6\n  ( ) 32\n  ( ) 4294967296"


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ask("?", 1, answer=1), "at least two different options"),
        (lambda: ask("?", 1, 1, answer=1), "at least two different options"),
        (lambda: growth().commit(7), "the options are 6, 32"),
        (lambda: growth(answer=math.nan).commit(6), "positive and finite"),
        (lambda: growth(answer=-6.0).commit(6), "positive and finite"),
        (lambda: growth(answer=0.1).commit(6), "mend the question"),
    ],
)
def test_a_question_that_cannot_be_answered_is_an_error(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_the_widget_answers_a_click_and_shows_a_crash():
    widget = _widget(growth())
    assert widget.reply == ""
    widget.chosen = 0
    assert widget.reply.startswith("Right")
    broken = _widget(growth(answer=lambda: 1 / 0))
    with pytest.raises(ZeroDivisionError):
        broken.chosen = 1
    assert broken.reply.startswith("ZeroDivisionError")


def test_a_question_shows_as_a_widget_or_as_text(monkeypatch):
    monkeypatch.delenv("NORMKIT_STATIC", raising=False)
    bundle = normkit.ask("?", 1, 2, answer=1)._repr_mimebundle_()
    assert set(bundle) >= {"text/plain", "application/vnd.jupyter.widget-view+json"}
    monkeypatch.setenv("NORMKIT_STATIC", "1")
    assert set(normkit.ask("?", 1, 2, answer=1)._repr_mimebundle_()) == {"text/plain"}


MISTAKES = {"the whole branch": lambda x: 1 + x, "the square root": lambda x: (1 + x / 4) ** 0.5}


def test_check_names_the_mistake():
    def truth(x):
        return 1 + x / 4

    assert check(lambda x: 1 + 0.25 * x, truth, [3, 5], MISTAKES) == "Right."
    assert check(lambda x: x + 1.0, truth, [3, 5], MISTAKES) == "Not yet: the whole branch."
    assert check(lambda x: math.sqrt(1 + x / 4), truth, [3, 5], MISTAKES) == "Not yet: the square root."
    assert (
        check(lambda x: 1.75 if x == 3 else 0, truth, [3, 5], MISTAKES)
        == "Not yet: at 5 yours is 0, it should be 2.25."
    )
    assert "raised ZeroDivisionError" in check(lambda x: 1 / 0, truth, [3], MISTAKES)
    assert check(lambda x: math.nan, truth, [3], MISTAKES).startswith("Not yet: at 3 yours is nan")
    with pytest.raises(ValueError, match="choose other points"):
        check(truth, truth, [0], MISTAKES)
