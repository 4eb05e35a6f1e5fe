"""Constructed courses: the verdicts follow from numbers that are given here, whatever a network does."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gapscope.training.recipe import Recipe
from gapscope.training.studies.dai_zhu import Plan
from gapscope.training.studies.dai_zhu.courses import ACCURACY, LOSS, TOP, TRACE, Course, Point, Setting, Trained
from gapscope.training.studies.dai_zhu.flatness import barrier, flatness, once, pairs, per_doubling
from gapscope.training.studies.lab import Lab, Run, Spec
from gapscope.training.studies.plan import read_plan

TOML = Path(__file__).parents[3] / "gapscope" / "training" / "studies" / "dai_zhu" / "plan.toml"
EPOCHS = (1, 2, 4, 8)
GRID = [Setting(scale=scale, batch_size=size) for size in (16, 64) for scale in (1e-3, 2e-3, 4e-3)]
HEAVY = Setting(scale=2e-3, batch_size=64, momentum=0.9)
SPEC = Spec(recipe=Recipe(epochs=8), model="mlp", data="digits")


@dataclass(frozen=True)
class Given(Trained):
    """Courses whose numbers are a function of the setting, the epoch and the seed."""

    numbers: Any = None

    def values(self, chosen, path):
        return {
            setting: np.array([self.numbers[path](setting, point.epoch, seed) for seed, point in enumerate(points)])
            for setting, points in chosen.items()
        }


def noise(setting, seed):
    """Return a factor near 1 that differs between settings and seeds."""
    return math.exp(0.01 * math.sin(7 * seed + 1e3 * setting.scale + setting.batch_size + 3 * setting.momentum))


def loss(setting, epoch, seed):
    """Return a loss that is the same function of eta x steps everywhere."""
    return math.exp(-500 * setting.scale * epoch) * noise(setting, seed)


def given(tmp_path, settings=(*GRID, HEAVY), *, seeds=3, diverged=None, **numbers):
    plan = read_plan(Plan, TOML, "smoke", {"epochs": 8, "seeds": seeds})
    base = {
        LOSS: loss,
        TOP: lambda setting, epoch, seed: noise(setting, seed) / setting.scale,
        TRACE: lambda setting, epoch, seed: noise(setting, seed) / setting.scale,
        ACCURACY: lambda setting, epoch, seed: 90 - 1e3 * setting.scale + noise(setting, seed),
    }

    def course(setting, seed):
        points = tuple(Point(epoch, Path(f"{epoch}.pt"), loss(setting, epoch, seed)) for epoch in EPOCHS)
        run = Run(spec=SPEC, path=Path("8.pt"), epochs=8, steps=8, train_loss=points[-1].loss, stopped="")
        return Course(run, points)

    courses = {setting: [course(setting, seed) for seed in range(seeds)] for setting in settings}
    return Given(Lab(tmp_path), plan, courses, diverged or {}, numbers=base | numbers)


def verdicts(made):
    return [claim.verdict for claim in made[1]]


def test_curvature_that_falls_as_one_over_the_ratio_is_halved_per_doubling(tmp_path):
    trained = given(tmp_path)
    factor, (low, high) = per_doubling(trained, trained.ends, TOP, "ratio")
    assert factor == pytest.approx(0.5, rel=0.01)
    assert low < factor < high < 0.55
    part, _ = made = flatness(trained)
    assert verdicts(made) == ["shows"] * 4
    title, shown, interval = part.tables[0].lines[2].cells
    assert title == "top eigenvalue"
    assert float(shown.removeprefix("x ")) == pytest.approx(factor, abs=1e-3)
    assert float(interval.split()[2]) == pytest.approx(high, abs=1e-3)


@pytest.mark.parametrize(("power", "answer"), [(-1.0, "shows"), (1.0, "does not show"), (0.0, "cannot tell")])
def test_the_sign_of_the_slope_decides_on_flatness_and_on_accuracy(tmp_path, power, answer):
    trained = given(
        tmp_path,
        **{
            TOP: lambda setting, epoch, seed: noise(setting, seed) * setting.scale**power,
            ACCURACY: lambda setting, epoch, seed: 90 + 100 * power * math.log2(setting.scale) + noise(setting, seed),
        },
    )
    assert verdicts(flatness(trained)) == [answer] * 4


@pytest.mark.parametrize("settings", [GRID[:5], GRID[:4], GRID[1:]])
def test_what_depends_on_the_batch_size_alone_is_no_effect_of_the_ratio(tmp_path, settings):
    def top(setting, epoch, seed):
        return setting.scale ** (0.01 * (seed - 1)) / setting.batch_size

    trained = given(tmp_path, settings, **{TOP: top})
    factor, (low, high) = per_doubling(trained, trained.ends, TOP, "ratio")
    assert factor == pytest.approx(1, rel=1e-9)
    assert 0.9 < low < 1 < high < 1.1
    assert verdicts(flatness(trained))[0] == "cannot tell"


def test_sizes_with_a_single_ratio_say_nothing(tmp_path):
    trained = given(tmp_path, (GRID[0], GRID[4]))
    assert math.isnan(per_doubling(trained, trained.ends, TOP, "ratio")[0])
    assert verdicts(flatness(trained)) == ["cannot tell"] * 4


def test_at_equal_eta_x_steps_the_epochs_are_inverse_to_the_ratio(tmp_path):
    trained = given(tmp_path)
    epochs = {setting.scale: {point.epoch for point in points} for setting, points in trained.equal_time.items()}
    assert epochs == {1e-3: {8}, 2e-3: {4}, 4e-3: {2}}
    assert trained.equal_loss.keys() == trained.courses.keys()  # loss is a function of eta x steps in these
    factor, _ = per_doubling(trained, trained.equal_loss, LOSS, "ratio")
    assert factor == pytest.approx(1, abs=0.02)
    assert trained.epochs == [1, 2, 4, 8]


def test_places_of_the_same_weights_are_shown_once(tmp_path):
    trained = given(tmp_path)
    ends, time, loss = trained.ends, trained.at_epoch(1), trained.at_epoch(2)
    assert once({"a": ends, "b": time, "c": loss}) == {"a": ends, "b": time, "c": loss}
    assert once({"a": ends, "b": time, "c": time}) == {"a": ends, "b, and c": time}
    ((name, shown),) = once({"a": ends, "b": dict(ends), "c": dict(ends)}).items()
    assert name == "a, and b, and c"
    assert shown is ends  # which has columns of its own


def test_settings_that_never_have_the_loss_are_left_out_and_named(tmp_path):
    trained = given(tmp_path)
    far = GRID[2]
    course = trained.courses[far][1]
    trained.courses[far][1] = Course(course.run, tuple(Point(p.epoch, p.path, p.loss * 1e-9) for p in course.points))
    part, _ = flatness(trained)
    assert far not in trained.equal_loss
    assert len(trained.equal_loss) == 6
    assert any("Not at equal training loss: eta 0.064 B 16: a seed has no saved epoch" in note for note in part.notes)


def test_a_loss_of_zero_is_a_loss(tmp_path):
    trained = given(tmp_path, GRID[:2])
    for several in trained.courses.values():
        several[:] = [Course(one.run, tuple(Point(p.epoch, p.path, 0.0) for p in one.points)) for one in several]
    assert trained.equal_loss.keys() == trained.courses.keys()


@pytest.mark.parametrize(("factor", "answer"), [(1.0, "shows"), (2.0, "does not show"), (1.25, "cannot tell")])
def test_batch_sizes_of_one_ratio_and_momentum_agree_or_not(tmp_path, factor, answer):
    def top(setting, epoch, seed):
        return noise(setting, seed) * (factor if setting.batch_size == 64 else 1) * factor ** (setting.momentum > 0)

    part, claims = pairs(given(tmp_path, **{TOP: top}))
    assert [claim.verdict for claim in claims] == [answer] * 2
    titles = [line.cells[0] for line in part.tables[0].lines if len(line.cells) == 1]
    assert titles[0] == "eta / B 0.001: B 64 over 16"
    assert titles[-1] == "eta / ((1 - m) B) 0.002: momentum 0.9 over none, B 64"
    ratio = part.record.quantities["top_eigenvalue_ratio"].value
    np.testing.assert_allclose(ratio, factor, rtol=0.03)


def test_what_diverged_is_said_and_is_in_no_table(tmp_path):
    part, _ = flatness(given(tmp_path, GRID[:5], diverged={GRID[5]: 2}))
    assert part.notes[0] == "2 of 3 runs diverged at eta 0.256, B 64: that setting is in no table and no claim."
    assert len(part.tables[1].lines) == 5


def test_where_everything_diverged_nothing_can_be_told(tmp_path):
    trained = given(tmp_path, (), diverged=dict.fromkeys(GRID, 3))
    made = flatness(trained)
    assert verdicts(made) == ["cannot tell"] * 4
    assert verdicts(pairs(trained)) == []
    assert barrier(trained).record.notes == ("fewer than two settings",)


def test_one_seed_gives_no_interval(tmp_path):
    trained = given(tmp_path, seeds=1)
    assert verdicts(flatness(trained)) == ["cannot tell"] * 4
    assert verdicts(pairs(trained)) == ["cannot tell"] * 2


def test_the_rate_of_a_setting_is_its_noise_scale_times_batch_and_friction():
    assert GRID[2].rate == pytest.approx(0.064)
    assert HEAVY.rate == pytest.approx(2e-3 * 0.1 * 64)
    assert HEAVY.rate / (1 - HEAVY.momentum) / HEAVY.batch_size == pytest.approx(HEAVY.scale)
