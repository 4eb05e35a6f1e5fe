"""Real training loops are measured as they run, and end as they would have ended."""

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gapscope
from gapscope.callbacks.recorder import Recorder
from gapscope.errors import LoadError, UsageError


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


X, Y = torch.randn(24, 5, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2] * 8)


def reports(folder="gapscope"):
    return sorted(path.name for path in Path(folder).glob("*"))


def test_measuring_leaves_no_trace():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 3))
    nn.functional.cross_entropy(model(X), Y).backward()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    slopes = [p.grad.clone() for p in model.parameters()]
    state, numbers = torch.get_rng_state(), np.random.get_state()[1].copy()
    recorder = Recorder(DataLoader(TensorDataset(X, Y), batch_size=7), every=2)
    with torch.no_grad():
        found = recorder.measure(model, 2)
    assert {"gapscope/eigenvalues/top", "gapscope/gap/train_loss"} <= found.keys()
    assert all(map(np.isfinite, found.values()))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(p.grad, slope) for p, slope in zip(model.parameters(), slopes, strict=True))
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numbers)
    report = gapscope.read("gapscope/step-000002.report.h5")
    assert report.training == {"step": 2}
    assert set(report.results) == {"eigenvalues", "gap"}


def test_every_step_sees_the_same_samples_and_none_is_measured_twice():
    torch.manual_seed(0)
    shuffled = DataLoader(TensorDataset(X + torch.randn(24, 5), Y), batch_size=24)
    recorder = Recorder(shuffled, test_data=(X, Y), every=3, analyzers=[gapscope.Gap()], folder="out")
    model = nn.Linear(5, 3)
    assert [step for step in range(1, 8) if recorder.due(step)] == [3, 6]
    first = recorder.measure(model, 3)
    assert first["gapscope/gap/loss_gap"] == pytest.approx(
        first["gapscope/gap/test_loss"] - first["gapscope/gap/train_loss"]
    )
    assert not recorder.due(3)
    assert recorder.measure(model, 3) == {}
    assert recorder.measure(model, 6) == first
    assert reports("out") == ["step-000003.report.h5", "step-000006.report.h5"]


def test_what_cannot_be_measured_is_a_warning_and_training_goes_on():
    recorder = Recorder((X, Y))
    with pytest.warns(
        UserWarning, match=r"gapscope: step 100 was not measured. `Linear` and the callback's train data .* do not fit"
    ):
        assert recorder.measure(nn.Linear(4, 3), 100) == {}
    with pytest.raises(UsageError, match=r"`every` is 0. Expected 1 step or more. Give for example `every=100`."):
        Recorder((X, Y), every=0)


class Counting(nn.Linear):
    """Counts its calls."""

    calls = 0

    def forward(self, x):
        self.calls += 1
        return super().forward(x)


class FSDPModule(nn.Sequential):
    """Named as torch's, which FSDP2 mixes into a module's class."""


class DTensor(nn.Parameter):
    """Named as torch's, of which FSDP2 makes the parameters."""


def spread(how):
    layer = Counting(5, 3)
    if how == "module":
        return FSDPModule(layer), layer
    if how == "tensor":
        layer.bias = DTensor(torch.zeros(3))
    else:
        setattr(layer.weight, how, True)
    return nn.Sequential(layer), layer


@pytest.mark.parametrize("how", ["ds_id", "_fsdp_flattened", "module", "tensor"])
def test_a_model_that_is_spread_over_processes_is_not_run_by_one_of_them(how):
    model, layer = spread(how)
    recorder = Recorder((X, Y), every=1)
    with pytest.warns(
        UserWarning, match=r"step 1 was not measured. The model is spread over the processes \(FSDP, Deep"
    ):
        assert recorder.measure(model, 1) == {}
    assert layer.calls == 0
    assert reports() == []


def test_the_names_by_which_a_spread_model_is_told_are_those_of_torch():
    from torch.distributed import fsdp
    from torch.distributed.fsdp._common_utils import FSDP_FLATTENED
    from torch.distributed.tensor import DTensor

    assert fsdp.FullyShardedDataParallel.__name__ == "FullyShardedDataParallel"
    assert (fsdp.FSDPModule.__name__, DTensor.__name__) == ("FSDPModule", "DTensor")
    assert FSDP_FLATTENED == "_fsdp_flattened"


