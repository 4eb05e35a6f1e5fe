import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, PolynomialLR

from gapscope.errors import UsageError
from gapscope.training.schedules import parse_batch_schedule, parse_schedule, scaled_rate


@pytest.mark.parametrize(
    ("text", "factors"),
    [
        ("constant", {0: 1, 50: 1, 100: 1}),
        ("polynomial", {0: 1, 50: 0.5**1.1, 99: 0.01**1.1, 100: 0, 200: 0}),
        ("polynomial:power=2", {0: 1, 50: 0.25, 90: 0.01}),
        ("cosine", {0: 1, 25: (1 + math.sqrt(0.5)) / 2, 50: 0.5, 100: 0, 101: 0}),
        ("step", {0: 1, 49: 1, 50: 0.1, 74: 0.1, 75: 0.01, 500: 0.01}),
        ("step:at=[0.2],factor=0.5", {19: 1, 20: 0.5, 99: 0.5}),
        ("warmup:steps=4", {0: 0.25, 1: 0.5, 3: 1, 4: 1, 99: 1}),
        ("warmup:steps=20+cosine", {0: 0.05, 19: 1, 20: 1, 60: 0.5, 100: 0}),
        ("warmup:steps=20+polynomial:power=1", {9: 0.5, 20: 1, 40: 0.75}),
    ],
)
def test_words_mean_their_formulas(text, factors):
    schedule = parse_schedule(text)
    for step, factor in factors.items():
        assert schedule(step, 100) == pytest.approx(factor, abs=1e-15)


def test_torch_takes_them_and_has_the_same_polynomial():
    def rates(build):
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.4)
        scheduler, found = build(optimizer), []
        for _ in range(10):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found

    schedule = parse_schedule("polynomial:power=1.1")
    ours = rates(lambda optimizer: LambdaLR(optimizer, lambda step: schedule(step, 10)))
    assert ours == pytest.approx(rates(lambda optimizer: PolynomialLR(optimizer, 10, power=1.1)), rel=1e-14)


@pytest.mark.parametrize("total", [5, 20])
def test_a_warm_up_that_nothing_comes_after_is_refused(total):
    schedule = parse_schedule("warmup:steps=20+cosine")
    assert schedule(20, 21) == 1
    message = rf"The warm-up has 20 steps, and the whole training {total}\. Expected a shorter .* Lower `warmup:steps`,"
    with pytest.raises(UsageError, match=message):
        schedule(0, total)


def test_a_training_without_steps_is_at_its_end():
    assert parse_schedule("cosine")(0, 0) == 0.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cosin", r"no schedule `cosin`\. Did you mean `cosine`\? Expected one of constant, .* Mend `--schedule`\."),
        ("", r"no schedule ``\. Expected one of"),
        (
            "polynomial:pwer=2",
            r"`polynomial` has no option `pwer`\. Did you mean `power`\? Expected `power=\.\.\.`, sep",
        ),
        ("cosine:end=0", r"`cosine` has no option `end`\. Expected none, separated"),
        ("polynomial:power", r"`power` is None\. Expected a number above 0\. Mend the schedule\."),
        ("polynomial:power=-1", r"`power` is -1\. Expected a number above 0\. Mend the schedule\."),
        ("polynomial:power=nan", r"`power` is nan\. Expected a number above 0\."),
        ("step:at=[0.5,0.2]", r"`at` is \[0\.5, 0\.2\]\. Expected rising shares of the training, as \[0\.5,0\.75\]\."),
        ("step:at=[]", r"`at` is \[\]\. Expected rising shares"),
        ("step:at=3", r"`at` is 3\. Expected rising shares"),
        ("warmup", r"`warmup`: a warm-up of how many steps\? Expected a number\. Write `warmup:steps=100`\."),
        ("warmup:steps=0", r"`steps` is 0\. Expected a whole number of 1 or more\."),
        ("warmup:steps=1.5", r"`steps` is 1\.5\. Expected a whole number"),
        ("warmup:steps=5+cosin", r"no schedule `cosin`\. Did you mean `cosine`\?"),
        ("warmup:steps=5+warmup:steps=5", r"warms up twice\. Expected once\. .* `warmup:steps=5\+constant`\."),
        ("cosine+step", r"goes on after `cosine`\. Expected a `\+` only after .* Try `warmup:steps=100\+cosine`\."),
    ],
)
def test_other_words_are_refused(text, message):
    with pytest.raises(UsageError, match=message):
        parse_schedule(text)


def test_a_batch_schedule_multiplies_the_first_size():
    factor = parse_batch_schedule("2@10, 4@20")
    assert [factor(epoch) for epoch in (0, 9, 10, 19, 20, 100)] == [1, 1, 2, 2, 4, 4]
    assert [parse_batch_schedule("constant")(epoch) for epoch in (0, 50)] == [1, 1]
    assert parse_batch_schedule("3@0")(0) == 3


@pytest.mark.parametrize("text", ["", "2", "2@", "@3", "2@x", "0@3", "2@10,4@10", "2@10,4@5", "2@10,", "-2@3", "1.5@3"])
def test_other_batch_schedules_are_refused(text):
    with pytest.raises(UsageError, match=r"Expected factors of 1 or more with rising epochs\. Write `2@10,4@20`"):
        parse_batch_schedule(text)


def test_rates_are_scaled_by_rule():
    assert scaled_rate(0.1, 1024, 256, "linear") == 0.4
    assert scaled_rate(0.1, 1024, 256, "sqrt") == 0.2
    assert scaled_rate(0.1, 1024, 256, "none") == 0.1
    with pytest.raises(
        UsageError, match=r"no rule `liner`\. Did you mean `linear`\? Expected one of none, sqrt, linear"
    ):
        scaled_rate(0.1, 1024, 256, "liner")
    with pytest.raises(UsageError, match=r"from batch size 0 to 8\. Expected 1 or more\. Mend the sizes\."):
        scaled_rate(0.1, 8, 0, "linear")
