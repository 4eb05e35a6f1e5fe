import itertools
from pathlib import Path

import numpy as np
import pytest
import torch

from gapscope.errors import ProblemError, UsageError
from gapscope.measure.analyzers.epsilon_sharpness import EpsilonSharpness, label
from gapscope.measure.loading import Loss, Request
from gapscope.measure.manifold import RandomManifold
from gapscope.measure.session import Execution, open_session
from gapscope.measure.solvers.ascent import ONE
from gapscope.measure.solvers.hutchinson import caution
from gapscope.results import Status
from tests.problems import ZOO, Well, bowl, context, data, measure, problem

DTYPES = [torch.float32, torch.float64]
EPSILONS = (1e-3, 5e-4)
FIXTURES = Path(__file__).parents[3] / "fixtures"
NEGATIVE = Loss("negative", lambda outputs, _: outputs.square().mean(1) - 10)


def curved(size=30, seed=0):
    """Return curvatures of 10 to 100 (ten L-BFGS-B steps then reach the walls) and a center."""
    rng = torch.Generator().manual_seed(seed)
    h = 10 + 90 * torch.rand(size, generator=rng, dtype=torch.float64)
    return h, torch.randn(size, generator=rng, dtype=torch.float64)


# --- the metric


@pytest.mark.parametrize("seed", range(3))
def test_both_solvers_agree_with_the_quadratic_oracle_in_the_full_space(seed):
    h, c = curved(seed=seed)
    result = measure(EpsilonSharpness(manifold=0), bowl(h, c))
    for j, epsilon in enumerate(EPSILONS):
        phi = 100 * 0.5 * epsilon**2 * float((h * (c.abs() + 1) ** 2).sum())
        assert result.full.value[:, j] == pytest.approx(phi, rel=1e-9)
    assert result.status is Status.CONVERGED


def test_float32_agrees_with_the_oracle_up_to_the_rounding_of_theta():
    h, c = curved()
    given = bowl(h, c.float())
    result = measure(EpsilonSharpness(manifold=0), given)
    center = c.float().double()
    for j, epsilon in enumerate(EPSILONS):
        phi = 100 * 0.5 * epsilon**2 * float((h * (center.abs() + 1) ** 2).sum())
        # y is lost in theta + y to eps |theta|, which is eps / epsilon of y
        rounding = 4 * torch.finfo(torch.float32).eps / epsilon * float((center.abs() + 1).max())
        assert result.full.value[:, j] == pytest.approx(phi, rel=rounding)


