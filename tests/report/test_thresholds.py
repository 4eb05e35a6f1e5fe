import math

import numpy as np
import pytest
from example_reports import eigenvalues, epsilon_sharpness, report, with_quantity

from gapscope.errors import UsageError
from gapscope.report.thresholds import Change, Threshold, analyzers, parsed, select, threshold
from gapscope.results import Quantity

KNOWN = {"eigenvalues": ("top", "bottom", "values"), "trace": ("trace",), "curvature": ("top",)}


def near_rank():
    labels = {"layer": ("fc1", "fc2", "a/b*[0]"), "cut": ("rel:1e-2", "rel:1e-3")}
    quantity = Quantity(value=np.arange(6).reshape(3, 2), doc="", dims=("layer", "cut"), labels=labels)
    return with_quantity(epsilon_sharpness(), near_rank=quantity)


def paths(selector, *records):
    return [one.path for one in select(selector, [report(*(records or (eigenvalues(), near_rank())))], KNOWN)[0]]


@pytest.mark.parametrize(
    ("selector", "expected"),
    [
        ("eigenvalues/top", ["eigenvalues/top"]),
        ("*/top", ["eigenvalues/top"]),
        ("eigenvalues/?op", ["eigenvalues/top"]),
        ("eigenvalues/values", ["eigenvalues/values[1]", "eigenvalues/values[2]"]),
        ("eigenvalues/values[2]", ["eigenvalues/values[2]"]),
        (
            "*/near_rank[fc1]",
            ["epsilon-sharpness/near_rank[fc1,rel:1e-2]", "epsilon-sharpness/near_rank[fc1,rel:1e-3]"],
        ),
        (
            "*/near_rank[fc*,rel:1e-3]",
            ["epsilon-sharpness/near_rank[fc1,rel:1e-3]", "epsilon-sharpness/near_rank[fc2,rel:1e-3]"],
        ),
        ("*/near_rank[a/b*[0],rel:1e-2]", ["epsilon-sharpness/near_rank[a/b*[0],rel:1e-2]"]),
    ],
)
def test_a_selector_selects_by_name_label_and_glob(selector, expected):
    assert paths(selector) == expected


def test_an_element_is_called_by_its_title_and_labels():
    (found,) = select("*/near_rank[fc1,rel:1e-2]", [report(near_rank())], KNOWN)[0]
    assert found.name.endswith(" rank, fc1, rel:1e-2")


def test_brackets_are_labels_and_no_set_of_characters():
    """fnmatch would let `[fc1]` match the single letter f."""
    assert paths("*/near_rank[*]") == paths("*/near_rank")
    with pytest.raises(UsageError):
        paths("*/near_rank[f]")


@pytest.mark.parametrize(
    ("selector", "near"),
    [
        ("eigenvalues/topp", "Did you mean `eigenvalues/top`?"),
        ("eigenvalue/top", "Did you mean `eigenvalues/top`?"),
        ("eigenvalues/valu", "Did you mean `eigenvalues/values`?"),  # no element of it
        ("trace/trce", "Did you mean `trace/trace`?"),  # though it was not measured
        ("eigenvalues/values[3]", "Did you mean `eigenvalues/values["),
        ("zzz*/zzz", 'The threshold "zzz*/zzz" selects nothing. Expected'),
        ("trace/*", 'The threshold "trace/*" selects nothing.'),
    ],
)
def test_what_selects_nothing_is_refused(selector, near):
    with pytest.raises(UsageError) as refused:
        paths(selector)
    assert near in str(refused.value)
    assert "`gapscope show REPORT -v` lists them" in str(refused.value)


def test_a_known_quantity_that_was_not_measured_is_no_mistake():
    assert paths("trace/trace") == []


def test_the_analyzers_that_a_selector_needs():
    assert analyzers("*/top[fc1]", KNOWN) == ["eigenvalues", "curvature"]
    assert analyzers("trace/trace", KNOWN) == ["trace"]


