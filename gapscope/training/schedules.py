"""Rates and batch sizes over a training: plain functions, and the words for them.

A schedule maps (step, total steps) to a factor on the first rate, and is read from text:

    constant
    polynomial:power=1.1       (1 - step / total)^power
    cosine                     (1 + cos(pi step / total)) / 2
    step:at=[0.5,0.75],factor=0.1     times factor at these shares of the training
    warmup:steps=100+cosine    rising to 1 over the first 100 steps, then the other over the rest

For torch: `LambdaLR(optimizer, lambda step: schedule(step, total))`.  Batches: `2@10,4@20`, twice the first size from
epoch 10 on (ten are done), four times from epoch 20 on.
"""

import math
import re
import tomllib
from collections.abc import Callable
from typing import Any

from gapscope.errors import UsageError, did_you_mean

Schedule = Callable[[int, int], float]  # step (from 0), total steps -> factor
BatchSchedule = Callable[[int], int]  # epoch (from 0) -> factor


def constant() -> Schedule:
    """Return the schedule that is always 1."""
    return lambda *_: 1.0


def polynomial(power: float = 1.1) -> Schedule:
    """Return (1 - step / total)^power: linear decay with power 1."""
    return lambda step, total: (1 - _done(step, total)) ** power


def cosine() -> Schedule:
    """Return (1 + cos(pi step / total)) / 2."""
    return lambda step, total: (1 + math.cos(math.pi * _done(step, total))) / 2


def stepwise(at: tuple[float, ...] = (0.5, 0.75), factor: float = 0.1) -> Schedule:
    """Return factor^(how many of the shares `at` of the training are done)."""
    return lambda step, total: factor ** sum(_done(step, total) >= share for share in at)


def warmup(then: Schedule, steps: int) -> Schedule:
    """Return (step + 1) / steps times the start of `then` for the first steps, and `then` over the rest.

    When called, it raises UsageError where the training has no more steps than the warm-up.
    """

    def schedule(step: int, total: int) -> float:
        rest = total - steps
        if rest < 1:
            raise UsageError(
                f"The warm-up has {steps:,} steps, and the whole training {total:,}. Expected a shorter warm-up: "
                "nothing would come after it. Lower `warmup:steps`, or train for longer."
            )
        return (step + 1) / steps * then(0, rest) if step < steps else then(step - steps, rest)

    return schedule


def scaled_rate(lr: float, batch_size: int, reference: int, rule: str) -> float:
    """Return the rate for a batch size, given that for another: `linear` lr B / R, `sqrt` lr sqrt(B / R), or `none`.

    Linear keeps the noise scale eta / B.  Raises UsageError for other rules and for sizes below 1.
    """
    rules = {"none": 0.0, "sqrt": 0.5, "linear": 1.0}
    if rule not in rules:
        raise UsageError(
            f"There is no rule `{rule}`.{did_you_mean(rule, rules)} Expected one of {', '.join(rules)}. Mend the rule."
        )
    if batch_size < 1 or reference < 1:
        raise UsageError(
            f"The rate is to be scaled from batch size {reference} to {batch_size}. Expected 1 or more. Mend the sizes."
        )
    return float(lr * (batch_size / reference) ** rules[rule])


def parse_schedule(text: str) -> Schedule:
    """Read a schedule; the words are in the header of this file.  Raises UsageError where they are not these."""
    first, plus, rest = text.partition("+")
    name, options = _worded(first, text)
    if name == "warmup":
        if rest.startswith("warmup"):
            raise UsageError(f"`{text}` warms up twice. Expected once. Name what comes after: `{first}+constant`.")
        return warmup(parse_schedule(rest if plus else "constant"), options["steps"])
    if plus:
        raise UsageError(
            f"`{text}` goes on after `{first}`. Expected a `+` only after a warm-up. Try `warmup:steps=100+{first}`."
        )
    return {"constant": constant, "polynomial": polynomial, "cosine": cosine, "step": stepwise}[name](**options)


def parse_batch_schedule(text: str) -> BatchSchedule:
    """Read `2@10,4@20`, or `constant`: epoch -> what the first batch size is multiplied by.

    Raises UsageError where it is not factors with rising epochs.
    """
    changes = [] if text == "constant" else [re.fullmatch(r"(\d+)@(\d+)", part.strip()) for part in text.split(",")]
    pairs = [(int(found[2]), int(found[1])) for found in changes if found]
    epochs = [epoch for epoch, _ in pairs]
    if len(pairs) < len(changes) or epochs != sorted(set(epochs)) or any(factor < 1 for _, factor in pairs):
        raise UsageError(
            f"The batch schedule is `{text}`. Expected factors of 1 or more with rising epochs. Write `2@10,4@20`: "
            "twice the first size from epoch 10 on, four times from epoch 20 on."
        )
    return lambda epoch: next((factor for start, factor in reversed(pairs) if epoch >= start), 1)


def _done(step: int, total: int) -> float:
    """Return the share of the training that is done, 1 beyond its end."""
    return min(step / total, 1.0) if total > 0 else 1.0


_KNOWN: dict[str, dict[str, Any]] = {  # what each option must be
    "constant": {},
    "polynomial": {"power": "a number above 0"},
    "cosine": {},
    "step": {"at": "rising shares of the training, as [0.5,0.75]", "factor": "a number above 0"},
    "warmup": {"steps": "a whole number of 1 or more"},
}


def _worded(part: str, text: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the options of one schedule."""
    name, _, given = part.partition(":")
    if name not in _KNOWN:
        raise UsageError(
            f"There is no schedule `{name}`.{did_you_mean(name, _KNOWN)} Expected one of {', '.join(_KNOWN)}. Mend "
            "`--schedule`."
        )
    try:
        options = tomllib.loads(f"given = {{ {given} }}")["given"]
    except tomllib.TOMLDecodeError:
        options = {given: None}
    known = _KNOWN[name]
    for key, value in options.items():
        if key not in known:
            raise UsageError(
                f"`{text}`: `{name}` has no option `{key}`.{did_you_mean(key, known)} Expected "
                f"{' or '.join(f'`{one}=...`' for one in known) or 'none'}, separated by commas. Mend the schedule."
            )
        if not _sound(key, value):
            raise UsageError(f"`{text}`: `{key}` is {value!r}. Expected {known[key]}. Mend the schedule.")
    if name == "warmup" and not options:
        raise UsageError(f"`{text}`: a warm-up of how many steps? Expected a number. Write `warmup:steps=100`.")
    return name, options


def _sound(key: str, value: Any) -> bool:
    if key == "steps":
        return type(value) is int and value >= 1
    if key == "at":
        numbers = isinstance(value, list) and all(type(one) in (int, float) for one in value)
        return numbers and value == sorted(set(value)) and all(0 < one < 1 for one in value) and bool(value)
    return type(value) in (int, float) and 0 < value < math.inf
