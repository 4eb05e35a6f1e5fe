"""`teacher:samples=50000,inputs=784`: synthetic data of any size, labelled by a random network; for tests of scale.

    x ~ N(0, I_D),  y = argmax_c [W2 tanh(3 W1 x / sqrt(D))]_c,  W1 (64, D) and W2 (C, 64) ~ N(0, 1)

tanh is odd, so that no class has a head start; at its slope of 3, 78 % of a hidden unit's variance are linear in x.
With `tokens=T` the teacher is a table, and a sample a row of the Markov chain whose next token is the target:

    P(x_{t+1} = j | x_t = i) = exp(2 A_ij) / sum_k exp(2 A_ik),  A (C, C) ~ N(0, 1),  y_t = x_{t+1}

`noise` is the share of the training labels that are drawn anew, from all classes alike; those of the test data stay the
teacher's.  Teacher, training data and test data (a fifth as many) have streams of their own, 3 s, 3 s + 1 and 3 s + 2
for the seed s, of torch's generator on the CPU: the same on every machine as far as its normal numbers are.
"""

import math
import re
from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from gapscope.errors import LoadError, did_you_mean
from gapscope.measure.loading.datasets.arrays import Pair, Split, check_size

_HIDDEN, _SLOPE, _SHARPNESS = 64, 3.0, 2.0
_ROWS = 4096  # samples that are labelled at a time
_COUNT = r"[1-9]\d{0,9}"
_OPTIONS: Mapping[str, tuple[str, str]] = {  # what each may be
    "samples": (_COUNT, "a number of training samples, 1 or more"),
    "inputs": (_COUNT, "a number of inputs, 1 or more"),
    "outputs": (r"[2-9]|[1-9]\d{1,6}", "a number of classes, 2 or more"),
    "seed": (r"\d{1,10}", "a whole number, 0 or more"),
    "noise": (r"0|0?\.\d{1,15}|1(\.0)?", "a share of labels from 0 to 1"),
    "image": (r"[1-9]\d{0,4}(x[1-9]\d{0,4}){2}", "channels, height and width as 3x32x32"),
    "tokens": (r"[1-9]\d{0,4}", "a number of tokens in a row, 1 to 99999"),
}


def read_teacher(options: str, split: Split, spec: str) -> Pair:
    """Return one split; the options are those of the module's formulas, and `image` a shape in the place of `inputs`.

    Shapes: x (N, inputs) or (N, channels, height, width) and y (N,), or with `tokens` both (N, tokens).
    """
    given = _given(options, spec)
    samples, classes, seed = int(given.get("samples", 1000)), int(given.get("outputs", 10)), int(given.get("seed", 0))
    samples = samples if split == "train" else math.ceil(samples / 5)
    weights, stream = (Generator().manual_seed(3 * seed + part) for part in (0, 1 if split == "train" else 2))
    if "tokens" in given:
        tokens = int(given["tokens"])
        check_size(8 * (classes**2 + samples * (tokens + 1)), f"`{spec}`")
        chain = _chain(samples, tokens + 1, classes, weights, stream)
        x, y, kind = chain[:, :-1], chain[:, 1:].clone(), "rows of a random Markov chain"
    else:
        shape = [int(size) for size in given.get("image", given.get("inputs", "64")).split("x")]
        check_size(4 * samples * math.prod(shape), f"`{spec}`")
        x = torch.randn(samples, *shape, generator=stream)
        y, kind = _labels(x.flatten(1), classes, weights), "Gaussian samples labelled by a random network"
    note = f"data: {spec}: {samples:,} {kind}"
    share = float(given.get("noise", 0))
    if split == "train" and share:
        note += f", {_replace(y, share, classes, stream):,} labels drawn anew at random"
    return Pair(x, y, (note,))


def _given(options: str, spec: str) -> dict[str, str]:
    given = dict(part.partition("=")[::2] for part in options.split(",") if part)
    for key, value in given.items():
        if key not in _OPTIONS:
            raise LoadError(
                f"`{spec}`: `teacher` has no option `{key}`.{did_you_mean(key, _OPTIONS)} Expected some of "
                f"{', '.join(_OPTIONS)}. Write them as `teacher:samples=1000,inputs=64`."
            )
        pattern, wanted = _OPTIONS[key]
        if not re.fullmatch(pattern, value, re.ASCII):
            raise LoadError(f"`{spec}`: `{key}` is `{value}`. Expected {wanted}. Mend `{key}=...` of the data.")
    shapes = [key for key in ("inputs", "image", "tokens") if key in given]
    if len(shapes) > 1:
        raise LoadError(
            f"`{spec}` gives `{shapes[0]}` and `{shapes[1]}`. Expected one, since each says what a sample is. Leave "
            "out the other."
        )
    return given


def _labels(x: Tensor, classes: int, rng: Generator) -> Tensor:
    """Return the class of every sample, in float64: rounding then decides no label."""
    first = torch.randn(_HIDDEN, x.shape[1], generator=rng).double() * (_SLOPE / math.sqrt(x.shape[1]))
    last = torch.randn(classes, _HIDDEN, generator=rng).double()
    return torch.cat([((rows.double() @ first.T).tanh() @ last.T).argmax(1) for rows in torch.split(x, _ROWS)])


def _chain(samples: int, length: int, states: int, weights: Generator, stream: Generator) -> Tensor:
    """Return walks (samples, length): u ~ U[0, 1) picks the first state whose cumulative probability exceeds it."""
    table = (_SHARPNESS * torch.randn(states, states, generator=weights).double()).softmax(1).cumsum(1)
    # row i is moved to i ... i + 1, so that one search over all rows finds the next state of each
    bounds = (table + torch.arange(states).unsqueeze(1)).flatten()
    walk = torch.empty(samples, length, dtype=torch.long)
    walk[:, 0] = torch.randint(states, (samples,), generator=stream)
    for t in range(1, length):
        now = walk[:, t - 1]
        found = torch.searchsorted(bounds, torch.rand(samples, generator=stream, dtype=torch.float64) + now, right=True)
        walk[:, t] = (found - states * now).clamp(0, states - 1)  # rounding may step over a row's end
    return walk


def _replace(labels: Tensor, share: float, classes: int, rng: Generator) -> int:
    """Draw a share of the labels anew, in place, and return how many they are."""
    count = round(share * labels.numel())
    chosen = torch.randperm(labels.numel(), generator=rng)[:count]
    labels.view(-1)[chosen] = torch.randint(classes, (count,), generator=rng)
    return count
