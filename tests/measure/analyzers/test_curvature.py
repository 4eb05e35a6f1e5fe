import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gapscope.errors import ProblemError, UsageError
from gapscope.measure.analyzers.curvature import Curvature
from gapscope.measure.loading import Loss
from gapscope.measure.loading.networks import NETWORKS
from gapscope.measure.problem import Origin
from gapscope.measure.steps import FEW_PROBES, STEP_PROBES, probes_for
from gapscope.results import Status
from tests.problems import ZOO, bowl, data, dense_hessian, measure, problem, softmax_regression

LINEAR = ("relu mlp", "conv batchnorm")  # of the zoo: piecewise linear in every parameter

SGD = {"optimizer": "sgd", "lr": 0.1, "batch_size": 8}
QUARTILES = (0.25, 0.5, 0.75)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


class Two(nn.Module):
    """Two layers of bare parameters, side by side."""

    def __init__(self, theta: Tensor, cut: int) -> None:
        super().__init__()
        self.left, self.right = nn.ParameterList([theta[:cut].clone()]), nn.ParameterList([theta[cut:].clone()])

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.left[0], self.right[0]]).expand(len(x), -1)


def coupled(size=24, samples=50, seed=0, **more):
    """Return L = 1/N sum_i (theta - c_i)'A(theta - c_i) / 2 over two layers, with A, theta and the centers c_i."""
    half = torch.randn(size, size, generator=rng(seed), dtype=torch.float64) / size**0.5
    matrix = half @ half.T + 0.1 * torch.eye(size)
    theta, centers = (torch.randn(*shape, generator=rng(seed), dtype=torch.float64) for shape in ((size,), (50, size)))
    centers = centers[:samples] * torch.linspace(0.5, 2, size, dtype=torch.float64)

    def per_sample(outputs: Tensor, targets: Tensor) -> Tensor:
        away = outputs - targets.to(outputs)
        return 0.5 * ((away @ matrix.to(outputs)) * away).sum(1)

    given = problem(Two(theta, size // 3), centers[:, :1].clone(), centers, Loss("coupled", per_sample), **more)
    return given, matrix, theta, centers


# --- the diagonal


@pytest.mark.parametrize("estimator", ["auto", "hutchinson"])
@pytest.mark.parametrize("kind", ZOO)
def test_every_layer_is_measured_within_its_errors(kind, estimator):
    given = ZOO[kind].problem()
    dense = dense_hessian(given)
    analyzer = Curvature(estimator=estimator, tolerance=1e-6, max_matvecs=80, directions=10, top_matvecs=30)
    result = measure(analyzer, given)
    blocks = given.parameters.blocks()
    assert result.median.labels["layer"] == tuple(blocks)
    for i, where in enumerate(blocks.values()):
        diagonal = np.diag(dense)[where]
        live = (dense[where] != 0).any(1)
        assert result.zero_fraction.value[i] == pytest.approx(1 - live.mean())
        assert abs(result.trace.value[i] - diagonal.sum()) <= 5 * result.trace.numerical_error[i] + 1e-12
        top = np.linalg.eigvalsh(dense[where, where])[-1]
        assert -1e-9 <= top - result.top.value[i] <= result.top.numerical_error[i] + 1e-9
        if live.any():
            true = np.quantile(np.abs(diagonal[live]), QUARTILES)
            for quantity, expected in zip(
                (result.lower_quartile, result.median, result.upper_quartile), true, strict=True
            ):
                assert abs(quantity.value[i] - expected) <= 1.5 * quantity.numerical_error[i] + 1e-12
        else:
            assert np.isnan(result.median.value[i])


@pytest.mark.parametrize("kind", ZOO)
def test_exact_is_claimed_where_the_network_is_piecewise_linear_and_nowhere_else(kind):
    for dtype in (torch.float32, torch.float64):
        given = ZOO[kind].problem(dtype=dtype)
        result = measure(Curvature(top_matvecs=0), given)
        said = "diagonal: exact, that of Gauss-Newton, because the network is piecewise linear in every parameter"
        assert (said in result.notes) == (kind in LINEAR)
        assert (result.status is Status.EXACT) == (kind in LINEAR)
        assert result.matvecs == 0 or kind not in LINEAR
        if kind not in LINEAR:
            assert result.notes[0].startswith("diagonal: Gauss-Newton exactly; ")
            with pytest.raises(
                ProblemError, match=r"outputs bend along .* of .* parameters \(first: `.*--estimator auto"
            ):
                measure(Curvature(estimator="exact"), given)


@pytest.mark.parametrize("kind", LINEAR)
def test_the_exact_diagonal_is_that_of_the_dense_hessian_to_rounding(kind):
    given = ZOO[kind].problem()
    result, diagonal = measure(Curvature(top_matvecs=0), given), np.diag(dense_hessian(given))
    for i, where in enumerate(given.parameters.blocks().values()):
        true = np.quantile(np.abs(diagonal[where][diagonal[where] != 0]), QUARTILES)
        found = [q.value[i] for q in (result.lower_quartile, result.median, result.upper_quartile)]
        assert found == pytest.approx(true, rel=1e-12)
        assert result.trace.value[i] == pytest.approx(diagonal[where].sum(), rel=1e-12)
    single = measure(Curvature(top_matvecs=0), ZOO[kind].problem(dtype=torch.float32))
    for name in ("median", "trace"):
        one, other = single.quantities()[name], result.quantities()[name]
        assert (np.abs(one.value - other.value) <= one.numerical_error).all()


def test_the_known_part_leaves_less_noise_than_probes_of_everything():
    given = ZOO["fused attention"].problem()
    diagonal = np.diag(dense_hessian(given))
    true = [np.median(np.abs(diagonal[w][diagonal[w] != 0])) for w in given.parameters.blocks().values()]
    away = {
        estimator: np.mean(
            [
                np.abs(measure(Curvature(estimator, 1e-6, 16, top_matvecs=0), given, seed=s).median.value / true - 1)
                for s in range(4)
            ],
            axis=0,
        )
        for estimator in ("auto", "hutchinson")
    }
    assert away["auto"].max() < 0.5 * away["hutchinson"].max()
    assert away["auto"][1:] == pytest.approx(0, abs=1e-12)  # LayerNorm's scale and the head: no output bends along them


def test_the_sampling_error_is_the_spread_over_fresh_data():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 40), nn.ReLU(), nn.Linear(40, 3)).double()
    found = []
    for seed in range(30):
        x, y = torch.randn(200, 6, generator=rng(seed)), torch.randint(3, (200,), generator=rng(seed))
        found.append(measure(Curvature(top_matvecs=0), problem(model, x, y)))
    for name in ("median", "trace"):
        values, stated = (
            np.array([getattr(each.quantities()[name], key) for each in found]) for key in ("value", "sampling_error")
        )
        # a standard deviation of 30 runs is known to 13 %
        assert stated.mean(0) == pytest.approx(values.std(0, ddof=1), rel=0.4)


