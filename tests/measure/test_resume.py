import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from gapscope.measure import resume
from gapscope.measure.problem import Origin
from gapscope.measure.remembered import Remembered
from gapscope.measure.resume import Parts
from tests.problems import ZOO

FACTS = {"torch": "1", "threads": 1}


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(resume, "SAVE_SECONDS", 0.0)


@pytest.fixture
def begun(tmp_path):
    """Return a function that begins like a new process: parts beside one report, what was said, and their calls."""

    every = []

    def begin(facts=FACTS, **how):
        for earlier in every:
            earlier.close()
        said = []
        parts = Parts(say=said.append)
        every.append(parts)
        parts.begin(tmp_path / "r.h5", facts, **{"resume": True, **how})
        return parts, said

    yield begin
    for parts in every:
        parts.close()


def values(count):
    rng = np.random.default_rng(0)
    for index in range(count):
        yield torch.from_numpy(rng.normal(size=3)).float(), rng.normal(size=(2, 2)), None, float("nan"), index


def asked(parts, wanted):
    """Ask for each value as a part of its own; return what came back, and which had to be computed."""
    computed, found = [], []
    for index, value in enumerate(wanted):
        found.append(parts.recall(lambda i=index: f"part {i}", lambda i=index, v=value: computed.append(i) or v))
    return found, computed


def same(a, b):
    return all(
        torch.equal(x[0], y[0]) and x[1].tobytes() == y[1].tobytes() and x[4] == y[4] for x, y in zip(a, b, strict=True)
    )


def test_parts_come_back_bit_for_bit_and_one_is_computed_again_to_prove_it(begun):
    wanted = list(values(5))
    parts, _ = begun()
    assert asked(parts, wanted[:3])[1] == [0, 1, 2]
    again, said = begun()
    found, computed = asked(again, wanted)
    assert computed == [0, 3, 4]
    assert said == ["resumed: 3 finished parts are in r.h5.state"]
    assert same(found, wanted)
    assert found[1][2] is None
    assert np.isnan(found[1][3])
    assert asked(begun()[0], wanted)[1] == [0]  # what was added counts too


def test_a_young_run_writes_nothing(begun, tmp_path, monkeypatch):
    monkeypatch.setattr(resume, "SAVE_SECONDS", 60.0)
    parts, said = begun()
    asked(parts, values(3))
    assert list(tmp_path.iterdir()) == []
    assert parts.kept is None
    assert said == []


def test_the_report_makes_the_file_superfluous(begun, tmp_path):
    parts, _ = begun()
    asked(parts, values(2))
    assert parts.kept == tmp_path / "r.h5.state"
    parts.forget()
    parts.forget()
    assert list(tmp_path.iterdir()) == []
    assert asked(parts, values(2))[1] == [0, 1]
    assert asked(Parts(), values(1))[1] == [0]


def test_without_resume_the_file_is_named_and_not_used(begun):
    asked(begun()[0], values(2))
    parts, said = begun(resume=False)
    assert said == [
        "r.h5.state holds work that was interrupted: with `--resume` this command goes on from it. "
        "Without, everything is measured anew, and the file is replaced."
    ]
    assert asked(parts, values(2))[1] == [0, 1]


def test_other_facts_are_left_aside(begun):
    asked(begun()[0], values(2))
    parts, said = begun({"torch": "2", "threads": 1})
    assert said == ["r.h5.state was left aside: it is of other work (torch differ). Everything is measured anew."]
    assert asked(parts, values(2))[1] == [0, 1]


def test_other_code_shows_in_the_first_part(begun):
    asked(begun()[0], values(3))
    parts, said = begun()
    other = [(torch.ones(3), *rest) for _, *rest in values(3)]
    found, computed = asked(parts, other)
    assert computed == [0, 1, 2]
    assert same(found, other)
    assert said[1] == (
        "r.h5.state was left aside: its first part, measured again, came out otherwise. Expected the same model code, "
        "libraries and machine. Everything is measured anew."
    )
    assert asked(begun()[0], other)[1] == [0]


def test_a_torn_end_costs_its_last_part(begun, tmp_path):
    asked(begun()[0], values(3))
    path = tmp_path / "r.h5.state"
    whole = path.read_bytes()
    for cut in range(1, 60, 7):
        path.write_bytes(whole[:-cut])
        parts, said = begun()
        assert said == ["resumed: 2 finished parts are in r.h5.state"]
        found, computed = asked(parts, values(3))
        assert computed == [0, 2]
        assert same(found, list(values(3)))
        assert path.read_bytes() == whole


def test_a_damaged_part_is_computed_again(begun, tmp_path):
    asked(begun()[0], values(3))
    path = tmp_path / "r.h5.state"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)
    found, computed = asked(begun()[0], values(3))
    assert computed == [0, 2]
    assert same(found, list(values(3)))


