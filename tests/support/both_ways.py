"""The same backward pass by hand and by its oracles, as dictionaries of tensors under the same names.

`C`, `dx`, `δ output`, `δ layer1`, `δ layer1.a`, `∂C/∂layer1.weight`, `buffer norm.running_mean` and `memory h`: all
that a step computes, each δ by the name that the tape gives it. Of ids there is no `dx`.
"""

from collections import Counter
from functools import partial
from math import prod, sqrt

import torch

from manual_backprop import losses
from manual_backprop.tape import Tape
from reference.losses import LOSSES as REFERENCE_LOSSES
from training.data import Split
from training.learners.reference import ReferenceLearner
from training.learners.verification import examples_of, outputs_of

SMOOTHING = {"label_smoothing": 0.15}
LOSSES = {name: make() for name, make in losses.LOSSES.items()} | {"smoothed": losses.SoftmaxCrossEntropy(**SMOOTHING)}
TWIN_LOSSES = {**REFERENCE_LOSSES, "smoothed": partial(REFERENCE_LOSSES["softmax-cross-entropy"], **SMOOTHING)}


def random_parameters(model, seed, gain=1.0):
    """No default among them: weights N(0, gain²/fan_in), so that z is of order one, vectors ±[0.3, 1.2]."""
    generator = torch.Generator().manual_seed(seed)
    parameters = {}
    for name, shape in model.shapes.items():
        if len(shape) > 1:
            scale = gain / sqrt(prod(shape[1:]))
            parameters[name] = scale * torch.randn(shape, generator=generator, dtype=torch.float64)
        else:
            sign = 2.0 * torch.randint(0, 2, shape, generator=generator) - 1
            parameters[name] = sign * (0.3 + 0.9 * torch.rand(shape, generator=generator, dtype=torch.float64))
    return parameters


def random_batch(size, features, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, features, generator=generator, dtype=torch.float64)
    return x, torch.randint(0, classes, (size,), generator=generator)


class Apart(Tape):
    """One whose outputs are nodes of their own: the last state h is else the very tensor that y is made of."""

    def forward(self, layer, name, *arguments, **options):
        result = super().forward(layer, name, *arguments, **options)
        own = {id(z): z.view_as(z) for z in (result if isinstance(result, tuple) else (result,))}
        self.outputs.update({name: own[id(z)] for name, z in self.outputs.items() if id(z) in own})
        return tuple(own[id(z)] for z in result) if isinstance(result, tuple) else own[id(result)]


def by_hand(model, loss, params, x, y, *, count=None, training=True, **pass_on):
    """The hand-written pass, under inference mode. `pass_on` (buffers, memory, noise) goes to its tape."""
    tape = Tape(training=training, observes=True, need_dx=x.is_floating_point(), **pass_on)
    gradients = {}
    with torch.inference_mode():
        output = model.forward(params, x, tape)
        C, cache = loss.forward(output, y, count)
        d_output = loss.backward(1.0, cache)
        dx = model.backward(params, d_output, gradients, tape)
    assert (dx is not None) == x.is_floating_point()
    return _named(C, dx, {"output": d_output, **tape.deltas}, gradients, tape)


def by_autograd(model, loss, params, x, y, *, count=None, training=True, **pass_on):
    """Autograd through the same forward; each δ is the gradient of an output that the tape kept."""
    x = x.clone().requires_grad_(x.is_floating_point())
    params = {name: tensor.clone().requires_grad_() for name, tensor in params.items()}
    tape = Apart(training=training, observes=True, **pass_on)
    output = model.forward(params, x, tape)
    C, _ = loss.forward(output, y, count)
    seen = {"output": output, **tape.outputs}
    wanted = [*seen.values(), *params.values()]
    rest = torch.autograd.grad(
        C, wanted, retain_graph=x.requires_grad, materialize_grads=True
    )  # zero: nothing reads it
    dx = torch.autograd.grad(C, x)[0] if x.requires_grad else None
    deltas = dict(zip(seen, rest, strict=False))
    return _named(C.detach(), dx, deltas, dict(zip(params, rest[len(seen) :], strict=True)), tape)


def by_twin(module, loss, params, x, y, *, buffers=None, memory=None, noise=None):
    """The independent nn.Module, at the same parameters; in training unless it was told `eval()`."""
    draw = None if noise is None else lambda steps, device, dtype: noise
    dtype = next(iter(params.values())).dtype
    learner = ReferenceLearner(module, loss, Split(x, y), dtype=dtype, noise=draw)
    state = {**params, **(buffers or {})}
    learner.load_state_dict({"model": state, "optimizer": {}, "memory": dict(memory or {}), "steps": 0})
    x = x.clone().requires_grad_(x.is_floating_point())
    result = learner.backpropagate(x, y)
    assert (x.grad is not None) == x.requires_grad
    return _named(result.loss, x.grad, result.deltas, result.gradients, result)


def differ(a, b):
    """Whether two tensors, which must be of one shape and format, are further apart than any rounding of them."""
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    return bool((a - b).norm() > 1e-4 * b.norm())


def assert_equal(a, b):
    """The same names, and under each the same tensor in every bit."""
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert torch.equal(a[name], b[name]), name


def layer_examples(package):
    """(id, forward, backward, arguments, options of check_backward) of every example in `package`."""
    count = Counter()
    for name, layer, arguments in examples_of(package, seed=0):
        options = {"not_differentiable": getattr(layer, "not_differentiable", ()), "outputs": outputs_of(layer)}
        yield f"{name}-{count[name]}", layer.forward, layer.backward, arguments, options
        count[name] += 1


def _named(C, dx, deltas, gradients, after):
    """`after` is a tape, which has the buffers as they were too, or what a learner hands on."""
    buffers = {**after.buffers, **getattr(after, "new_buffers", {})}
    memory = after.new_memory if isinstance(after, Tape) else after.memory
    named = {"C": C} if dx is None else {"C": C, "dx": dx}
    named |= {f"δ {name}": delta for name, delta in deltas.items()}
    named |= {f"∂C/∂{name}": gradient for name, gradient in gradients.items()}
    named |= {f"buffer {name}": buffer.detach() for name, buffer in buffers.items()}
    return named | {f"memory {name}": tensor.detach() for name, tensor in memory.items()}
