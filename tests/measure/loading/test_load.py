"""A request and a checkpoint make a model, data and a loss that fit each other, or one message."""

import re
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gapscope.errors import LoadError
from gapscope.measure import loading
from gapscope.measure.loading import Reading, Request, Trust, load, save_checkpoint
from gapscope.measure.loading.networks import f1, mlp


def save(path="a.pt", model=None, **about):
    save_checkpoint(path, model or mlp(hidden=[8]), **about)
    return Path(path)


def made(**changes):
    return save(**{"factory": "mlp", "model_args": {"hidden": [8]}, "data": "digits", **changes})


def ask(path=Path("a.pt"), **typed):
    return load(Request(checkpoint=path, **typed))


@pytest.fixture(autouse=True)
def _here(folder):
    """Run every test in its own folder."""


def test_a_checkpoint_of_ours_needs_no_flag():
    made(loss="cross-entropy", training={"lr": 0.1})
    loaded = ask()
    assert (loaded.model_name, loaded.model_args, loaded.weights_key) == ("mlp", {"hidden": [8]}, "model")
    assert (len(loaded.train), len(loaded.test), loaded.loss.name) == (1300, 497, "cross-entropy")
    assert loaded.notes == ()


def test_the_package_gives_these_names():
    names = """Checkpoint Data Loaded Loss NETWORKS Reading Request Trust as_classes build_loss build_model check_fit
        data_of infer_loss load load_data parse_args read_checkpoint same_classes save_checkpoint"""
    assert sorted(loading.__all__) == names.split()
    assert all(hasattr(loading, name) for name in loading.__all__)


def test_inferred_choices_are_noted():
    made()
    assert ask().notes == ("loss: cross-entropy, inferred from integer targets",)
    assert (
        "data: the test data are the training data"
        in ask(data="zoo:pairs", model="zoo:Net", test_data="zoo:pairs", path=net()).notes
    )
    np.savez("a.npz", x=np.ones((3, 64)), y=np.full((3, 10), 0.5))
    assert "loss: mse, inferred from real targets" in ask(data="a.npz").notes
    Path("lm.py").write_text("from torch import nn\n\nclass NetForCausalLM(nn.Embedding):\n    pass\n")
    np.savez("tokens.npz", x=np.arange(12).reshape(4, 3), y=np.arange(12).reshape(4, 3))
    typed = {"model": "lm.py:NetForCausalLM", "model_args": {"num_embeddings": 12, "embedding_dim": 12}}
    notes = ask(save(model=nn.Embedding(12, 12)), **typed, data="tokens.npz").notes
    assert "loss: causal-lm, inferred from integer targets of a NetForCausalLM" in notes


def test_one_hot_targets_are_measured_as_the_labels_that_they_are():
    made()
    labels = np.arange(6) % 10
    np.savez("labels.npz", x=np.ones((6, 64), np.float32), y=labels)
    np.savez("hot.npz", x=np.ones((6, 64), np.float32), y=np.eye(10)[labels])
    with pytest.raises(LoadError, match="The targets are zeros and ones, one for each output of the model"):
        ask(data="hot.npz")
    Path("test.npz").write_bytes(Path("hot.npz").read_bytes())
    hot, plain = ask(data="hot.npz", test_data="test.npz", loss="cross-entropy"), ask(data="labels.npz")
    assert hot.train.fingerprint == hot.test.fingerprint == plain.train.fingerprint
    for name in ("hot", "test"):
        assert f"data: {name}.npz: targets: one-hot rows taken as class numbers" in hot.notes


def test_classes_that_are_numbered_differently_in_the_test_data_are_refused():
    Path("train.csv").write_text("a,label\n1,cat\n2,dog\n")
    Path("test.csv").write_text("a,label\n1,dog\n2,cow\n")
    sizes = {"in_features": 1, "out_features": 2}
    path = save(model=nn.Linear(1, 2))
    assert ask(path, model="torch.nn:Linear", model_args=sizes, data="train.csv", test_data="train.csv").test
    assert ask(path, model="torch.nn:Linear", model_args=sizes, data="train.csv").test is None
    with pytest.raises(LoadError, match=r"test\.csv and train\.csv number their classes differently"):
        ask(path, model="torch.nn:Linear", model_args=sizes, data="train.csv", test_data="test.csv")


