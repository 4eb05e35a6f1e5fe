import numpy as np
import pytest
import torch
from torch import nn

from gapscope.errors import UsageError
from gapscope.measure.analyzers.eigenvalues import Eigenvalues
from gapscope.measure.context import Context, Subject
from gapscope.measure.preconditioner import adam_preconditioner
from tests.problems import ZOO, bowl, dense_hessian, problem


def trained(where, steps=30, optimizer=torch.optim.Adam, groups=None, **options):
    """Train in place and return the optimizer."""
    model = where.model
    made = optimizer(groups or model.parameters(), **{"lr": 0.01, **options})
    x = where.data.inputs.to(where.dtype)
    for _ in range(steps):
        made.zero_grad()
        where.loss_function.per_sample(model(x), where.data.targets).mean().backward()
        made.step()
    made.zero_grad(set_to_none=True)
    return made


def within(where, optimizer):
    state = None if optimizer is None else optimizer.state_dict()
    subject = Subject(problems={"train": where}, training={"optimizer": type(optimizer).__name__}, optimizer=state)
    return Context(subjects=(subject,))


def fresh(where):
    return problem(where.model, where.data.inputs, where.data.targets)


@pytest.mark.parametrize("kind", ["tanh mlp", "conv batchnorm", "tied embedding"])
@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW])
def test_the_top_eigenvalue_is_that_of_the_dense_preconditioned_hessian(kind, optimizer):
    given = ZOO[kind].problem(samples=30)
    made = trained(given, optimizer=optimizer) if kind != "tied embedding" else None
    if made is None:  # tokens stay integers
        made = optimizer(given.model.parameters(), lr=0.01)
        for _ in range(30):
            made.zero_grad()
            given.loss_function.per_sample(given.model(given.data.inputs), given.data.targets).mean().backward()
            made.step()
        made.zero_grad(set_to_none=True)
    where = fresh(given)
    result = Eigenvalues(preconditioned=True, tolerance=1e-6)(within(where, made))
    second = torch.cat([made.state[p]["exp_avg_sq"].flatten() for p in where.model.parameters()]).numpy()
    scale = 1 / np.sqrt((1 - 0.9**30) * (np.sqrt(second / (1 - 0.999**30)) + 1e-8))
    true = np.linalg.eigvalsh(scale[:, None] * dense_hessian(where) * scale)
    assert result.top.value == pytest.approx(true[-1], rel=1e-6)
    bottom = float(result.bottom.value)  # a bound
    assert bottom - float(result.bottom.numerical_error) <= true[0] <= bottom + 1e-9
    limit = (2 + 2 * 0.9) / ((1 - 0.9) * 0.01)
    assert result.stability.value == pytest.approx(true[-1] / limit, rel=1e-6)
    assert any("preconditioned by Adam's second moments" in note and "3800" in note for note in result.notes)
    assert result.top.doc.startswith("largest algebraic eigenvalue of P^-1/2 H P^-1/2")


def test_the_samples_shares_add_up_to_the_preconditioned_eigenvalue():
    given = ZOO["tanh mlp"].problem(samples=70)
    made = trained(given)
    where = fresh(given)
    result = Eigenvalues(preconditioned=True)(within(where, made))
    weights = np.bincount(where.chunk_of.numpy()) / 70
    assert float(weights @ result.top.chunks) == pytest.approx(float(result.top.value), rel=1e-6)


def test_the_limit_is_where_adam_s_momentum_diverges():
    # heavy-ball with m = b m + (1 - b) g on a quadratic of curvature h, preconditioned by p
    beta, rate, p = 0.9, 0.01, 0.04
    where = bowl(torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64))
    state = {
        "state": {0: {"exp_avg_sq": torch.tensor([p**2], dtype=torch.float64), "step": 10**6}},
        "param_groups": [{"params": [0], "lr": rate, "betas": (beta, 0.5), "eps": 0.0}],
    }
    limit = adam_preconditioner(where, state, recorded="adam").limit

    def grows(h):
        x, m = 1.0, 0.0
        for _ in range(4000):
            m = beta * m + (1 - beta) * h * x
            x -= rate * m / p
        return abs(x) > 1

    assert not grows(0.99 * limit * p)
    assert grows(1.01 * limit * p)


