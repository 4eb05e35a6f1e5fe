import tempfile

import pytest
import torch

from gapscope.errors import ProblemError
from gapscope.measure.operators import Operator, from_dense
from gapscope.measure.solvers import basis as module
from gapscope.measure.solvers.basis import Basis
from gapscope.measure.solvers.lanczos import Room, extreme_eigenpairs
from tests.spectra import SPECTRA, matrix

EPS = torch.finfo(torch.float64).eps


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def filled(rows, **more):
    orthonormal = torch.linalg.qr(torch.randn(50, rows, generator=rng(), dtype=torch.float64))[0].T.contiguous()
    basis = Basis(20, orthonormal[0], **more)
    for row in orthonormal:
        basis.append(row)
    return basis, orthonormal


@pytest.mark.parametrize("more", [{}, {"slab": 4}, {"slab": 1}, {"home": "disk"}])
def test_a_basis_is_a_matrix_however_it_is_laid_out(more, monkeypatch):
    monkeypatch.setattr(module, "_COLUMNS", 7)
    basis, q = filled(9, **more)
    with basis:
        w, mix = torch.randn(50, generator=rng(1), dtype=torch.float64), torch.randn(5, 9, dtype=torch.float64)
        assert torch.equal(basis.all(), q)
        assert torch.equal(basis.last(), q[-1])
        assert float((basis.all() @ basis.orthogonal(w)).abs().max()) <= 50 * EPS
        assert torch.allclose(basis.orthogonal(w), w - q.T @ (q @ w), atol=50 * EPS, rtol=0)
        assert torch.allclose(basis.combined(mix), mix @ q, atol=50 * EPS, rtol=0)
        basis.replace(mix)
        assert torch.allclose(basis.all(), mix @ q, atol=50 * EPS, rtol=0)
        basis.append(w)
        assert torch.equal(basis.all()[5], w)


@pytest.mark.parametrize(("slab", "rows"), [(4, 9), (4, 20), (3, 20), (None, 1)])
def test_no_more_rows_are_taken_than_whole_slabs_and_the_capacity(slab, rows):
    basis, _ = filled(rows, slab=slab)
    taken = sum(len(part) for part in basis._slabs)
    assert taken == (20 if slab is None else min(20, slab * -(-rows // slab)))
    with basis:
        pass
    assert list(basis._parts()) == []  # given back, whoever still holds the basis


@pytest.mark.parametrize("slab", [None, 4])
def test_a_row_is_orthogonalized_twice_with_one_sum_over_the_processes_a_part(slab):
    sums = []
    basis, q = filled(8, slab=slab, total=lambda part: sums.append(part) or part)
    basis.orthogonal(q[0])
    assert len(sums) == 2 * (1 if slab is None else 2)


def test_other_devices_than_a_cpu_give_memory_by_and_by_and_only_where_the_basis_lies_there():
    row = torch.empty(3, device="meta")
    there, here = Basis(40, row), Basis(40, row, home="host")
    assert (there.device.type, here.device.type) == ("meta", "cpu")
    there.append(row)
    assert len(there._slabs[0]) < 40
    here.append(torch.ones(3))
    assert len(here._slabs[0]) == 40


def test_on_disk_the_rows_are_the_file(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    basis, q = filled(9, home="disk")
    with basis:
        (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
        stored = torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.float64)
        assert torch.equal(stored.view(20, 50)[:9], q)


def test_a_run_from_disk_gives_the_same_answer_and_leaves_no_file(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    operator = from_dense(matrix(SPECTRA["clustered"]))
    here = extreme_eigenpairs(operator, 2, rng())
    there = extreme_eigenpairs(operator, 2, rng(), room=Room(0, disk=200 * 120 * 8))
    assert torch.equal(here.vectors, there.vectors)
    assert here.upper == there.upper
    assert list(tmp_path.iterdir()) == []


def test_the_file_is_deleted_after_an_error_too(monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    there = []

    def matvec(v):
        there[:] = tmp_path.iterdir()
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        extreme_eigenpairs(Operator(1000, matvec), 1, rng(), room=Room(0, disk=10**7))
    assert len(there) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("device", "room", "found"),
    [
        ("cpu", Room(), (200, "device")),
        ("cuda", Room(), (200, "device")),
        ("cuda", Room(66_000, host=10**6), (64, "device")),  # 64 vectors of 1,000 bytes and two of the answer
        ("cuda", Room(65_000, host=10**6), (200, "host")),
        ("cpu", Room(65_000, host=10**6), (63, "device")),  # the same memory
        ("cpu", Room(65_000, disk=10**6), (200, "disk")),
        ("cpu", Room(40_000, disk=30_000), (38, "device")),  # too few anywhere: the most
    ],
)
def test_the_basis_lies_where_the_first_64_vectors_fit(device, room, found):
    operator = Operator(250, lambda v: v, torch.float32, torch.device(device))
    assert room.place(operator, 1, 200) == found


def test_a_refusal_names_the_largest_place():
    with pytest.raises(ProblemError, match=r"A Krylov basis of 9 vectors .*, where 3 fit\. Raise `--memory-budget`"):
        Room(2_000, disk=5_000).place(Operator(250, lambda v: v), 1, 200)