def test_the_criterion_of_the_model_and_the_recorded_settings_are_used_and_said():
    Path("held.py").write_text(
        "import torch\n\nclass Held(torch.nn.Linear):\n    def __init__(self, config):\n"
        "        super().__init__(config.inputs, 10)\n"
        "        self.criterion = torch.nn.CrossEntropyLoss(label_smoothing=0.1)\n"
    )
    torch.save({"model": nn.Linear(64, 10).state_dict(), "model_args": {"inputs": 64}}, "held.pt")
    loaded = ask(model="held.py:Held", data="digits", path=Path("held.pt"))
    assert loaded.loss.name == "cross-entropy:label_smoothing=0.1"
    torch.save({"model": nn.Linear(64, 10).state_dict(), "model_args": {"inputs": 64, "more": [0] * 99}}, "long.pt")
    notes = ask(model="held.py:Held", data="digits", path=Path("long.pt")).notes
    assert any(
        re.fullmatch(r"model: config=\{'inputs': 64, 'more': \[0, [0, ]{,30} as the checkpoint recorded; .*", note)
        for note in notes
    )
    assert "loss: cross-entropy:label_smoothing=0.1, inferred from the criterion that Held holds" in loaded.notes
    held = Path("held.py").read_text()
    Path("summing.py").write_text(held.replace("smoothing=0.1", 'smoothing=0.1, reduction="sum"'))
    notes = ask(model="summing.py:Held", data="digits", path=Path("held.pt")).notes
    assert any(note.endswith("the criterion that Held holds (the mean of what it sums)") for note in notes)
    assert "model: config={'inputs': 64} as the checkpoint recorded; change them with `-a`" in loaded.notes
    typed = {"config": types.SimpleNamespace(inputs=64)}
    notes = ask(model="held.py:Held", data="digits", path=Path("held.pt"), model_args=typed).notes
    assert not any("as the checkpoint recorded" in note for note in notes)


def zoo_net():
    import zoo

    return zoo.Net()


def net(path="net.pt", **about):
    import zoo

    return save(path, zoo.Net(), **about)


@pytest.fixture(autouse=True)
def _zoo_importable(folder, monkeypatch):
    monkeypatch.syspath_prepend(str(folder))


def test_the_command_line_wins_and_arguments_merge_key_by_key():
    made(model_args={"hidden": [99], "activation": "tanh"}, loss="mse")
    loaded = ask(model_args={"hidden": [8]}, loss="cross-entropy", data="digits:size=8")
    assert loaded.model_args == {"hidden": [8], "activation": "tanh"}
    assert loaded.loss.name == "cross-entropy"
    assert loaded.train.name == "digits:size=8"
    assert ask(model="mlp", model_args={"hidden": [8]}, loss="cross-entropy").model_args["activation"] == "tanh"
    Path("other.py").write_text("from gapscope.measure.loading.networks import mlp as other\n")
    assert ask(model="other.py:other", model_args={"hidden": [8]}, loss="cross-entropy").model_args == {"hidden": [8]}


def test_a_recorded_factory_without_arguments_gets_those_that_were_typed():
    about = {"format_version": 1, "factory": "mlp", "data": "digits"}
    torch.save({"gapscope": about, "model": mlp(hidden=[8]).state_dict()}, "a.pt")
    assert ask(model_args={"hidden": [8]}).model_args == {"hidden": [8]}


def test_test_data_come_from_the_nearest_word():
    np.savez("t.npz", x=np.ones((3, 64)), y=np.arange(3))
    made(test_data="t.npz")
    trust = Trust(("t.npz",))
    assert len(ask(trust=trust).test) == 3
    assert len(ask(data="digits", trust=trust).test) == 497
    assert len(ask(data="t.npz", trust=trust).test) == 3
    assert len(ask(test_data="digits", trust=trust).test) == 497
    with pytest.raises(LoadError, match=r"records the test data `t.npz`"):
        ask()
    made()
    assert ask(data="t.npz").test is None


