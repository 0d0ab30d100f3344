"""A factor is wrong or left out: a constant, the cotangent, a mask, an argument, a derivative."""

from collections.abc import Iterator
from fractions import Fraction
from itertools import combinations, product
from math import gcd, isfinite, isqrt, prod

import torch
from torch import Tensor

from gradient_check.diagnosis.fault import ACCIDENT, Fault, as_double, dims_words, distance, ideal, norm, times
from gradient_check.report import Diagnosis

KNOWN = -1  # a factor that is a known number is worth an element, or a bias of one could never be told


def zero(fault: Fault) -> Diagnosis | None:
    if fault.given.norm() <= 1e-12 * norm(fault.wanted):
        return Diagnosis("zero", "this is zero everywhere")
    return None


def sign(fault: Fault) -> Diagnosis | None:
    if fault.explained_by(-fault.wanted, free=KNOWN):
        return Diagnosis("sign", f"the sign is wrong: this is −1 times {ideal(fault)}")
    return None


def conjugate(fault: Fault) -> Diagnosis | None:
    """Of complex numbers that are pairs: the sign of the imaginary part, of the gradient or of what is in it."""
    flip, evidence, graph = fault.wanted.new_tensor([1.0, -1.0]), fault.evidence, fault.graph
    if fault.paired and fault.explained_by(fault.wanted * flip):
        return Diagnosis("conjugate", "the conjugate was forgotten: this is the conjugate of the correct gradient")
    for key in (key for key in evidence.arguments if graph and key in evidence.complex):
        if fault.explained_by(fault.again(key, evidence.arguments[key] * flip)):
            return Diagnosis("conjugate", f"the conjugate of {key} was forgotten")
    if graph is not None and evidence.complex >= set(evidence.named_outputs):
        transposed = graph.gradient(cotangents=[dy * flip.to(dy) for dy in graph.cotangents])
        if fault.explained_by(transposed * flip if fault.paired else transposed):
            return Diagnosis("conjugate", "the conjugate was forgotten: this is Jᵀ dy where Jᴴ dy is correct")
    return None


def factor(fault: Fault) -> Diagnosis | None:
    """A constant times the correct gradient; a known number, if it is one."""
    filled, noise = fault.wanted.nan_to_num(), fault.evidence.noise
    square = filled.pow(2).sum()
    c = float((fault.given * filled).sum() / square) if square else 1.0
    if abs(c - 1) <= noise:
        return None
    near = min(noise, 3e-3)
    known = (entry for entry in _numbers(fault, 12 if near < 1e-3 else 4) if abs(c - entry[0]) <= near * abs(entry[0]))
    _, what, written, words = next(known, (c, "", times(c), ""))
    scale = norm(fault.given.where(~fault.wanted.isnan(), 0.0))
    if not fault.explained_by(c * fault.wanted, free=KNOWN if what else 2, scale=scale):
        return None
    return Diagnosis(what or "factor", f"this is {written} times {ideal(fault)}{words}")


def _numbers(fault: Fault, largest: int) -> Iterator[tuple[float, str, str, str]]:
    """Factors that have a meaning, the kind of mistake, how they are written, and what they are."""
    scalars = {key: v.item() for key, v in fault.tensors.items() if v.numel() == 1 and key != fault.argument}
    scalars |= {key: value for key, value in fault.evidence.arguments.items() if isinstance(value, float)}
    for key, scalar in scalars.items():
        if scalar not in (0.0, 1.0) and isfinite(scalar):
            for value, how in ((1 / scalar, "not multiplied in"), (scalar, "multiplied in once too often")):
                yield value, "missing factor", times(value), f": {key} = {scalar:.6g} was {how}"
    sizes = _sizes(fault)
    for n, (words, averaged) in sizes.items():
        what, tail = ("batch factor", ": mean against sum") if averaged and n > 2 else ("factor", "")
        yield 1 / n, what, "½" if n == 2 else f"1/{n}", words + tail
        yield n, what, str(n), words + tail
    for n, (words, _) in sizes.items():
        if isqrt(n) ** 2 != n:
            yield n**-0.5, "factor", f"1/√{n}", words
            yield n**0.5, "factor", f"√{n}", words
    for above, below in product(range(1, largest + 1), repeat=2):
        if gcd(above, below) == 1:
            written = {(1, 2): "½", (1, 3): "⅓", (1, 4): "¼"}.get((above, below), str(Fraction(above, below)))
            yield above / below, "factor", written, ""
            yield -above / below, "factor", f"−{written}", ""


