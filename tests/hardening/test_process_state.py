"""A measurement leaves model and process as they were: after success, failure and interrupt, whatever surrounds it."""

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gapscope
from gapscope.callbacks.recorder import Recorder
from gapscope.measure.analyzers import analyzer_class, names
from gapscope.measure.surroundings import interruption_point, interrupts_wait
from tests.hardening.process import changed, picture

X = torch.randn(80, 5, generator=torch.Generator().manual_seed(0))
Y = X[:, :3].argmax(1)
QUICK = {  # what would take long otherwise: what they do is the same
    "adaptive-sharpness": {
        "rhos_l2": (0.5,),
        "rhos_linf": (4e-3,),
        "rhos_average": (0.1,),
        "steps": 3,
        "draws": 2,
        "probes": 2,
    },
    "epsilon-sharpness": {"epsilons": (1e-3,), "draws": 1},
    "density": {"probes": 2, "steps": 4},
    "path": {"points": 5},
}
RECORDED = {"batch_size": 8, "lr": 0.1, "momentum": 0.0, "weight_decay": 0.0, "optimizer": "sgd"}


class Calls:
    """Count from 1; an `itertools.count` cannot be copied since Python 3.14."""

    def __init__(self):
        self.number = 0

    def __next__(self):
        self.number += 1
        return self.number


class Net(nn.Module):
    """Of all that has state: modes, buffers, a frozen parameter, gradients, a hook; it can fail at one of its calls."""

    def __init__(self, fails_at: int = 0, error: BaseException | None = None) -> None:
        super().__init__()
        self.first, self.norm, self.drop = nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Dropout()
        self.last = nn.Linear(6, 3)
        self.first.bias.requires_grad_(False)
        self.drop.eval()
        self.norm.register_forward_hook(lambda *_: None)
        self.calls, self.fails_at, self.error = Calls(), fails_at, error

    def forward(self, x):
        if next(self.calls) == self.fails_at:
            raise self.error
        return self.last(self.drop(torch.tanh(self.norm(self.first(x)))))


class Drawing(Net):
    """Uses up random numbers of every kind, and no other ones."""

    def forward(self, x):
        torch.rand(3), np.random.rand(3), random.random()
        return super().forward(x)


def net(kind=Net, other=0, **fails):
    torch.manual_seed(1)
    made, rng = kind(), torch.Generator().manual_seed(other)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * bool(other) * torch.randn(parameter.shape, generator=rng))
    nn.functional.cross_entropy(made(X), Y).backward()
    made.calls = Calls()
    for name, value in fails.items():
        setattr(made, name, value)
    return made


def others(name):
    """Return the further models that an analyzer of several needs."""
    return [net(other=i) for i in range(1, analyzer_class(name).arity)]


def measured(model, name, beside=()):
    """Return every number that an analyzer finds, as bytes."""
    problems = [
        gapscope.problem(one, (X, Y), test_data=(X[:20], Y[:20]), training=RECORDED | {"batch_size": 8 + i})
        for i, one in enumerate((model, *beside))
    ]
    report = gapscope.measure(problems if beside else problems[0], [analyzer_class(name)(**QUICK.get(name, {}))])
    return {key: one.value.tobytes() for key, one in report.results[name].quantities.items()}


@pytest.fixture(scope="module", params=names())
def known(request):
    """An analyzer, what it finds, and how many calls of the model that takes; libraries are imported by then."""
    model = net()
    with warnings.catch_warnings():  # SciPy's sparse matrices add filters of their own when they are imported
        found = measured(model, request.param, others(request.param))
    return request.param, found, next(model.calls) - 1


def test_success_changes_nothing(known):
    name, found, _ = known
    model, beside = net(), others(name)
    before = picture(model)
    assert measured(model, name, beside) == found
    assert changed(before, picture(model)) == []


@pytest.mark.parametrize("error", [ValueError("of the model"), KeyboardInterrupt()], ids=repr)
def test_a_call_that_raises_changes_nothing_whichever_it_is(known, error):
    name, _, calls = known
    beside = others(name)
    for at in sorted({2, 4, calls // 3, calls}):
        model = net(fails_at=at, error=error)
        before = picture(model)
        with pytest.raises((type(error), gapscope.GapscopeError)):
            measured(model, name, beside)
        assert changed(before, picture(model)) == [], at


@pytest.mark.parametrize("ctx", ["no_grad", "inference_mode", "autocast", "default device"])
def test_what_surrounds_a_measurement_changes_no_bit_of_it(known, ctx):
    """Under `torch.no_grad()` eigenvalues came out as 0, under autocast a gap 0.6 % off: both without a word."""
    name, found, _ = known
    model, beside = net(), others(name)
    entered = {
        "no_grad": torch.no_grad,
        "inference_mode": torch.inference_mode,
        "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        "default device": lambda: torch.device("meta"),
    }[ctx]
    with entered():
        assert measured(model, name, beside) == found


def test_a_problem_by_itself_has_its_derivatives_where_gradients_are_off():
    problem = gapscope.problem(net(), (X, Y))
    v = torch.ones(problem.size)

    def found():
        return [
            problem.gradient(),
            problem.hvp(v),
            problem.hessian().matvec(v),
            problem.gauss_newton().matvec(v),
            problem.curvature_along(v)[0],
            problem.gauss_newton_diagonal(),
        ]

    wanted = found()
    assert all(bool(one.any()) for one in wanted)
    for ctx in (torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16)):
        with ctx:
            assert all(torch.equal(a, b) for a, b in zip(found(), wanted, strict=True))


def test_random_numbers_that_a_model_or_a_loader_draws_are_put_back():
    model = net(Drawing)
    loader = DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True)
    before = picture(model)
    problem = gapscope.problem(model, loader)
    gapscope.measure(problem, [gapscope.Gap(), gapscope.Eigenvalues()])
    assert changed(before, picture(model)) == []