def test_too_few_samples_or_too_little_memory_leave_no_sampling_error():
    few = measure(Curvature(top_matvecs=0), ZOO["relu mlp"].problem(samples=63))
    tight = measure(Curvature(top_matvecs=0), ZOO["relu mlp"].problem(samples=64, memory_budget=200_000))
    enough = measure(Curvature(top_matvecs=0), ZOO["relu mlp"].problem(samples=64))
    assert few.median.sampling_error is few.trace.sampling_error is tight.median.sampling_error is None
    assert (enough.median.sampling_error > 0).all()
    assert tight.median.value == pytest.approx(enough.median.value)


def test_batch_statistics_are_probed_and_the_note_says_why():
    given = ZOO["conv batchnorm"].problem(batchnorm="batch", batch_size=25)
    result = measure(Curvature(top_matvecs=0, max_matvecs=20), given)
    assert "Lanczos directions deflated; nothing is known exactly: BatchNorm in batch mode" in result.notes[0]


def test_more_outputs_than_can_be_passed_back_are_probed_and_the_note_says_why():
    given = problem(nn.Linear(3, 129).double(), torch.randn(9, 3, generator=rng()), torch.arange(9))
    result = measure(Curvature(top_matvecs=0, max_matvecs=20), given)
    assert "nothing is known exactly: A sample has 129 outputs. Expected at most 128" in result.notes[0]
    with pytest.raises(ProblemError, match=r"A sample has 129 outputs.*--estimator hutchinson"):
        measure(Curvature(estimator="exact"), given)


