"""Numbers that are let through, and those that are refused with the rule and the value."""

import math

import numpy as np
import pytest

from normkit.checks import count, pick, positive


def test_good_values_come_back():
    assert count("steps", np.int64(3)) == 3 and type(count("steps", np.int64(3))) is int
    assert count("steps", 0, 0) == 0
    assert positive("lr", 0.5) == 0.5 and positive("decay", 0.0, zero=True) == 0.0
    assert pick("norm", "l1", ("l1", "l2")) == "l1"


@pytest.mark.parametrize("value", [2.0, "2", True, None])
def test_a_count_is_an_integer(value):
    with pytest.raises(TypeError, match="steps must be an integer"):
        count("steps", value)


def test_a_count_has_a_least_value():
    with pytest.raises(ValueError, match="steps must be at least 2, got 1"):
        count("steps", 1, 2)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("zero", [False, True])
def test_positive_is_finite_and_above_zero(value, zero):
    with pytest.raises(ValueError, match="lr must be a finite"):
        positive("lr", value, zero)


@pytest.mark.parametrize("value", ["0.1", None, True, [0.1]])
def test_positive_is_a_number(value):
    with pytest.raises(TypeError, match="lr must be a number, got "):
        positive("lr", value)


@pytest.mark.parametrize("value", [[], None, {"l1": 1}, 3])
def test_what_is_no_name_is_not_picked(value):
    with pytest.raises(ValueError, match=r"unknown norm .*choose from l1, l2"):
        pick("norm", value, {"l1": 1, "l2": 2})


def test_zero_only_where_allowed():
    with pytest.raises(ValueError, match="positive number, got 0"):
        positive("lr", 0.0)


def test_pick_guesses_and_lists_the_choices():
    with pytest.raises(
        ValueError, match=r"unknown norm 'layernrm': did you mean 'layernorm'\? choose from layernorm, none"
    ):
        pick("norm", "layernrm", ("layernorm", "none"))
    with pytest.raises(ValueError, match="unknown norm 'q': choose from layernorm, none"):
        pick("norm", "q", ("layernorm", "none"))


def test_a_count_says_why_it_must_not_be_smaller():
    with pytest.raises(ValueError, match="width must be at least 2, got 1: a norm of one number is its sign"):
        count("width", 1, 2, "a norm of one number is its sign")
