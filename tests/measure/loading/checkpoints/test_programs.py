"""The weights of a program are read without running it; the program itself runs only when trusted."""

import json
import re
import zipfile

import pytest
import torch
from torch import nn

from gapscope.errors import LoadError
from gapscope.measure.loading.checkpoints.checkpoint import read_checkpoint
from gapscope.measure.loading.trust import Trust

pytestmark = pytest.mark.filterwarnings("ignore:.*torch.jit|No complete tensor")


KINDS = (
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
)


class Net(nn.Module):
    """Every kind of numbers, a buffer, a part in a part, and weights that are no whole storage."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
        self.out = nn.Linear(4, 2).double()
        self.out.weight = nn.Parameter(torch.randn(4, 2, dtype=torch.float64).t())
        self.register_buffer("empty", torch.empty(0, 2))
        for kind in KINDS:
            self.register_buffer(f"kind_{str(kind)[6:]}", torch.tensor([0, 1]).to(kind))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.inner(x).double())


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


def export(net, path):
    torch.export.save(torch.export.export(net, (torch.ones(2, 3),)), path)


def script(net, path):
    torch.jit.script(net).save(str(path))


@pytest.mark.parametrize(("write", "name"), [(script, "TorchScript program"), (export, "exported program (.pt2)")])
def test_weights_are_read_without_trust_and_the_module_with_it(tmp_path, net, write, name):
    write(net, tmp_path / "a.pt2")
    plain, trusted = (read_checkpoint(tmp_path / "a.pt2", Trust(file=file)) for file in (False, True))
    assert (plain.format, trusted.format) == (name, name)
    assert plain.trust == "nothing from the file runs"
    assert plain.modules == {}
    assert set(plain.tensors["(file)"]) == set(net.state_dict())
    for key, tensor in net.state_dict().items():
        assert torch.equal(plain.tensors["(file)"][key], tensor)
        assert plain.tensors["(file)"][key].dtype == tensor.dtype
    if write is script:  # its weights need no trust, and it runs with its own weights alone
        assert trusted.modules == {}
        return
    assert trusted.trust == "the whole file was trusted"
    x = torch.randn(2, 3)
    (module,) = trusted.modules.values()
    assert torch.equal(module(x), net(x))
    assert module.eval() is module
    assert module.train() is module


class Listed(nn.Linear):
    """Lists and a table beside the weights."""

    whole: list[int]
    real: list[float]
    said: list[bool]
    more: list[torch.Tensor]
    table: dict[str, int]

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.whole, self.real, self.said, self.more, self.table = [1, 2], [0.5], [True], [torch.ones(2)], {"a": 1}


def test_lists_and_tables_of_a_script_do_not_stand_in_the_way(tmp_path):
    net = Listed()
    script(net, tmp_path / "a.pt")
    found = read_checkpoint(tmp_path / "a.pt", Trust()).tensors["(file)"]
    assert found.keys() == net.state_dict().keys()
    assert torch.equal(found["weight"], net.weight)


class Placed(nn.Linear):
    """A place beside the weights, and numbers that torch has had for a short time."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.place = torch.device("cpu")
        for kind in (torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2):
            self.register_buffer(f"kind_{str(kind)[6:]}", torch.tensor([0.0, 1.0]).to(kind))


def test_a_script_may_say_where_it_ran_and_hold_the_newest_kinds_of_numbers(tmp_path):
    net = Placed()
    script(net, tmp_path / "a.pt")
    found = read_checkpoint(tmp_path / "a.pt", Trust())
    assert found.trust == "nothing from the file runs"
    for key, tensor in net.state_dict().items():
        got = found.tensors["(file)"][key]
        assert got.dtype == tensor.dtype
        assert torch.equal(got.float(), tensor.float())


class Stated(nn.Module):
    """Saves itself as a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = 2.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale * x

    @torch.jit.export
    def __getstate__(self) -> tuple[float, bool]:
        return self.scale, self.training

    @torch.jit.export
    def __setstate__(self, state: tuple[float, bool]) -> None:
        self.scale, self.training = state


def test_a_part_of_a_script_that_saves_itself_in_its_own_way_does_not_stand_in_the_way(tmp_path):
    net = nn.Sequential(nn.Linear(2, 2), Stated())
    script(net, tmp_path / "a.pt")
    assert read_checkpoint(tmp_path / "a.pt", Trust()).tensors["(file)"].keys() == {"0.weight", "0.bias"}


@pytest.mark.filterwarnings("ignore")
def test_a_script_runs_only_where_its_weights_cannot_be_had_otherwise(tmp_path):
    net = nn.Linear(2, 2)
    net.register_buffer("packed", torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8))
    script(net, tmp_path / "a.pt")
    with pytest.raises(
        LoadError, match=r"cannot be read without running it \(NotAdmittedError: torch._utils._rebuild_q"
    ):
        read_checkpoint(tmp_path / "a.pt", Trust())
    trusted = read_checkpoint(tmp_path / "a.pt", Trust(file=True))
    assert trusted.trust == "the whole file was trusted"
    assert torch.equal(trusted.tensors["(file)"]["weight"], net.weight)


@pytest.mark.parametrize("place", ["serialized_state_dict.pt", "a/data/weights/model.pt"])
def test_the_older_layouts_of_an_exported_program(tmp_path, net, place):
    torch.save(net.state_dict(), tmp_path / "weights.pt")
    with zipfile.ZipFile(tmp_path / "a.pt2", "w") as archive:
        archive.writestr("serialized_exported_program.json", "{}")
        archive.writestr("a/data/constants/model.pt", "no weights")
        archive.writestr("a/data/weights/readme", "no weights")
        archive.write(tmp_path / "weights.pt", place)
    assert set(read_checkpoint(tmp_path / "a.pt2", Trust()).tensors["(file)"]) == set(net.state_dict())


def test_a_pickled_tensor_of_an_exported_program_is_read_as_weights_only(tmp_path):
    torch.save(torch.ones(2), tmp_path / "w.pt")
    table = {"config": {"w": {"path_name": "weight_0", "use_pickle": True}}}
    with zipfile.ZipFile(tmp_path / "a.pt2", "w") as archive:
        archive.writestr("a/archive_format", "pt2")
        archive.writestr("a/data/weights/other.pt", "no weights: there is a table")
        archive.writestr("a/data/weights/model_weights_config.json", json.dumps(table))
        archive.write(tmp_path / "w.pt", "a/data/weights/weight_0")
    assert read_checkpoint(tmp_path / "a.pt2", Trust()).tensors["(file)"]["w"].tolist() == [1, 1]


def test_a_program_of_another_layout_needs_trust(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt2", "w") as archive:
        archive.writestr("a/archive_format", "pt2")
    message = "whose weights cannot be read without running it (StopIteration)"
    with pytest.raises(LoadError, match=re.escape(message)) as error:
        read_checkpoint(tmp_path / "a.pt2", Trust())
    assert "If you trust its maker: `--trust-file`" in str(error.value)
    with pytest.raises(LoadError, match=r"was trusted, and loading it raised"):
        read_checkpoint(tmp_path / "a.pt2", Trust(file=True))


def test_a_program_that_declares_more_than_it_holds_is_an_error(tmp_path, net):
    script(net, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            new.writestr(name, content[:4] if re.search(r"/data/\d+$", name) else content)
    with pytest.raises(LoadError, match=r"ValueError: storage \d has 4 bytes"):
        read_checkpoint(tmp_path / "b.pt", Trust())