def test_few_parameters_are_exact_with_products_too():
    given = softmax_regression()
    diagonal = np.diag(given.hessian)
    result = measure(Curvature(estimator="hutchinson"), given.problem)
    assert result.status is Status.CONVERGED  # the eigenvalues of the blocks are iterated
    assert result.median.value == pytest.approx([np.median(diagonal)])
    assert result.median.numerical_error == pytest.approx(0)
    assert result.trace.value == pytest.approx([diagonal.sum()])
    assert result.top.value == pytest.approx([np.linalg.eigvalsh(given.hessian)[-1]], rel=1e-2)
    assert result.notes[0] == "diagonal: entry by entry, exact"


@pytest.mark.parametrize("estimator", ["auto", "hutchinson", "secant"])
def test_a_diagonal_hessian_is_exact_by_probes_and_by_the_secant(estimator):
    h = torch.linspace(0.5, 9, 61, dtype=torch.float64)
    given = bowl(h, torch.zeros(61, dtype=torch.float64), theta=torch.linspace(1, 2, 61, dtype=torch.float64))
    result = measure(Curvature(estimator=estimator, max_matvecs=8, directions=0, top_matvecs=0), given)
    found = [q.value[0] for q in (result.lower_quartile, result.median, result.upper_quartile)]
    assert found == pytest.approx(np.quantile(h.numpy(), QUARTILES), rel=1e-6)
    assert result.median.numerical_error == pytest.approx(0, abs=1e-6)
    assert result.status is (Status.CONVERGED if estimator == "hutchinson" else Status.EXACT)
    assert result.top is None


def test_one_probe_is_lifted_by_noise_and_called_so():
    x = 1 + 0.3 * torch.randn(50, 300, generator=rng(), dtype=torch.float64)  # H_ij is about H_ii for all i, j
    given = problem(nn.Linear(300, 1, bias=False).double(), x, torch.zeros(50), "mse")
    one = measure(Curvature(estimator="hutchinson", max_matvecs=1), given)
    assert one.median.value > 8 * np.median(2 * x.square().mean(0))
    assert one.status is Status.NOISE_DOMINATED
    assert one.median.numerical_error is one.trace.numerical_error is None
    said = "noise-dominated, so the median is too high: weight; raise `--max-matvecs`, and `--directions` with it"
    assert said in one.notes
    for estimator, close in (("hutchinson", 0.05), ("exact", 1e-12)):
        found = measure(Curvature(estimator=estimator), given).median.value
        assert abs(found / np.median(2 * x.square().mean(0)) - 1) < close


@pytest.mark.parametrize("estimator", ["exact", "hutchinson"])
def test_dead_units_are_counted_and_stay_out(estimator):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        model[0].weight[:2], model[0].bias[:2] = 0, -5
    given = problem(model, torch.randn(50, 6, generator=rng()), torch.randint(3, (50,), generator=rng()))
    result = measure(Curvature(estimator=estimator, max_matvecs=60), given)
    assert result.zero_fraction.value == pytest.approx([2 / 8, 2 * 3 / 27])  # units in, weights out


@pytest.mark.parametrize("estimator", ["exact", "hutchinson"])
def test_a_layer_without_curvature_has_no_median(estimator):
    linear = Loss("linear", lambda outputs, targets: outputs.squeeze(1))
    given = problem(nn.Linear(60, 1).double(), torch.randn(10, 60, generator=rng()), torch.zeros(10), linear)
    result = measure(Curvature(estimator=estimator), given)
    assert np.isnan(result.median.value).all()
    assert "no entry is left, so there is no median: weight, bias" in result.notes


