"""Update equations against torch.optim, step by step from the same states, and against calculation by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import reference.optimizers
from manual_backprop.optimizers import OPTIMIZERS, Lion, Muon, orthogonalized
from manual_backprop.parameters import Parameters
from tests.support.against_torch import normal

Tensors = dict[str, dict[str, Tensor]]  # θ and an optimizer's state, by what they are and by the parameter's name

STEPS = 100
ROUNDING = {"muon": 4e-14}  # five steps of an iteration magnify it; else 4e-15, some twenty units of float64
SETTINGS: dict[str, dict] = {  # away from the defaults
    "nesterov": {"momentum": 0.8},
    "adagrad": {"eps": 1e-3},
    "rmsprop": {"betas": (0.95,), "eps": 1e-3},
    "adam": {"betas": (0.85, 0.99), "eps": 1e-3},
    "adamw": {"betas": (0.85, 0.99), "eps": 1e-3},
    "lion": {"betas": (0.8, 0.95)},
    "muon": {"momentum": 0.9, "betas": (0.85, 0.99), "eps": 1e-3},
}
METHODS = {name: (name, SETTINGS.get(name, {})) for name in OPTIMIZERS} | {"momentum": ("sgd", {"momentum": 0.9})}
FRUGAL = ("sgd", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "lion")
each_method = pytest.mark.parametrize(("name", "settings"), METHODS.values(), ids=METHODS)


class Twins:
    """A small network's parameters (a kernel, a wide and a tall matrix), as θ and as a module with an optimizer."""

    def __init__(self, name, settings, lr: float, l2: float, dtype=torch.float64):
        torch.manual_seed(5)
        self.module = nn.Sequential(nn.Conv2d(2, 3, (5, 4)), nn.Linear(5, 4), nn.Linear(4, 7)).to(dtype)
        self.parameters = Parameters({name: tuple(p.shape) for name, p in self.module.named_parameters()}, dtype=dtype)
        self.mine, self.lr = OPTIMIZERS[name](**settings), torch.tensor(lr, dtype=torch.float64)
        self.decay = self.parameters.vector(lambda name: 0.0 if name.endswith(".bias") else l2) if l2 else None
        self.state = self.mine.init(self.parameters.theta)
        self.theirs = reference.optimizers.OPTIMIZERS[name](self.module, l2=l2, **settings)
        for group in self.theirs.param_groups:
            group["lr"] = lr

    def take_over(self, tensors: Tensors, steps: int) -> None:
        """Put both where `after` was read, before any step or after so many."""
        rounded = {key: {name: t.to(self.parameters.theta) for name, t in own.items()} for key, own in tensors.items()}
        theta = rounded.pop("theta")
        self.module.load_state_dict(theta)
        reference.optimizers.load_state(self.theirs, self.module, rounded, steps)
        self.parameters.load_state_dict(theta)
        for key, own in rounded.items():
            self.state[key] = torch.cat([own[name].flatten() for name in self.parameters])

    def step(self, t: int, gradient: Tensor) -> None:
        gradient = gradient.to(self.parameters.theta, copy=True)
        time, split = torch.tensor(t, dtype=torch.float64), self.parameters.split
        self.mine.update(self.parameters.theta, gradient, self.state, self.lr, time, self.decay, split)
        for name, p in self.module.named_parameters():
            p.grad = split(gradient)[name].clone()
        self.theirs.step()

    def after(self) -> Tensors:
        """Of the reference."""
        theta = {name: p.detach().clone() for name, p in self.module.named_parameters()}
        return {"theta": theta} | reference.optimizers.state_of(self.theirs, self.module)

    def mine_after(self) -> Tensors:
        state = {key: self.parameters.split(vector) for key, vector in self.state.items()}
        return {"theta": self.parameters.state_dict()} | state


def differences(mine: Tensors, theirs: Tensors, before: Tensors) -> dict[str, float]:
    """The largest |difference| of each tensor, over the root mean square of what it was before or is now."""
    assert mine.keys() == theirs.keys()
    errors = {}
    for key, tensors in theirs.items():
        for name, tensor in tensors.items():
            assert tensor.isfinite().all()
            size = max(t.double().square().mean().sqrt().item() for t in (tensor, before[key][name]))
            difference = (mine[key][name].double() - tensor.double()).abs().max().item()
            errors[f"{key} of {name}"] = difference / size if size else difference
    return errors