def test_data_whose_classes_are_numbered_differently_are_not_measured_at_any_step():
    train, test = ([{"x": row, "y": names[i]} for row, i in zip(X, Y, strict=True)] for names in ("abc", "bcd"))
    recorder = Recorder(train, test_data=test, every=1)
    for step in (1, 2):
        with pytest.warns(
            UserWarning, match=r"was not measured. .* number their classes differently: only one has `a`"
        ):
            assert recorder.measure(nn.Linear(5, 3), step) == {}
    assert reports() == []


@pytest.mark.parametrize(
    ("name", "packages", "line"),
    [
        ("LightningSharpness", ("lightning.pytorch", "pytorch_lightning"), "pip install lightning"),
        ("TrainerSharpness", ("transformers",), "pip install transformers accelerate"),
    ],
)
def test_a_missing_framework_is_named_with_its_installation(monkeypatch, name, packages, line):
    import gapscope.callbacks as callbacks

    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)
    for module in ("lightning", "hugging_face"):
        monkeypatch.delitem(sys.modules, f"gapscope.callbacks.{module}", raising=False)
    with pytest.raises(LoadError, match=f"`{name}` needs .* Install it: `{line}`."):
        getattr(callbacks, name)
    with pytest.raises(AttributeError, match="has no attribute 'Other'"):
        callbacks.Other  # noqa: B018


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_lightning_run_is_measured_and_ends_the_same():
    pytest.importorskip("lightning")
    import lightning.pytorch as lightning
    from lightning.pytorch.loggers import CSVLogger

    from gapscope.callbacks import LightningSharpness

    class Net(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 3))

        def forward(self, x):
            return self.net(x)

        def training_step(self, batch, _):
            return nn.functional.cross_entropy(self(batch[0]), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    def train(*callbacks):
        lightning.seed_everything(0, verbose=False)
        model = Net()
        trainer = lightning.Trainer(
            max_steps=7,
            accelerator="cpu",
            callbacks=list(callbacks),
            logger=CSVLogger(".", "log", version=0),
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
            log_every_n_steps=100,
        )
        trainer.fit(model, DataLoader(TensorDataset(X, Y), batch_size=6, shuffle=True))
        return model.state_dict()

    plain = train()
    measured = train(LightningSharpness((X, Y), every=3))
    assert all(torch.equal(tensor, plain[name]) for name, tensor in measured.items())
    assert reports() == [f"step-00000{step}.report.h5" for step in (3, 6, 7)]
    table = Path("log/version_0/metrics.csv").read_text()
    assert "gapscope/gap/" in table
    assert len(table.splitlines()) == 4


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_a_transformers_run_is_measured_and_ends_the_same():
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    from gapscope.callbacks import TrainerSharpness

    ids = torch.randint(0, 20, (12, 6), generator=torch.Generator().manual_seed(0))
    config = transformers.GPT2Config(
        n_layer=1, n_embd=8, n_head=2, vocab_size=20, n_positions=8, bos_token_id=0, eos_token_id=0
    )

    def train(**settings):
        transformers.set_seed(0)
        model = transformers.GPT2LMHeadModel(config)
        arguments = transformers.TrainingArguments(
            "out", max_steps=5, per_device_train_batch_size=4, report_to=[], save_strategy="no", disable_tqdm=True,
            use_cpu=True, logging_strategy="no",
        )  # fmt: skip
        samples = [{"input_ids": row, "labels": row} for row in ids]
        trainer = transformers.Trainer(model, arguments, train_dataset=samples)
        if settings:
            trainer.add_callback(TrainerSharpness(trainer, **settings))
        trainer.train()
        return model.state_dict(), trainer.state.log_history

    plain, _ = train()
    measured, log = train(data=(ids, ids), every=2, loss="causal-lm", analyzers=[gapscope.Gap()])
    assert all(torch.equal(tensor, plain[name]) for name, tensor in measured.items())
    assert reports() == [f"step-00000{step}.report.h5" for step in (2, 4, 5)]
    logged = [entry["step"] for entry in log if any(name.startswith("gapscope/gap/") for name in entry)]
    assert logged == [2, 4, 5]


IDS = torch.randint(0, 20, (12, 6), generator=torch.Generator().manual_seed(0))


def language_trainer(**settings):
    """Return transformers' Trainer of a tiny language model on IDS."""
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    transformers.set_seed(0)
    config = transformers.GPT2Config(
        n_layer=1, n_embd=8, n_head=2, vocab_size=20, n_positions=8, bos_token_id=0, eos_token_id=0
    )
    plain = {"save_strategy": "no", "logging_strategy": "no"}
    arguments = transformers.TrainingArguments(
        "out", per_device_train_batch_size=4, per_device_eval_batch_size=12, report_to=[], disable_tqdm=True,
        use_cpu=True, **{**plain, **settings},
    )  # fmt: skip
    samples = [{"input_ids": row, "labels": row} for row in IDS]
    model = transformers.GPT2LMHeadModel(config)
    return transformers.Trainer(model, arguments, train_dataset=samples, eval_dataset=samples)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_the_trainers_own_log_of_a_measured_step_is_kept():
    trainer = language_trainer(max_steps=4, logging_strategy="steps", logging_steps=2)
    from gapscope.callbacks import TrainerSharpness

    asked = []

    class Watched(TrainerSharpness):
        def on_step_end(self, args, state, control, **more):
            before = control.should_log, control.should_save, control.should_evaluate
            super().on_step_end(args, state, control, **more)
            asked.append((before, (control.should_log, control.should_save, control.should_evaluate)))

    trainer.add_callback(Watched(trainer, (IDS, IDS), every=2, loss="causal-lm", analyzers=[gapscope.Gap()]))
    trainer.train()
    history = trainer.state.log_history
    assert [entry["step"] for entry in history if "gapscope/gap/train_loss" in entry] == [2, 4]
    assert [entry["step"] for entry in history if "loss" in entry] == [2, 4]
    assert all(before == after for before, after in asked)
    assert [before[0] for before, _ in asked] == [False, True, False, True]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@pytest.mark.parametrize("early", [False, True])
def test_the_best_checkpoint_is_not_measured_as_the_last_step(early):
    trainer = language_trainer(
        max_steps=3, learning_rate=1e-2, eval_strategy="steps", eval_steps=1, save_strategy="steps", save_steps=1,
        load_best_model_at_end=True, metric_for_best_model="eval_loss", greater_is_better=True,
    )  # fmt: skip
    from transformers import EarlyStoppingCallback

    from gapscope.callbacks import TrainerSharpness

    if early:  # known only after the step was evaluated
        trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=1))
    trainer.add_callback(TrainerSharpness(trainer, (IDS, IDS), every=50, loss="causal-lm", analyzers=[gapscope.Gap()]))
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-1")
    history = trainer.state.log_history
    evaluated = {entry["step"]: entry["eval_loss"] for entry in history if "eval_loss" in entry}
    measured = {entry["step"]: entry[name] for entry in history if (name := "gapscope/gap/train_loss") in entry}
    assert evaluated[1] - evaluated[max(evaluated)] > 1e-3  # the best is that of the highest loss
    of_all = IDS.shape[1] / (IDS.shape[1] - 1)  # the Trainer divides by all tokens, also those that are not predicted
    assert measured == ({} if early else {3: pytest.approx(of_all * evaluated[3], rel=1e-4)})