def test_every_key_is_read():
    table = {"max": 50, "min": 1.5, "max_increase": "25%", "max_decrease": 3, "min_delta": 0.5, "level": "warn"}
    found = threshold("eigenvalues/top", {**table, "claim": "population"}, "x")
    assert (found.max, found.min, found.min_delta, found.level, found.claim) == (50.0, 1.5, 0.5, "warn", "population")
    assert found.max_increase == Change(amount=0.25, share=True)
    assert found.max_decrease == Change(amount=3.0)
    assert (str(found.max_increase), str(found.max_decrease)) == ("25 %", "3")
    third = [str(Change(amount=1 / 3, share=share)) for share in (False, True)]
    assert third == ["0.333333", "33.3333 %"]


def test_limits_at_the_edge_of_what_is_allowed():
    found = threshold("a/b", {"max": 1, "min": 1, "max_increase": 0, "max_decrease": 0.5, "min_delta": 0}, "x")
    assert found == Threshold(
        selector="a/b", max=1.0, min=1.0, max_increase=Change(amount=0.0), max_decrease=Change(amount=0.5)
    )
    assert threshold("a/b", {"min": -1}, "x") == Threshold(selector="a/b", min=-1.0)


@pytest.mark.parametrize(
    ("selector", "table", "message"),
    [
        ("top", {"max": 1}, '"top" in x names no quantity. Expected ANALYZER/QUANTITY'),
        ("a/b]", {"max": 1}, '"a/b]" in x names no quantity.'),
        ("a/b", {"max": 1, "selector": "c/d"}, "has an unknown key `selector`."),
        ("a/b", {"max_increase": math.inf}, "has `max_increase = inf`. Expected a number from 0 up, or a share"),
        ("a/b", 50, '"a/b" in x is 50. Expected a table of limits'),
        ("a/b", {"maximum": 1}, "has an unknown key `maximum`. Did you mean `max`?"),
        ("a/b", {"level": "warn"}, "has no limit. Expected one or more of max, min"),
        ("a/b", {"max": 1, "min": 2}, "has min = 2.0 above max = 1.0. Expected a range."),
        ("a/b", {"max": 1, "min_delta": 2}, "has min_delta and no change to limit. Expected one of max_increase"),
        ("a/b", {"max": "25%"}, "has `max = '25%'`. Expected a finite number."),
        ("a/b", {"max": True}, "has `max = True`. Expected a finite number."),
        ("a/b", {"min": float("nan")}, "Expected a finite number."),
        ("a/b", {"max_increase": -1}, 'Expected a number from 0 up, or a share of the baseline such as "25%".'),
        ("a/b", {"max_decrease": "25"}, "Expected a number from 0 up, or a share"),
        ("a/b", {"max_increase": 1, "min_delta": -1}, "Expected a finite number from 0 up."),
        ("a/b", {"max": 1, "level": "fatal"}, 'Expected "error" or "warn".'),
        ("a/b", {"max": 1, "claim": "all"}, 'Expected "data" or "population".'),
    ],
)
def test_a_threshold_that_makes_no_sense_is_refused(selector, table, message):
    with pytest.raises(UsageError) as refused:
        threshold(selector, table, "x")
    assert message in str(refused.value)


def test_options_are_read():
    assert parsed("max", "eigenvalues/top=50") == ("eigenvalues/top", {"max": 50.0})
    assert parsed("max-increase", "a/b[x=1,y]=2.5 %") == ("a/b[x=1,y]", {"max_increase": "2.5 %"})
    assert parsed("min", "a/b=-1e-3") == ("a/b", {"min": -1e-3})


@pytest.mark.parametrize("text", ["eigenvalues/top", "=3", "a/b=", "a/b=much", "a/b=1.2.3", "a/b=nan"])
def test_an_option_without_a_limit_is_refused(text):
    with pytest.raises(UsageError, match=r"has no limit\. Expected SELECTOR=NUMBER: `--max eigenvalues/top=50`"):
        parsed("max", text)
    with pytest.raises(UsageError, match=r"`--max-increase eigenvalues/top=25%`"):
        parsed("max-increase", text)