def test_a_spent_budget_says_so():
    given = ZOO["tanh mlp"].problem()
    analyzer = Curvature(estimator="hutchinson", tolerance=1e-3, max_matvecs=60, directions=20, top_matvecs=4)
    result = measure(analyzer, given)
    assert result.status is Status.BUDGET_SPENT
    assert result.matvecs == 60 + 4 * 3
    assert "not converged: the products ran out; raise `--max-matvecs`; the errors stated still hold" in result.notes
    assert any(note.startswith("top eigenvalue not known to 10 %: 0, 2") for note in result.notes)


def test_a_subset_is_noted():
    given = ZOO["tanh mlp"].problem()
    few = problem(given.model, given.data.inputs, given.data.targets)
    few = type(few)(model=few.model, data=data(few.data.inputs, few.data.targets, 999), loss_function=few.loss_function)
    assert "measured on 50 of 999 samples" in measure(Curvature(max_matvecs=20, top_matvecs=0), few).notes


def test_a_loss_that_overflows_is_nonfinite():
    given = problem(nn.Linear(60, 1), torch.full((4, 60), 1e30), torch.zeros(4), "mse")
    for estimator in ("auto", "exact", "hutchinson", "secant", "ratio"):
        assert measure(Curvature(estimator=estimator), given, training=SGD).status is Status.NONFINITE


def test_the_seed_decides():
    given = ZOO["tanh mlp"].problem()
    analyzer = Curvature(max_matvecs=30, top_matvecs=0)
    one, same, other = (measure(analyzer, given, seed=seed).median.value for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).any()


# --- the other estimators


def test_the_ratio_is_gradient_over_weight():
    given, matrix, theta, centers = coupled()
    gradient = (matrix @ (theta - centers.mean(0))).numpy()
    result = measure(Curvature(estimator="ratio"), given)
    ratio = np.abs(gradient) / np.abs(theta.numpy())
    for i, where in enumerate(given.parameters.blocks().values()):
        found = [q.value[i] for q in (result.lower_quartile, result.median, result.upper_quartile)]
        assert found == pytest.approx(np.quantile(ratio[where], QUARTILES))
        assert result.gradient_norm.value[i] == pytest.approx(np.linalg.norm(gradient[where]))
    assert result.status is Status.CONVERGED  # the eigenvalues of the blocks are iterated
    assert result.trace is result.noise_share is result.median.numerical_error is None


def test_the_ratio_leaves_weights_of_zero_out():
    h = torch.ones(4, dtype=torch.float64)
    given = bowl(h, torch.ones(4, dtype=torch.float64), theta=torch.tensor([0.0, 2.0, 3.0, 1.0], dtype=torch.float64))
    result = measure(Curvature(estimator="ratio", top_matvecs=0), given)  # gradient -1, 1, 2, 0
    assert result.zero_fraction.value == pytest.approx([0.5])
    assert result.median.value == pytest.approx([(1 / 2 + 2 / 3) / 2])


@pytest.mark.parametrize("length", [1e-3, 1e-1])
def test_the_secant_of_a_quadratic_is_that_of_its_matrix_along_the_gradient(length):
    given, matrix, theta, centers = coupled()
    gradient = matrix @ (theta - centers.mean(0))
    ratio = ((matrix @ gradient).abs() / gradient.abs()).numpy()
    result = measure(Curvature(estimator="secant", secant_length=length), given)
    for i, where in enumerate(given.parameters.blocks().values()):
        assert result.median.value[i] == pytest.approx(np.median(ratio[where]), rel=1e-8)
    assert result.median.numerical_error == pytest.approx(0, abs=1e-8)  # the same at half the length
    assert f"on a step of {length:g} |theta| along -gradient" in result.median.doc


def test_the_secants_error_is_its_change_with_the_step():
    given = ZOO["tanh mlp"].problem()
    short, long = (measure(Curvature(estimator="secant", secant_length=length), given) for length in (1e-5, 1e-2))
    assert (short.median.numerical_error < long.median.numerical_error).all()
    assert (np.abs(short.median.value - long.median.value) <= 4 * long.median.numerical_error).all()


def test_without_a_gradient_there_is_no_secant():
    given = bowl(torch.ones(4), torch.zeros(4))
    result = measure(Curvature(estimator="secant"), given)
    assert np.isnan(result.median.value).all()
    assert result.zero_fraction.value == 1


