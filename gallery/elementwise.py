"""Elementwise functions, masks, kinks and orders."""

import torch
from torch.nn import functional as F

from gallery import naive
from gallery.entry import Layer, normal

# sigmoid and tanh


def sigmoid_forward(z):
    a = torch.sigmoid(z)
    return a, (z, a)


def sigmoid_backward(da, cache):
    _, a = cache
    return da * a * (1 - a)


SIGMOID = Layer(sigmoid_forward, sigmoid_backward, lambda g: (normal(g, 7, 5),))


@SIGMOID.wrong(
    "σ′ forgotten",
    what="the cotangent goes through the activation unchanged",
    naive=naive.cost_falls,
    diagnosis=["derivative forgotten"],
)
def slope_forgotten(da, cache):
    return da.clone()


@SIGMOID.wrong(
    "σ′ of the output",
    what="the derivative is taken at a = σ(z) instead of z, because the argument was called input",
    where="mlpack (#2005)",
    naive=naive.cost_falls,
)
def slope_of_output(da, cache):
    _, a = cache
    s = torch.sigmoid(a)
    return da * s * (1 - s)


def tanh_forward(z):
    a = torch.tanh(z)
    return a, a


def tanh_backward(da, a):
    return da * (1 - a**2)


TANH = Layer(tanh_forward, tanh_backward, lambda g: (normal(g, 7, 5),))


@TANH.wrong(
    "tanh′ = 1 − a",
    what="the square is forgotten",
    naive=naive.cost_falls,
)
def square_forgotten(da, a):
    return da * (1 - a)


# GELU, exact


def gelu_forward(x):
    return F.gelu(x), x


def gelu_backward(dy, x):
    density = torch.exp(-(x**2) / 2) / (2 * torch.pi) ** 0.5
    return dy * (0.5 * (1 + torch.erf(x / 2**0.5)) + x * density)


C1, C3 = (2 / torch.pi) ** 0.5, 0.044715


def tanh_gelu(x):
    return 0.5 * x * (1 + torch.tanh(C1 * (x + C3 * x**3))), x


def tanh_gelu_backward(dy, x):
    t = torch.tanh(C1 * (x + C3 * x**3))
    return dy * (0.5 * (1 + t) + 0.5 * x * (1 - t**2) * C1 * (1 + 3 * C3 * x**2))


GELU = Layer(gelu_forward, gelu_backward, lambda g: (normal(g, 7, 5),), reference=lambda x: x * torch.special.ndtr(x))


@GELU.wrong(
    "GELU: the other one's derivative",
    what="forward is exact (erf), backward is that of the tanh approximation",
    naive=naive.loose,
)
def other_gelu(dy, x):
    return tanh_gelu_backward(dy, x)


@GELU.wrong_pair(
    "GELU: wrong forward, its own derivative",
    what="the tanh approximation, right in itself, where the exact GELU was asked for",
    where="of Liger #359's kind: compared with itself",
    naive=naive.random_allclose,
)
def wrong_gelu():
    return tanh_gelu, tanh_gelu_backward


# softplus


def softplus_forward(x):
    return -F.logsigmoid(-x), x


def softplus_backward(dy, x):
    return dy * torch.sigmoid(x)


SOFTPLUS = Layer(softplus_forward, softplus_backward, lambda g: (normal(g, 7, 5),))


@SOFTPLUS.wrong(
    "softplus: overflow",
    what="eˣ/(1 + eˣ) is inf/inf for large x",
    naive=naive.random_allclose,
    diagnosis=["nan"],
)
def softplus_overflow(dy, x):
    return dy * x.exp() / (1 + x.exp())


# |x|, leaky rectifier, clamp, the larger of two


def abs_forward(x):
    return x.abs(), x


def abs_backward(dy, x):
    return dy * x.sign()


ABS = Layer(abs_forward, abs_backward, lambda g: (normal(g, 7, 5),))


@ABS.wrong(
    "|x| at zero",
    what="x/|x| is 0/0 at zero",
    naive=naive.random_allclose,
    diagnosis=["nan"],
)
def abs_quotient(dy, x):
    return dy * x / x.abs()


def leaky_forward(x):
    return torch.where(x > 0, x, 0.1 * x), x


def leaky_backward(dy, x):
    return torch.where(x > 0, dy, 0.1 * dy)


LEAKY = Layer(leaky_forward, leaky_backward, lambda g: (normal(g, 7, 5),))


