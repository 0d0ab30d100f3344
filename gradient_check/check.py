"""One call that checks a backward pass against its oracles: `check_backward` and `check_function`."""

from collections.abc import Callable, Sequence, Set
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from gradient_check.asking import Oracles
from gradient_check.compare import as_tensor
from gradient_check.elementwise import by_chunks
from gradient_check.exact import Exact
from gradient_check.isolation import check_fork, isolated, saying, watched
from gradient_check.modes import own_modes
from gradient_check.modules import OwnParameters, modules_named_in
from gradient_check.options import Options, expect_function, expect_names
from gradient_check.report import Report, merged
from gradient_check.run import Said
from gradient_check.second import known_order, second_derivative
from gradient_check.structure import Structure, as_complex, covers, taken
from gradient_check.subject import Subject, differentiated, hand_written
from gradient_check.trial import Trial


@own_modes()
def check_backward(
    forward: Callable[..., Any], backward: Callable[..., Any], example: Sequence[Any], *, outputs: int = 1, **given: Any
) -> Report:
    """Check `output, cache, … = forward(*example)` with `backward(d_output, cache)`.

    `backward` returns one gradient per floating-point argument of forward, in forward's order, except those named in
    `not_differentiable` (targets, masks, noise, statistics). Both run under `torch.inference_mode()`, so neither can
    lean on autograd. With NumPy arrays in the example both are given arrays. With `outputs=2` they are
    `h, c, cache, … = forward(…)` and `backward(dh, dc, cache)`.

    An argument may be a list, a dictionary, or another pytree of tensors; its gradient has the same structure. So may
    `kwargs`, keyword arguments, whose gradients come after the others. Tensors may be complex, in torch's convention.

    `oracles`, all that can be asked unless chosen:

    - "reference": an independent forward of the same arguments, `reference(*example)`, whose outputs must be the same
      and which autograd goes through. It alone can find a wrong forward that has its own right derivative.
    - "autograd": through the same forward. These two are final wherever forward is smooth.
    - "dot product": ⟨d_output, J u⟩ = ⟨Jᵀ d_output, u⟩ with J u in forward mode and no element of u near zero.
    - "differences": central differences at several steps, which notice kinks.

    `intended` declares a gradient that is not the derivative, as of a straight-through estimator: a function of
    forward's arguments through which autograd gives what is meant. No other oracle is asked, no output compared.

    `dtypes` ("float64", "float32", "bfloat16", "float16") convert the example; by default it is checked as it is.
    `cases` are what else is fed: "layouts", "batch", "rows", "axes", "values", "repeats" (cases.py), all unless
    chosen. `zeros` names the arguments whose gradient is zero in exact arithmetic. `labels` says what the report
    calls an argument's gradient: `{"W": "BP4, layer 2, ∂C/∂W"}`. `candidates` are terms that you suspect to be
    missing. `order` is 1: 2 is for `check_function`. `seed` draws the cotangents. A `tolerance`, relative to the
    norm, needs a reason, `because`; the report prints both. So it does with `nondeterministic`, the part of the
    norm by which two calls may differ. With `elementwise=True` an example of many elements, each a function of its
    own, is checked in chunks.

    With `isolate=True` the check runs in a child process (a fork, on one thread). A death there, as by a kernel that
    reads out of bounds, is a row that fails and names the case; the other cases go on in a new child.

    It is checked too that nothing is written to; that a second call, and one after another forward, gives the same;
    that backward is linear; and that every gradient is there, of the shape, dtype and device of its argument.

    Raises ValueError for an example that is not finite or has nothing to differentiate, a forward that raises or
    returns no tensor, unknown names, and `isolate=True` where a fork is not possible; TypeError for another keyword.
    """
    if not isinstance(outputs, int) or outputs < 1:
        raise ValueError(
            f"outputs is {outputs!r}: give how many of the values that forward returns are outputs, from 1"
        )
    for what, function in (("forward", forward), ("backward", backward)):
        expect_function(what, function)
    options = Options.of("check_backward", given)
    known_order(options.order, of_pair=True)
    leaves, structure = taken(forward, example, options.kwargs)
    differentiable = _differentiable(leaves, structure, options.not_differentiable)
    subject = hand_written(forward, backward, structure, differentiable, outputs)
    return _check(subject, leaves, options, through_forward=not structure.arrays)


@own_modes()
def check_function(function: Callable[..., Any], example: Sequence[Any], **given: Any) -> Report:
    """Check what autograd makes of a function whose backward somebody wrote: an `autograd.Function`, a custom operator.

    As `check_backward`; the oracle "autograd" needs a `reference` to go through. Without one, the gradients are held
    against central differences and, where the function has a forward mode, the dot product.

    An `nn.Module` runs as it is, with its own parameters, which are checked like its inputs; the frozen ones (without
    `requires_grad`) are constants of forward. Every forward pass starts with the same buffers. The gradients are what
    `.backward()` leaves in `.grad`, so that checkpoints of both kinds and backwards that call `.backward()` inside can
    be checked. The module is afterwards what it was, its `.grad` too, also where an exception ends the check. So is a
    module that a function uses without being given it. A gradient that such a backward cannot give alone is noted.

    With `order=2`, once all of that has passed, the derivative of the gradients is checked too (second.py).
    """
    expect_function("function", function)
    options = Options.of("check_function", given)
    known_order(options.order, of_pair=False)
    if isinstance(options.reference, nn.Module):
        raise ValueError("the reference is an nn.Module: give a function of all arguments, parameters included")
    with ExitStack() as stack:
        if isinstance(function, nn.Module):
            own = stack.enter_context(OwnParameters(function, example, options.kwargs))
            leaves, structure, frozen = own.leaves, own.structure, own.frozen
        else:
            for module in modules_named_in(function):  # whose .grad grows where a .backward() is inside
                stack.enter_context(OwnParameters(module))
            own, frozen = None, frozenset()
            leaves, structure = taken(function, example, options.kwargs)
        if structure.arrays:
            raise ValueError("autograd goes through tensors only: give tensors in the example, or use check_backward")
        differentiable = _differentiable(leaves, structure, options.not_differentiable, frozen)
        subject = own.subject(differentiable) if own else differentiated(function, structure, differentiable)
        return _check(subject, leaves, options, through_forward=False)


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


