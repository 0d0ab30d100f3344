"""Bad input of the checks is refused in one clear sentence."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from gallery.affine import LINEAR
from gallery.diagnosed import RELU
from gradient_check import check_backward, check_function, check_step, compare_gradients
from gradient_check.differences import measure
from tests.support.checking import draw

ONE = draw(1)


relu, relu_backward = RELU.forward, RELU.backward
relu_with = partial(partial, check_backward, relu, relu_backward, [draw(3)])
tanh_with = partial(partial, check_function, torch.tanh, [draw(3)])
slopes = partial(partial, measure, torch.relu, generator=torch.Generator())


def backward_of(forward, *example):
    """As if relu's backward were that of `forward`."""
    return partial(check_backward, forward, relu_backward, [*example] or [draw(3)])


def comparing(actual, expected=ONE, **options):
    return partial(compare_gradients, {"v": actual}, {"v": expected}, **options)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (partial(check_backward, relu, relu_backward, draw(3)), "the example is a Tensor: give a list of"),
        (partial(check_backward, relu, None, [draw(3)]), "backward is (a|of type) NoneType: give a function"),
        (backward_of(relu, torch.arange(3)), r"nothing to check \(z is torch.int64\)"),
        (backward_of(relu, torch.tensor([0.0, torch.nan])), r"z is nan at \[1\]"),
        (backward_of(relu, draw(3).to(torch.float8_e5m2)), "the argument z is torch.float8_e5m2"),
        (backward_of(relu, torch.tensor([0.0, 1j * torch.inf])), r"z is \(?nan\+infj\)? at \[1\]"),
        (backward_of(relu, []), r"nothing to check \(z is list\)"),
        (backward_of(lambda z: z), "forward returned 1 values: give the output and"),
        (backward_of(lambda z: (None, z)), "forward returned a NoneType where"),
        (backward_of(lambda z: (z > 0, z)), "an output of forward is torch.bool"),
        (backward_of(lambda z: (z, z), torch.ones(3, device="meta")), "z is on the meta device.*: give one on a real"),
        (backward_of(lambda z: (z / 0, z)), "forward gives values that are not"),
        (backward_of(LINEAR.forward, draw(7, 3), draw(5, 4), ONE), r"forward raised Runt.* x \(7, 3\), W \(5, 4\)"),
        (relu_with(not_differentiable=["z"]), r"none of the arguments is differentiable.*declared as not"),
        (relu_with(not_differentiable=["y"]), "'y' in not_differentiable"),
        (relu_with(zeros="z"), "zeros is the string 'z'"),
        (relu_with(oracles=["oracle"]), "'oracle' in oracles is unknown"),
        (relu_with(oracles=[]), "oracles is empty"),
        (relu_with(oracles=["reference"]), "give `reference`"),
        (relu_with(cases=["all"]), "'all' in cases is unknown"),
        (relu_with(dtypes=["double"]), "dtype 'double' is unknown"),
        (relu_with(dtypes=[]), "dtypes is empty"),
        (partial(check_function, torch.tanh, [draw(3) + 0j], dtypes=["bfloat16"]), "bfloat16, of which torch has no"),
        (relu_with(outputs=0), "outputs is 0: give how many"),
        (relu_with(reference=3), "reference is (a|of type) int: give a function"),
        (relu_with(order=2), "order is 2: .*wrap it in an autograd.Function"),
        (tanh_with(order=3), "order is 3: give 1, or 2 for"),
        (relu_with(seed="a"), "seed is 'a': give a whole number"),
        (relu_with(kwargs=[draw(3)]), "kwargs is (a|of type) list: give a dictionary"),
        (relu_with(kwargs={"y": ONE}), "forward raised TypeError: .* unexpected keyword argument 'y'; it was given z"),
        (relu_with(candidates=[draw(3)]), "candidates is (a|of type) list: give a"),
        (relu_with(labels=["z"]), "labels is (a|of type) list: give a dictionary"),
        (partial(check_function, lambda x: x.detach(), [draw(3)]), "no output of the function has a gradient function"),
        (partial(check_function, lambda x: None, [draw(3)]), "forward returned a NoneType"),
        (partial(check_function, torch.tanh, [draw(3).numpy()]), "give tensors in the example"),
        (tanh_with(oracles=["autograd"]), "autograd through this function is"),
        (tanh_with(reference=lambda x, y: x), "the reference could not be asked: TypeError"),
        (tanh_with(intended=lambda x: x[:2]), r"intended: its outputs .* \(2,\), and those of forward \(3,\)"),
        (tanh_with(intended=3), "intended is (a|of type) int: give a function"),
        (tanh_with(intended=torch.tanh, reference=torch.tanh), "intended and reference were given"),
        (tanh_with(intended=torch.tanh, oracles=["autograd"]), "but what is intended is no derivative"),
        (tanh_with(tolerance=1e-3), "because is '': say why"),
        (tanh_with(tolerance=1e-3, because=" "), "because is ' ': say why"),
        (tanh_with(because="it is noisy"), "there is no tolerance that it explains"),
        (tanh_with(tolerance=2, because="it is noisy"), "tolerance is 2: give what part of the norm"),
        (tanh_with(nondeterministic=-1), "nondeterministic is -1: give what part of the norm"),
        (partial(check_step, lambda x: x, lambda x: x, [ONE]), "step_a returned a Tensor: return a gradient_check"),
        (partial(check_step, nn.Identity(), lambda x: x, [ONE]), "step_a returned a tensor of shape"),
        (partial(compare_gradients, {}, {}), "nothing to compare"),
        (partial(compare_gradients, [ONE], {"v": ONE}), "actual is (a|of type) list: give a dictionary by name"),
        (comparing([1.0]), "actual v is a list: give a tensor"),
        (comparing(np.array(["a"])), "actual v is an array of"),
        (comparing(ONE, zeros=["v"]), "zeros is (a|of type) list: give a dictionary"),
        (comparing(ONE, condition="x"), "condition is 'x': give a finite"),
        (comparing(ONE, condition=0.1), "condition is 0.1: give a finite"),
        (comparing(ONE, truth={"v": ONE[:0]}), "the truth of v is of shape"),
        *((comparing(v, v), f"v is {v.dtype}: give `truth`, the") for v in (ONE.float(), ONE.half(), ONE.bfloat16())),
        (slopes(torch.zeros(2), torch.zeros(3)), r"shape \(3,\), not \(2,\)"),
        (slopes(torch.zeros(2, dtype=torch.long), torch.zeros(2)), r"floating-point tensor, not torch\.int64"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_bad_input_gets_one_clear_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)
