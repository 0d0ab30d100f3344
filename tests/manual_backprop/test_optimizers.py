"""Update equations against torch.optim, step by step from the same states, and against calculation by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import reference.optimizers
from manual_backprop.optimizers import OPTIMIZERS, SGD, Adam, AdamW, Lion, Muon, Optimizer, orthogonalized
from manual_backprop.parameters import Parameters

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
each_method = pytest.mark.parametrize(("name", "settings"), METHODS.values(), ids=METHODS)


class Twins:
    """A small network's parameters, as θ and as a module with an optimizer of its own."""

    def __init__(self, name: str, settings: dict, lr: float, l2: float, dtype: torch.dtype = torch.float64) -> None:
        torch.manual_seed(5)
        self.module = nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 7)).to(dtype)
        shapes = {name: tuple(p.shape) for name, p in self.module.named_parameters()}
        self.parameters = Parameters(shapes, dtype=dtype)
        self.gradient = self.parameters.zeros_like()
        self.mine, self.lr = OPTIMIZERS[name](**settings), torch.tensor(lr, dtype=torch.float64)
        self.decay = self.parameters.vector(lambda name: 0.0 if name.endswith(".bias") else l2) if l2 else None
        self.state = self.mine.init(self.parameters.theta)
        self.theirs = reference.optimizers.OPTIMIZERS[name](self.module, l2=l2, **settings)
        for group in self.theirs.param_groups:
            group["lr"] = lr

    def take_over(self, tensors: dict[str, dict[str, Tensor]], steps: int) -> None:
        """Put both where `after` was read, before any step or after so many."""
        rounded = {key: {name: t.to(self.parameters.theta) for name, t in own.items()} for key, own in tensors.items()}
        theta = rounded.pop("theta")
        self.module.load_state_dict(theta)
        reference.optimizers.load_state(self.theirs, self.module, rounded, steps)
        self.parameters.load_state_dict(theta)
        for key, own in rounded.items():
            self.state[key] = torch.cat([own[name].flatten() for name in self.parameters])

    def step(self, t: int, gradient: Tensor) -> None:
        self.gradient.theta.copy_(gradient)
        time = torch.tensor(t, dtype=torch.float64)
        theta, split = self.parameters.theta, self.parameters.split
        self.mine.update(theta, self.gradient.theta, self.state, self.lr, time, self.decay, split)
        for name, p in self.module.named_parameters():
            p.grad = self.gradient[name].clone()
        self.theirs.step()

    def after(self) -> dict[str, dict[str, Tensor]]:
        """θ and the state of the reference, by what they are and by the parameter's name."""
        theta = {name: p.detach().clone() for name, p in self.module.named_parameters()}
        return {"theta": theta} | reference.optimizers.state_of(self.theirs, self.module)

    def mine_after(self) -> dict[str, dict[str, Tensor]]:
        state = {key: self.parameters.split(vector) for key, vector in self.state.items()}
        return {"theta": self.parameters.state_dict()} | state


