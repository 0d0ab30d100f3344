"""One call that checks a backward pass against its oracles: `check_backward` and `check_function`."""

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import ExitStack
from numbers import Number
from typing import Any

import torch
from torch import Tensor, nn

from gradient_check.cases import CASES
from gradient_check.compare import as_tensor
from gradient_check.isolation import check_fork, isolated, saying, watched
from gradient_check.modules import OwnParameters, modules_named_in
from gradient_check.oracles import ORACLES
from gradient_check.report import Report, merged
from gradient_check.subject import Subject, argument_names, differentiated, hand_written
from gradient_check.tolerances import SAME
from gradient_check.trial import Trial

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in SAME}


def check_backward(
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    example: Sequence[Any],
    *,
    outputs: int = 1,
    not_differentiable: Sequence[str] = (),
    reference: Callable[..., Any] | None = None,
    oracles: Sequence[str] | None = None,
    dtypes: Sequence[str | torch.dtype] | None = None,
    cases: Sequence[str] | None = None,
    zeros: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    candidates: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    isolate: bool = False,
) -> Report:
    """Check `output, cache, … = forward(*example)` with `backward(d_output, cache)`.

    `backward` returns one gradient per floating-point argument of forward, in forward's order, except those named in
    `not_differentiable` (targets, masks, noise, statistics). Both run under `torch.inference_mode()`, so neither can
    lean on autograd. With NumPy arrays in the example both are given arrays. With `outputs=2` they are
    `h, c, cache, … = forward(…)` and `backward(dh, dc, cache)`.

    `oracles`, all that can be asked unless chosen:

    - "reference": an independent forward of the same arguments, `reference(*example)`, whose outputs must be the same
      and which autograd goes through. It alone can find a wrong forward that has its own right derivative.
    - "autograd": through the same forward.
    - "dot product": ⟨d_output, J u⟩ = ⟨Jᵀ d_output, u⟩ with J u in forward mode and no element of u near zero.
    - "differences": central differences at several steps, which notice kinks.

    `dtypes` ("float64", "float32", "bfloat16", "float16") convert the example; by default it is checked as it is.
    `cases` are what else is fed: "layouts", "batch", "axes", "values", "repeats" (cases.py), all unless chosen. `zeros`
    names
    the arguments whose gradient is zero in exact arithmetic. `labels` says what the report calls an argument's
    gradient: `{"W": "BP4, layer 2, ∂C/∂W"}`. `candidates` are terms that you suspect to be missing. `seed` draws the
    cotangents.

    With `isolate=True` the check runs in a child process (a fork, on one thread). A death there, as by a kernel that
    reads out of bounds, is a row that fails and names the case; the other cases go on in a new child.

    It is checked too that nothing is written to; that a second call, and one after another forward, gives the same;
    that backward is linear; and that every gradient is there, of the shape, dtype and device of its argument.

    Raises ValueError for an example that is not finite or has nothing to differentiate, a forward that raises or
    returns no tensor, and unknown names; for `isolate=True` where a fork is not possible.
    """
    if not isinstance(outputs, int) or outputs < 1:
        raise ValueError(
            f"outputs is {outputs!r}: give how many of the values that forward returns are outputs, from 1"
        )
    for what, function in (("forward", forward), ("backward", backward)):
        _callable(what, function)
    arguments, arrays = _taken(example)
    names = argument_names(forward, len(arguments))
    differentiable = _differentiable(arguments, names, not_differentiable)
    subject = hand_written(forward, backward, names, differentiable, arrays, outputs)
    chosen = _oracles(oracles, reference is not None, through_forward=not arrays)
    return _check(subject, arguments, reference, chosen, dtypes, cases, zeros, labels, candidates, seed, isolate)


