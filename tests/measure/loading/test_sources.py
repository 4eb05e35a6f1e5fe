"""Other libraries' models by name: their architecture alone, no code or weights from elsewhere."""

import importlib.util
import json
import re
import sys
import types
from dataclasses import replace

import pytest
import torch
from torch import nn

from gapscope.errors import LoadError
from gapscope.measure.loading import Data, Request, load
from gapscope.measure.loading.models import build_model
from gapscope.measure.loading.sources import completed, holds_config, in_own_names, own_loss, own_settings, unwrapped
from gapscope.measure.loading.trust import Trust


def build(spec, folder=None, recorded=False, trust=Trust(), **args):  # noqa: B008
    return build_model(spec, args, recorded=recorded, trust=trust, folder=folder)[0]


# --- timm and torchvision: stand-ins with the functions that are used, because neither imports beside a CPU-only torch


@pytest.fixture
def libraries(monkeypatch):
    """Return the calls that stand-ins for timm and torchvision get."""
    calls = []

    def create_model(name, pretrained=True, num_classes=2, in_chans=1):
        calls.append((name, pretrained))
        return nn.Linear(in_chans, num_classes)

    def get_model(name, weights="DEFAULT", num_classes=2):
        calls.append((name, weights))
        return nn.Linear(1, num_classes)

    timm, vision, models = (types.ModuleType(name) for name in ("timm", "torchvision", "torchvision.models"))
    timm.create_model, timm.list_models = create_model, lambda: ["resnet18", "vit_tiny"]
    models.get_model, models.list_models = get_model, lambda: ["alexnet", "resnet18"]
    vision.models = models
    for module in (timm, vision, models):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return calls


def test_timm_and_torchvision_build_without_their_weights(libraries):
    assert build("timm:resnet18", num_classes=5, in_chans=3).weight.shape == (5, 3)
    assert build("torchvision:alexnet", num_classes=7).out_features == 7
    assert libraries == [("resnet18", False), ("alexnet", None)]


@pytest.mark.parametrize(
    ("spec", "args", "message"),
    [
        ("timm:resnet81", {}, "timm has no model `resnet81`. Did you mean `resnet18`? Expected one of its 2."),
        ("torchvision:alexnt", {}, "torchvision has no model `alexnt`. Did you mean `alexnet`?"),
        ("timm", {}, "timm has no model ``. Expected one of its 2. Name it: `-m timm:NAME`."),
        ("timm:vit_tiny", {"pretrained": True}, "`timm:vit_tiny` was given `-a pretrained=...`. Expected arguments of"),
        ("timm:vit_tiny", {"checkpoint_path": "a.pth"}, "`timm:vit_tiny` was given `-a checkpoint_path=...`."),
        ("timm:vit_tiny", {"pretrained_cfg": "a"}, "`timm:vit_tiny` was given `-a pretrained_cfg=...`."),
        ("timm:vit_tiny", {"pretrained_cfg_overlay": {}}, "was given `-a pretrained_cfg_overlay=...`."),
        ("torchvision:alexnet", {"weights": "DEFAULT"}, "`torchvision:alexnet` was given `-a weights=...`."),
        ("torchvision:alexnet", {"weights_backbone": "DEFAULT"}, "was given `-a weights_backbone=...`."),
        ("torchvision:alexnet", {"pretrained": True}, "`torchvision:alexnet` was given `-a pretrained=...`."),
        ("torchvision:alexnet", {"depth": 3}, "called with (depth=3) raised TypeError"),
    ],
)
def test_what_a_library_does_not_have_is_said(libraries, spec, args, message):
    with pytest.raises(LoadError, match=re.escape(message)):
        build(spec, **args)


def test_a_recorded_name_of_a_library_needs_trust(libraries):
    with pytest.raises(LoadError, match="records the model `timm:resnet18`, which is neither built into gapscope nor"):
        build("timm:resnet18", recorded=True)
    assert libraries == []
    assert build("timm:resnet18", recorded=True, trust=Trust(("timm:*",))).out_features == 2


