from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from gapscope.errors import UsageError
from gapscope.measure.context import Context, Subject
from gapscope.results import Result, Status
from tests.problems import context, softmax_regression


@dataclass(frozen=True)
class Counter:
    """Counts its calls, and may fail."""

    name: ClassVar[str] = "counter"
    version: ClassVar[str] = "1"
    arity: ClassVar[int] = 1
    incidental: ClassVar[tuple[str, ...]] = ()
    calls: tuple = ()
    log: list = None
    fail: bool = False

    def __call__(self, context):
        self.log.append(context.split)
        if self.fail:
            raise KeyboardInterrupt
        return Result(status=Status.EXACT)


class Ended:
    """A monitor that counts endings."""

    ended = 0

    def end(self):
        self.ended += 1


def test_a_result_is_measured_once_and_shared():
    counter = Counter(log=[])
    where = context(counter, train=softmax_regression().problem)
    assert where.finished("counter") is None
    first = where.result("counter")
    assert where.result("counter") is first
    assert where.finished("counter") is first
    assert counter.log == ["train"]
    assert first.seconds > 0


def test_the_monitor_is_told_the_end_even_after_an_interrupt():
    monitor = Ended()
    where = Context(
        subjects=(Subject(problems={}, training={}),),
        analyzers={"counter": Counter(log=[], fail=True)},
        monitor=monitor,
    )
    with pytest.raises(KeyboardInterrupt):
        where.result("counter")
    assert monitor.ended == 1
    assert where.finished("counter") is None


def test_problems_are_found_by_split():
    train, test = softmax_regression().problem, softmax_regression(samples=9).problem
    where = context(train=train, test=test)
    assert where.problem() is train
    assert where.problem("test") is test
    assert where.has("test")
    assert not context(train=train).has("test")
    assert where.training() == {}


@pytest.mark.parametrize(("split", "option"), [("test", "--test-data"), ("train", "--data")])
def test_a_split_without_data_names_its_option(split, option):
    with pytest.raises(UsageError, match=f"There are no {split} data. Expected some. Name them with `{option}`"):
        context().problem(split)


def test_generators_depend_on_seed_and_purpose_alone():
    def draw(seed, purpose):
        return torch.randn(3, generator=context(seed=seed).generator(purpose)).tolist()

    assert draw(0, "a") == draw(0, "a")
    assert len({tuple(draw(seed, purpose)) for seed in (0, 1, 2**31, 2**32 - 1, -1) for purpose in "ab"}) == 10