def test_whole_numbers_are_no_classes_where_the_loss_is_of_real_ones():
    made()
    np.savez("a.npz", x=np.ones((3, 64), np.float32), y=np.ones((3, 10)))
    loaded = ask(data="a.npz", loss="mse")
    assert loaded.train.targets.is_floating_point()
    assert loaded.notes == ()


def test_test_data_that_do_not_fit_are_refused():
    made()
    np.savez("t.npz", x=np.ones((3, 64), np.float32), y=np.array([0, 1, 12]))
    with pytest.raises(LoadError, match=r"t.npz has labels up to 12, `mlp` has 10 outputs."):
        ask(test_data="t.npz")


def test_a_limit_holds_for_both_splits():
    made()
    loaded = ask(limit=20, data_seed=1)
    assert (len(loaded.train), len(loaded.test), loaded.train.total) == (20, 20, 1300)
    usual = ask(limit=20).train.fingerprint
    assert usual == ask(limit=20, data_seed=0).train.fingerprint != loaded.train.fingerprint


@pytest.mark.parametrize("spec", ["os:system", "zoo:run", "canary:build", "canary.py:build", "logging:os.system"])
@pytest.mark.parametrize("place", ["factory", "data", "test_data", "loss"])
def test_a_planted_name_is_never_run(folder, place, spec):
    made(**{place: spec})
    with pytest.raises(LoadError, match="Nothing was imported"):
        ask()
    assert not (folder / "sang").exists()
    if spec in ("zoo:run", "logging:os.system"):
        with pytest.raises(LoadError, match=r"is really `(posix|nt):system`"):
            ask(trust=Trust((spec.split(":")[0] + ":*",)))


def test_trusted_names_are_used():
    net(factory="zoo:Net", data="zoo:pairs", loss="zoo:l1")
    with pytest.raises(LoadError, match="records the model `zoo:Net`"):
        ask(Path("net.pt"))
    for trust in (Trust(("zoo:*",)), Trust(embedded=True)):
        loaded = ask(Path("net.pt"), trust=trust)
        assert (loaded.model_name, len(loaded.train), loaded.loss.name) == ("zoo:Net", 6, "zoo:l1")


def test_what_nobody_named_is_asked_for():
    save()
    with pytest.raises(
        LoadError, match=r"does not say which model it holds. Name it: `-m mlp -a hidden=\[32\]`"
    ) as error:
        ask()
    assert "Built in: mlp, f1, f2, c1, c2, " in str(error.value)
    assert "--trust-file" not in str(error.value)
    with pytest.raises(LoadError, match=r"does not say what it was trained on. Name it: `-d digits`"):
        ask(model="mlp", model_args={"hidden": [8]})


def test_a_file_of_weights_is_of_the_model_that_config_json_beside_it_describes(monkeypatch):
    Path("config.json").write_text('{"model_type": "bert"}')
    save()
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(LoadError, match=r"`-m hf`: the package transformers is not installed"):
        ask(data="digits")
    assert ask(model="mlp", model_args={"hidden": [8]}, data="digits").model_name == "mlp"  # the typed one wins
    Path("net").mkdir()
    Path("config.json").rename("net/config.json")
    torch.save(mlp(hidden=[8]).state_dict(), "net/pytorch_model.bin")
    for path in ("net", "net/pytorch_model.bin"):
        with pytest.raises(LoadError, match=r"`-m hf`: the package transformers is not installed"):
            ask(Path(path), data="digits")


def test_of_an_exported_program_the_program_itself_is_offered():
    torch.save(mlp(hidden=[8]).state_dict(), "weights.pt")
    with zipfile.ZipFile("a.pt2", "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")
        archive.write("weights.pt", "serialized_state_dict.pt")
    with pytest.raises(
        LoadError, match=r"Built in: .*\. Or run the program that the file itself holds, if you .*`--trust-file`"
    ):
        ask(Path("a.pt2"))


def test_mode_buffers_weights_and_random_state_are_untouched():
    torch.manual_seed(0)
    model = f1(inputs=64)
    save(model=model, factory="f1", model_args={"inputs": 64}, data="digits")
    state = torch.get_rng_state()
    loaded = ask()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.model.state_dict().values(), model.state_dict().values(), strict=True)
    )
    assert all(module.training for module in loaded.model.modules())


