import re

import pytest
import torch

import gapscope
from gapscope.cli.news import News
from gapscope.cli.run_folder import arranged
from gapscope.cli.settings import Common
from gapscope.errors import UsageError

RECIPE = {"optimizer": "sgd", "batch_size": 8, "lr": 0.1, "seed": 0}


@pytest.fixture
def keep(tmp_path):
    """Save a checkpoint that is unlike every other, with a record of its training."""
    made = []

    def keep(name, **training):
        model = torch.nn.Linear(1, 1)
        torch.nn.init.constant_(model.weight, len(made))
        made.append(name)
        gapscope.save_checkpoint(tmp_path / name, model, training=training)

    return keep


def order(folder):
    axis, found = arranged([folder], Common(), News(quiet=True))
    return axis, [one.path.name for one in found]


def refusal(folder):
    with pytest.raises(UsageError, match=r"runs: .*Expected one run. Name its checkpoints: `gapscope track ") as caught:
        order(folder)
    return str(caught.value).replace(str(folder), "runs")


def test_several_runs_are_named_and_a_pattern_that_fits_the_first_alone(keep, tmp_path):
    for batch in (8, 16):
        for seed in (0, 1):
            for epoch in (1, 2):
                recipe = {**RECIPE, "batch_size": batch, "seed": seed, "epochs": epoch, "steps": 9 * epoch}
                keep(f"mlp-b{batch}-s{seed}-epoch{epoch}.pt", **recipe)
    assert refusal(tmp_path) == (
        "runs holds the checkpoints of 4 runs: batch_size 16 seed 0 (2), batch_size 16 seed 1 (2), batch_size 8 seed 0 "
        "(2), batch_size 8 seed 1 (2). Expected one run. Name its checkpoints: "
        "`gapscope track runs/mlp-b16-s0-epoch*.pt`."
    )


def test_a_pattern_that_would_fit_another_run_is_spelled_out(keep, tmp_path):
    for name, seed in (("a-1.pt", 0), ("a-2.pt", 1), ("a-3.pt", 0)):
        keep(name, **{**RECIPE, "seed": seed, "steps": int(name[2])})
    assert refusal(tmp_path).endswith("Name its checkpoints: `gapscope track runs/a-1.pt runs/a-3.pt`.")


def test_a_rate_may_have_a_schedule_but_not_two_values_at_one_step(keep, tmp_path):
    keep("a.pt", **RECIPE, steps=1)
    keep("b.pt", **{**RECIPE, "lr": 0.01}, steps=2)
    assert order(tmp_path) == ("steps", ["a.pt", "b.pt"])
    keep("c.pt", **{**RECIPE, "lr": 0.01}, steps=1)
    assert re.search(r"2 runs: lr 0.1 \(1\), lr 0.01 \(2\)\. ", refusal(tmp_path))


def test_what_records_nothing_is_kept(keep, tmp_path):
    keep("a.pt", **RECIPE, steps=1)
    keep("b.pt", steps=2, seed=0)
    keep("c.pt", steps=3)
    assert order(tmp_path) == ("steps", ["a.pt", "b.pt", "c.pt"])


def test_progress_tells_no_runs_apart(keep, tmp_path):
    for steps in (20, 3):
        keep(f"{steps}.pt", **RECIPE, steps=steps, train_loss=1 / steps, stopped="steps", last_lr=0.1 / steps)
    assert order(tmp_path) == ("steps", ["3.pt", "20.pt"])


def test_names_that_begin_with_nothing_in_common_have_a_pattern_within_the_folder(keep, tmp_path):
    for name, seed in (("first.pt", 0), ("second.pt", 0), ("third.ckpt", 1), ("other.ckpt", 1)):
        keep(name, **{**RECIPE, "seed": seed, "steps": len(name)})
    assert refusal(tmp_path).endswith("Name its checkpoints: `gapscope track runs/*.pt`.")
