import pytest

from gapscope.report.titles import TITLES, place, short_title, title


@pytest.mark.parametrize(
    ("analyzer", "quantity", "whole", "short"),
    [
        ("eigenvalues", "top", "top eigenvalue", "top eigenvalue"),
        ("eigenvalues", "stability", "eigenvalues stability", "stability"),
        ("adaptive-sharpness", "worst_l2", "adaptive sharpness worst l2", "worst l2"),
        ("adaptive-sharpness", "sam", "SAM sharpness", "SAM sharpness"),
        ("curvature", "top", "curvature top eigenvalue", "top eigenvalue"),
        ("epsilon-sharpness", "full", "epsilon-sharpness full", "full"),
        ("noise", "noise_scale", "noise scale", "noise scale"),
        ("near-rank", "near_rank", "near rank", "near rank"),
        ("trace", "trace", "trace", "trace"),
        ("trace", "blocks_trace", "trace", "trace"),
        ("mine", "new", "mine new", "new"),
    ],
)
def test_a_quantity_has_one_title_and_needs_no_analyzer_under_its_heading(analyzer, quantity, whole, short):
    assert (title(analyzer, quantity), short_title(analyzer, quantity)) == (whole, short)


def test_no_title_is_a_single_cryptic_word():
    assert {short for key in TITLES if " " not in (short := short_title(*key.split("/")))} == {"average", "trace"}


def test_analyzers_have_a_place_whatever_the_order_of_measurement():
    given = ["trace", "gap", "noise", "epsilon-sharpness", "adaptive-sharpness", "density", "eigenvalues"]
    ordered = ["eigenvalues", "adaptive-sharpness", "epsilon-sharpness", "gap", "density", "noise", "trace"]
    assert sorted(given, key=place) == ordered
