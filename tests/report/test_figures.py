import math

import pytest

from gapscope.report.figures import contrast_unit, figure, number, rounded, size, spread

NAN = math.nan


@pytest.mark.parametrize(
    ("value", "error", "shown"),
    [
        (0.15432, 0.0112, "0.154 ± 0.011"),
        (0.8123, 0.0512, "0.81 ± 0.05"),
        (93.04, 1.13, "93.0 ± 1.1"),
        (2.0, 0.0996, "2.00 ± 0.10"),
        (3.0912e-5, 1.23e-6, "(3.09 ± 0.12)e-5"),
        (1234567, 34567, "(1.235 ± 0.035)e6"),
        (56789, 1234, "56800 ± 1200"),
        (-0.0001, 0.02, "0.000 ± 0.020"),
        (0.1543211, 1.2e-9, "0.154321 ± 1.2e-9"),
        (0, 0.5, "0.0 ± 0.5"),
        (0.0121, NAN, "0.0121"),
        (0.0121, 0, "0.0121"),
        (NAN, 0.1, "–"),
        (math.inf, 0.1, "inf"),
        (-math.inf, NAN, "-inf"),
        (9.996e-7, 1e-8, "(1.000 ± 0.010)e-6"),
        (0, 9.96e-8, "0 ± 1.0e-7"),
    ],
)
def test_digits_follow_the_error(value, error, shown):
    assert figure(value, error) == shown


@pytest.mark.parametrize(
    ("error", "shown"),
    [(9.96e-8, "1.0e-7"), (9.9e-11, "1.0e-10"), (9.4e-8, "9e-8"), (0.0996, "0.10"), (9.96, "10"), (9.96e6, "1.0e7")],
)
def test_an_error_that_is_rounded_to_the_next_power_of_ten_is_one(error, shown):
    assert size(error) == shown


@pytest.mark.parametrize("mantissa", [1.0, 1.04, 3.54, 3.56, 9.4, 9.6, 9.949, 9.96, 9.9996, 9.99996])
def test_mantissas_lie_between_one_and_ten_at_every_magnitude(mantissa):
    for power in range(-300, 301):
        check_mantissas(mantissa * 10.0**power)


def check_mantissas(value):
    for text in (number(value), number(-value, 2, keep=True), size(value), rounded(value, value / 7)):
        shown, _, exponent = text.partition("e")
        assert not exponent or 1 <= abs(float(shown)) < 10
        assert abs(float(text)) == pytest.approx(value, rel=0.13)  # one digit of 3.56
    both = figure(value, value / 20)
    assert not both.startswith("(") or 1 <= float(both[1:].split()[0]) < 10


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.0, "0"),
        (1300, "1300"),
        (12345.6, "12350"),
        (1e-7, "1e-7"),
        (0.00012345, "0.0001234"),
        (1.5e9, "1.5e9"),
        (5e-324, "4.941e-324"),
    ],
)
def test_a_number_without_error_has_four_digits(value, shown):
    assert number(value) == shown


def test_the_smallest_number_is_shown_too():
    assert number(5e-324) == "4.941e-324"
    assert figure(5e-324, 5e-324) == "(5 ± 5)e-324"


def test_value_and_error_of_separate_columns_agree():
    assert (rounded(0.15432, 0.0112), size(0.0112)) == ("0.154", "0.011")
    assert (rounded(0.3, 1.2), size(1.2)) == ("0.3", "1.2")
    assert (rounded(NAN, 1.2), size(NAN), size(0.0)) == ("–", "–", "0")


@pytest.mark.parametrize(
    ("estimate", "interval", "shown"),
    [
        (1.597, (1.41, 1.82), ("1.60", "1.41 to 1.82")),
        (1.597, (1.563, 1.633), ("1.60", "1.56 to 1.63")),
        (20.0, (14.8, 22.2), ("20.0", "14.8 to 22.2")),
        (-1.1, (-3.0, 0.8), ("-1.1", "-3.0 to 0.8")),
        (1.02345, (NAN, NAN), ("1.02", "–")),
        (NAN, (NAN, NAN), ("–", "–")),
        (2.5e-7, (1e-7, 4e-7), ("2.5e-7", "1e-7 to 4e-7")),
        (2.0, (0.0, math.inf), ("2", "0 to inf")),
        (1.6e-3, (1.5e-10, 16890.5), ("0.0016", "1.5e-10 to 16900")),
    ],
)
def test_an_interval_has_the_digits_of_its_width(estimate, interval, shown):
    assert spread(estimate, interval) == shown


def test_percentages_differ_by_points():
    assert [contrast_unit("difference", unit) for unit in ("%", "points", "s")] == ["points", "points", "s"]
    assert contrast_unit("ratio", "%") == ""