def differences(
    mine: dict[str, dict[str, Tensor]], theirs: dict[str, dict[str, Tensor]], before: dict[str, dict[str, Tensor]]
) -> dict[str, float]:
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
    generator = torch.Generator().manual_seed(11)
    scale = 10 ** torch.linspace(-2, 2, size, dtype=torch.float64)
    scale[::5] = 0.0
    return [
        scale * (torch.randn(size, generator=generator, dtype=torch.float64) + (-1) ** (t // 40)) for t in range(STEPS)
    ]


@pytest.mark.sweep(6)
@pytest.mark.parametrize("l2", [0.0, 0.01], ids=lambda l2: f"l2 {l2}")
@pytest.mark.parametrize("lr", [1e-3, 50.0], ids=["an ordinary rate", "an absurd rate"])
@each_method
def test_from_every_recorded_state_a_step_leads_where_torchs_leads(name, settings, lr, l2):
    """Step by step, because after hundreds of steps the rounding of two right forms has grown, at an absurd rate."""
    twins = Twins(name, settings, lr, l2)
    before, start = twins.after(), twins.parameters.theta.clone()
    for t, gradient in enumerate(recorded_gradients(len(start)), start=1):
        twins.take_over(before, t - 1)
        twins.step(t, gradient)
        for what, error in differences(twins.mine_after(), twins.after(), before).items():
            assert error < ROUNDING.get(name, 4e-15), f"step {t}: {what}"
        before = twins.after()
    assert (twins.parameters.theta - start).norm() > 0.05


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


@each_method
def test_l2_pulls_at_weights_and_not_at_biases(name, settings):
    twins = Twins(name, settings, lr=0.3, l2=0.1)
    start = before = twins.after()
    for t in range(1, 11):
        twins.take_over(before, t - 1)
        twins.step(t, torch.zeros_like(twins.parameters.theta))
        for what, error in differences(twins.mine_after(), twins.after(), before).items():
            assert error < ROUNDING.get(name, 4e-15), f"step {t}: {what}"
        before = twins.after()
    for name, p in twins.parameters.items():
        assert torch.equal(p, start["theta"][name]) == name.endswith(".bias")


@each_method
def test_what_lies_in_the_scratch_vector_does_not_matter(name, settings):
    def path(scratch: dict[str, Tensor]) -> Tensor:
        theta, decay = torch.linspace(-1, 1, 6), torch.full((6,), 0.5)
        optimizer = OPTIMIZERS[name](**settings)
        state = optimizer.init(theta)
        for t, gradient in enumerate(recorded_gradients(6)[:3], start=1):
            lr, time = torch.tensor(0.1), torch.tensor(float(t))
            split = lambda v: {"w": v[:4].view(2, 2), "b": v[4:]}  # noqa: E731
            optimizer.update(theta, gradient.float(), state | scratch, lr, time, decay, split)
        return theta

    assert "scratch" not in OPTIMIZERS[name](**settings).init(torch.zeros(6))
    assert torch.equal(path({"scratch": torch.full((6,), torch.nan)}), path({}))


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
@pytest.mark.parametrize("name", ["sgd", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "lion", "momentum"])
def test_with_a_scratch_vector_hardly_another_is_made(name, decays):
    """Of those as long as θ: with a coupled decay Adagrad and RMSprop make ∇C + λ ⊙ θ, Lion always (1 − β₁) ∇C."""
    name, settings = METHODS[name]
    theta, gradient, scratch = torch.linspace(-1, 1, 50), torch.linspace(1, -2, 50), torch.empty(50)
    decay = torch.full((50,), 0.1) if decays else None
    optimizer = OPTIMIZERS[name](**settings)
    state = optimizer.init(theta) | {"scratch": scratch}
    known = [theta, gradient, *state.values()] + [decay] * decays
    split = lambda v: {"w": v[:40].view(8, 5), "b": v[40:]}  # noqa: E731
    with NewVectors(50, known) as new:
        optimizer.update(theta, gradient, state, torch.tensor(0.1), torch.tensor(1.0), decay, split)
    assert new.made == (name == "lion") + (decays and name in ("adagrad", "rmsprop"))


@each_method
def test_a_fresh_state_is_zero_and_its_own(name, settings):
    theta = torch.ones(6)
    state = OPTIMIZERS[name](**settings).init(theta)
    for vector in state.values():
        assert torch.equal(vector, torch.zeros(6))
    memory = {vector.data_ptr() for vector in (theta, *state.values())}
    assert len(memory) == 1 + len(state)


@pytest.mark.parametrize("optimizer", [AdamW(), Lion(), Muon()], ids=["adamw", "lion", "muon"])
def test_decoupled_decay_shrinks_by_the_rate_times_lambda_whatever_the_gradient_was(optimizer):
    def after(decay: Tensor | None) -> Tensor:
        theta = torch.tensor([2.0, -3.0], dtype=torch.float64)
        walk(optimizer, theta, lambda w: torch.tensor([1e3, 1e-3], dtype=torch.float64), steps=1, decay=decay)
        return theta

    pulled = after(torch.tensor([0.5, 0.0], dtype=torch.float64)) - after(None)
    torch.testing.assert_close(pulled, torch.tensor([-0.1 * 0.5 * 2.0, 0.0], dtype=torch.float64), rtol=1e-13, atol=0)


def walk(optimizer: Optimizer, theta: Tensor, slope, *, steps: int, lr: float = 0.1, decay: Tensor | None = None):
    """θ after each step."""
    state, path = optimizer.init(theta), []
    for t in range(1, steps + 1):
        rate, time = torch.tensor(lr, dtype=theta.dtype), torch.tensor(t, dtype=torch.float64)
        optimizer.update(theta, slope(theta), state, rate, time, decay, lambda vector: {"w": vector})
        path.append(theta.clone())
    return path


# C = w² from w = 1, so ∂C/∂w = 2w, at η = 0.1: w after each of three steps, worked out on paper.
BOWL = {
    "plain": (SGD(), 0.0, (0.8, 0.64, 0.512)),
    # v = 2, 3.4, 3.98 with v ← 0.9 v + 2w
    "momentum": (SGD(momentum=0.9), 0.0, (0.8, 0.46, 0.062)),
    # w ← w − 0.1 (2 + ½) w = ¾ w
    "l2": (SGD(), 0.5, (0.75, 0.5625, 0.421875)),
    # v = 2.5, 4.125, 4.55625 with v ← 0.9 v + 2.5 w
    "momentum and l2": (SGD(momentum=0.9), 0.5, (0.75, 0.3375, -0.118125)),
    # w ← w − 0.1 (sign(c) + ½ w): c = 0.2, then 0.018 + 0.17, and so on, all positive
    "lion and l2": (Lion(), 0.5, (0.85, 0.7075, 0.572125)),
}


@pytest.mark.parametrize(("optimizer", "l2", "path"), BOWL.values(), ids=BOWL)
def test_three_steps_in_a_bowl(optimizer, l2, path):
    w = torch.ones(1, dtype=torch.float64)
    seen = walk(optimizer, w, lambda w: 2 * w, steps=3, decay=torch.full_like(w, l2) if l2 else None)
    assert [w.item() for w in seen] == pytest.approx(path, rel=1e-14, abs=0)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_the_first_step_of_adam_is_the_rate_whatever_the_size_of_the_gradient(scale):
    """m̂ = g and v̂ = g², so ε aside the step is η sign(g): that is what the hats are for."""
    theta = torch.zeros(3, dtype=torch.float64)
    gradient = scale * torch.tensor([3.0, -0.5, 1.0], dtype=torch.float64)
    walk(Adam(eps=1e-30), theta, lambda w: gradient, steps=1)
    torch.testing.assert_close(theta, -0.1 * gradient.sign(), rtol=1e-12, atol=0)


def test_lion_remembers_longer_than_it_looks_back():
    """g = 1, then −1: c = 0.8·0.1 − 0.2 < 0 turns at once; with g = 1, …, 1 in m, it does not."""
    slopes = iter([1.0, -1.0, *[1.0] * 30, -1.0])
    theta = torch.zeros(1, dtype=torch.float64)
    path = walk(Lion((0.8, 0.9)), theta, lambda w: torch.tensor([next(slopes)], dtype=torch.float64), steps=33)
    moves = [round((b - a).item() / 0.1) for a, b in zip([torch.zeros(1), *path], path, strict=False)]
    assert moves[:2] == [-1, 1]
    assert moves[-1] == -1


def test_lion_stays_where_there_is_no_slope():
    theta = torch.ones(3, dtype=torch.float64)
    walk(Lion(), theta, torch.zeros_like, steps=3)
    assert theta.tolist() == [1, 1, 1]


# Muon


@pytest.mark.parametrize("shape", [(6, 4), (4, 6), (5, 5), (1, 9), (9, 1), (40, 30)], ids=str)
def test_orthogonalization_keeps_directions_and_takes_singular_values_near_one(shape):
    """Against the singular value decomposition: the polynomial acts on S alone, and leaves U and V."""
    G = 1e3 * torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    U, S, Vh = torch.linalg.svd(G, full_matrices=False)
    s = S / S.norm()
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    torch.testing.assert_close(orthogonalized(G), U @ torch.diag(s) @ Vh, rtol=0, atol=1e-9)
    assert s.min() > 0.3
    assert s.max() < 1.3


def test_orthogonalization_of_zero_is_zero():
    assert torch.equal(orthogonalized(torch.zeros(3, 4)), torch.zeros(3, 4))


@pytest.mark.parametrize("shape", [(12, 30), (30, 12)], ids=str)
def test_muon_is_torchs_up_to_its_bfloat16(shape):
    """torch.optim.Muon always rounds to bfloat16, 8 bits, in the iteration: steps agree to some percent."""
    generator = torch.Generator().manual_seed(4)
    p = nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))
    mine = Parameters({"w": shape}, dtype=torch.float64)
    mine["w"] = p.detach().clone()
    start = p.detach().clone()
    theirs = torch.optim.Muon([p], lr=0.1, momentum=0.9, weight_decay=0.2, adjust_lr_fn="match_rms_adamw")
    optimizer, decay = Muon(momentum=0.9), torch.full_like(mine.theta, 0.2)
    state = optimizer.init(mine.theta)
    for t in range(1, 6):
        gradient = torch.randn(shape, generator=generator, dtype=torch.float64)
        p.grad = gradient.clone()
        theirs.step()
        lr, time = torch.tensor(0.1, dtype=torch.float64), torch.tensor(t, dtype=torch.float64)
        optimizer.update(mine.theta, gradient.flatten(), state, lr, time, decay, mine.split)
    moved = (p.detach() - start).norm()
    assert (mine["w"] - p.detach()).norm() < 0.03 * moved
    assert moved > 0.1 * start.norm()