def _check(subject: Subject, leaves: list[Any], options: Options, through_forward: bool) -> Report:
    asked = options.asked(through_forward)
    tensors = [subject.names[i] for i in subject.differentiable]
    for what, named in (("zeros", options.zeros), ("labels", options.titles)):
        expect_names(what, named, tensors, "the differentiable arguments")
    if torch.bfloat16 in options.formats and subject.structure.pairs:
        raise ValueError("dtypes has bfloat16, of which torch has no complex numbers: leave it out")
    if options.isolate:
        check_fork(leaves)
    subject = watched(subject)
    return merged([_report(subject, leaves, options, asked, dtype) for dtype in options.formats])


def _report(
    subject: Subject, leaves: Sequence[Any], options: Options, asked: Sequence[str], dtype: torch.dtype | None
) -> Report:
    """On the example in one dtype, its own unless another is given."""
    fed = [v.to(dtype) if dtype and isinstance(v, Tensor) and v.is_floating_point() else v for v in leaves]
    tensors = [subject.names[i] for i in subject.differentiable]
    within = f" in {str(dtype).removeprefix('torch.')}" if len(options.formats) > 1 else ""
    exact = _exact(subject, options, asked)
    oracles = Oracles(exact, "differences" in asked, "dot product" in asked)
    said = Said(
        titles={f"d{tensor}": options.label(tensor) + within for tensor in tensors},
        zeros=frozenset(f"d{tensor}" for tensor in tensors if any(covers(name, tensor) for name in options.zeros)),
        candidates=options.suspected,
        leeway=options.leeway,
    )

    def on(arguments: list[Any], first: bool = True) -> Report:
        """The report on the example, or on a chunk of it, of which the first alone meets slopes and edge cases."""
        return Trial(
            subject=subject,
            arguments=arguments,
            oracles=oracles if first or not exact else Oracles(exact, slopes=False),
            said=said,
            groups=options.groups if first else (),
            seed=options.seed,
            within=within,
        ).report()

    def whole() -> Report:
        first = by_chunks(subject.names, fed, on) if options.elementwise else on(fed)
        if options.order == 1 or not first.passed:
            return first
        return merged([first, second_derivative(subject, fed, oracles, options.leeway, options.seed)])

    return isolated(whole) if options.isolate else whole()


def _exact(subject: Subject, options: Options, asked: Sequence[str]) -> list[Exact]:
    """The oracles that autograd goes through."""
    oracles = []
    if options.intended is not None:
        oracles.append(Exact("declared", subject.structure.of_leaves(options.intended, paired=True), "intended"))
    if "reference" in asked and options.reference is not None:
        given = subject.structure.of_leaves(options.reference, paired=True)
        oracles.append(Exact("reference", saying("the reference", given), "reference"))
    if "autograd" in asked:
        oracles.append(Exact("autograd", subject.forward))
    return oracles


def _differentiable(
    leaves: Sequence[Any], structure: Structure, fixed: Sequence[str], frozen: Set[int] = frozenset()
) -> tuple[int, ...]:
    expect_names("not_differentiable", fixed, structure.names, "the arguments")
    declared = {i for i, leaf in enumerate(structure.names) if any(covers(name, leaf) for name in fixed)}
    positions = []
    for i, (name, value) in enumerate(zip(structure.names, leaves, strict=True)):
        if not isinstance(value, Tensor) or i in declared:
            continue
        as_tensor(value, f"the argument {name}")
        if value.is_meta:
            raise ValueError(f"the argument {name} is on the meta device, without values: give one on a real device")
        if value.is_floating_point() and i not in frozen:
            if not value.isfinite().all():
                given = as_complex(value) if i in structure.pairs else value
                where = [int(i) for i in (~given.isfinite()).nonzero()[0]]
                raise ValueError(f"the argument {name} is {given[tuple(where)].item()} at {where}: give finite numbers")
            positions.append(i)
    if not leaves:
        raise ValueError("the example is empty: give a list of forward's arguments")
    if positions and not any(leaves[i].numel() for i in positions):
        raise ValueError("the example has no elements: give one that has; an empty batch is fed beside it")
    if not positions:
        kinds = ", ".join(
            f"{name} is {value.dtype if isinstance(value, Tensor) else type(value).__name__}"
            + (" and declared as not differentiable" if i in declared else "")
            + (" and frozen, without requires_grad" if i in frozen else "")
            for i, (name, value) in enumerate(zip(structure.names, leaves, strict=True))
        )
        raise ValueError(f"none of the arguments is differentiable: there is nothing to check ({kinds})")
    return tuple(positions)