def _sizes(fault: Fault) -> dict[int, tuple[str, bool]]:
    """Sizes of runs of dimensions, or of all but one: what they are, and whether one takes means over them.

    Nothing is said of a size that several have, of the outputs or, where none of them has, of the arguments.
    """
    named, sizes = fault.evidence.named_outputs, dict[int, tuple[str, bool]]()
    for tensors in (fault.evidence.arguments, named):
        found: dict[int, dict[tuple[int, ...], tuple[str, bool]]] = {}
        for key, value in tensors.items():
            shape = value.shape if isinstance(value, Tensor) else ()
            every = tuple(range(len(shape) - (key in fault.evidence.complex)))
            runs = [every[start:stop] for start, stop in combinations(range(len(every) + 1), 2)]
            for dims in (*runs, *(every[:i] + every[i + 1 :] for i in every[1:-1])):
                size = prod(shape[d] for d in dims)
                # an argument's lone last dimension is summed over by products; nobody takes its mean
                averaged = tensors is named or len(every) == 1 or dims[0] < len(every) - 1
                readings = found.setdefault(size, {})
                if size > 1 and averaged > readings.get(dims, ("", -1))[1]:
                    readings[dims] = f" ({size} = {dims_words(dims)} of {key})", averaged
        sizes |= {n: (*read.values(),)[0] if len(read) == 1 else ("", False) for n, read in found.items() if read}
    return sizes


def ones(fault: Fault) -> Diagnosis | None:
    if fault.graph is not None:
        values = [fault.graph.gradient(cotangents=[torch.ones_like(dy) for dy in fault.graph.cotangents])]
    else:  # each element has a cotangent of its own, or all the same
        dys = [as_double(dy) for dy in fault.evidence.cotangents]
        values = [fault.wanted / dy for dy in dys if len(dys) == 1 and dy.shape in (fault.wanted.shape, ())]
    if any(fault.explained_by(value) for value in values):
        return Diagnosis("ones", "this is the gradient for a cotangent of ones: the cotangent was ignored")
    return None


def mask_ignored(fault: Fault) -> Diagnosis | None:
    """A mask, an argument of zeros and one other value: times the mask, or with nothing masked, all is explained."""
    for key, mask in fault.masks.items():
        keep = as_double(mask)
        constants = sorted({0, 1, *mask[mask != 0][:1].tolist()}) if fault.graph else []
        if any(_multiplied(fault, numbers) for numbers in (keep, (keep != 0).double(), (keep == 0).double())) or any(
            fault.explained_by(fault.again(key, torch.full_like(mask, constant))) for constant in constants
        ):
            return Diagnosis("mask ignored", f"the mask {key} was ignored")
    return None


def missing_factor(fault: Fault) -> Diagnosis | None:
    """An argument, or a function of an output, by which the gradient was not multiplied."""
    unchanged = any(torch.equal(fault.given, as_double(dy)) for dy in fault.evidence.cotangents)
    for key, tensor in fault.tensors.items():
        own = key == fault.argument or key.startswith("the output")
        for words, factor, curved in _functions(key, tensor, own):
            if _multiplied(fault, factor):
                if own and (curved or unchanged):
                    return Diagnosis("derivative forgotten", f"the derivative {words} was not multiplied in")
                return Diagnosis("missing factor", f"{words} was not multiplied in")
    return None


def _functions(key: str, a: Tensor, own: bool) -> Iterator[tuple[str, Tensor, bool]]:
    """Factors made of a tensor, what they are called, and whether they can only be an activation's derivative."""
    y = "y" if key.startswith("the output") else key
    if own:
        yield f"1 − {y}²", 1 - a * a, True
        yield f"{y}(1 − {y})", a * (1 - a), True
        yield f"1 − {y}", 1 - a, False
        yield f"[{y} > 0]", (a > 0).double(), True
        yield f"2{y}", 2 * a, True
    yield y, a, False
    yield f"1/{y}", 1 / a, False
    yield f"{y}²", a * a, False
    yield f"√{y}", a.sqrt(), False
    yield f"exp({y})", a.exp(), False


def _multiplied(fault: Fault, factor: Tensor) -> bool:
    """Whether what was returned, times the factor, is correct."""
    noise = fault.evidence.noise
    for spread in _spread(factor, fault.given):
        if bool((spread == spread.flatten()[0]).all()):
            continue  # a constant: that has its own name
        value = fault.given * spread
        like = [dy.cpu() != 0 for dy in fault.evidence.cotangents if dy.shape == value.shape]
        dead = (spread == 0) & (fault.given == 0) & (torch.stack(like).any(0) if like else True)
        if not value.isfinite().all() or dead.any():
            continue  # where the factor is 0, it made no difference
        remainder, size = distance(value, fault.wanted), norm(fault.wanted)
        if size and remainder <= noise * size and noise ** int((fault.wanted.nan_to_num() != 0).sum()) <= ACCIDENT:
            return distance(fault.given, fault.wanted) > 20 * remainder
    return False


def _spread(factor: Tensor, like: Tensor) -> Iterator[Tensor]:
    """A factor broadcast to a shape: from the last dimensions, as torch does, from the first, or along the second."""
    after = like.ndim - factor.ndim
    shapes = {tuple(factor.shape), (*factor.shape, *[1] * after), (1, *factor.shape, *[1] * (after - 1))}
    for shape in sorted(shapes, key=len):
        sizes = zip(reversed(shape), reversed(like.shape), strict=False)
        if len(shape) <= like.ndim and all(size in (1, wanted) for size, wanted in sizes):
            yield factor.reshape(shape).expand(like.shape)


def cotangent_unchanged(fault: Fault) -> Diagnosis | None:
    if any(fault.explained_by(as_double(dy)) for dy in fault.evidence.cotangents):
        return Diagnosis("derivative forgotten", "this is the cotangent, unchanged")
    return None
