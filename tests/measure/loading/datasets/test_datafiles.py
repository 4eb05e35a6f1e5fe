"""Files and folders are recognised by what they hold; the command that a user types gives the samples."""

import gzip
import pickle
import re

import h5py
import numpy as np
import pytest
import safetensors.torch
import torch

from gapscope.errors import LoadError
from gapscope.measure.loading.datasets.data import Reading, load_data
from gapscope.measure.loading.datasets.datafiles import find_place
from gapscope.measure.loading.trust import Trust
from tests.measure.loading.datasets.test_classic import IMAGES, LABELS, ROWS, idx

X, Y = np.ones((3, 2), "f4"), np.arange(3)


def load(spec, split="train", whole=False, **reading):
    return load_data(str(spec), split, recorded=False, trust=Trust(), whole=whole, reading=Reading(**reading))


@pytest.fixture
def here(folder):
    np.savez("a.npz", x=X, y=Y)
    np.save("x.npy", X)
    np.save("y.npy", Y)
    for name in ("a.pt", "a.pth"):
        torch.save({"x": torch.from_numpy(X), "y": torch.from_numpy(Y)}, name)
    safetensors.torch.save_file({"x": torch.from_numpy(X), "y": torch.from_numpy(Y)}, "a.safetensors")
    with h5py.File("a.h5", "w") as file:
        file["x"], file["y"], file["deep/z"] = X, Y, 2 * X
    lines = "".join(f"1,1,{i}\n" for i in Y)
    (folder / "a.csv").write_text(f"a,b,y\n{lines}")
    (folder / "b.csv").write_text(lines)
    (folder / "a.tsv").write_text(f"a,b,y\n{lines}".replace(",", "\t"))
    (folder / "a.txt").write_text((folder / "a.tsv").read_text())
    np.arange(10, dtype="u2").tofile("t.bin")
    return folder


SPECS = [
    "a.npz",
    "x.npy,y.npy",
    "a.pt",
    "a.pth",
    "a.safetensors",
    "a.h5",
    "a.h5::/x,/y",
    "a.csv",
    "b.csv",
    "a.tsv",
    "a.txt",
]


@pytest.mark.parametrize("spec", SPECS)
def test_every_file_gives_the_same_samples(here, spec):
    for data in (load(spec), load(spec, "test", whole=True)):
        assert np.array_equal(data.inputs.numpy(), X)
        assert data.targets.tolist() == [0, 1, 2]
    assert load(spec, "test") is None


def test_what_a_file_is_counts_more_than_its_name(here):
    np.savez("a.npz", x=X, y=Y, names=np.array(["u"], dtype=object))  # objects that nobody asks for are no matter
    for name in ("a.npz", "a.h5"):
        for other in ("data.dat", "mnist-ubyte"):
            (here / other).write_bytes((here / name).read_bytes())
            assert load(other).targets.tolist() == [0, 1, 2]


def test_names_choose_what_a_file_gives(here):
    assert load("a.h5", x_key="deep/z").inputs.unique().tolist() == [2]
    assert load("a.h5::deep/z,y").inputs.unique().tolist() == [2]
    assert len(load("a.h5", x_key="x,deep/z").inputs) == 2
    assert load("x.npy", x_key="x", y_key="x").targets.shape == (3, 2)
    assert load("a.csv", x_key="b", y_key="a").inputs.shape == (3, 1)


def test_tokens_are_cut_into_blocks(here):
    assert load("t.bin:block=4,dtype=uint16").targets.tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]
    assert load("t.bin:block=4,dtype=uint16", "test") is None