def test_a_loss_level_divides_the_increase():
    h, c = curved()
    shifts = torch.zeros(4, 30, dtype=torch.float64)
    shifts[0, 0], shifts[1, 0] = 1.0, -1.0  # the mean loss at c is h_0 / 4 and the center stays
    result = measure(EpsilonSharpness(manifold=0), bowl(h, c, shifts=shifts))
    level = 0.25 * float(h[0])
    for j, epsilon in enumerate(EPSILONS):
        phi = 100 * 0.5 * epsilon**2 * float((h * (c.abs() + 1) ** 2).sum()) / (1 + level)
        assert result.full.value[:, j] == pytest.approx(phi, rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("p", [1, 3])
def test_on_a_manifold_no_vertex_is_above_brute_force_and_in_one_dimension_it_is_found(p, seed):
    h, c = curved(12, seed)
    epsilon, given = 1e-3, bowl(h, c)
    where = context(EpsilonSharpness(manifold=p, draws=2), seed=seed, train=given)
    result = where.result("epsilon-sharpness")
    for draw in range(2):
        key = int(where.generator(f"epsilon-sharpness/manifold/{draw}").initial_seed())
        matrix = RandomManifold(12, p, key, torch.device("cpu"), torch.float64)
        radius = epsilon * (matrix.coordinates(given.theta).abs() + 1)
        corners = [torch.tensor(signs, dtype=torch.float64) * radius for signs in itertools.product((1, -1), repeat=p)]
        phis = [100 * given.loss(given.theta + matrix.lift(y)) for y in corners]  # convex: the maximum is at a vertex
        found = result.manifold_draws.value[draw, :, 0]
        assert (found <= max(phis) * (1 + 1e-9)).all()
        assert np.abs(np.array(phis) / found[1] - 1).min() <= 1e-9  # ascent ends at a vertex, the best one or another
        if p == 1:
            assert found == pytest.approx(max(phis), rel=1e-9)
    assert result.manifold.value == pytest.approx(result.manifold_draws.value.mean(axis=0))


def test_the_spread_over_draws_is_the_error_of_their_mean():
    h, c = curved()
    result = measure(EpsilonSharpness(manifold=5, draws=4), bowl(h, c))
    few = caution(3) * result.manifold_draws.value.std(axis=0, ddof=1) / 2  # beside it what each maximum leaves
    assert result.manifold.numerical_error == pytest.approx(few, rel=0.01)
    assert np.all(result.manifold.numerical_error >= few)
    assert measure(EpsilonSharpness(manifold=5, draws=1), bowl(h, c)).manifold.numerical_error is None


def test_the_value_is_100_times_the_relative_increase_at_the_best_point_seen():
    given = ZOO["tanh mlp"].problem()
    result = measure(EpsilonSharpness(manifold=0), given)
    assert (result.full.value > 0).all()
    assert result.full.value[1, 0] >= result.full.value[0, 0] * 0.98  # ascent, keskar
    assert (result.full.value[:, 0] > result.full.value[:, 1]).all()  # the larger box holds the smaller


# --- errors


def test_the_sampling_error_is_the_spread_over_fresh_data():
    h, c = curved(4)
    values, errors = [], []
    for seed in range(150):
        shifts = 0.05 * torch.randn(60, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        given = bowl(h, c, theta=c + 0.5, shifts=shifts)
        result = measure(EpsilonSharpness(epsilons=(0.05,), manifold=0, solvers=("ascent",)), given)
        values.append(float(result.full.value[0, 0]))
        errors.append(float(result.full.sampling_error[0, 0]))
    # the gradient at theta outweighs the noise, so every data set has one vertex; five standard errors of a deviation
    assert np.mean(errors) == pytest.approx(np.std(values, ddof=1), rel=5 / np.sqrt(2 * 149))


def test_the_sampling_error_agrees_with_a_bootstrap_at_the_maximizer():
    given = ZOO["regression"].problem(samples=200)
    result = measure(EpsilonSharpness(epsilons=(0.01,), manifold=0, solvers=("keskar",)), given)
    parts = result.full.chunks[:, 0, 0]
    counts = np.bincount(given.chunk_of.numpy(), minlength=32)
    assert (parts * counts).sum() / 200 == pytest.approx(float(result.full.value[0, 0]), rel=1e-9)
    # means of about six samples each: their spread is the same standard error, known to 1 / sqrt(2 * 31)
    assert parts.std(ddof=1) / np.sqrt(32) == pytest.approx(
        float(result.full.sampling_error[0, 0]), rel=5 / np.sqrt(62)
    )


# --- what it costs, says and refuses


def test_no_second_derivative_is_asked_for():
    given = ZOO["tanh mlp"].problem()
    assert measure(EpsilonSharpness(manifold=0), given).matvecs == 0
    assert "derivatives" not in vars(given)  # how products are taken was never found out


def test_at_an_exact_minimum_the_ascent_starts_at_random():
    h, c = curved()
    given = bowl(h, c)
    assert not given.gradient().any()
    found = measure(EpsilonSharpness(epsilons=(1e-3,), manifold=5, draws=1, solvers=("ascent",)), given)
    assert found.full.value == pytest.approx(100 * 0.5e-6 * float((h * (c.abs() + 1) ** 2).sum()), rel=1e-9)
    assert (found.manifold.value > 0).all()


def test_evaluations_are_counted():
    h, c = curved()
    result = measure(EpsilonSharpness(manifold=5), bowl(h, c))
    assert result.full_evaluations.value.shape == (2, 2)
    assert (result.full_evaluations.value[0] >= 1).all()
    assert (result.full_evaluations.value[1] >= len(ONE)).all()
    assert (result.full_evaluations.value[1] <= 12).all()
    assert result.full_evaluations.labels["epsilon"] == ("1e-3", "5e-4")


def test_a_model_no_larger_than_the_manifold_has_none_and_says_so():
    h, c = curved(5)
    result = measure(EpsilonSharpness(manifold=5), bowl(h, c))
    assert result.manifold is None
    assert "theta has 5 entries" in result.notes[0]


def test_subsets_are_noted():
    given = ZOO["tanh mlp"].problem()
    few = type(given)(
        model=given.model, data=data(given.data.inputs, given.data.targets, 999), loss_function=given.loss_function
    )
    assert "measured on 50 of 999 samples" in measure(EpsilonSharpness(manifold=0), few).notes


def test_only_the_seed_changes_the_random_solver():
    given = ZOO["relu mlp"].problem()
    a, b, c = (measure(EpsilonSharpness(manifold=10), given, seed=seed) for seed in (0, 0, 1))
    assert np.array_equal(a.full.value, b.full.value)
    assert np.array_equal(a.manifold_draws.value, b.manifold_draws.value)
    assert not np.array_equal(a.manifold_draws.value, c.manifold_draws.value)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_flat_loss_is_zero_and_not_called_a_maximum(dtype):
    result = measure(EpsilonSharpness(manifold=0), bowl(torch.zeros(4), torch.ones(4, dtype=dtype)))
    assert not result.full.value.any()
    assert result.status is Status.BUDGET_SPENT  # L-BFGS-B made no iteration


@pytest.mark.parametrize("samples", [1, 2])
def test_few_samples_are_enough(samples):
    result = measure(EpsilonSharpness(manifold=3), ZOO["relu mlp"].problem(samples=samples))
    assert np.isfinite(result.full.value).all()
    assert result.full.chunks is None


def test_an_unknown_solver_is_refused():
    with pytest.raises(
        UsageError, match=r"There is no solver `kesker`. Expected keskar or ascent. Did you mean `keskar`?"
    ):
        measure(EpsilonSharpness(solvers=("kesker",)), ZOO["relu mlp"].problem())


@pytest.mark.parametrize(
    "bad", [{"epsilons": (0.0,)}, {"epsilons": ()}, {"solvers": ()}, {"draws": 0}, {"manifold": -1}]
)
def test_nonsense_is_refused(bad):
    with pytest.raises(UsageError, match=r"epsilon-sharpness got .*Expected positive epsilons"):
        measure(EpsilonSharpness(**bad), ZOO["relu mlp"].problem())


def test_epsilons_are_labelled_as_people_write_them():
    assert [label(epsilon) for epsilon in (1e-3, 5e-4, 0.05, 1.0)] == ["1e-3", "5e-4", "5e-2", "1e+0"]


def test_ascent_is_at_least_as_high_as_keskar_on_the_fixtures_at_no_more_gradients():
    spent = {"keskar": 0.0, "ascent": 1.0}  # one gradient at x
    for regime in ("small", "large"):
        session = open_session(Request(checkpoint=FIXTURES / f"digits-{regime}-batch.pt"), Execution())
        record = session.measure([EpsilonSharpness()]).results["epsilon-sharpness"]
        alone = session.measure([EpsilonSharpness(solvers=("ascent",))]).results["epsilon-sharpness"]
        for name in ("full", "manifold"):
            keskar, ascent = record.quantities[name].value
            assert (ascent >= (1 - 1e-6) * keskar).all()
        assert (alone.quantities["full"].value[0] > record.quantities["full"].value[0]).all()
        for name in ("full_evaluations", "manifold_evaluations"):
            spent["keskar"] += record.quantities[name].value[0].sum()
            spent["ascent"] += alone.quantities[name].value[0].sum()
    assert spent["ascent"] <= spent["keskar"]


def test_the_order_of_the_solvers_changes_nothing():
    given = ZOO["tanh mlp"].problem()
    one, other = (
        measure(EpsilonSharpness(manifold=8, draws=1, solvers=solvers), given)
        for solvers in (("keskar", "ascent"), ("ascent", "keskar"))
    )
    assert np.array_equal(one.full.value, other.full.value[::-1])
    assert np.array_equal(one.manifold.value, other.manifold.value[::-1])
    assert (one.manifold.value[1] >= (1 - 1e-9) * one.manifold.value[0]).all()


def test_the_stated_error_covers_float32_where_the_increase_is_all_rounding():
    settings = EpsilonSharpness(epsilons=(1e-7,), manifold=0)
    request = Request(checkpoint=FIXTURES / "digits-large-batch.pt")
    single, double = (
        open_session(request, Execution(dtype=dtype))
        .measure([settings])
        .results["epsilon-sharpness"]
        .quantities["full"]
        for dtype in ("float32", "float64")
    )
    assert (abs(single.value - double.value) <= single.numerical_error + double.numerical_error)[1].all()


def test_a_negative_loss_is_refused():
    given = problem(torch.nn.Linear(3, 2), torch.randn(9, 3), torch.zeros(9, dtype=torch.long), NEGATIVE)
    with pytest.raises(ProblemError, match=r"epsilon-sharpness divides by 1 \+ loss"):
        measure(EpsilonSharpness(manifold=0), given)


def test_cost_and_memory_follow_boxes_and_solvers():
    given = ZOO["tanh mlp"].problem()
    made = [EpsilonSharpness(**one).passes(given) for one in ({}, {"manifold": 0}, {"draws": 1})]
    assert [one["outcomes"] for one in made] == [17, 5, 9]
    assert made[1]["gradient"] < made[2]["gradient"] < made[0]["gradient"]
    assert [one["numbers_drawn"] for one in made] == [3 * 100 * given.size, 0, 100 * given.size]
    tight = ZOO["tanh mlp"].problem(memory_budget=100)  # where a manifold is drawn again for every use
    assert EpsilonSharpness().passes(tight)["numbers_drawn"] > made[0]["numbers_read"]
    both, ours = (EpsilonSharpness(manifold=0, solvers=s).memory(given) for s in (("keskar", "ascent"), ("ascent",)))
    assert both - ours == (31 * 8 + 5 * 8 - 16 * 8) * given.size  # L-BFGS-B's vectors, in float64
    assert EpsilonSharpness(manifold=100).memory(given) > both


@pytest.mark.parametrize("seed", range(6))
def test_of_two_maxima_beside_a_flat_start_the_higher_is_found(seed):
    # no slope at 1, and to the right of it the cube adds to the parabola
    def per_sample(outputs, targets):
        x = outputs[:, 0] - 1
        return 0.5 * x.square() + 100 * x**3

    zeros = torch.zeros(3, 1, dtype=torch.float64)
    given = problem(Well(torch.ones(1, dtype=torch.float64)), zeros, zeros, Loss("cubic", per_sample))
    found = measure(EpsilonSharpness(solvers=("ascent",), manifold=0, epsilons=(1e-3,)), given, seed=seed).full
    assert found.value.item() == pytest.approx(100 * (0.5 * 0.002**2 + 100 * 0.002**3), rel=1e-6)