def test_one_hot_targets_are_the_labels_that_they_are():
    model = nn.Linear(5, 3)
    found = [
        Recorder((X, targets), every=1, loss="cross-entropy", folder=str(i)).measure(model, step=1)
        for i, targets in enumerate((Y, nn.functional.one_hot(Y)))
    ]
    assert found[0] == found[1]


class Seq2Seq(nn.Module):
    """Makes its decoder's inputs from the labels, as BART and T5 do."""

    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(6, 4), nn.Linear(4, 6)

    def prepare_decoder_input_ids_from_labels(self, labels):
        return labels.clamp(min=0).roll(1, dims=1)

    def forward(self, input_ids, decoder_input_ids):
        return self.head(self.embed(decoder_input_ids) + self.embed(input_ids).mean(1, keepdim=True))


def test_a_sequence_to_sequence_model_gets_its_decoders_inputs_here_too():
    torch.manual_seed(0)
    model, ids = Seq2Seq(), torch.randint(6, (9, 4))
    labels = torch.where(ids < 2, -100, ids.flip(1))
    found = Recorder((ids, labels), test_data=(ids, labels), every=1, analyzers=[gapscope.Gap()]).measure(model, 1)
    with torch.no_grad():
        scores = model(ids, model.prepare_decoder_input_ids_from_labels(labels))
        loss = float(nn.functional.cross_entropy(scores.transpose(1, 2), labels))
    assert found["gapscope/gap/train_loss"] == pytest.approx(loss)
    assert found["gapscope/gap/test_loss"] == pytest.approx(loss)
