import dataclasses
import typing
from pathlib import Path
from typing import Annotated, Literal

import pytest

from gapscope.cli import fields


@dataclasses.dataclass(frozen=True)
class Example:
    """Count things: carefully.

    More.
    """

    k: Annotated[int, "how many"] = 0
    rates: Annotated[tuple[float, ...], "rates"] = (1.0, 2.0)
    kind: Annotated[Literal["a", "b"], "which"] = "a"
    sure: Annotated[bool, "certain"] = False
    place: Annotated[Path | None, "where", "-p"] = None


def option(name):
    parameter = next(p for p in fields.options(Example, prefix="GAPSCOPE_EXAMPLE") if p.name == name)
    return typing.get_args(parameter.annotation), parameter.default


def test_every_field_is_an_option_with_its_help_flag_and_variable():
    (base, info), default = option("k")
    assert (base, default, info.envvar) == (int, 0, "GAPSCOPE_EXAMPLE_K")
    assert (info.default, *info.param_decls) == ("--k",)
    assert info.help == "how many"
    assert info.show_default  # although it is 0


def test_a_tuple_is_a_repeatable_option():
    (base, info), default = option("rates")
    assert base == list[float]
    assert default == [1.0, 2.0]
    assert info.help == "rates, repeatable"


def test_an_optional_field_keeps_its_short_flag():
    (base, info), default = option("place")
    assert (base, default) == (Path | None, None)
    assert (info.default, *info.param_decls) == ("--place", "-p")
    assert not info.show_default


def test_fields_can_be_left_out():
    assert "k" not in [p.name for p in fields.options(Example, without=("k",))]


def test_build_makes_tuples_and_ignores_foreign_values():
    assert fields.build(Example, {"rates": [3.0], "other": 1}) == Example(rates=(3.0,))


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("k", 3, ""),
        ("k", "3", "a whole number"),
        ("k", True, "a whole number"),
        ("k", 3.5, "a whole number"),
        ("rates", [1, 2.5], ""),
        ("rates", 1.0, "a list, like [a number]"),
        ("rates", ["x"], "a list, like [a number]"),
        ("kind", "b", ""),
        ("kind", "c", '"a" or "b"'),
        ("sure", True, ""),
        ("sure", 1, "true or false"),
        ("place", "x", ""),
        ("place", 1, '"text"'),
    ],
)
def test_misfit_says_what_a_file_should_hold(name, value, expected):
    assert fields.misfit(Example, name, value) == expected


def test_the_headline_is_the_first_clause():
    assert fields.headline(Example.__doc__) == "Count things."
    assert fields.headline("Of metric 2.1, and more") == "Of metric 2.1."
    assert fields.headline(None) == ""
