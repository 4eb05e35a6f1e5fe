"""Files that other programs wrote, each measured by one command, against the model's own loss and SciPy."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn

import gapscope
from gapscope.__main__ import main

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

RNG = torch.Generator().manual_seed(0)
IDS = torch.randint(3, 40, (16, 8), generator=RNG)
MASK = (torch.arange(8) < torch.randint(5, 9, (16, 1), generator=RNG)).long()
KINDS = torch.arange(16) % 3
PIXELS = torch.randn(16, 3, 8, 8, generator=RNG)
SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 32}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


README = (Path(__file__).parents[1] / "README.md").read_text()
LINES = [line.split()[1:] for line in re.search(r"^```sh files\n(.*?)^```$", README, re.M | re.S)[1].splitlines()]
DOCUMENTED = {words[1]: words for words in LINES}


def test_every_documented_line_is_of_a_file_that_is_made_here():
    assert list(DOCUMENTED) == ["gpt2", "bert", "vit", "last.ckpt", "sharded", "net.pt2", "own.bin"]
    assert len(DOCUMENTED) == len(LINES)


def measured(capsys, checkpoint, *more):
    """Run README's command for this file, and return the top eigenvalue and what was printed."""
    with pytest.raises(SystemExit) as left:
        main([*DOCUMENTED[checkpoint], *map(str, more), "-o", "out.h5"])
    printed = capsys.readouterr()
    assert left.value.code == 0, printed.err
    report = gapscope.read("out.h5")
    return float(report.results["eigenvalues"].quantities["top"].value), printed.out + printed.err


def top(model, loss):
    """Return the largest eigenvalue of the Hessian of a loss, by double backward in float64 and SciPy."""
    model.double().eval()
    leaves = [p for p in model.parameters() if p.requires_grad]
    slopes = torch.autograd.grad(loss(model), leaves, create_graph=True)
    size = sum(leaf.numel() for leaf in leaves)

    def product(v):
        parts = torch.from_numpy(v.ravel()).split([leaf.numel() for leaf in leaves])
        along = sum((slope * part.view_as(slope)).sum() for slope, part in zip(slopes, parts, strict=True))
        rows = torch.autograd.grad(along, leaves, retain_graph=True, materialize_grads=True)
        return torch.cat([row.flatten() for row in rows]).numpy()

    start = np.random.default_rng(0).standard_normal(size)
    return float(eigsh(LinearOperator((size, size), product), k=1, which="LA", v0=start, tol=1e-8)[0][0])


def made(kind, **settings):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{kind.partition('For')[0].removesuffix('LMHeadModel')}Config")
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config(**settings, attn_implementation="eager"))
    with torch.no_grad():  # away from the start, where all scores are nearly alike
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    return model