# --- the steps


@pytest.mark.parametrize("size", [1, 8, 40])
def test_step_and_loss_step_are_those_of_simulated_sgd(size):
    given, matrix, theta, centers = coupled()
    result = measure(Curvature(estimator="ratio"), given, training={**SGD, "batch_size": size})
    eta, draws = SGD["lr"], 20_000
    picked = torch.randint(len(centers), (draws, size), generator=rng(5))
    gradients = (theta - centers[picked].mean(1)) @ matrix  # (draws, n)
    full = matrix @ (theta - centers.mean(0))
    for i, where in enumerate(given.parameters.blocks().values()):
        steps = eta * gradients[:, where]
        squares = steps.square().sum(1)
        error = float(squares.std() / draws**0.5)
        assert abs(result.step_length.value[i] ** 2 - float(squares.mean())) <= 4 * error
        changes = -steps @ full[where] + 0.5 * ((steps @ matrix[where, where]) * steps).sum(1)
        error = np.hypot(float(changes.std() / draws**0.5), result.loss_step.numerical_error[i])
        assert abs(result.loss_step.value[i] - float(changes.mean())) <= 4 * error


def test_the_loss_step_is_unbiased_and_its_error_true():
    given, matrix, theta, centers = coupled()
    away = theta - centers
    gradients = away @ matrix
    full = gradients.mean(0)
    sigma = (gradients - full).T @ (gradients - full) / len(centers)
    blocks = list(given.parameters.blocks().values())
    eta, size = SGD["lr"], SGD["batch_size"]
    true = [
        -eta * float(full[w] @ full[w])
        + eta**2 / 2 * float(full[w] @ matrix[w, w] @ full[w] + (matrix[w, w] * sigma[w, w]).sum() / size)
        for w in blocks
    ]
    runs = [measure(Curvature(estimator="ratio", top_matvecs=0), given, seed=s, training=SGD) for s in range(30)]
    found, stated = (np.array([getattr(run.loss_step, key) for run in runs]) for key in ("value", "numerical_error"))
    assert (np.abs(found.mean(0) - true) <= 4 * found.std(0, ddof=1) / 30**0.5).all()
    assert stated.mean(0) == pytest.approx(found.std(0, ddof=1), rel=0.5)
    assert runs[0].matvecs == STEP_PROBES


def test_other_layers_add_no_noise_to_the_loss_step():
    given, *_ = coupled(size=150)
    hessian, blocks = given.hessian_blocks(), given.parameters.blocks()
    assert probes_for(len(blocks)) == STEP_PROBES > probes_for(39) == FEW_PROBES
    v = torch.randn(given.size, dtype=torch.float64, generator=rng())
    whole, apart = hessian.whole().matvec(v), hessian.apart().matvec(v)
    assert (whole - apart).norm() > 0.1 * whole.norm()
    result = measure(Curvature(top_matvecs=0), given, training=SGD)
    assert (result.loss_step.numerical_error < 0.2 * np.abs(result.loss_step.value)).all()


def test_steps_shrink_with_the_batch_to_those_of_the_full_gradient():
    given, *_ = coupled()
    analyzer = Curvature(estimator="ratio", top_matvecs=0)
    lengths = [
        measure(analyzer, given, training={**SGD, "batch_size": size}).step_length.value for size in (1, 10, 100, 10**9)
    ]
    assert (np.diff(lengths, axis=0) < 0).all()
    full = SGD["lr"] * measure(analyzer, given).gradient_norm.value
    assert lengths[-1] == pytest.approx(full, rel=1e-6)