@pytest.mark.parametrize("package", ["timm", "torchvision"])
def test_a_library_that_does_not_import_says_why(monkeypatch, folder, package):
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.delitem(sys.modules, f"{package}.models", raising=False)
    (folder / f"{package}.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    with pytest.raises(
        LoadError, match=rf"importing {package} raised RuntimeError: operator .*Install it: `pip install {package}`."
    ):
        build(f"{package}:resnet18")
    (folder / f"{package}.py").write_text("import no_such_package\n")
    with pytest.raises(
        LoadError, match=rf"importing {package} raised ModuleNotFoundError: No module .*no_such_package"
    ):
        build(f"{package}:resnet18")
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(LoadError, match=rf"`-m {package}:resnet18`: importing {package} raised|is not installed"):
        build(f"{package}:resnet18")


def test_without_transformers_its_package_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(
        LoadError, match=r"`-m hf`: the package transformers is not installed. .*: `pip install transformers`."
    ):
        build("hf", tmp_path)


@pytest.mark.parametrize("spec", ["timm:resnet10t", "torchvision:squeezenet1_0"])
def test_the_real_libraries_agree_with_their_stand_ins(spec):
    library = spec.partition(":")[0]
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed")
    try:
        __import__(library)
    except RuntimeError as error:  # importorskip knows ImportError alone
        pytest.skip(f"{library} does not import beside this torch: {error}")
    model = build(spec, num_classes=3).eval()
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)


# --- Hugging Face


def hf(folder, **changes):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        num_hidden_layers=1,
        hidden_size=8,
        num_attention_heads=2,
        intermediate_size=8,
        vocab_size=11,
        architectures=["BertForSequenceClassification"],
    )
    config.save_pretrained(folder)
    written = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(written | changes))
    return folder


def test_the_class_that_config_json_names_is_built_in_full_precision(tmp_path):
    folder = hf(tmp_path, dtype="bfloat16", use_pretrained_backbone=True)
    assert holds_config(folder)
    model = build("hf", folder)
    assert type(model).__name__ == "BertForSequenceClassification"
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config._attn_implementation == "eager"
    assert model.config.use_pretrained_backbone is False
    assert model.classifier.out_features == 2
    assert build("hf", folder, num_labels=4).classifier.out_features == 4
    assert type(build("hf:BertForMaskedLM", folder)).__name__ == "BertForMaskedLM"
    assert type(build(f"hf:{folder}")).__name__ == "BertForSequenceClassification"


@pytest.mark.parametrize(
    ("spec", "changes", "args", "message"),
    [
        (
            "hf:BertForSequenceClasification",
            {},
            {},
            "lasification`. Did you mean `BertForSequenceClassification`? Expec",
        ),
        ("hf:BertModl", {}, {}, "has no model class `BertModl`. Did you mean `BertModel`?"),
        ("hf:AutoModel", {}, {}, "has no model class `AutoModel`."),
        ("hf:LlamaConfig", {}, {}, "has no model class `LlamaConfig`. Expected one that it defines itself"),
        ("hf", {"architectures": None}, {}, "names no architecture. Expected its class. Name it: `-m hf:Bert"),
        ("hf", {}, {"num_lables": 3}, "config.json has no setting `num_lables`. Did you mean `num_labels`?"),
        ("hf", {}, {"trust_remote_code": True}, "config.json has no setting `trust_remote_code`."),
        ("hf", {"quantization_config": {"bits": 4}}, {}, "holds quantized weights, whose loss has no derivatives."),
        ("hf", {"architectures": ["Own"]}, {}, "has no model class `Own`. Expected one that it defines itself"),
    ],
)
def test_what_transformers_itself_does_not_define_is_refused(tmp_path, spec, changes, args, message):
    with pytest.raises(LoadError, match=re.escape(message)):
        build(spec, hf(tmp_path, **changes), **args)


def test_a_class_that_chooses_among_models_is_not_offered_as_one(tmp_path):
    with pytest.raises(LoadError) as error:
        build("hf:AutoModel", hf(tmp_path))
    assert "Did you mean `Auto" not in str(error.value)


