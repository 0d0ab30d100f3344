"""Bad input of the checks is refused in one clear sentence."""

from functools import partial

import pytest
import torch
from torch import nn

from gallery.affine import LINEAR
from gradient_check import check_backward, check_function, check_step
from tests.support.checking import draw


def relu(z):
    return torch.relu(z), z


def relu_backward(da, z):
    return da * (z > 0)


def backward_of(forward, *example):
    """As if relu's backward were that of `forward`."""
    return partial(check_backward, forward, relu_backward, [*example] or [draw(3)])


def with_(**options):
    return partial(check_backward, relu, relu_backward, [draw(3)], **options)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (partial(check_backward, relu, relu_backward, draw(3)), "the example is a Tensor: give a list of"),
        (partial(check_backward, relu, None, [draw(3)]), "backward is a NoneType: give a function"),
        (backward_of(relu, torch.arange(3)), r"nothing to check \(z is torch.int64\)"),
        (backward_of(relu, torch.tensor([0.0, torch.nan])), r"z is nan at \[1\]"),
        (backward_of(relu, draw(3) + 0j), "z is torch.complex128"),
        (backward_of(lambda z: z), "forward returned 1 values: give the output and"),
        (backward_of(lambda z: (None, z)), "forward returned a NoneType where"),
        (backward_of(lambda z: (z > 0, z)), "an output of forward is torch.bool"),
        (backward_of(lambda z: (z / 0, z)), "forward gives values that are not"),
        (
            backward_of(LINEAR.forward, draw(7, 3), draw(5, 4), draw(5)),
            r"forward raised RuntimeError: .*it was given x \(7, 3\), W \(5, 4\)",
        ),
        (with_(not_differentiable=["z"]), "declared as not"),
        (with_(not_differentiable=["y"]), "'y' in not_differentiable"),
        (with_(zeros="z"), "zeros is the string 'z'"),
        (with_(oracles=["oracle"]), "'oracle' in oracles is unknown"),
        (with_(oracles=[]), "oracles is empty"),
        (with_(oracles=["reference"]), "give `reference`"),
        (with_(cases=["all"]), "'all' in cases is unknown"),
        (with_(dtypes=["double"]), "dtype 'double' is unknown"),
        (with_(dtypes=[]), "dtypes is empty"),
        (with_(outputs=0), "outputs is 0: give how many"),
        (with_(reference=3), "reference is a int: give a function"),
        (with_(seed="a"), "seed is 'a': give a whole number"),
        (with_(candidates=[draw(3)]), "candidates is a list: give a"),
        (with_(labels=["z"]), "labels is a list: give a dictionary"),
        (partial(check_function, lambda x: x.detach(), [draw(3)]), "no output of the function has a gradient function"),
        (partial(check_function, lambda x: None, [draw(3)]), "forward returned a NoneType"),
        (
            partial(check_function, torch.tanh, [draw(3)], oracles=["autograd"]),
            "autograd through this function is",
        ),
        (partial(check_function, torch.tanh, [draw(3).numpy()]), "give tensors in the example"),
        (
            partial(check_function, torch.tanh, [draw(3)], reference=lambda x: x[:2]),
            "the reference could not be asked: RuntimeError: Mismatch in shape",
        ),
        (
            partial(check_function, torch.tanh, [draw(3)], reference=lambda x, y: x),
            "the reference could not be asked: TypeError",
        ),
        (partial(check_step, lambda x: x, lambda x: x, [draw(3)]), "step_a returned a Tensor: return a gradient_check"),
        (
            partial(check_step, nn.Linear(3, 2).double(), lambda x: x, [draw(3)]),
            "step_a returned a tensor of shape",
        ),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_bad_input_gets_one_clear_sentence(call, sentence):
    with pytest.raises(ValueError, match=sentence) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_gradient_too_many_is_counted():
    ids = torch.tensor([0, 2, 2])
    report = check_backward(lambda x, ids: (x[ids], None), lambda dy, cache: (dy, dy), [draw(4), ids])
    assert report.failures[0].reason == (
        "backward returned 2 gradients for the 1 arguments dx; none is due for ids (torch.int64)"
    )