def check_function(
    function: Callable[..., Any],
    example: Sequence[Any],
    *,
    not_differentiable: Sequence[str] = (),
    reference: Callable[..., Any] | None = None,
    oracles: Sequence[str] | None = None,
    dtypes: Sequence[str | torch.dtype] | None = None,
    cases: Sequence[str] | None = None,
    zeros: Sequence[str] = (),
    labels: Mapping[str, str] | None = None,
    candidates: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    isolate: bool = False,
) -> Report:
    """Check what autograd makes of a function whose backward somebody wrote: an `autograd.Function`, a custom operator.

    As `check_backward`; the oracle "autograd" needs a `reference` to go through. Without one, the gradients are held
    against central differences and, where the function has a forward mode, the dot product.

    An `nn.Module` runs as it is, with its own parameters, which are checked like its inputs; the frozen ones (without
    `requires_grad`) are constants of forward. Every forward pass starts with the same buffers. The gradients are what
    `.backward()` leaves in `.grad`, so that checkpoints of both kinds and backwards that call `.backward()` inside can
    be checked. The module is afterwards what it was, its `.grad` too, also where an exception ends the check. So is a
    module that a function uses without being given it. A gradient that such a backward cannot give alone is noted.
    """
    arguments, arrays = _taken(example)
    _callable("function", function)
    if arrays:
        raise ValueError("autograd goes through tensors only: give tensors in the example, or use check_backward")
    if isinstance(reference, nn.Module):
        raise ValueError("the reference is an nn.Module: give a function of all arguments, parameters included")
    chosen = _oracles(oracles, reference is not None, through_forward=False)
    with ExitStack() as stack:
        if isinstance(function, nn.Module):
            own = stack.enter_context(OwnParameters(function, len(arguments)))
            arguments += own.values
            differentiable = _differentiable(arguments, own.names, not_differentiable, own.frozen)
            subject = own.subject(differentiable)
        else:
            for module in modules_named_in(function):  # whose .grad grows where a .backward() is inside
                stack.enter_context(OwnParameters(module, 0))
            names = argument_names(function, len(arguments))
            subject = differentiated(function, names, _differentiable(arguments, names, not_differentiable))
        return _check(subject, arguments, reference, chosen, dtypes, cases, zeros, labels, candidates, seed, isolate)


def assert_backward(
    forward: Callable[..., Any], backward: Callable[..., Any], example: Sequence[Any], **options: Any
) -> None:
    """`check_backward`, with an AssertionError that holds the report unless all rows passed."""
    __tracebackhide__ = True
    check_backward(forward, backward, example, **options).assert_passed()


def assert_function(function: Callable[..., Any], example: Sequence[Any], **options: Any) -> None:
    """`check_function`, with an AssertionError that holds the report unless all rows passed."""
    __tracebackhide__ = True
    check_function(function, example, **options).assert_passed()


def _check(
    subject: Subject,
    arguments: list[Any],
    reference: Callable[..., Any] | None,
    oracles: tuple[str, ...],
    dtypes: Sequence[str | torch.dtype] | None,
    cases: Sequence[str] | None,
    zeros: Sequence[str],
    labels: Mapping[str, str] | None,
    candidates: Mapping[str, Tensor] | None,
    seed: int,
    isolate: bool,
) -> Report:
    labels = labels or {}
    if not isinstance(seed, int):
        raise ValueError(f"seed is {seed!r}: give a whole number")
    if reference is not None:
        _callable("reference", reference)
    for name, candidate in _mapping("candidates", candidates).items():
        as_tensor(candidate, f"the candidate {name}")
    _mapping("labels", labels)
    tensors = [subject.names[i] for i in subject.differentiable]
    for what, given in (("zeros", zeros), ("labels", labels)):
        _known(what, given, tensors, "the differentiable arguments")
    chosen = tuple(CASES) if cases is None else tuple(cases)
    _known("cases", chosen, CASES, "the cases")
    if isolate:
        check_fork(arguments)
    formats = [None] if dtypes is None else [_dtype(dtype) for dtype in dtypes]
    if not formats:
        raise ValueError("dtypes is empty: give at least one, or leave it out")
    reports = []
    for dtype in formats:
        fed = [v.to(dtype) if dtype and isinstance(v, Tensor) and v.is_floating_point() else v for v in arguments]
        titles = {
            name: labels.get(tensor, name) + (f" in {str(dtype).removeprefix('torch.')}" if len(formats) > 1 else "")
            for name, tensor in zip(subject.gradient_names, tensors, strict=True)
        }
        trial = Trial(
            watched(subject),
            fed,
            reference and saying("the reference", reference),
            oracles,
            chosen,
            frozenset(f"d{name}" for name in zeros),
            titles,
            candidates or {},
            seed,
        )
        reports.append(isolated(trial.report) if isolate else trial.report())
    return merged(reports)