def test_stored_names_become_the_models_own_or_none_at_all(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers")
    from safetensors.torch import load_file

    config = transformers.MixtralConfig(
        vocab_size=11, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2, architectures=["MixtralForCausalLM"],
    )  # fmt: skip
    model = transformers.MixtralForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert not stored.keys() <= model.state_dict().keys()  # the experts are stored one by one
    fresh = build("hf", tmp_path)
    found = in_own_names(fresh, stored)
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert fresh.eval()(torch.arange(5)[None]).past_key_values is None
    assert fresh.config._experts_implementation == "eager"  # of which there are second derivatives
    assert in_own_names(fresh, {**stored, "more": torch.zeros(1)}) is None
    assert in_own_names(fresh, dict(list(stored.items())[1:])) is None
    assert in_own_names(fresh, model.state_dict()) is None
    monkeypatch.setattr(transformers.MixtralForCausalLM, "_keys_to_ignore_on_load_missing", [r"norm\.weight"])
    assert in_own_names(fresh, {name: tensor for name, tensor in stored.items() if name != "model.norm.weight"}) is None
    assert in_own_names(fresh, {"steps": torch.tensor(3)}) is None
    assert in_own_names(nn.Linear(2, 2), stored) is None
    inner = {name.removeprefix("model."): tensor for name, tensor in stored.items() if name != "lm_head.weight"}
    assert in_own_names(build("hf:MixtralModel", tmp_path), inner).keys() == model.model.state_dict().keys()


def test_weights_under_names_of_old_are_renamed_exactly_and_it_is_said(tmp_path):
    folder = hf(tmp_path, auto_map={"AutoModel": "own.Model"})
    model = build("hf", folder).double()
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): 0.1 + tensor
        for name, tensor in model.state_dict().items()
    }
    old["bert.embeddings.position_ids"] = torch.arange(512)[None]  # numbers that are no weights
    torch.save(old, folder / "pytorch_model.bin")
    tokens = torch.arange(12).view(4, 3) % 11
    torch.save({"input_ids": tokens, "labels": torch.tensor([0, 1, 1, 0])}, folder / "data.pt")
    request = Request(checkpoint=folder / "pytorch_model.bin", data=str(folder / "data.pt"))
    loaded = load(request)
    notes = (
        "model: config.json names code of its own, which is never run: this is transformers' "
        "BertForSequenceClassification",
        "weights: renamed as transformers does when it loads them",
    )
    assert {"model: from config.json beside the weights", *notes} <= set(loaded.notes)
    assert set(notes) <= set(load(replace(request, model="hf:BertForSequenceClassification")).notes)
    found = in_own_names(model, old)
    assert all(torch.equal(found[name], 0.1 + tensor) for name, tensor in model.state_dict().items())


