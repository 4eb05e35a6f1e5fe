"""How a number looks, decided once: digits follow the error, as physicists write them.

An error keeps two significant digits if they begin with 1.0 to 3.5 and one otherwise (Particle Data Group, Review of
Particle Physics, Introduction, sec. 5.3), and the value stops at the same decimal: 0.154 ± 0.011, 0.81 ± 0.05.
"""

import math

from gapscope.results import Contrast

NONE = "–"
MOST = 6  # significant digits of a value, however small its error


def figure(value: float, error: float = math.nan) -> str:
    """Return "value ± error", or the value alone if the error is unknown or zero."""
    if not (math.isfinite(value) and 0 < error < math.inf):
        return number(value)
    _, power = _rounded(max(abs(value), error), _decimals(error))
    if _power(value) + _decimals(error) >= MOST:
        return f"{number(value, MOST)} ± {size(error)}"
    shift = 0 if -3 <= power <= 5 else power
    decimals = _decimals(error) + shift
    text = f"{_fixed(_scaled(value, shift), decimals)} ± {_fixed(_scaled(error, shift), decimals)}"
    return f"({text})e{shift}" if shift else text


def rounded(value: float, error: float) -> str:
    """Return the value alone, to the digits that its error leaves."""
    if not (math.isfinite(value) and value and 0 < error < math.inf):
        return number(value)
    return number(value, min(max(_power(value) + _decimals(error) + 1, 1), MOST), keep=True)


def number(value: float, digits: int = 4, *, keep: bool = False) -> str:
    """Return a value with so many significant digits; trailing zeros go unless kept."""
    if math.isnan(value):
        return NONE
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    decimals = digits - 1 - _power(value)
    mantissa, power = _rounded(value, decimals)
    shift = 0 if -4 <= power <= 5 else power
    text = _fixed(mantissa if shift else value, decimals + shift)
    if not keep and "." in text:
        text = text.rstrip("0").rstrip(".")
    return f"{text}e{shift}" if shift else text


def size(error: float) -> str:
    """Return an error by itself."""
    if not (error > 0 and math.isfinite(error)):
        return number(error)
    return number(error, _power(error) + _decimals(error) + 1, keep=True)


def count(value: int) -> str:
    """Return a whole number with commas between thousands."""
    return f"{value:,}"


def spread(estimate: float, interval: tuple[float, float]) -> tuple[str, str]:
    """Return an estimate and "low to high": two digits of the interval's half width, one where that is below 0.1."""
    low, high = interval
    half = (high - low) / 2
    power = _power(max(abs(estimate), abs(low), abs(high))) if math.isfinite(half) else 0
    decades = 0 < 1000 * low < high  # digits of the one end would be none of the other's
    if decades or not (0 < half < math.inf and -3 <= power <= 5):
        return number(estimate, 3), NONE if math.isnan(low) else f"{number(low, 3)} to {number(high, 3)}"
    decimals = min(max((half >= 0.1) - _power(half), 0), MOST - 1 - power)
    # an end that rounds to 0 or 1, where a verdict turns, would hide on which side it lies
    while decimals < MOST and any(round(end, decimals) in (0, 1) and end not in (0, 1) for end in interval):
        decimals += 1
    return _fixed(estimate, decimals), f"{_fixed(low, decimals)} to {_fixed(high, decimals)}"


def contrast_unit(kind: Contrast, unit: str) -> str:
    """Return the unit of a contrast: ratios have none, and percentages differ by points."""
    if kind == "ratio":
        return ""
    return "points" if unit == "%" else unit


def _scaled(value: float, shift: int) -> float:
    """Return value / 10^shift; 10^shift alone is 0 below the smallest float."""
    return value * 1e300 / 10.0 ** (shift + 300) if shift < -300 else value / 10.0**shift


def _power(value: float) -> int:
    return math.floor(math.log10(abs(value))) if value else 0


def _rounded(value: float, decimals: int) -> tuple[float, int]:
    """Return mantissa and power of a rounded value: 9.96e-8 to 8 decimals is 1.0e-7, not 10e-8."""
    power = _power(value)
    mantissa = round(_scaled(value, power), decimals + power)
    return (mantissa / 10, power + 1) if abs(mantissa) >= 10 else (mantissa, power)


def _decimals(error: float) -> int:
    """Return the decimals that an error deserves; negative ones round to tens."""
    power = _power(error)
    leading = round(_scaled(error, power) * 100)  # 100 ... 1000
    return 1 - power if leading < 355 else -power


def _fixed(value: float, decimals: int) -> str:
    text = f"{round(value, decimals):.{max(decimals, 0)}f}"
    return text.lstrip("-") if float(text) == 0 else text