def _taken(example: Sequence[Any]) -> tuple[list[Any], frozenset[int]]:
    """The arguments, arrays as tensors, and which of them were arrays; all of them copies."""
    if isinstance(example, Tensor) or not isinstance(example, Sequence):
        raise ValueError(f"the example is a {type(example).__name__}: give a list of forward's arguments")
    arguments, arrays = [], []
    for i, value in enumerate(example):
        if isinstance(value, Tensor):
            value = value.detach().clone()
        elif hasattr(value, "__array__") and not isinstance(value, Number):  # np.float64(2) is a number like 2.0
            value = as_tensor(value, f"the example's argument {i}").clone()
            arrays.append(i)
        arguments.append(value)
    return arguments, frozenset(arrays)


def _differentiable(
    arguments: Sequence[Any], names: Sequence[str], fixed: Sequence[str], frozen: Set[int] = frozenset()
) -> tuple[int, ...]:
    _known("not_differentiable", fixed, names, "the arguments")
    positions = []
    for i, (name, value) in enumerate(zip(names, arguments, strict=True)):
        if not isinstance(value, Tensor) or name in fixed:
            continue
        as_tensor(value, f"the argument {name}")
        if value.is_floating_point() and i not in frozen:
            if not value.isfinite().all():
                where = [int(i) for i in (~value.isfinite()).nonzero()[0]]
                raise ValueError(f"the argument {name} is {value[tuple(where)].item()} at {where}: give finite numbers")
            positions.append(i)
    if not positions:
        kinds = ", ".join(
            f"{name} is {value.dtype if isinstance(value, Tensor) else type(value).__name__}"
            + (" and declared as not differentiable" if name in fixed else "")
            + (" and frozen, without requires_grad" if i in frozen else "")
            for i, (name, value) in enumerate(zip(names, arguments, strict=True))
        )
        raise ValueError(f"none of the arguments is differentiable: there is nothing to check ({kinds})")
    return tuple(positions)


def _oracles(asked: Sequence[str] | None, has_reference: bool, through_forward: bool) -> tuple[str, ...]:
    if asked is None:
        there = {"reference": has_reference, "autograd": through_forward}
        return tuple(oracle for oracle in ORACLES if there.get(oracle, True))
    _known("oracles", asked, ORACLES, "the oracles")
    if not asked:
        raise ValueError(f"oracles is empty: give at least one of {', '.join(ORACLES)}, or leave it out")
    if "reference" in asked and not has_reference:
        raise ValueError("the oracle 'reference' was asked for: give `reference`, an independent forward")
    if "autograd" in asked and not through_forward:
        raise ValueError(
            "the oracle 'autograd' cannot be asked here, because autograd through this function is what is on trial "
            "(or cannot see into NumPy): give `reference`, an independent forward that autograd can go through"
        )
    return tuple(oracle for oracle in ORACLES if oracle in asked)


def _mapping(what: str, given: Any) -> Mapping[str, Any]:
    if given is not None and not isinstance(given, Mapping):
        raise ValueError(f"{what} is a {type(given).__name__}: give a dictionary by name")
    return given or {}


def _callable(what: str, function: Any) -> None:
    if not callable(function):
        raise ValueError(f"{what} is a {type(function).__name__}: give a function")


def _known(what: str, given: Any, allowed: Any, plural: str) -> None:
    if isinstance(given, str):
        raise ValueError(f"{what} is the string {given!r}: give a list of names")
    if not isinstance(given, Iterable):
        raise ValueError(f"{what} is {given!r}: give a list of names")
    for name in given:
        if name not in allowed:
            raise ValueError(f"{name!r} in {what} is unknown: {plural} are {', '.join(allowed)}")


def _dtype(dtype: str | torch.dtype) -> torch.dtype:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r} is unknown: there are {', '.join(DTYPES)}")
    return DTYPES[name]
