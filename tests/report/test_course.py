import numpy as np
import pytest

from gapscope.report.course import APART, EDGE, Measure, course, ends


def run(*values, error=1e-3, path="eigenvalues/top", numerical=np.nan, unfinished=False):
    known = [np.full(len(values), one) for one in (error, numerical)]
    return Measure(
        path=path,
        title="number",
        unit="",
        values=np.array(values),
        data=known[0],
        numerical=known[1],
        open=(unfinished,) * len(values),
    )


def at(index):
    return f"step {index}"


@pytest.mark.parametrize(
    ("values", "error", "claim"),
    [
        ((1.0, 2.0, 3.0), 0.1, "It rises, from 1.00 ± 0.10 to 3.00 ± 0.10."),
        ((3.0, 3.02, 1.0), 0.1, "It falls, from 3.00 ± 0.10 to 1.00 ± 0.10."),
        ((1.39, 1.31, 0.99), 0.17, "It moves within its error over the data, between 0.99 ± 0.17 and 1.39 ± 0.17."),
        ((3.0, 2.5, 2.6), 0.1, "It stays between 2.50 ± 0.10 and 3.00 ± 0.10 all along."),
        ((1.0, 2.0, 4.1, 3.9, 4.0), 0.1, "It begins at 1.00 ± 0.10, and from step 2 on it hovers between 3.90 ± 0.10"),
        (
            (1.0, 3.0, 1.5),
            0.1,
            "It begins at 1.00 ± 0.10, is largest at step 1 (3.00 ± 0.10), and ends at 1.50",
        ),
        ((3.0, 1.0, 1.5), 0.1, "It begins at 3.00 ± 0.10, is smallest at step 1 (1.00 ± 0.10), and ends at"),
        ((2.0, 1.0, 3.0, 2.0), 0.1, "is smallest at step 1 (1.00 ± 0.10), is largest at step 2 (3.00 ± 0.10), and"),
    ],
)
def test_a_course_is_told_as_far_as_its_errors_let_it(values, error, claim):
    (said,) = course(run(*values, error=error), at)
    assert claim in said


def test_less_than_three_values_or_a_gap_are_no_course():
    assert not list(course(run(1.0, 2.0), at))
    assert not list(course(run(1.0, np.nan, 2.0), at))


def test_values_are_apart_beyond_so_many_of_both_errors_together():
    limit = APART * np.hypot(0.5, 0.5)
    assert not run(1.0, 1.0 + 0.99 * limit, error=0.5).apart(0, 1)
    assert run(1.0, 1.0 + 1.01 * limit, error=0.5).apart(1, 0)


def test_without_an_error_over_the_data_none_is_named():
    (said,) = course(run(1.0, 1.1, 1.2, error=np.nan, numerical=0.5), at)
    assert said.startswith("It moves within its error, between 1.0 ± 0.5 and")


def test_losses_that_end_where_they_began_are_said_to():
    gap = run(0.255, 0.31, 0.257, error=0.08)
    loss = run(1.5, 1.0, 0.5, error=0.02)
    (said,) = ends({"gap/train_loss": loss, "gap/loss_gap": gap})
    assert said == (
        "The training loss goes from 1.500 ± 0.020 to 0.500 ± 0.020; the loss gap (test - training) ends within its "
        "error over the data of where it began (0.26 ± 0.08, then 0.26 ± 0.08)."
    )
    assert not list(ends({"gap/train_loss": run(1.5, np.nan)}))


def test_a_value_shows_its_error_and_a_bound_its_sign():
    assert run(2.0, error=0.14, unfinished=True).bounded(0) == "≥ 2.00 ± 0.14"
    assert run(1.0004, error=1e-7, path=EDGE).shown(0) == "1.0004"
    assert run(1.0004, error=0.04, path=EDGE).shown(0) == "1.00 ± 0.04"