class Bad(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.last, self.value = nn.Linear(5, 3), value

    def forward(self, x):
        return self.last(x) * self.value


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_changes_nothing(value):
    model = Bad(value)
    before = picture(model)
    with pytest.raises(gapscope.GapscopeError):
        gapscope.measure(gapscope.problem(model, (X, Y)), [gapscope.Eigenvalues()])
    assert changed(before, picture(model)) == []


def test_a_loss_that_raises_changes_nothing():
    from gapscope.measure.loading.losses import Loss

    calls = itertools.count(1)

    def loss(outputs, targets):
        if next(calls) == 9:
            raise ZeroDivisionError("of the loss")
        return nn.functional.cross_entropy(outputs, targets, reduction="none")

    model = net()
    problem = gapscope.problem(model, (X, Y), loss=Loss(name="mine", per_sample=loss))
    before = picture(model)
    with pytest.raises(ZeroDivisionError, match="of the loss"):
        gapscope.measure(problem, [gapscope.Eigenvalues()])
    assert next(calls) > 9
    assert changed(before, picture(model)) == []


def test_loading_and_measuring_have_their_threads_and_give_back_the_callers(small):
    torch.set_num_threads(2)
    try:
        few, given = gapscope.load(small), gapscope.load(small, threads=3)
        assert torch.get_num_threads() == 2
        told = [gapscope.measure(one, [gapscope.Gap()]).environment["threads"] for one in (few, given)]
        assert told == [1, 3]  # so small a network is measured on one
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


# torch cannot unset its switches again: each setting has a process of its own
SWITCHES = """
import json, os, sys
import torch
from torch import nn
from gapscope.measure.differentiable import in_precision, plain
from tests.hardening.process import precisions
for setting in ("pass", "torch.set_float32_matmul_precision('high')", "torch.backends.fp32_precision = 'tf32'",
                "torch.backends.cudnn.fp32_precision = 'ieee'", "torch.backends.cudnn.conv.fp32_precision = 'tf32'"):
    for measures in (False, True):
        if os.fork() == 0:
            exec(setting)
            if measures:
                with plain(nn.Linear(2, 2), set()):
                    inside = precisions(turned=False)
                    assert set(inside) == {"ieee"}, inside
                    with in_precision("tf32", torch.device("cpu")):
                        assert set(precisions(turned=False)) == {"tf32"}, precisions(turned=False)
                    assert precisions(turned=False) == inside
            print(json.dumps([setting, precisions()]), flush=True)
            os._exit(0)
        os.wait()
"""


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="torch 2.9 brought these switches")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_precision_switches_are_as_before_and_follow_the_general_one_as_before():
    """After a measurement, `torch.backends.fp32_precision = "ieee"` left convolutions in TF32."""
    told = subprocess.run([sys.executable, "-c", SWITCHES], capture_output=True, text=True, check=True).stdout
    lines = [json.loads(line) for line in told.splitlines()]
    assert len(lines) == 10
    for plain, measured in zip(lines[::2], lines[1::2], strict=True):
        assert plain == measured


# --- callbacks and training


def recorder(tmp_path):
    return Recorder(DataLoader(TensorDataset(X, Y), batch_size=16, shuffle=True), folder=tmp_path / "reports")


def test_a_callback_changes_nothing_and_fails_as_a_warning_whatever_the_model_raises(tmp_path):
    for at, error in itertools.product((4, 9, 15), (ValueError("a"), TypeError("b"), KeyError("c"), MemoryError())):
        model = net(Drawing, fails_at=at, error=error)
        before = picture(model)
        with pytest.warns(UserWarning, match="gapscope: step 7 was not measured."):
            assert recorder(tmp_path).measure(model, 7) == {}
        assert changed(before, picture(model)) == []
    assert not (tmp_path / "reports").exists()
    with pytest.warns(UserWarning, match="gapscope: step 7 was not measured. ValueError: of mine"):
        recorder(tmp_path).measure(net(fails_at=15, error=ValueError("of mine")), 7)