@pytest.mark.parametrize("shards", ["5GB", "20KB"])
def test_a_gpt2_folder_is_measured_by_its_own_loss(capsys, shards):
    settings = {"n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 40, "n_positions": 16}
    model = made("GPT2LMHeadModel", **settings, bos_token_id=0, eos_token_id=0)
    model.save_pretrained("gpt2", max_shard_size=shards)
    assert (len(list(Path("gpt2").glob("*.safetensors"))) > 1) == (shards == "20KB")
    labels = IDS.where(MASK.bool(), -100)
    np.savez("text.npz", input_ids=IDS, attention_mask=MASK, labels=labels)
    found, printed = measured(capsys, "gpt2")
    assert found == pytest.approx(
        top(model, lambda m: m(input_ids=IDS, attention_mask=MASK, labels=labels).loss), rel=2e-3
    )
    assert "loss: causal-lm, inferred from integer targets of a GPT2LMHeadModel" in " ".join(printed.split())
    assert "not the same" not in " ".join(printed.split())


def test_a_bert_folder_classifies_a_saved_dataset(capsys):
    datasets = pytest.importorskip("datasets")
    model = made("BertForSequenceClassification", **SMALL, vocab_size=40, num_labels=3, max_position_embeddings=16)
    model.save_pretrained("bert")
    columns = {"input_ids": IDS.tolist(), "attention_mask": MASK.tolist(), "labels": KINDS.tolist()}
    datasets.Dataset.from_dict(columns).save_to_disk("reviews")
    config = json.loads(Path("bert/config.json").read_text())
    own = {"auto_map": {"AutoModelForSequenceClassification": "modeling.Own"}}
    Path("bert/config.json").write_text(json.dumps(config | own))
    Path("bert/modeling.py").write_text("open('sang', 'w').close()\n")
    found, printed = measured(capsys, "bert")
    assert found == pytest.approx(
        top(model, lambda m: m(input_ids=IDS, attention_mask=MASK, labels=KINDS).loss), rel=2e-3
    )
    assert "cross-entropy" in printed
    assert "hf:BertForSequenceClassification" in printed
    assert "code of its own, which is never run" in " ".join(printed.split())
    assert not Path("sang").exists()


def test_a_bert_folder_fills_in_masked_tokens(capsys):
    model = made("BertForMaskedLM", **SMALL, vocab_size=40, max_position_embeddings=16)
    model.save_pretrained("bert", max_shard_size="20KB")
    labels = IDS.where(torch.rand(IDS.shape, generator=torch.Generator().manual_seed(1)) < 0.4, -100)
    np.savez("text.npz", input_ids=IDS.where(labels == -100, 2), attention_mask=MASK, labels=labels)
    found, printed = measured(capsys, "bert", "-d", "text.npz", "--limit", 16)
    masked = IDS.where(labels == -100, 2)
    assert found == pytest.approx(
        top(model, lambda m: m(input_ids=masked, attention_mask=MASK, labels=labels).loss), rel=2e-3
    )
    assert "masked-lm" in printed
    assert "code of its own" not in " ".join(printed.split())


def test_a_vit_folder_classifies_images(capsys):
    model = made("ViTForImageClassification", **SMALL, image_size=8, patch_size=4, num_labels=3)
    model.save_pretrained("vit")
    np.savez("images.npz", pixel_values=PIXELS, labels=KINDS)
    found, printed = measured(capsys, "vit")
    expected = top(model, lambda m: m(pixel_values=PIXELS.double(), labels=KINDS).loss)
    assert found == pytest.approx(expected, rel=2e-3)
    saved = set(load_file("vit/model.safetensors"))
    assert ("as transformers does" in " ".join(printed.split())) is (saved != set(model.state_dict()))


NET = """
import lightning
import torch
from torch import nn

class Net(lightning.LightningModule):
    def __init__(self, width, rate=0.1):
        super().__init__()
        self.save_hyperparameters()
        self.net = nn.Sequential(nn.Flatten(), nn.Linear(192, width), nn.Tanh(), nn.Linear(width, 3))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.hparams.rate)
"""


def test_a_lightning_checkpoint_says_how_its_class_was_made(capsys, monkeypatch):
    pytest.importorskip("lightning")
    import lightning
    from torch.utils.data import DataLoader, TensorDataset

    Path("lightning_net.py").write_text(NET)
    monkeypatch.syspath_prepend(".")
    from lightning_net import Net

    torch.manual_seed(0)
    trainer = lightning.Trainer(
        max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False
    )
    model = Net(width=5, rate=0.3)
    trainer.fit(model, DataLoader(TensorDataset(PIXELS, KINDS), batch_size=8))
    (checkpoint,) = Path("checkpoints").glob("*.ckpt")
    np.savez("images.npz", x=PIXELS, y=KINDS)
    checkpoint.rename("last.ckpt")
    found, printed = measured(capsys, "last.ckpt")
    loss = nn.CrossEntropyLoss()
    assert found == pytest.approx(top(model, lambda m: loss(m(PIXELS.double()), KINDS)), rel=2e-3)
    assert "width=5" in printed


SHARD = """
import os, sys
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from gapscope.measure.loading.networks import mlp

def work(rank, port):
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2")
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    model = mlp(inputs=192, hidden=[5], outputs=3)
    model.load_state_dict(torch.load("whole.pt"))
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    dcp.save({"model": model.state_dict(), "step": 7}, checkpoint_id="sharded")
    dist.destroy_process_group()

if __name__ == "__main__":
    torch.multiprocessing.spawn(work, args=(sys.argv[1],), nprocs=2)
"""


def network():
    from gapscope.measure.loading.networks import mlp

    torch.manual_seed(0)
    return mlp(inputs=192, hidden=[5], outputs=3)


def test_a_folder_of_two_fsdp_ranks_is_one_checkpoint(capsys):
    import socket

    model = network()
    torch.save(model.state_dict(), "whole.pt")
    np.savez("images.npz", x=PIXELS, y=KINDS)
    Path("shard.py").write_text(SHARD)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    done = subprocess.run([sys.executable, "shard.py", str(port)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert len(list(Path("sharded").glob("*.distcp"))) == 2
    found, _ = measured(capsys, "sharded")
    loss = nn.CrossEntropyLoss()
    assert found == pytest.approx(top(model, lambda m: loss(m(PIXELS.double()), KINDS)), rel=2e-3)


def test_an_exported_program_is_its_own_model_once_trusted(capsys):
    model = network()
    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(model, (PIXELS,), dynamic_shapes=({0: batch},), strict=False)
    torch.export.save(program, "net.pt2")
    np.savez("images.npz", x=PIXELS, y=KINDS)
    with pytest.raises(SystemExit) as left:
        main(["eigenvalues", "net.pt2", "-d", "images.npz"])
    assert left.value.code == 2
    assert "--trust-file" in capsys.readouterr().err
    found, _ = measured(capsys, "net.pt2")
    loss = nn.CrossEntropyLoss()
    assert found == pytest.approx(top(model, lambda m: loss(m(PIXELS.double()), KINDS)), rel=2e-3)


OWN = """
import numpy as np
import torch
from torch import nn

import gapscope


def build(path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.Tanh(), nn.Linear(4, 3))
    values = torch.from_numpy(np.fromfile(path, dtype=np.float32))
    nn.utils.vector_to_parameters(values, model.parameters())
    data = np.load("images.npz")
    return gapscope.problem(model, (data["x"], data["y"]), name="own")
"""


def test_a_file_of_one_s_own_format_is_measured_through_a_setup_function(capsys):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.Tanh(), nn.Linear(4, 3))
    nn.utils.parameters_to_vector(model.parameters()).detach().numpy().tofile("own.bin")
    np.savez("images.npz", x=PIXELS, y=KINDS)
    Path("own.py").write_text(OWN)
    found, _ = measured(capsys, "own.bin")
    loss = nn.CrossEntropyLoss()
    assert found == pytest.approx(top(model, lambda m: loss(m(PIXELS.double()), KINDS)), rel=2e-3)
    identity = gapscope.read("out.h5").identity
    assert identity["checkpoint"] == "own.bin"
    assert identity["setup"] == "own.py:build"
    for more in (["-d", "images.npz"], ["--dtype", "float64"], ["--limit", "3"], ["--device", "cpu"]):
        with pytest.raises(SystemExit) as left:
            main(["eigenvalues", "own.bin", "--setup", "own.py:build", *more])
        assert left.value.code == 2
        assert "was given together with" in capsys.readouterr().err
