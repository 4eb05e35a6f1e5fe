"""An archive may promise no more than its own size allows."""

import io
import zipfile

import numpy as np
import pytest
import torch

from gapscope.errors import LoadError
from gapscope.measure.loading.checkpoints import archives
from gapscope.measure.loading.checkpoints.archives import check_archive
from gapscope.measure.loading.checkpoints.torchfile import read_torch_file
from gapscope.measure.loading.trust import Trust


def promising(declared=0, packed=0):
    """Return an archive of 1,000 bytes whose table of contents promises so many."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("w", "")
        archive.infolist()[0].file_size, archive.infolist()[0].compress_size = declared, packed
        archive.comment = bytes(1000 - 22 - 47 - 31)
    assert file.tell() == 1000
    return file


@pytest.mark.parametrize(
    ("roomy", "most"),
    [
        (0, {"declared": 50_000}),
        (60_000, {"declared": 60_000}),
        (archives._ROOMY, {"declared": 2**30}),
        (0, {"packed": 1000}),
    ],
)
def test_an_archive_promises_at_most_what_fits_into_it(monkeypatch, roomy, most):
    monkeypatch.setattr(archives, "_ROOMY", roomy)
    check_archive(promising(**most), "it")
    with pytest.raises(LoadError, match=r"^it has 1,000 bytes and declares [\d,]+ of content, far more than weights"):
        check_archive(promising(**{key: size + 1 for key, size in most.items()}), "it")


def test_weights_of_many_zeros_may_be_compressed(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", w=np.zeros(200_000, np.float32))
    assert (tmp_path / "a.npz").stat().st_size < 800_000 / archives._RATIO
    assert read_torch_file(tmp_path / "a.npz", Trust()).value["w"].shape == (200_000,)


def test_a_checkpoint_that_promises_more_is_not_unpacked(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "a.pt")
    content = bytearray((tmp_path / "a.pt").read_bytes())
    at = content.index(b"PK\1\2") + 20  # the sizes of the first entry in the table of the archive
    content[at : at + 4] = content[at + 4 : at + 8] = (2**31).to_bytes(4, "little")
    (tmp_path / "a.pt").write_bytes(content)
    with pytest.raises(LoadError, match=r"a\.pt has [\d,]+ bytes and declares 2,147,48\d,\d+ of content, far more"):
        read_torch_file(tmp_path / "a.pt", Trust())