def test_an_interrupt_passes_through_a_callback(tmp_path):
    model = net(Drawing, fails_at=9, error=KeyboardInterrupt())
    before = picture(model)
    with pytest.raises(KeyboardInterrupt):
        recorder(tmp_path).measure(model, 1)
    assert changed(before, picture(model)) == []


@pytest.mark.parametrize("at", [0, 2, 20])
def test_curvature_for_an_optimizer_changes_nothing_but_the_optimizer(at):
    from gapscope.training import LayerCurvature, make_optimizer

    model = net(Drawing, fails_at=at, error=KeyboardInterrupt())
    optimizer = make_optimizer("mclr", model, lr=0.1, momentum=0.0, weight_decay=0.0, options={})
    curvature = LayerCurvature(model, "cross-entropy")
    before = picture(model)
    try:
        curvature.refresh(optimizer, X, Y)
    except KeyboardInterrupt:
        assert at
    assert changed(before, picture(model)) == []


# --- Ctrl-C

MOMENTS = 60
SIX = [gapscope.Eigenvalues(max_matvecs=6)]


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs an alarm")
def test_ctrl_c_at_a_random_moment_changes_nothing():
    """A layer's mode was left changed where Ctrl-C came between two steps of the interpreter that put it back."""
    started = time.process_time()
    gapscope.measure(gapscope.problem(net(), (X, Y)), SIX)
    whole = time.process_time() - started
    rng, hit = random.Random(0), 0
    handler = signal.signal(signal.SIGVTALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        for _ in range(MOMENTS):
            model = net()
            before = picture(model)
            try:
                problem = gapscope.problem(model, (X, Y))
                signal.setitimer(signal.ITIMER_VIRTUAL, rng.uniform(0.01, 1) * whole)
                gapscope.measure(problem, SIX)
            except KeyboardInterrupt:
                hit += 1
            finally:
                signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            assert changed(before, picture(model)) == []
    finally:
        signal.signal(signal.SIGVTALRM, handler)
    assert hit > MOMENTS / 4


class Pressed(Net):
    """Ctrl-C comes in one of its calls, once or twice."""

    times = 1

    def forward(self, x):
        at = next(self.calls)
        if at == self.fails_at:
            for _ in range(self.times):
                signal.raise_signal(signal.SIGINT)
            self.passed = at
        return self.last(self.drop(torch.tanh(self.norm(self.first(x)))))


def pressed(**more):
    """Return a model in one of whose calls Ctrl-C comes, and its problem in micro-batches of 20."""
    model = net(Pressed, fails_at=6, passed=None, **more)
    return model, gapscope.problem(model, (X, Y), batch_size=20)


def test_ctrl_c_waits_for_the_end_of_a_micro_batch_and_a_second_one_does_not():
    for times, passed in ((1, 6), (2, None)):
        model, problem = pressed(times=times)
        with pytest.raises(KeyboardInterrupt):
            gapscope.measure(problem, SIX)
        assert model.passed == passed
        assert next(model.calls) == 7  # no further call
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_does_what_the_callers_handler_does():
    seen = []
    own = signal.signal(signal.SIGINT, lambda number, frame: seen.append((number, frame.f_code.co_name)))
    try:
        model, problem = pressed()
        gapscope.measure(problem, SIX)
        assert seen == [(signal.SIGINT, "forward")]
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        model, problem = pressed()
        gapscope.measure(problem, SIX)
    finally:
        signal.signal(signal.SIGINT, own)
    assert model.passed == 6


def test_ctrl_c_after_the_last_micro_batch_is_not_lost():
    calls = net()
    gapscope.measure(gapscope.problem(calls, (X, Y)), [gapscope.Gap()])
    model = net(Pressed, fails_at=next(calls.calls) - 1, passed=None)
    problem = gapscope.problem(model, (X, Y))
    with pytest.raises(KeyboardInterrupt):
        gapscope.measure(problem, [gapscope.Gap()])
    assert model.passed


def test_in_another_thread_nothing_waits():
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(gapscope.measure, gapscope.problem(net(), (X, Y)), SIX).result()
    assert found.results["eigenvalues"].quantities
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_ctrl_c_is_not_raised_in_a_thread_that_measures_meanwhile():
    raised = []
    beside = gapscope.problem(net(), (X, Y), batch_size=20)

    def measure_beside():
        try:
            gapscope.measure(beside, SIX)
        except BaseException as error:  # what is looked for
            raised.append(error)

    with interrupts_wait():
        signal.raise_signal(signal.SIGINT)
        thread = threading.Thread(target=measure_beside)
        thread.start()
        thread.join()
        assert raised == []
        with pytest.raises(KeyboardInterrupt):
            interruption_point()