@LEAKY.wrong(
    "leaky rectifier at zero",
    what="x ≥ 0 and x ≤ 0 both hold at zero, where the two slopes add up to 1.1",
    naive=naive.random_allclose,
    diagnosis=["kink"],
)
def both_slopes(dy, x):
    return dy * (x >= 0) + 0.1 * dy * (x <= 0)


def clamp_forward(x):
    return x.clamp(-0.5, 0.5), x


def clamp_backward(dy, x):
    return dy * ((x >= -0.5) & (x <= 0.5))


CLAMP = Layer(clamp_forward, clamp_backward, lambda g: (normal(g, 7, 5),))


@CLAMP.wrong(
    "clamp: straight through",
    what="the gradient also passes where the value was clamped",
    naive=naive.given("nothing clamped", lambda g: (0.1 * normal(g, 7, 5),)),
    diagnosis=["derivative forgotten"],
)
def straight_through(dy, x):
    return dy.clone()


def larger_forward(a, b):
    return torch.maximum(a, b), (a, b)


def larger_backward(dy, cache):
    a, b = cache
    first = (a > b).to(dy.dtype) + 0.5 * (a == b)
    return dy * first, dy * (1 - first)


LARGER = Layer(larger_forward, larger_backward, lambda g: (normal(g, 7, 5), normal(g, 7, 5)))


@LARGER.wrong(
    "maximum: ties twice",
    what="where both are equal, both get the whole gradient",
    naive=naive.random_allclose,
    diagnosis=["kink"],
)
def ties_twice(dy, cache):
    a, b = cache
    return dy * (a >= b), dy * (b >= a)


# dropout and masks


def dropout_forward(x, kept, p):
    return x * kept / (1 - p), (kept, p)


def dropout_backward(dy, cache):
    kept, p = cache
    return dy * kept / (1 - p)


def dropped(g, p=0.4):
    return normal(g, 7, 5), torch.rand(7, 5, generator=g) >= p, p


DROPOUT = Layer(dropout_forward, dropout_backward, dropped)


@DROPOUT.wrong(
    "dropout: mask ignored",
    what="the gradient is scaled by 1/(1 − p), but not masked",
    where="numpy-ml (#94)",
    naive=naive.given("p = 0", lambda g: dropped(g, 0.0)),
    diagnosis=["mask ignored"],
)
def dropout_unmasked(dy, cache):
    _, p = cache
    return dy / (1 - p)


@DROPOUT.wrong(
    "dropout: 1/(1 − p)",
    what="the gradient is masked, but not scaled",
    naive=naive.cost_falls,
    diagnosis=["factor"],
)
def dropout_unscaled(dy, cache):
    kept, _ = cache
    return dy * kept


def fill_forward(x, hidden):
    return x.masked_fill(hidden, -9.0), hidden


def fill_backward(dy, hidden):
    return dy.masked_fill(hidden, 0.0)


FILL = Layer(fill_forward, fill_backward, lambda g: (normal(g, 7, 5), torch.rand(7, 5, generator=g) < 0.4))


@FILL.wrong(
    "masked fill: gradient not masked",
    what="elements that were overwritten still get a gradient",
    naive=naive.given("nothing masked", lambda g: (normal(g, 7, 5), torch.zeros(7, 5, dtype=torch.bool))),
    diagnosis=["mask ignored"],
)
def fill_unmasked(dy, hidden):
    return dy.clone()


# arithmetic


def difference_forward(a, b):
    return a - b, None


def difference_backward(dy, cache):
    return dy, -dy


DIFFERENCE = Layer(difference_forward, difference_backward, lambda g: (normal(g, 7, 5), normal(g, 7, 5)))


@DIFFERENCE.wrong(
    "sign",
    what="the subtracted argument gets the gradient of an added one",
    naive=naive.norms,
    diagnosis=["sign"],
)
def sign_lost(dy, cache):
    return dy, dy


def quotient_forward(a, b):
    return a / b, (a, b)


def quotient_backward(dy, cache):
    a, b = cache
    return dy / b, -dy * a / b**2


def quotient_example(g):
    return normal(g, 7, 5), 0.5 + torch.rand(7, 5, generator=g, dtype=torch.float64)


QUOTIENT = Layer(quotient_forward, quotient_backward, quotient_example)


@QUOTIENT.wrong(
    "quotient: b for b²",
    what="db lacks a factor 1/b",
    naive=naive.given("b = 1", lambda g: (normal(g, 7, 5), torch.ones(7, 5, dtype=torch.float64))),
    diagnosis=["missing factor"],
)
def square_of_divisor(dy, cache):
    a, b = cache
    return dy / b, -dy * a / b