@pytest.mark.parametrize(
    ("training", "said"),
    [
        ({}, "no step lengths: the checkpoint does not record `optimizer` sgd, a positive `lr`, a `batch_size`"),
        ({**SGD, "lr": "0.1"}, "no step lengths: the checkpoint does not record a positive `lr`"),
        ({**SGD, "lr": float("nan")}, "no step lengths: the checkpoint does not record a positive `lr`"),
        ({**SGD, "lr": True}, "no step lengths: the checkpoint does not record a positive `lr`"),
        ({**SGD, "batch_size": 0}, "no step lengths: the checkpoint does not record a `batch_size`"),
        ({**SGD, "batch_size": "8"}, "no step lengths: the checkpoint does not record a `batch_size`"),
        ({**SGD, "optimizer": "lars"}, "no step lengths: that is for SGD, and this was trained by lars"),
        (
            {**SGD, "optimizer": "AdamW"},
            "no step lengths: that is for SGD, and this was trained by AdamW",
        ),
    ],
)
def test_without_the_recipe_there_are_no_steps_and_a_note_says_why(training, said):
    given, *_ = coupled()
    result = measure(Curvature(estimator="ratio", top_matvecs=0), given, training=training)
    assert result.step_length is result.loss_step is None
    assert said in result.notes


def test_momentum_and_weight_decay_are_named_as_left_out():
    given, *_ = coupled()
    training = {**SGD, "optimizer": "SGD", "momentum": 0.9, "weight_decay": 5e-4}
    result = measure(Curvature(estimator="ratio", top_matvecs=0), given, training=training)
    assert result.step_length is not None
    said = "steps are those of one mini-batch gradient of the loss, without momentum 0.9 and weight_decay 0.0005"
    assert said in result.notes


def test_samples_that_share_statistics_have_no_gradients_of_their_own():
    given = ZOO["conv batchnorm"].problem(batchnorm="batch", batch_size=10)
    result = measure(Curvature(estimator="ratio", top_matvecs=0), given, training=SGD)
    assert result.step_length is result.loss_step is None
    assert any(note.startswith("no step lengths: ") for note in result.notes)


# --- the request


@pytest.mark.parametrize(
    "bad",
    [
        {"tolerance": 0.0},
        {"tolerance": 1.0},
        {"max_matvecs": 0},
        {"directions": -1},
        {"top_matvecs": 2},
        {"top_matvecs": -1},
        {"secant_length": 0.0},
        {"secant_length": float("inf")},
    ],
)
def test_nonsense_is_refused(bad):
    with pytest.raises(UsageError, match=r"curvature got tolerance=.*secant_length=.*Expected 0 < tolerance < 1"):
        measure(Curvature(**bad), softmax_regression().problem)


def test_the_cost_is_foreseen():
    given, *_ = coupled()

    def made(one, problem):
        return {kind: count for kind, count in one.passes(problem).items() if count}

    assert made(Curvature(), given) == {"gradient": 1, "gauss_newton_diagonal": 1, "blocks": 10}
    assert made(Curvature(estimator="hutchinson"), given) == {"gradient": 1, "product": 100, "blocks": 10}
    assert made(Curvature(estimator="secant", top_matvecs=0), given) == {"gradient": 3}
    assert made(Curvature(estimator="ratio", top_matvecs=0), given) == {"gradient": 1}
    smooth = ZOO["tanh mlp"].problem()
    assert made(Curvature(top_matvecs=3), smooth) == {
        "gradient": 1,
        "gauss_newton_diagonal": 1,
        "product": 100,
        "blocks": 3,
    }
    trained = ZOO["tanh mlp"].problem(origin=Origin(training=SGD))
    stepping = {"gradient_squares": 1, "weighted_gradient": STEP_PROBES, "blocks": STEP_PROBES}
    assert made(Curvature(estimator="ratio", top_matvecs=0), trained) == {"gradient": 1, **stepping}


def test_loose_eigenvalues_are_no_convergence():
    given = ZOO["relu mlp"].problem()
    result = measure(Curvature(top_matvecs=4), given)
    assert result.status is Status.BUDGET_SPENT
    assert any("top eigenvalue not known to 10 %" in note for note in result.notes)
    assert measure(Curvature(top_matvecs=0), given).status is Status.EXACT


def test_a_resnet_is_measured_without_noise():
    x, y = torch.randn(6, 3, 8, 8, generator=rng()), torch.arange(6)
    result = measure(Curvature(top_matvecs=0), problem(NETWORKS["resnet20"](), x, y))
    assert result.status is Status.EXACT
    assert len(result.median.value) == 39
    assert (result.median.value > 0).all()
