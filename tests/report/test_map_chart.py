"""Structure of the maps: cells, contours, and named places."""

import math
import re

import numpy as np
from test_charts import drawn, of_class, plane, words


def test_a_map_has_cells_with_their_numbers_and_marks_with_names():
    values = [[1, 2, 3], [2, math.nan, 4], [3, 4, 5]]
    root = drawn(plane(values, marks=(("small", 0.0, 0.0), ("a name too long for either side " * 2, 1.0, 1.0))))
    (cells,) = of_class(root, "cells")
    assert len(cells) == 9
    assert cells[0].find("title").text == "first -1, second -1: 1"
    assert len(of_class(root, "odd")) == 1
    assert len(of_class(root, "cross")) == 2
    assert words(root, "halo")[0] == "small"
    assert of_class(root, "halo")[1].get("text-anchor") == "middle"


def test_contours_run_where_the_values_cross_a_level():
    n = 41
    at = np.linspace(-1, 1, n)
    root = drawn(plane(at[None, :] ** 2 + at[:, None] ** 2, columns=at, rows=at))
    contours = [one.get("d") for one in of_class(root, "contour") if "h14" not in one.get("d")]
    numbers = np.array(re.findall(r"[ML]([\d.]+) ([\d.]+)", contours[0]), dtype=float)
    x, y = numbers.T
    middle_x, middle_y = (x.min() + x.max()) / 2, (y.min() + y.max()) / 2
    radius = np.hypot(x - middle_x, y - middle_y)
    assert len(numbers) > 40
    assert radius.std() < 0.02 * radius.mean()  # the level set of a paraboloid is a circle


def test_a_flat_map_has_no_contours_and_says_its_only_value():
    root = drawn(plane(np.ones((3, 3))))
    assert not of_class(root, "contour")
    assert "second -1: 1" in next(root.iter("title")).text