def prod_forward(x):
    return x.prod(-1), x


def prod_backward(dy, x):
    others = torch.ones_like(x)
    for i in range(x.shape[-1]):
        for j in range(x.shape[-1]):
            if i != j:
                others[..., i] *= x[..., j]
    return dy[..., None] * others


PROD = Layer(prod_forward, prod_backward, lambda g: (normal(g, 7, 4),))


@PROD.wrong(
    "product with a zero",
    what="∏x / x is 0/0 where a factor is zero",
    naive=naive.random_allclose,
    diagnosis=["nan"],
)
def product_over_x(dy, x):
    return dy[..., None] * x.prod(-1, keepdim=True) / x


# orders


def cumsum_forward(x):
    return x.cumsum(-1), None


def cumsum_backward(dy, cache):
    return dy.flip(-1).cumsum(-1).flip(-1)


CUMSUM = Layer(cumsum_forward, cumsum_backward, lambda g: (normal(g, 7, 5),))


@CUMSUM.wrong(
    "cumulative sum: not reversed",
    what="backward sums from the front again",
    naive=naive.ones_norms,
)
def cumsum_forwards(dy, cache):
    return dy.cumsum(-1)


def permute_forward(x, order):
    return x[:, order], order


def permute_backward(dy, order):
    return torch.zeros_like(dy).index_add(1, order, dy)


PERMUTE = Layer(permute_forward, permute_backward, lambda g: (normal(g, 7, 5), torch.tensor([2, 0, 1, 4, 3])))


@PERMUTE.wrong(
    "permutation not inverted",
    what="the gradient is permuted forward once more",
    diagnosis=("rows",),
    naive=naive.given("two columns exchanged", lambda g: (normal(g, 7, 5), torch.tensor([1, 0, 2, 3, 4]))),
)
def permuted_again(dy, order):
    return dy[:, order]


def sort_forward(x):
    y, order = x.sort(-1)
    return y, order


def sort_backward(dy, order):
    return torch.zeros_like(dy).scatter(-1, order, dy)


SORT = Layer(sort_forward, sort_backward, lambda g: (normal(g, 7, 5),))


@SORT.wrong(
    "sort: gradient left sorted",
    what="the gradient is not put back where the values came from",
    naive=naive.given("x sorted already", lambda g: (normal(g, 7, 5).sort(-1).values,)),
    diagnosis=["derivative forgotten"],
)
def left_sorted(dy, order):
    return dy.clone()


def concat_forward(a, b):
    return torch.cat([a, b], -1), a.shape[-1]


def concat_backward(dy, width):
    return dy[:, :width], dy[:, width:]


CONCAT = Layer(concat_forward, concat_backward, lambda g: (normal(g, 7, 4), normal(g, 7, 4)))


@CONCAT.wrong(
    "concatenation: halves swapped",
    what="each part gets the other's gradient",
    naive=naive.ones,
    diagnosis=["swapped"],
)
def halves_swapped(dy, width):
    return dy[:, width:], dy[:, :width]


# PReLU: a learned slope per channel to the left of zero


def prelu_forward(z, alpha):
    return torch.where(z > 0, z, alpha[:, None] * z), (z, alpha)


def prelu_backward(da, cache):
    z, alpha = cache
    return torch.where(z > 0, da, alpha[:, None] * da), torch.where(z > 0, 0, z * da).sum((0, 2))


PRELU = Layer(prelu_forward, prelu_backward, lambda g: (normal(g, 3, 4, 5), normal(g, 4)))


@PRELU.wrong(
    "PReLU: α at one place",
    what="dα is summed over the batch, but taken at the first place only",
    naive=naive.given("one place", lambda g: (normal(g, 3, 4, 1), normal(g, 4))),
    diagnosis=["rows"],
)
def slope_of_one_place(da, cache):
    z, _ = cache
    return prelu_backward(da, cache)[0], torch.where(z > 0, 0, z * da).sum(0)[:, 0]


@PRELU.wrong(
    "PReLU: α of all",
    what="dα counts the positive values too, which α does not touch",
    naive=naive.given("z < 0", lambda g: (-normal(g, 3, 4, 5).abs(), normal(g, 4))),
)
def slope_of_all(da, cache):
    z, _ = cache
    return prelu_backward(da, cache)[0], (z * da).sum((0, 2))