@pytest.mark.parametrize("content", [b"", resume.MAGIC[:5], resume.MAGIC, resume.MAGIC + b"\0" * 40])
def test_a_file_without_whole_records_is_left_aside(begun, tmp_path, content):
    (tmp_path / "r.h5.state").write_bytes(content)
    parts, said = begun()
    assert said == ["r.h5.state was left aside: it is damaged. Everything is measured anew."]
    assert asked(parts, values(2))[1] == [0, 1]
    assert asked(begun()[0], values(2))[1] == [0]


def test_a_full_disk_does_not_end_the_work(begun, tmp_path):
    parts, said = begun()
    asked(parts, values(1))
    descriptor = os.open("/dev/full", os.O_RDWR)
    os.dup2(descriptor, parts._file.fileno())
    os.close(descriptor)
    assert asked(parts, values(2))[1] == [0, 1]
    assert said == ["r.h5.state cannot be written (No space left on device): the work goes on, but cannot be resumed."]
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_gone_does_not_end_the_work(tmp_path):
    said = []
    parts = Parts(say=said.append)
    parts.begin(tmp_path / "none" / "r.h5", FACTS, resume=False)
    assert asked(parts, values(2))[1] == [0, 1]
    assert said == [
        "r.h5.state cannot be written (No such file or directory): the work goes on, but cannot be resumed."
    ]


def test_a_file_that_cannot_be_read_is_left_aside(tmp_path):
    said, name = [], f"{'r' * 250}.h5"  # too long with what is added to it
    parts = Parts(say=said.append)
    parts.begin(tmp_path / name, FACTS, resume=True)
    assert said == [f"{name}.state cannot be read (File name too long): everything is measured anew."]
    parts.close()


def test_parts_inside_a_part_are_not_kept(begun):
    parts, _ = begun()
    parts.recall(lambda: "outer", lambda: parts.recall(lambda: "inner", lambda: 1.0))
    again, said = begun()
    assert said == ["resumed: 1 finished parts are in r.h5.state"]
    assert again.rows("grid", 3, lambda index: np.array([index, np.nan]))[:, 0].tolist() == [0, 1, 2]
    assert again.rows("other", 2, lambda index: np.array([7 + index])).tolist() == [[7], [8]]


def test_a_value_of_another_kind_is_refused(begun):
    with pytest.raises(
        TypeError, match=r"a part is a set\. Expected tensors, arrays, numbers, None or tuples of them\."
    ):
        begun()[0].recall(lambda: "odd", lambda: {1})


def mlp(**how):
    return ZOO["tanh mlp"].problem(**how)


def passes(problem):
    """Return everything that a problem's passes return, as one list of arrays."""
    n, count = problem.size, problem.samples
    v = torch.linspace(-1, 1, n, dtype=problem.dtype)
    blocks = problem.hessian_blocks()
    layer, where = next(iter(problem.parameters.blocks().items()))
    found = [
        *problem.outcomes(),
        problem.losses(problem.theta + 0.1 * v),
        *problem.loss_and_gradient(),
        problem.hvp(v),
        *(one.matvec(v) for one in (problem.hessian(), problem.gauss_newton(), problem.residual())),
        *(one.matvec(v) for one in (blocks.whole(), blocks.apart())),
        blocks.layer(layer).matvec(v[where]),
        problem.gauss_newton_diagonal(),
        *problem.curvature_along(v),
        problem.slopes_along(v),
        problem.weighted_gradient(np.linspace(0, 1, count)),
        *problem.gradient_squares(),
        *problem.gradient_squares(v),
        *problem.curvature_squares(v),
        *problem.curvature_squares(v, v),
        problem.second_moment().matvec(v),
    ]
    return [np.asarray(one) for one in found]


def test_every_pass_of_a_problem_comes_back_as_it_was(begun, monkeypatch):
    given = mlp()
    bare = passes(given)
    first = passes(Remembered.of(given, begun()[0]))
    again, _ = begun()
    problem = Remembered.of(given, again)
    problem.loss()  # the part that is computed again
    _ = problem.derivatives
    monkeypatch.setattr(Remembered, "mean", lambda *_: pytest.fail("a pass was made again"))
    second = passes(problem)
    for one, two, three in zip(bare, first, second, strict=True):
        assert one.tobytes() == two.tobytes() == three.tobytes()


def test_another_theta_or_other_data_share_no_part():
    given = [mlp(seed=0), mlp(seed=1), mlp(seed=0), mlp(seed=0, batchnorm="batch", batch_size=25)]
    contents = [Remembered.of(one, Parts()).content for one in given]
    assert contents[0] == contents[2]
    assert len(set(contents)) == 3


def test_the_other_split_is_remembered_too():
    parts, given = Parts(), mlp()
    measured = replace(given, origin=Origin(split="test", other=given))
    found = Remembered.of(measured, parts)
    assert isinstance(found.origin.other, Remembered)
    assert found.origin.other.parts is found.parts is parts
    assert found.repaired is measured.repaired