class Counting(nn.Linear):
    """Counts its calls in a buffer, and draws a random number."""

    def __init__(self):
        super().__init__(64, 10)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1 + 0 * torch.rand(())
        return super().forward(x)


def test_a_buffer_that_moves_in_eval_mode_is_put_back():
    save(model=Counting(), data="digits")
    assert ask(model=f"{__name__}:Counting").model.calls == 0


def model_returning(what: str):
    Path("m.py").write_text(
        "import torch, types\nclass M(torch.nn.Linear):\n"
        f"    def forward(self, x):\n        y = super().forward(x)\n        return {what}\n"
        "def build():\n    return M(64, 10)\n"
    )
    save(model=nn.Linear(64, 10))
    return {"model": "m.py:build", "data": "digits"}


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (
            "{'y': y}",
            "returns dict. Expected one tensor, an object with `.logits`, or a tuple whose first is the scores.",
        ),
        ("y.sum()", "returns () for 8 samples. Expected one output per sample, batch first."),
        ("y.T", "returns (10, 8) for 8 samples"),
        (
            "y[:, :7]",
            "digits has labels up to 9, `m.py:build` has 7 outputs. Expected one output per class: `-a outputs=10`",
        ),
        (
            "y[:, :1]",
            "The targets are whole numbers, one for each output of the model (1,). Expected",
        ),
        ("y[:, 0]", "one for each output of the model (). Expected to be told the loss"),
        (
            "1 / 0",
            "do not fit: ZeroDivisionError: division by zero. Check the model's arguments (`-a`) and the data (`-d`).",
        ),
    ],
)
def test_a_model_that_does_not_suit_the_data_is_refused(what, message):
    with pytest.raises(LoadError, match=re.escape(message)):
        ask(**model_returning(what))


def test_data_of_the_wrong_shape_or_type_are_shown_beside_the_model():
    made()
    np.savez("a.npz", x=np.ones((3, 5), np.float32), y=np.arange(3))
    said = re.escape("`mlp` and a.npz (samples of shape (5,), float32) do not fit: RuntimeError: ")
    with pytest.raises(LoadError, match=said + "(addmm: )?mat1"):  # torch 2.15 names the operation
        ask(data="a.npz")
    np.savez("a.npz", x=np.ones((3, 64), np.int64), y=np.arange(3))
    with pytest.raises(
        LoadError, match=r"\(`-d`\)\. If they are no token numbers, .*; bytes take `--normalize scale`."
    ):
        ask(data="a.npz")
    np.savez("a.npz", x=np.ones((3, 64)), y=np.full(3, 0.5))
    with pytest.raises(
        LoadError, match=r"a.npz has real targets. Cross-entropy expects class numbers, or one-hot rows .*`--loss mse`"
    ):
        ask(data="a.npz", loss="cross-entropy")
    assert ask(data="digits").train.inputs.dtype == torch.float32


def test_a_loss_that_fails_or_returns_no_real_numbers_is_named():
    made()
    Path("l.py").write_text("def bad(o, t): raise KeyError('k')\ndef count(o, t): return t * 0\n")
    with pytest.raises(
        LoadError, match=r"The loss `l.py:bad` on outputs \(8, 10\) and targets \(8,\) int64 raised KeyError"
    ):
        ask(loss="l.py:bad")
    with pytest.raises(
        LoadError, match=r"The loss `l.py:count` returned torch.int64. Expected real numbers, one per sample."
    ):
        ask(loss="l.py:count")
    with pytest.raises(LoadError, match="returned a scalar for 8 samples"):
        ask(loss="torch.nn.functional:cross_entropy")


def test_a_trusted_file_can_be_the_model_itself():
    import zoo

    torch.save({"net": zoo.instance, "epoch": 3}, "whole.pt")
    trust = Trust(file=True)
    loaded = ask(Path("whole.pt"), data="zoo:pairs", trust=trust)
    assert (loaded.model_name, loaded.model_args, loaded.weights_key) == ("Net", {}, "net")
    assert "model: the Net that the file holds" in loaded.notes
    assert torch.equal(loaded.model.fc1.weight, zoo.instance.fc1.weight)
    named = ask(Path("whole.pt"), data="zoo:pairs", trust=trust, model="zoo:Net", model_args={"width": 4})
    assert (named.model_name, named.model_args, named.weights_key) == ("zoo:Net", {"width": 4}, "net")