def test_named_groups_settle_the_order():
    given = ZOO["tanh mlp"].problem(samples=30)
    named = list(given.model.named_parameters())
    groups = [
        {"params": [(n, p) for n, p in named if p.dim() > 1]},
        {"params": [(n, p) for n, p in named if p.dim() < 2], "weight_decay": 0.1},
    ]
    made = trained(given, groups=groups)
    found = adam_preconditioner(fresh(given), made.state_dict()).diagonal
    alone = torch.cat([made.state[p]["exp_avg_sq"].flatten() for p in given.model.parameters()])
    expected = (1 - 0.9**30) * ((alone / (1 - 0.999**30)).sqrt() + 1e-8)
    assert torch.allclose(found, expected)


def test_groups_in_another_order_without_names_are_refused():
    given = ZOO["tanh mlp"].problem(samples=30)
    parameters = list(given.model.parameters())
    made = trained(given, groups=[{"params": [p]} for p in reversed(parameters)])
    with pytest.raises(UsageError, match=r"is \(8, 6\) in the model and \(3,\) in the optimizer's order"):
        adam_preconditioner(fresh(given), made.state_dict())


def test_amsgrad_divides_by_the_largest_moment():
    given = ZOO["tanh mlp"].problem(samples=30)
    made = trained(given, amsgrad=True)
    found = adam_preconditioner(fresh(given), made.state_dict()).diagonal
    most = torch.cat([made.state[p]["max_exp_avg_sq"].flatten() for p in given.model.parameters()])
    assert torch.allclose(found, (1 - 0.9**30) * ((most / (1 - 0.999**30)).sqrt() + 1e-8))


def broken(change):
    given = ZOO["tanh mlp"].problem(samples=30)
    state = trained(given).state_dict()
    change(state)
    return fresh(given), state


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.clear(), "has no `param_groups` and `state`"),
        (lambda s: s["state"][0].pop("exp_avg_sq"), "`0.weight` has no `exp_avg_sq` of shape"),
        (
            lambda s: [one.pop("exp_avg_sq") for one in s["state"].values()],
            "holds no `exp_avg_sq`: it is another optim",
        ),
        (lambda s: s["param_groups"][0].pop("betas"), "have no `betas` and `eps`"),
        (lambda s: s["param_groups"][0]["params"].pop(), "is about 5 parameters, the model has 6"),
        (lambda s: s["state"].pop(1), "1 parameters have no state .first: `0.bias`."),
        (lambda s: s["state"].update({0: 3}), "the state of `0.weight` is no table"),
        (lambda s: s["state"][0]["exp_avg_sq"].fill_(float("nan")), "are not finite and positive"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change, said):
    where, state = broken(change)
    with pytest.raises(UsageError, match=said):
        adam_preconditioner(where, state)


def test_a_checkpoint_without_an_optimizer_is_refused():
    given = ZOO["tanh mlp"].problem(samples=30)
    with pytest.raises(UsageError, match=r"needs Adam's second moments, and the checkpoint holds no optimizer state"):
        Eigenvalues(preconditioned=True)(within(given, None))
    with pytest.raises(UsageError, match=r"The referees know no preconditioner"):
        Eigenvalues(preconditioned=True, referee="scipy")(within(given, trained(given)))


def test_two_rates_give_no_limit():
    given = ZOO["tanh mlp"].problem(samples=30)
    halves = list(given.model.parameters())
    made = trained(given, groups=[{"params": halves[:3], "lr": 0.01}, {"params": halves[3:], "lr": 0.02}])
    result = Eigenvalues(preconditioned=True)(within(fresh(given), made))
    assert result.stability is None
    assert any("no single rate and beta is recorded" in note for note in result.notes)


def test_frozen_layers_have_no_state_and_need_none():
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    model[0].requires_grad_(requires_grad=False)
    given = ZOO["tanh mlp"].problem(samples=30)
    where = problem(model, given.data.inputs, given.data.targets)
    made = trained(where, groups=list(model.parameters()))
    assert adam_preconditioner(
        problem(model, given.data.inputs, given.data.targets), made.state_dict()
    ).diagonal.shape == (15,)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW])