def recorded_gradients(size: int) -> list[Tensor]:
    """Noise around a mean that changes sign, over four orders of magnitude; one in five is 0 from first to last."""
    scale = 10 ** torch.linspace(-2, 2, size, dtype=torch.float64)
    scale[::5] = 0.0
    return [scale * (normal(t, size) + (-1) ** (t // 40)) for t in range(STEPS)]


def assert_each_step_is_torchs(name: str, twins: Twins, gradients: list[Tensor]) -> None:
    before = twins.after()
    for t, gradient in enumerate(gradients, start=1):
        twins.take_over(before, t - 1)
        twins.step(t, gradient)
        for what, error in differences(twins.mine_after(), twins.after(), before).items():
            assert error < ROUNDING.get(name, 4e-15), f"step {t}: {what}"
        before = twins.after()


@pytest.mark.sweep(6)
@pytest.mark.parametrize("l2", [0.0, 0.01], ids=lambda l2: f"l2 {l2}")
@pytest.mark.parametrize("lr", [1e-3, 50.0], ids=["an ordinary rate", "an absurd rate"])
@each_method
def test_from_every_recorded_state_a_step_leads_where_torchs_leads(name, settings, lr, l2):
    """Step by step, because after hundreds of steps the rounding of two right forms has grown, at an absurd rate."""
    twins = Twins(name, settings, lr, l2)
    start = twins.parameters.theta.clone()
    assert_each_step_is_torchs(name, twins, recorded_gradients(len(start)))
    assert (twins.parameters.theta - start).norm() > 0.05


@each_method
def test_where_nothing_slopes_l2_pulls_at_weights_and_not_at_biases(name, settings):
    twins = Twins(name, settings, lr=0.3, l2=0.1)
    start = twins.after()["theta"]
    assert_each_step_is_torchs(name, twins, 10 * [torch.zeros_like(twins.parameters.theta)])
    for name, p in twins.parameters.items():
        assert torch.equal(p, start[name]) == name.endswith(".bias")


@pytest.mark.sweep(5)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@each_method
def test_in_fewer_bits_a_step_is_as_exact_as_torchs(name, settings, dtype):
    """Both take one step from the same rounded states as a float64 twin; the norms of their errors are compared."""
    truth, rounded = (Twins(name, settings, 0.05, 0.01, format_) for format_ in (torch.float64, dtype))
    before = truth.after()
    squares = {"mine": 0.0, "theirs": 0.0}
    for t, gradient in enumerate(recorded_gradients(len(truth.parameters.theta))[:60], start=1):
        before = {key: {name: p.to(dtype) for name, p in own.items()} for key, own in before.items()}
        for twins in (truth, rounded):
            twins.take_over(before, t - 1)
            twins.step(t, gradient.to(dtype))
        right = truth.after()
        for whose, result in (("mine", rounded.mine_after()), ("theirs", rounded.after())):
            squares[whose] += sum(error**2 for error in differences(result, right, before).values())
        before = right
    assert squares["theirs"] > 0
    assert squares["mine"] ** 0.5 < 1.5 * squares["theirs"] ** 0.5


class NewVectors(TorchDispatchMode):
    """Counts the tensors of at least so many elements that operators make in memory of their own."""

    def __init__(self, size: int, known: list[Tensor]) -> None:
        super().__init__()
        self.size, self.made = size, 0
        self.known = {tensor.untyped_storage().data_ptr() for tensor in known}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.numel() >= self.size and out.untyped_storage().data_ptr() not in self.known:
            self.made += 1
        return out


@pytest.mark.parametrize("decays", [False, True], ids=["", "l2"])
@each_method
def test_a_step_writes_to_theta_and_to_its_state_and_with_a_scratch_vector_makes_hardly_another(name, settings, decays):
    """Of those as long as θ: with a coupled decay Adagrad and RMSprop make ∇C + λ ⊙ θ, Lion always (1 − β₁) ∇C."""
    optimizer, size = OPTIMIZERS[name](**settings), 50
    lr, decay = torch.tensor(0.1), torch.full((size,), 0.5) if decays else None
    ends = []
    for scratch in ({}, {"scratch": torch.full((size,), torch.nan)}):  # what lies in it does not matter
        theta = torch.linspace(-1, 1, size)
        state = optimizer.init(theta)
        assert "scratch" not in state
        assert all(torch.equal(vector, torch.zeros(size)) for vector in state.values())
        assert len({vector.data_ptr() for vector in (theta, *state.values())}) == 1 + len(state)
        for t, gradient in enumerate(recorded_gradients(size)[:3], start=1):
            given = gradient.float()
            known = [theta, given, *state.values(), *scratch.values()] + [decay] * decays
            with NewVectors(size, known) as new:
                time, split = torch.tensor(float(t)), lambda v: {"w": v[:40].view(8, 5), "b": v[40:]}
                optimizer.update(theta, given, state | scratch, lr, time, decay, split)
            if scratch and name in FRUGAL:
                assert new.made == (name == "lion") + (decays and name in ("adagrad", "rmsprop"))
            assert (lr, time) == (torch.tensor(0.1), t)
            assert torch.equal(given, gradient.float())
            assert decay is None or torch.equal(decay, torch.full((size,), 0.5))
            assert all(vector.shape == theta.shape for vector in state.values())
        ends.append(theta)
    assert torch.equal(*ends)


def test_lions_decay_is_beside_a_step_whose_direction_it_remembers_longer_than_it_looks_back():
    """By hand: from g = 1 to −1, c = 0.8·0.1 − 0.2 < 0 turns at once; with g = 1, …, 1 in m it does not."""
    optimizer, w, decay = Lion((0.8, 0.9)), torch.ones(1, dtype=torch.float64), torch.full((1,), 0.5)
    state, lr, moves = optimizer.init(w), torch.tensor(0.1, dtype=torch.float64), []
    for slope in (1.0, -1.0, *[1.0] * 30, -1.0):
        before = w.item()
        optimizer.update(w, torch.full_like(w, slope), state, lr, lr, decay, lambda vector: {"w": vector})
        moves.append((before - w.item()) / 0.1 - 0.5 * before)
    assert [*moves[:2], moves[-1]] == pytest.approx([1, -1, 1], rel=1e-9)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (1, 9), (9, 1), (40, 30)], ids=str)
def test_orthogonalization_keeps_directions_and_takes_singular_values_near_one(shape):
    """Against the singular value decomposition: the polynomial acts on S alone, and leaves U and V."""
    G = 1e3 * normal(2, *shape)
    U, S, Vh = torch.linalg.svd(G, full_matrices=False)
    s = S / S.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    torch.testing.assert_close(orthogonalized(G), U @ torch.diag(s) @ Vh, rtol=0, atol=1e-9)
    assert s.min() > 0.3
    assert s.max() < 1.3


@pytest.mark.parametrize("shape", [(12, 30), (30, 12)], ids=str)
def test_muon_is_torchs_up_to_its_bfloat16(shape):
    """torch.optim.Muon always rounds to bfloat16, 8 bits, in the iteration: steps agree to some percent."""
    start = normal(4, *shape)
    p, mine = nn.Parameter(start.clone()), Parameters({"w": shape}, dtype=torch.float64)
    mine["w"] = start
    theirs = torch.optim.Muon([p], lr=0.1, momentum=0.9, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
    optimizer, decay, lr = Muon(momentum=0.9), torch.full_like(mine.theta, 0.2), torch.tensor(0.1, dtype=torch.float64)
    state = optimizer.init(mine.theta)
    for t in range(1, 6):
        p.grad = normal(4 + t, *shape)
        theirs.step()
        optimizer.update(mine.theta, p.grad.flatten(), state, lr, torch.tensor(t), decay, mine.split)
    moved = (p.detach() - start).norm()
    assert (mine["w"] - p.detach()).norm() < 0.03 * moved
    assert moved > 0.1 * start.norm()