def test_of_the_modules_in_a_trusted_file_the_model_is_taken_or_what_was_asked_for():
    raw, average = zoo_net(), zoo_net()
    trust = Trust(file=True)

    def found(content, weights=None):
        torch.save(content, "whole.pt")
        return ask(Path("whole.pt"), data="zoo:pairs", trust=trust, weights=weights)

    both = {"ema": average, "loss": nn.MSELoss(), "model": raw}
    loaded = found(both)
    assert loaded.weights_key == "model"
    assert torch.equal(loaded.model.fc1.weight, raw.fc1.weight)
    assert "weights: `model`; the file also holds `ema`: choose with `--weights KEY`" in loaded.notes
    loaded = found(both, "ema")
    assert loaded.weights_key == "ema"
    assert torch.equal(loaded.model.fc1.weight, average.fc1.weight)
    assert "weights: `ema`, an average over training" in loaded.notes
    assert found(both, "raw").weights_key == found({"loss": nn.MSELoss(), "model": raw}).weights_key == "model"
    assert found(raw).weights_key == "(file)"
    with pytest.raises(LoadError, match=r"has no weights under `nonsense`. Expected raw, ema or one of `ema`, `model`"):
        found(both, "nonsense")
    with pytest.raises(LoadError, match=r"holds no averaged weights that this model knows. Expected one of `model`"):
        found({"model": raw}, "ema")
    with pytest.raises(LoadError, match="does not say which model it holds"):
        found({"loss": nn.MSELoss(), "model": raw.state_dict()})


def test_training_and_test_data_get_the_decoders_inputs():
    Path("seq.py").write_text(
        "from torch import nn\n\nclass Seq2Seq(nn.Embedding):\n"
        "    def __init__(self):\n        super().__init__(9, 9)\n"
        "    def prepare_decoder_input_ids_from_labels(self, labels):\n        return labels.roll(1, 1)\n"
        "    def forward(self, input_ids, decoder_input_ids):\n"
        "        return super().forward(input_ids) + super().forward(decoder_input_ids)\n"
    )
    save(model=nn.Embedding(9, 9))
    for name in ("train", "test"):
        np.savez(f"{name}.npz", x=np.arange(12).reshape(4, 3) % 9, y=np.arange(12).reshape(4, 3) % 7)
    loaded = ask(model="seq.py:Seq2Seq", data="train.npz", test_data="test.npz")
    for data in (loaded.train, loaded.test):
        assert torch.equal(data.inputs["decoder_input_ids"], data.targets.roll(1, 1))


def test_what_was_typed_of_weights_and_data_is_passed_on():
    raw, average = mlp(hidden=[8]), mlp(hidden=[8])
    torch.save({"model": raw.state_dict(), "ema": average.state_dict()}, "two.pt")
    pixels, labels = np.ones((3, 64), np.float32), np.arange(3)
    np.savez("d.npz", mine=pixels, other=2 * pixels, which=labels)
    typed = {"model": "mlp", "model_args": {"hidden": [8]}, "data": "d.npz"}
    reading = Reading(x_key="other", y_key="which")
    loaded = ask(Path("two.pt"), **typed, weights="ema", reading=reading, test_data="d.npz")
    assert torch.equal(loaded.model.fc1.weight, average.fc1.weight)
    assert loaded.train.inputs.max() == loaded.test.inputs.max() == 2
    assert "data: the test data are the training data" in loaded.notes


def test_a_model_is_taken_out_of_its_wrapper():
    made()
    Path("wrapped.py").write_text(
        "from torch import nn\nfrom gapscope.measure.loading.networks import mlp\n"
        "def build(): return nn.DataParallel(mlp(hidden=[8]))\n"
    )
    loaded = ask(model="wrapped.py:build")
    assert type(loaded.model) is nn.Sequential
    assert "model: taken out of DataParallel" in loaded.notes