def test_decay_that_is_part_of_the_gradient_is_part_of_the_hessian(optimizer):
    given = ZOO["tanh mlp"].problem(samples=30)
    made = trained(given, optimizer=optimizer, weight_decay=0.5)
    where = fresh(given)
    result = Eigenvalues(preconditioned=True, tolerance=1e-6)(within(where, made))
    p = adam_preconditioner(where, made.state_dict()).diagonal.numpy()
    shift = 0.5 if optimizer is torch.optim.Adam else 0.0
    dense = (dense_hessian(where) + shift * np.eye(len(p))) / np.sqrt(np.outer(p, p))
    assert result.top.value == pytest.approx(np.linalg.eigvalsh(dense)[-1], rel=1e-6)
    weights = np.bincount(where.chunk_of.numpy()) / 30
    assert (weights > 0).all() or result.top.chunks is None


@pytest.mark.parametrize(
    ("recorded", "coupled", "said"), [("AdamW", False, False), ("Adam", True, False), ("", True, True)]
)
def test_a_state_of_an_older_torch_is_read_by_the_recorded_optimizer_or_says_what_was_assumed(recorded, coupled, said):
    given = ZOO["tanh mlp"].problem(samples=30)
    state = trained(given, weight_decay=0.5).state_dict()
    state["param_groups"][0].pop("decoupled_weight_decay", None)
    where = fresh(given)
    training = {"optimizer": recorded} if recorded else {}
    subject = Subject(problems={"train": where}, training=training, optimizer=state)
    result = Eigenvalues(preconditioned=True, tolerance=1e-6)(Context(subjects=(subject,)))
    p = adam_preconditioner(where, state).diagonal.numpy()
    dense = (dense_hessian(where) + 0.5 * coupled * np.eye(len(p))) / np.sqrt(np.outer(p, p))
    assert result.top.value == pytest.approx(np.linalg.eigvalsh(dense)[-1], rel=1e-6)
    assert any("does not say whether Adam or AdamW wrote its optimizer state" in note for note in result.notes) is said


def test_groups_of_like_shapes_without_names_are_refused():
    model = nn.Sequential(nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    given = ZOO["tanh mlp"].problem(samples=30)
    where = problem(model, given.data.inputs, given.data.targets)
    made = trained(where, groups=[{"params": list(model[i].parameters())} for i in (2, 0, 4)])
    with pytest.raises(
        UsageError, match=r"several groups without names, and the model several parameters of one shape"
    ):
        adam_preconditioner(problem(model, given.data.inputs, given.data.targets), made.state_dict())


def test_an_optimizer_of_the_free_parameters_alone_fits():
    model = nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    model[0].requires_grad_(requires_grad=False)
    given = ZOO["tanh mlp"].problem(samples=30)
    where = problem(model, given.data.inputs, given.data.targets)
    made = trained(where, groups=[p for p in model.parameters() if p.requires_grad])
    found = adam_preconditioner(problem(model, given.data.inputs, given.data.targets), made.state_dict())
    assert found.diagonal.shape == (15,)


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("optimizer", [torch.optim.NAdam, torch.optim.RAdam, torch.optim.Adamax])
def test_second_moments_of_other_optimizers_are_refused(optimizer, recorded):
    """Their limits of stability are others: NAdam's on a quadratic is 2.8 times nearer than Adam's at b1 = 0.9."""
    given = ZOO["tanh mlp"].problem(samples=30)
    state = trained(given, optimizer=optimizer).state_dict()
    training = {"optimizer": optimizer.__name__} if recorded else {}
    context = Context(subjects=(Subject(problems={"train": fresh(given)}, training=training, optimizer=state),))
    with pytest.raises(
        UsageError, match=r"its parameter groups are not those|it was trained with|is NAdam's|another optimizer's"
    ):
        Eigenvalues(preconditioned=True)(context)


@pytest.mark.parametrize("name", ["Adam", "adamw", "torch.optim.AdamW", "adamw_torch_fused", "FusedAdam", ""])
def test_adam_goes_by_many_names(name):
    given = ZOO["tanh mlp"].problem(samples=30)
    state = trained(given).state_dict()
    assert adam_preconditioner(fresh(given), state, recorded=name).limit is not None


@pytest.mark.parametrize("name", ["adamax", "NAdam", "radam", "sgd", "adamp"])
def test_other_names_are_no_adam(name):
    given = ZOO["tanh mlp"].problem(samples=30)
    with pytest.raises(UsageError, match=f"it was trained with {name}, whose steps are others"):
        adam_preconditioner(fresh(given), trained(given).state_dict(), recorded=name)