def test_the_files_of_mnist_are_pixels_from_0_to_1(here):
    for name, packed in (("train", True), ("t10k", False)):
        for kind, array in (("images-idx3", IMAGES), ("labels-idx1", LABELS)):
            content = gzip.compress(idx(array)) if packed else idx(array)
            (here / f"{name}-{kind}-ubyte{'.gz' * packed}").write_bytes(content)
    train = load(".")
    torch.testing.assert_close(train.inputs[:, 0], torch.from_numpy(IMAGES) / 255)
    assert train.notes == ("data: .: images from train-images-idx3-ubyte.gz", "data: . holds bytes, divided by 255")
    assert load(".", "test").fingerprint == load("t10k-images-idx3-ubyte").fingerprint
    assert load("train-images-idx3-ubyte.gz").targets.tolist() == [0, 1, 2, 3, 4]
    assert load("train-images-idx3-ubyte.gz", "test") is None
    assert load(".", "test", whole=True).targets.tolist() == [0, 1, 2, 3, 4]
    assert "minus 0.1307, over 0.3081" in load(".", normalize="mnist").notes[1]


def test_the_folder_of_cifar_is_pixels_from_0_to_1(here):
    folder = here / "cifar-10-batches-py"
    folder.mkdir()
    for name, label in (("data_batch_1", 3), ("test_batch", 4)):
        (folder / name).write_bytes(pickle.dumps({b"data": ROWS, b"labels": [label] * 4}, 2))
    assert float(load(folder).inputs.max()) <= 1
    assert load(folder).inputs.shape == (4, 3, 32, 32)
    assert load(folder, "test").targets.tolist() == [4] * 4
    assert load(folder, normalize="cifar10").inputs.min() < -1.5


def test_fashion_mnist_has_the_files_of_mnist_and_its_own_preset(here):
    raw = here / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for kind, array in (("images-idx3", IMAGES), ("labels-idx1", LABELS)):
        (raw / f"train-{kind}-ubyte.gz").write_bytes(gzip.compress(idx(array)))
    data = load("FashionMNIST", normalize="fashion-mnist")
    assert data.inputs.shape == (5, 1, 28, 28)
    assert data.notes[0] == "data: FashionMNIST: images from raw/train-images-idx3-ubyte.gz"
    assert "minus 0.286, over 0.353" in data.notes[1]
    assert load("FashionMNIST", "test") is None
    assert load("FashionMNIST", "test", whole=True).fingerprint == load("FashionMNIST").fingerprint


def test_the_folder_of_cifar_100_gives_fine_labels_in_both_versions(here):
    fine, coarse = [99, 1, 2, 3], [19, 0, 0, 0]
    for name in ("train", "test"):
        held = {b"data": ROWS, b"fine_labels": fine, b"coarse_labels": coarse, b"filenames": [b"a.png"] * 4}
        (here / name).write_bytes(pickle.dumps(held | {b"batch_label": name.encode()}, 2))
    (here / "meta").write_bytes(pickle.dumps({b"fine_label_names": [b"apple"]}, 2))
    python = load(".", normalize="cifar100")
    rows = np.concatenate([np.array([coarse, fine], np.uint8).T, ROWS], axis=1)
    (here / "cifar-100-binary").mkdir()
    for name in ("train.bin", "test.bin"):
        (here / "cifar-100-binary" / name).write_bytes(rows.tobytes())
    for split in ("train", "test"):
        binary = load("cifar-100-binary", split, normalize="cifar100")
        assert binary.targets.tolist() == fine
        assert binary.fingerprint == load(".", split, normalize="cifar100").fingerprint == python.fingerprint
    red = torch.from_numpy(ROWS.reshape(4, 3, 32, 32)[:, 0].astype(float) / 255)
    torch.testing.assert_close(python.inputs[:, 0].double(), (red - 0.5071) / 0.2673, rtol=1e-5, atol=1e-6)


