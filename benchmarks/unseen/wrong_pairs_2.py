"""Wrong pairs: recurrence, gathers, costs, elementwise functions, reductions, moves, NumPy and several outputs."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.unseen.subject import Subject
from benchmarks.unseen.wrong_pairs import randn, wrong_function, wrong_pair
from gradient_check import Report, check_backward

SUBJECTS: list[Subject] = []


# Recurrent cells


def gated_sum_forward(a: Tensor, x: Tensor) -> tuple[Tensor, Any]:
    h = [x[0]]
    for t in range(1, len(x)):
        h.append(a[t] * h[-1] + x[t])
    return torch.stack(h), (a, torch.stack(h))


def gated_sum_backward(dh: Tensor, cache: Any) -> tuple[Tensor, ...]:
    a, h = cache
    da, dx = torch.zeros_like(a), torch.zeros_like(dh)
    carried = torch.zeros_like(dh[0])
    for t in reversed(range(len(dh))):
        dx[t] = dh[t] + carried
        if t > 0:
            da[t] = dx[t] * h[t - 1]
        carried = dx[t] * a[t - 1]
    return da, dx


def gated_sum(a: Tensor, x: Tensor) -> Tensor:
    T = len(x)
    rows = [sum(a[s + 1 : t + 1].prod(0) * x[s] for s in range(t + 1)) for t in range(T)]
    return torch.stack([torch.as_tensor(row) for row in rows])


SUBJECTS.append(
    wrong_pair(
        "gated recurrence: the gate of the step before",
        "hₜ = aₜ hₜ₋₁ + xₜ, and the error goes back through aₜ₋₁ and not through aₜ",
        gated_sum_forward,
        gated_sum_backward,
        [randn(101, 5, 3), randn(102, 5, 3)],
        reference=gated_sum,
        true=(r"^(term|rows|factor|missing factor)", r"step|shift|time"),
    )
)


def peephole_forward(z: Tensor, c: Tensor, p: Tensor) -> tuple[Tensor, Tensor, Any]:
    zi, zf, zg, zo = z.chunk(4, 1)
    i, f, g = zi.sigmoid(), zf.sigmoid(), zg.tanh()
    after = f * c + i * g
    o = (zo + p * after).sigmoid()
    return o * after.tanh(), after, (i, f, g, o, c, after, p)


def peephole_backward(dh: Tensor, dc: Tensor, cache: Any) -> tuple[Tensor, ...]:
    i, f, g, o, c, after, p = cache
    dzo = dh * after.tanh() * o * (1 - o)
    d_after = dc + dh * o * (1 - after.tanh() ** 2) + dzo * p
    dz = [d_after * g * i * (1 - i), d_after * c * f * (1 - f), d_after * i * (1 - g**2), dzo]
    return torch.cat(dz, 1), d_after * f, (dzo * c).sum(0)


def peephole(z: Tensor, c: Tensor, p: Tensor) -> tuple[Tensor, Tensor]:
    n = c.shape[1]
    s = torch.sigmoid
    new = s(z[:, n : 2 * n]) * c + s(z[:, :n]) * torch.tanh(z[:, 2 * n : 3 * n])
    return s(torch.addcmul(z[:, 3 * n :], new, p)) * torch.tanh(new), new


SUBJECTS.append(
    wrong_pair(
        "LSTM with a peephole: dp from the old cell",
        "the output gate looks at the new cell, and the gradient of its weight is taken with the old one",
        peephole_forward,
        peephole_backward,
        [randn(103, 3, 8), randn(104, 3, 2), randn(105, 2)],
        reference=peephole,
        outputs=2,
        true=(r"^(term|factor|missing factor|swapped)", r"\bc\b|cell"),
    )
)


def leaky_forward(x: Tensor, decay: Tensor) -> tuple[Tensor, Any]:
    h = [x[0]]
    for row in x[1:]:
        h.append(decay * h[-1] + row)
    return torch.stack(h), (torch.stack(h), decay)


class LeakyBackward:
    """Its carried error is an attribute that nothing resets."""

    carried: Tensor | None = None

    def __call__(self, dh: Tensor, cache: Any) -> tuple[Tensor, ...]:
        h, decay = cache
        if self.carried is None or self.carried.shape != dh[0].shape or self.carried.dtype != dh.dtype:
            self.carried = torch.zeros_like(dh[0])
        dx, d_decay = torch.zeros_like(h), torch.zeros_like(decay)
        for t in reversed(range(len(dh))):
            dx[t] = dh[t] + self.carried
            if t > 0:
                d_decay = d_decay + (dx[t] * h[t - 1]).sum()
            self.carried = decay * dx[t]
        return dx, d_decay


def ask_leaky(given: bool) -> Report:
    return check_backward(leaky_forward, LeakyBackward(), [randn(106, 5, 3), torch.tensor(0.6, dtype=torch.float64)])


SUBJECTS.append(
    Subject(
        name="leaky integrator: the error carried over from the call before",
        what="the error that leaves the first step is where the next call's last step begins; the first call is right",
        ask=ask_leaky,
        wrong=True,
        true=(r"^(stale|not linear)", r"second call|call before|state"),
    )
)


# Gathers and scatters


def segment_mean_forward(x: Tensor, segment: Tensor) -> tuple[Tensor, Any]:
    count = torch.bincount(segment, minlength=4).clamp(min=1).to(x.dtype)
    total = x.new_zeros(4, x.shape[1]).index_add(0, segment, x)
    return total / count[:, None], (segment, count)


def segment_mean_backward(dy: Tensor, cache: Any) -> Tensor:
    segment, count = cache
    dx = dy.new_zeros(len(segment), dy.shape[1])
    start = 0
    for i in range(1, len(segment)):
        if segment[i] != segment[i - 1]:  # a segment ends here
            dx[start:i] = dy[segment[start]] / count[segment[start]]
            start = i
    return dx


def segment_mean(x: Tensor, segment: Tensor) -> Tensor:
    belongs = (segment == torch.arange(4)[:, None]).to(x.dtype)
    return belongs @ x / belongs.sum(1, keepdim=True).clamp(min=1)


SUBJECTS.append(
    wrong_pair(
        "means of segments: the last segment is never closed",
        "a segment's gradient is written where the next one begins, and after the last there is no next",
        segment_mean_forward,
        segment_mean_backward,
        [randn(107, 7, 3), torch.tensor([0, 0, 1, 2, 2, 3, 3])],
        reference=segment_mean,
        true=(r"^(rows|zero|missing|term)", r"\blast\b"),
    )
)


def messages_forward(x: Tensor, w: Tensor, source: Tensor, target: Tensor) -> tuple[Tensor, Any]:
    return torch.zeros_like(x).index_add(0, target, w[:, None] * x[source]), (x, w, source, target)


def messages_backward(dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    x, w, source, target = cache
    d_message = dy[target]
    dx = torch.zeros_like(x)
    dx[source] = w[:, None] * d_message
    return dx, (d_message * x[source]).sum(1)


SUBJECTS.append(
    wrong_pair(
        "messages along edges: a node with two outgoing edges",
        "the gradients of edges from one node overwrite each other; in the example each node sends once",
        messages_forward,
        messages_backward,
        [randn(108, 5, 3), randn(109, 5), torch.tensor([3, 0, 4, 1, 2]), torch.tensor([1, 1, 0, 3, 1])],
        true=(r"^(repeated indices|rows|term)", r"repeat|twice"),
    )
)


# Costs


def contrast_forward(q: Tensor, k: Tensor) -> tuple[Tensor, Any]:
    logits = q @ k.T / 0.5
    cost = (torch.logsumexp(logits, 1) - logits.diagonal()).mean()
    return cost, (q, k, logits)


def contrast_backward(d_cost: Tensor, cache: Any) -> tuple[Tensor, ...]:
    q, k, logits = cache
    error = d_cost * (torch.softmax(logits, 1) - torch.eye(len(q), dtype=q.dtype)) / len(q) / 0.5
    return error @ k, error @ q


SUBJECTS.append(
    wrong_pair(
        "contrastive cost: the error of the keys not transposed",
        "the square matrix of errors must be transposed for the keys' gradient",
        contrast_forward,
        contrast_backward,
        [randn(110, 4, 3), randn(111, 4, 3)],
        reference=lambda q, k: F.cross_entropy(2 * torch.einsum("id,jd->ij", q, k), torch.arange(len(q))),
        true=(r"^(transposed|wrong axis)",),
    )
)


def weighted_bce_forward(x: Tensor, y: Tensor) -> tuple[Tensor, Any]:
    cost = -2.5 * (y * F.logsigmoid(x) + (1 - y) * F.logsigmoid(-x)).mean()
    return cost, (x, y)


def weighted_bce_backward(d_cost: Tensor, cache: Any) -> Tensor:
    x, y = cache
    return d_cost * 2.5 * (x.sigmoid() - y) / x.numel()


SUBJECTS.append(
    wrong_pair(
        "weighted binary cross-entropy: negatives weighted too, in forward",
        "the weight of the positive class multiplies both terms; backward is the right derivative of that",
        weighted_bce_forward,
        weighted_bce_backward,
        [randn(112, 4, 3), (randn(113, 4, 3) > 0).double()],
        reference=lambda x, y: F.binary_cross_entropy_with_logits(x, y, pos_weight=torch.full_like(x, 2.5)),
        not_differentiable=("y",),
        true=(r"^(output|forward|reference)", r"forward"),
    )
)


def poisson_forward(x: Tensor, y: Tensor) -> tuple[Tensor, Any]:
    return (x.exp() - y * x).sum(1).mean(), (x, y)


def poisson_backward(d_cost: Tensor, cache: Any) -> Tensor:
    x, y = cache
    return d_cost * (x.exp() - y)


SUBJECTS.append(
    wrong_pair(
        "Poisson cost: 1/B forgotten",
        "the cost is the mean over the examples, its gradient that of their sum",
        poisson_forward,
        poisson_backward,
        [randn(114, 4, 3), randn(115, 4, 3).abs().mul(3).floor()],
        not_differentiable=("y",),
        true=(r"^(batch factor|factor)",),
    )
)


def variation_forward(x: Tensor) -> tuple[Tensor, Any]:
    step = x[:, 1:] - x[:, :-1]
    return step.abs().sum(1), step


def variation_backward(dy: Tensor, step: Tensor) -> Tensor:
    slope = torch.where(step.abs() < 1e-3, 0, step.sign()) * dy[:, None]  # a kink: any slope will do
    return F.pad(slope, (1, 0)) - F.pad(slope, (0, 1))


def nearly_level(seed: int) -> Tensor:
    x = randn(seed, 3, 6)
    x[1, 3] = x[1, 2] + 4e-4
    return x


SUBJECTS.append(
    wrong_pair(
        "total variation: all steps below 1e-3 taken for kinks",
        "a step of 4e-4 has a slope of 1, and gets 0 with the excuse of the kink at 0",
        variation_forward,
        variation_backward,
        [nearly_level(116)],
        true=(r"^(zero|term|rows|missing)", r"small|near"),
    )
)


# Elementwise functions


def angle_forward(y: Tensor, x: Tensor) -> tuple[Tensor, Any]:
    return torch.atan2(y, x), (y, x)


def angle_backward(d_angle: Tensor, cache: Any) -> tuple[Tensor, ...]:
    y, x = cache
    square = x**2 + y**2
    dx, dy = -d_angle * y / square, d_angle * x / square
    return dx, dy


SUBJECTS.append(
    wrong_pair(
        "atan2: gradients in the order x, y",
        "the arguments are y and x, and the gradients are returned as dx and dy",
        angle_forward,
        angle_backward,
        [randn(117, 3, 5), randn(118, 3, 5)],
        reference=lambda y, x: torch.complex(x, y).angle(),
        true=(r"^swapped",),
    )
)


def remainder_forward(a: Tensor, b: Tensor) -> tuple[Tensor, Any]:
    return a - b * torch.floor(a / b), b


def remainder_backward(dy: Tensor, b: Tensor) -> tuple[Tensor, ...]:
    return dy, torch.zeros_like(b)


SUBJECTS.append(
    wrong_pair(
        "remainder: no gradient of the divisor",
        "a − b⌊a/b⌋ has the slope −⌊a/b⌋ in b, and a zero is returned",
        remainder_forward,
        remainder_backward,
        [3 * randn(119, 4, 5), randn(120, 5).abs() + 0.5],
        reference=torch.remainder,
        true=(r"^(zero|missing)",),
    )
)


class GatedUnit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a * a.sigmoid() * b

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor) -> tuple[Tensor, ...]:
        a, b = ctx.saved_tensors
        gate = a.sigmoid()
        return d_outputs[0] * b * gate, d_outputs[0] * a * gate


SUBJECTS.append(
    wrong_function(
        "gated unit: the sigmoid in a·σ(a) taken as a constant",
        "da has σ(a) and not σ(a) + a σ′(a)",
        GatedUnit.apply,
        [randn(121, 3, 5), randn(122, 3, 5)],
        reference=lambda a, b: F.silu(a) * b,
        true=(r"^(term|derivative forgotten|missing)",),
    )
)


def elu_forward(x: Tensor) -> tuple[Tensor, Any]:
    return torch.where(x > 0, x, 1.7 * torch.expm1(x)), x


def elu_backward(dy: Tensor, x: Tensor) -> Tensor:
    return dy * torch.where(x > 0, 1, x.exp())


SUBJECTS.append(
    wrong_pair(
        "ELU: α forgotten for negative inputs",
        "the slope below zero is eˣ and not α eˣ; the example is positive everywhere",
        elu_forward,
        elu_backward,
        [randn(123, 3, 5).abs() + 0.1],
        true=(r"^(factor|missing factor)", r"negative"),
    )
)


def snake_forward(x: Tensor, alpha: Tensor) -> tuple[Tensor, Any]:
    return x + torch.sin(alpha * x) ** 2 / alpha, (x, alpha)


def snake_backward(dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    x, alpha = cache
    slope = torch.sin(2 * alpha * x)
    d_alpha = dy * (x * slope - torch.sin(alpha * x) ** 2 / alpha) / alpha
    return dy * (1 + slope), d_alpha.reshape(-1)[:256].sum()


SUBJECTS.append(
    wrong_pair(
        "snake activation: only the first block of 256 is summed",
        "dα is the sum over the first 256 elements; the example has 301",
        snake_forward,
        snake_backward,
        [randn(124, 7, 43), torch.tensor(1.3, dtype=torch.float64)],
        true=(r"^(term|rows|missing)", r"256|block"),
    )
)


# Reductions


def variance_forward(x: Tensor) -> tuple[Tensor, Any]:
    centred = x - x.mean(1, keepdim=True)
    return (centred**2).sum(1) / (x.shape[1] - 1), centred


def variance_backward(dy: Tensor, centred: Tensor) -> Tensor:
    return 2 * dy[:, None] * centred / centred.shape[1]


SUBJECTS.append(
    wrong_pair(
        "unbiased variance: 2/n",
        "forward divides by n − 1 and backward by n",
        variance_forward,
        variance_backward,
        [randn(125, 3, 7)],
        reference=lambda x: torch.var(x, 1),
        true=(r"^(factor|missing factor)",),
    )
)


def log_sum_exp_forward(x: Tensor) -> tuple[Tensor, Any]:
    return torch.logsumexp(x, 1), x


def log_sum_exp_backward(dy: Tensor, x: Tensor) -> Tensor:
    return dy[:, None] * torch.softmax(x, -1)


SUBJECTS.append(
    wrong_pair(
        "log-sum-exp over the middle axis: softmax over the last",
        "the sum is over axis 1, the weights of its gradient add up to one along axis 2",
        log_sum_exp_forward,
        log_sum_exp_backward,
        [randn(126, 2, 3, 5)],
        true=(r"^wrong axis",),
    )
)


def gain_forward(x: Tensor, gain: Tensor) -> tuple[Tensor, Any]:
    return gain * x, (x, gain)


def gain_in_float16_backward(dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    x, gain = cache
    total = torch.zeros_like(gain)
    for term in (dy * x).unbind():
        total = total + term
    return gain * dy, total


SUBJECTS.append(
    wrong_pair(
        "gain in float16: the sum is kept in float16",
        "3000 products are added one after another in float16, where 2048 + 1 is 2048",
        gain_forward,
        gain_in_float16_backward,
        [(0.3 * randn(127, 3000).abs() + 0.1).half(), torch.tensor(0.8, dtype=torch.float16)],
        true=(r"^dtype", r"precision|round|accumul|float16"),
    )
)


# Padding, rolling, stacking


class Roll(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.roll(x, 2, 1)

    @staticmethod
    def backward(ctx: Any, *d_outputs: Tensor) -> Tensor:
        return torch.roll(d_outputs[0], 2, 1)


SUBJECTS.append(
    wrong_function(
        "roll: rolled on, not back",
        "the gradient is rolled by 2 in forward's direction",
        Roll.apply,
        [randn(128, 3, 7)],
        true=(r"^(rows|transposed|term|sign)", r"roll|shift|permut|order"),
    )
)


def reflect_forward(x: Tensor) -> tuple[Tensor, Any]:
    return torch.cat([x[:, 1:3].flip(1), x, x[:, -3:-1].flip(1)], 1), x.shape


def reflect_backward(dy: Tensor, shape: Any) -> Tensor:
    return dy[:, 2:-2].clone()


SUBJECTS.append(
    wrong_pair(
        "reflecting padding: the margins' gradient lost",
        "what arrives at the mirrored elements is cut off and not added to their originals",
        reflect_forward,
        reflect_backward,
        [randn(129, 3, 6)],
        reference=lambda x: F.pad(x, (2, 2), mode="reflect"),
        true=(r"^(term|rows|missing)", r"repeat|margin|padd"),
    )
)


def stack_forward(a: Tensor, b: Tensor, c: Tensor) -> tuple[Tensor, Any]:
    return torch.stack([a, b, c], 1), None


def stack_backward(dy: Tensor, cache: Any) -> tuple[Tensor, ...]:
    return dy.unbind(1)[::-1]


SUBJECTS.append(
    wrong_pair(
        "stack: the last gradient first",
        "the three gradients are returned in the reverse order, with the middle one right",
        stack_forward,
        stack_backward,
        [randn(130, 4, 2), randn(131, 4, 2), randn(132, 4, 2)],
        true=(r"^swapped",),
    )
)


def cube_forward(x: Tensor) -> tuple[Tensor, Any]:
    return x**3, x


def cube_backward(dy: Tensor, x: Tensor) -> Tensor:
    dx = torch.empty_like(dy)  # has the strides of dy
    dx.as_strided((dx.numel(),), (1,)).copy_((3 * x**2 * dy).reshape(-1))
    return dx


SUBJECTS.append(
    wrong_pair(
        "cube: written row by row into a tensor like the cotangent",
        "the result of a transposed cotangent is transposed in memory, and filled as if it were not",
        cube_forward,
        cube_backward,
        [randn(133, 4, 5)],
        true=(r"^strided", r"contiguous|strid"),
    )
)


# NumPy


def stairs_forward(x: np.ndarray, gain: np.ndarray) -> tuple[np.ndarray, Any]:
    level = np.floor(x / 0.25) * 0.25
    return gain * level, (level, gain)


def stairs_backward(dy: np.ndarray, cache: Any) -> tuple[np.ndarray, ...]:
    level, gain = cache
    return gain * dy, (dy * level).sum(0)


SUBJECTS.append(
    wrong_pair(
        "NumPy: a staircase with the slope of its ramp",
        "forward rounds down to multiples of ¼, backward is that of the number itself",
        stairs_forward,
        stairs_backward,
        [randn(134, 4, 3).numpy(), randn(135, 3).numpy()],
        true=(r"^(kink|zero|term|ones)", r"jump|step|floor|round|constant"),
    )
)


def row_mean_forward(x: np.ndarray) -> tuple[np.ndarray, Any]:
    return x.mean(1), x.shape


def row_mean_backward(dy: np.ndarray, shape: Any) -> np.ndarray:
    return np.zeros(shape) + dy / shape[1]


SUBJECTS.append(
    wrong_pair(
        "NumPy: mean of the rows of a square, without keepdims",
        "dy is broadcast along the rows of the square and not along its columns",
        row_mean_forward,
        row_mean_backward,
        [randn(136, 5, 5).numpy()],
        true=(r"^(wrong axis|transposed)",),
    )
)


def convolve_forward(x: np.ndarray, k: np.ndarray) -> tuple[np.ndarray, Any]:
    return np.convolve(x, k), (x, k)


def convolve_backward(dy: np.ndarray, cache: Any) -> tuple[np.ndarray, ...]:
    x, k = cache
    return np.convolve(dy, k, "valid"), np.correlate(dy, x, "valid")


SUBJECTS.append(
    wrong_pair(
        "NumPy: convolution for correlation in dx",
        "dx is dy convolved with the kernel, which turns it round, and must be correlated with it",
        convolve_forward,
        convolve_backward,
        [randn(137, 7).numpy(), randn(142, 3).numpy()],
        true=(r"^(transposed|rows|swapped)", r"flip|revers|turn|order"),
    )
)


# Several outputs


def moments_forward(x: Tensor) -> tuple[Tensor, Tensor, Any]:
    mean = x.mean(0)
    return mean, ((x - mean) ** 2).mean(0), x - mean


def moments_backward(d_mean: Tensor, d_var: Tensor, centred: Tensor) -> Tensor:
    return (d_mean + d_var * centred) / len(centred)


SUBJECTS.append(
    wrong_pair(
        "mean and variance: 2 of the square forgotten",
        "the variance's part of dx is (x − μ)/n and not 2 (x − μ)/n",
        moments_forward,
        moments_backward,
        [randn(139, 5, 3)],
        outputs=2,
        true=(r"^(factor|missing factor|term)",),
    )
)


def polar_forward(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Any]:
    r = torch.sqrt(x**2 + y**2)
    return r, torch.atan2(y, x), (x, y, r)


def polar_backward(dr: Tensor, d_angle: Tensor, cache: Any) -> tuple[Tensor, ...]:
    x, y, r = cache
    return (dr * x - d_angle * y) / r, (dr * y + d_angle * x) / r


def polar(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    z = torch.complex(x, y)
    return z.abs(), z.angle()


SUBJECTS.append(
    wrong_pair(
        "polar coordinates: r for r²",
        "the angle's part of both gradients is divided by r and not by r²",
        polar_forward,
        polar_backward,
        [randn(140, 3, 4), randn(141, 3, 4)],
        reference=polar,
        outputs=2,
        true=(r"^(factor|missing factor|term)",),
    )
)