def test_code_of_the_folder_is_never_run(tmp_path):
    folder = hf(tmp_path, model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModel": "own.Model"})
    (folder / "own.py").write_text(f"open({str(tmp_path / 'sang')!r}, 'w').close()\n")
    with pytest.raises(LoadError, match=r"config.json cannot be used: .*code of the folder is never run"):
        build("hf", folder)
    assert not (tmp_path / "sang").exists()


def test_a_folder_without_a_model_is_no_hugging_face_folder(tmp_path):
    pytest.importorskip("transformers")
    assert not holds_config(tmp_path)
    (tmp_path / "config.json").write_text('{"learning_rate": 1}')
    assert not holds_config(tmp_path)
    for other in ("3", '["model_type"]', '"model_type"'):
        (tmp_path / "config.json").write_text(other)
        assert not holds_config(tmp_path)
    for own in ('{"model_type": "bert"}', '{"architectures": ["BertModel"]}'):
        (tmp_path / "own").mkdir(exist_ok=True)
        (tmp_path / "own" / "config.json").write_text(own)
        assert holds_config(tmp_path / "own")
    with pytest.raises(LoadError, match=r"There is no config.json of a Hugging Face model in .*-m hf:path/to/folder"):
        build("hf", tmp_path)
    with pytest.raises(LoadError, match=r"There is no config.json of a Hugging Face model in the folder."):
        build("hf")


# --- Lightning, wrappers, a model's own loss


def test_a_lightning_class_takes_its_own_recorded_settings():
    lightning = pytest.importorskip("lightning")

    class Net(lightning.LightningModule):
        def __init__(self, width, depth=1):
            super().__init__()

    class Open(lightning.LightningModule):
        def __init__(self, **settings):
            super().__init__()

    class Plain(nn.Module):
        def __init__(self, width):
            super().__init__()

    recorded = {"width": 3, "optimizer": "sgd", "_instantiator": "lightning"}
    assert own_settings(Net, recorded) == {"width": 3}
    assert own_settings(Open, recorded) == {"width": 3, "optimizer": "sgd"}
    assert own_settings(nn.Linear, {"in_features": 3}) == {}
    assert own_settings(type("Demo", (Plain,), {"__module__": "lightning.pytorch.demos"}), recorded) == {}

    class Mixed(nn.Module, lightning.pytorch.core.mixins.HyperparametersMixin):
        """Records settings as a module of theirs does, and is none."""

        def __init__(self, width):
            super().__init__()

    other = type("LightningModule", (nn.Module,), {"__init__": Net.__init__})  # of no package of theirs
    assert own_settings(Mixed, recorded) == own_settings(other, recorded) == {}

    class Whole(lightning.LightningModule):
        def __init__(self, config):
            super().__init__()

    nested = {"config": {"width": 3}, "lr": 0.1}  # recorded as the one argument that it is
    assert own_settings(Whole, nested) == {"config": {"width": 3}}
    assert own_settings(Whole, recorded) == {"config": recorded}
    assert own_settings(lambda width: width, recorded) == {}


def test_a_factory_of_one_settings_object_gets_what_was_recorded():
    def factory(config, scale=1):
        return nn.Linear(config.inputs, config["outputs"])

    settings = {"inputs": 3, "outputs": 2, "lr": 0.1}
    (made,) = own_settings(factory, settings).values()
    assert factory(made).weight.shape == (2, 3)
    assert json.dumps(made) == json.dumps(settings)
    with pytest.raises(AttributeError, match="the checkpoint recorded no setting `width`"):
        _ = made.width
    assert own_settings(factory, {}) == {}
    assert own_settings(lambda inputs: None, settings) == own_settings(lambda depth: None, settings) == {}
    assert own_settings(lambda config, other: None, settings) == {}
    assert own_settings(lambda config, **rest: None, settings) == {"config": settings}
    assert own_settings(dict, settings) == {}  # Python knows no signature of it
    for usual in (
        *(
            lambda args: None,
            lambda config: None,
            lambda cfg: None,
            lambda hparams: None,
            lambda hyper_parameters: None,
        ),
        *(lambda hyperparameters: None, lambda opt: None, lambda model_args: None),
    ):
        assert list(own_settings(usual, settings).values()) == [settings]


@pytest.mark.parametrize("package", ["lightning", "pytorch_lightning"])
def test_a_class_of_either_package_of_lightning_takes_its_settings(package):
    base = type("LightningModule", (nn.Module,), {"__module__": f"{package}.pytorch.core.module"})

    class Net(base):
        def __init__(self, width):
            super().__init__()

    assert own_settings(Net, {"width": 3, "optimizer": "sgd"}) == {"width": 3}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch.compile's own
def test_wrapped_models_are_taken_out():
    inner = nn.Linear(2, 2)
    assert unwrapped(inner) == (inner, ())
    assert unwrapped(nn.DataParallel(torch.compile(inner))) == (
        inner,
        ("model: taken out of DataParallel", "model: taken out of OptimizedModule"),
    )
    spread = type("DistributedDataParallel", (nn.DataParallel,), {})(inner)
    assert unwrapped(spread) == (inner, ("model: taken out of DistributedDataParallel",))
    bare = nn.Linear(2, 2, device="meta")
    assert unwrapped(bare) == (bare, ())
    wrapper = nn.Sequential(inner)
    wrapper.module = inner  # an attribute of that name is not enough
    assert unwrapped(wrapper)[0] is wrapper
    own = type("DataParallel", (nn.Linear,), {})(2, 2)  # nor is a name of that kind
    assert unwrapped(own) == (own, ())


def test_a_sequence_to_sequence_model_gets_its_decoders_inputs_from_the_labels():
    class Seq2Seq(nn.Linear):
        main_input_name = "input_ids"
        config = types.SimpleNamespace(is_encoder_decoder=True, decoder_start_token_id=9, pad_token_id=0)

        def prepare_decoder_input_ids_from_labels(self, labels):
            return labels.clamp(min=0).roll(1)

    ids, labels = torch.arange(6).view(2, 3), torch.tensor([[1, 2, -100], [3, 4, 5]])
    data = Data(ids, labels, "text", "-", 2)
    found = completed(Seq2Seq(1, 1), data)
    assert found.inputs["input_ids"] is ids
    assert torch.equal(found.inputs["decoder_input_ids"], labels.clamp(min=0).roll(1))
    assert found.notes == ("data: text: the decoder's inputs are made from the labels, as Seq2Seq does",)
    assert completed(Seq2Seq(1, 1), found) is found
    assert completed(nn.Linear(1, 1), data) is data
    real = Data(ids, labels.float(), "numbers", "-", 2)
    assert completed(Seq2Seq(1, 1), real) is real


def test_inputs_in_their_order_all_reach_a_sequence_to_sequence_model():
    class Seq2Seq(nn.Linear):
        def forward(self, input_ids, attention_mask=None, decoder_input_ids=None):
            raise NotImplementedError  # never run: its names alone are read

        def prepare_decoder_input_ids_from_labels(self, labels):
            return labels.roll(1)

    class Open(Seq2Seq):
        def forward(self, *inputs, **named):
            raise NotImplementedError  # never run: its names alone are read

    class Unknown(Seq2Seq):
        def forward(self, *inputs):
            raise NotImplementedError  # never run: its names alone are read

        forward.__signature__ = "(*inputs)"  # which Python refuses to read

    ids, mask, labels = torch.arange(6).view(2, 3), torch.ones(2, 3), torch.tensor([[1, 2, 0], [3, 4, 5]])
    data = Data((ids, mask), labels, "text", "-", 2)
    found = completed(Seq2Seq(1, 1), data)
    assert list(found.inputs) == ["input_ids", "attention_mask", "decoder_input_ids"]
    assert found.inputs["input_ids"] is ids
    assert found.inputs["attention_mask"] is mask
    named = completed(Seq2Seq(1, 1), Data({"attention_mask": mask, "input_ids": ids}, labels, "text", "-", 2)).inputs
    assert named["input_ids"] is ids
    assert named["attention_mask"] is mask
    assert torch.equal(found.inputs["decoder_input_ids"], labels.roll(1))
    assert completed(Open(1, 1), data) is completed(Unknown(1, 1), data) is data  # they have no names for them
    whole = Data((ids, mask, labels), labels, "text", "-", 2)
    assert completed(Seq2Seq(1, 1), whole) is whole


def test_a_speech_models_decoder_starts_with_its_own_token():
    class Speech(nn.Linear):
        main_input_name = "input_features"
        config = types.SimpleNamespace(is_encoder_decoder=True, decoder_start_token_id=9, pad_token_id=0)

    features, labels = torch.rand(2, 4, 5), torch.tensor([[1, -100, -100], [3, 4, 5]])
    found = completed(Speech(1, 1), Data(features, labels, "speech", "-", 2))
    assert found.inputs["input_features"] is features
    assert found.inputs["decoder_input_ids"].tolist() == [[9, 1, 0], [9, 3, 4]]
    classes = Data(features, torch.ones(2).long(), "speech", "-", 2)
    assert completed(Speech(1, 1), classes) is classes
    alone = Speech(1, 1)
    alone.config = types.SimpleNamespace(is_encoder_decoder=False, decoder_start_token_id=9, pad_token_id=0)
    whole = Data(features, labels, "speech", "-", 2)
    assert completed(alone, whole) is whole
    alone.config = types.SimpleNamespace(decoder_start_token_id=9, pad_token_id=0)
    assert completed(alone, whole) is whole
    own = nn.Linear(1, 1)  # which does not say what its inputs are called
    own.config = Speech.config
    assert completed(own, whole) is whole


def test_a_decoder_without_a_start_token_is_told_to_have_one():
    class Speech(nn.Linear):
        main_input_name = "input_features"
        config = types.SimpleNamespace(is_encoder_decoder=True, decoder_start_token_id=None, pad_token_id=0)

    class Bare(Speech):
        config = types.SimpleNamespace(is_encoder_decoder=True)

    class Text(nn.Linear):
        def prepare_decoder_input_ids_from_labels(self, labels):
            raise ValueError("self.model.config.pad_token_id has to be defined.")

    data = Data(torch.rand(2, 4, 5), torch.tensor([[1, -100, -100], [3, 4, 5]]), "speech", "-", 2)
    for kind in (Speech, Bare, Text):
        message = (
            f"{kind.__name__} cannot make the decoder's inputs from the labels: .*Expected its start token and its"
        )
        with pytest.raises(LoadError, match=message):
            completed(kind(1, 1), data)


class Labelled(nn.Linear):
    """Returns its own loss when it is given labels."""

    def forward(self, x, labels=None):
        scores = super().forward(x)
        loss = None if labels is None else nn.functional.cross_entropy(scores, labels)
        return types.SimpleNamespace(logits=scores, loss=loss)


def test_a_models_own_loss_is_asked_for_where_it_takes_labels():
    x, y = torch.randn(4, 3), torch.tensor([0, 1, 1, 0])
    model = Labelled(3, 2)
    expected = float(nn.functional.cross_entropy(model(x).logits, y).detach())
    assert own_loss(model, x, y) == own_loss(model, {"x": x}, y) == own_loss(model, (x,), y) == pytest.approx(expected)
    assert own_loss(nn.Linear(3, 2), x, y) is None
    assert own_loss(model, x, torch.zeros(4, 9)) is None  # labels that it cannot take

    class Scoring(Labelled):
        def forward(self, x, labels=None):
            return super().forward(x, labels).logits

    class Open(Labelled):
        def forward(self, x, **rest):
            return super().forward(x, y)

    class Unknown(Labelled):
        def forward(self, x, labels=None):
            return super().forward(x, labels)

        forward.__signature__ = "(x, labels=None)"  # which Python refuses to read

    class Each(Labelled):
        def forward(self, x, labels=None):
            return types.SimpleNamespace(loss=nn.functional.cross_entropy(x, labels, reduction="none"))

    class Silent(Labelled):
        def forward(self, x, labels=None):
            return types.SimpleNamespace(loss=None)

    for kind in (Unknown, Each, Silent):
        assert own_loss(kind(3, 2), x, y) is None
    assert own_loss(Scoring(3, 2), x, y) is None
    assert own_loss(Open(3, 2), x, y) is None  # which could take labels for one more input


def test_transformers_prints_nothing_while_a_model_computes_its_own_loss():
    levels = pytest.importorskip("transformers").utils.logging
    heard = []

    class Loud(Labelled):
        def forward(self, x, labels=None):
            heard.append((levels.get_verbosity(), levels.is_progress_bar_enabled()))
            return super().forward(x, labels)

    before = levels.get_verbosity()
    assert levels.is_progress_bar_enabled()
    own_loss(Loud(3, 2), torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))
    assert heard == [(levels.CRITICAL, False)]
    assert levels.get_verbosity() == before != levels.CRITICAL


@pytest.mark.parametrize("shown", [True, False])
def test_transformers_shows_progress_afterwards_only_where_it_did_before(shown):
    levels = pytest.importorskip("transformers").utils.logging
    before = levels.is_progress_bar_enabled()
    try:
        (levels.enable_progress_bar if shown else levels.disable_progress_bar)()
        own_loss(Labelled(3, 2), torch.randn(4, 3), torch.tensor([0, 1, 1, 0]))
        assert levels.is_progress_bar_enabled() == shown
    finally:
        (levels.enable_progress_bar if before else levels.disable_progress_bar)()
