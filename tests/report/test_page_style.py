import re

import pytest

from gapscope.report.page_style import DARK, LIGHT


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(first, second):
    dark, light = sorted((luminance(first), luminance(second)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [LIGHT, DARK])
def test_text_and_curves_stand_out(scheme):
    colours = dict(re.findall(r"--(\w+): (#\w{6})", scheme))
    for name in ("text", "soft", "link", "good", "bad"):
        for behind in ("page", "sheet"):
            assert contrast(colours[name], colours[behind]) >= 4.5, (name, behind)
    for i in range(6):
        assert contrast(colours[f"c{i}"], colours["page"]) >= 4.5


def test_the_schemes_name_the_same_colours():
    light, dark = (re.findall(r"--(\w+):", scheme) for scheme in (LIGHT, DARK))
    assert light == dark