def test_tables_and_images_are_folders_too(here):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    image = pytest.importorskip("PIL.Image")
    table = pa.table({"a": [1.0, 2.0], "y": [0, 1]})
    (here / "rows").mkdir()
    pq.write_table(table, here / "rows" / "train.parquet")
    pq.write_table(table, here / "alone")
    with pa.ipc.new_stream(str(here / "stream.arrow"), table.schema) as sink:
        sink.write_table(table)
    for name in ("rows", "alone", "stream.arrow"):
        assert load(name).targets.tolist() == [0, 1]
        assert load(name, "test") is None
    for suffix in (".parquet", ".arrow", ".feather"):
        (here / f"half{suffix}").write_bytes(b"FEA1")
        with pytest.raises(LoadError, match=rf"half{suffix} is damaged \("):
            load(f"half{suffix}")
    (here / "pictures" / "cat").mkdir(parents=True)
    image.new("L", (2, 2), 51).save(here / "pictures" / "cat" / "0.png")
    assert load("pictures").inputs.tolist() == [[[[pytest.approx(0.2)] * 2] * 2]]
    assert load("pictures", "test") is None
    with pytest.raises(LoadError, match=r"pictures: `--x-key` and `--y-key` name arrays or columns, and there is not"):
        load("pictures", y_key="y")


def test_a_name_that_ends_as_data_do_is_a_files_even_where_there_is_none():
    suffixes = ".npz .npy .pt .pth .safetensors .h5 .hdf5 .csv .tsv .parquet .arrow .bin .gz -ubyte"
    for name in (f"here{suffix}" for suffix in suffixes.split()):
        with pytest.raises(LoadError, match=rf"{name} does not exist\. .*Expected a data file"):
            load(name)


def test_an_object_is_no_file():
    for spec in ("pkg.mod:attr", "file.py:attr", "digit", "a.b", "block=4", ":block=4"):
        assert find_place(spec) is None


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("b.npz", "b.npz does not exist. Did you mean `a.npz`? Expected a data file."),
        ("b.safetensors", "b.safetensors does not exist. Did you mean `a.safetensors`?"),
        ("no/such.h5", "no/such.h5 does not exist. Expected a data file."),
        ("nothere.h5::/x,/y", "nothere.h5 does not exist."),
        ("x.npy", "has the arrays `x`. Expected inputs and targets under `x` and `y`"),
        ("x.npy,y.npy,x.npy", "names 3 arrays. Expected two: inputs, targets."),
        ("a.h5::/x", "names 1 arrays. Expected two"),
        ("empty", "empty holds nothing. Expected images in one folder per class"),
        ("full", "full holds 0, 1, 2, 3, 4, 5. Expected images in one folder per class"),
        (
            "t.bin",
            "(.npz, .npy, .pt, .pth, .safetensors, .h5, .hdf5, .csv, .tsv, .parquet, .arrow), or tokens as `tok",
        ),
        (
            "a.json",
            """a.json is a file of an unknown kind (it starts with b'{"x": [1], "y": '). Expected arrays or a""",
        ),
        ("text.npz", "text.npz is damaged or no .npz file. Write it again"),
        ("c.tar.gz", "c.tar.gz is packed. Expected its content: unpack it"),
        ("zoo.py", "`zoo.py` is no data that gapscope knows."),
    ],
)
def test_what_is_no_data_says_why(here, spec, message):
    for name, files in (("empty", 0), ("full", 8)):
        (here / name).mkdir()
        for i in range(files):
            (here / name / str(i)).touch()
    (here / "a.json").write_text('{"x": [1], "y": [0]}')
    (here / "text.npz").write_text("hello")
    (here / "c.tar.gz").write_bytes(gzip.compress(b"content"))
    for split in ("train", "test"):
        with pytest.raises(LoadError, match=re.escape(message)):
            load(spec, split, whole=split == "test")


def test_names_are_refused_where_nothing_has_any(here):
    for spec in ("x.npy,y.npy", "a.h5::/x,/y", "t.bin:block=4,dtype=uint16"):
        with pytest.raises(LoadError, match=r"name arrays or columns, and there is nothing to choose. Leave them out."):
            load(spec, y_key="y")


def test_an_unreadable_file_says_why(here, monkeypatch):
    (here / "locked.npz").touch()
    monkeypatch.setattr("pathlib.Path.open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    with pytest.raises(LoadError, match=r"locked.npz cannot be read: Permission denied. Expected a readable data file"):
        load("locked.npz")