def test_muon_takes_a_kernel_as_a_matrix_of_one_row_per_output():
    shapes = {"kernel": (3, 2, 5, 4), "matrix": (3, 40)}
    parameters, gradient = (Parameters(shapes, dtype=torch.float64) for _ in range(2))
    gradient["matrix"] = torch.randn(3, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradient["kernel"] = gradient["matrix"].view(3, 2, 5, 4).clone()
    optimizer, one = Muon(), torch.tensor(1.0, dtype=torch.float64)
    state = optimizer.init(parameters.theta)
    optimizer.update(parameters.theta, gradient.theta, state, one, one, None, parameters.split)
    assert torch.equal(parameters["kernel"].flatten(1), parameters["matrix"])
    assert parameters["matrix"].norm() > 0


@each_method
def test_a_step_reads_the_gradient_and_the_decay_and_writes_to_neither(name, settings):
    theta, gradient, decay = torch.ones(6), torch.arange(6.0), torch.full((6,), 0.5)
    optimizer = OPTIMIZERS[name](**settings)
    state = optimizer.init(theta)
    for t in range(1, 3):
        lr, time = torch.tensor(0.1), torch.tensor(float(t))
        optimizer.update(theta, gradient, state, lr, time, decay, lambda v: {"w": v[:4].view(2, 2), "b": v[4:]})
    assert (lr.item(), time.item()) == (torch.tensor(0.1).item(), 2.0)
    assert gradient.tolist() == [0, 1, 2, 3, 4, 5]
    assert decay.tolist() == [0.5] * 6
    assert all(vector.shape == theta.shape for vector in state.values())


def test_without_momentum_there_is_no_state():
    assert SGD().init(torch.ones(3)) == {}
