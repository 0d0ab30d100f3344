"""Named tensors and the one vector θ that they share."""

import re

import pytest
import torch

from manual_backprop.parameters import Parameters

SHAPES = {"layer1.weight": (3, 2), "layer1.bias": (3,), "layer2.weight": (1, 3), "layer2.bias": (1,)}


NAMES = f"the parameters are {', '.join(SHAPES)}"


@pytest.fixture
def parameters():
    result = Parameters(SHAPES, dtype=torch.float64)
    result.theta.copy_(torch.arange(13, dtype=torch.float64))
    return result


def shapes_of(tensors):
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def test_theta_holds_the_tensors_in_order_and_is_written_to_through_them(parameters):
    assert list(shapes_of(parameters).items()) == list(SHAPES.items())
    assert len(parameters) == 4
    assert torch.equal(torch.cat([tensor.flatten() for tensor in parameters.values()]), parameters.theta)
    parameters["layer1.bias"][1] = -5
    assert parameters.theta[7] == -5
    parameters.theta[0] = 99
    assert parameters["layer1.weight"][0, 0] == 99
    parameters["layer2.weight"] = torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64)
    assert parameters.theta[9:12].tolist() == [1, 2, 3]


def test_a_fresh_one_is_zero_and_of_the_same_dtype_and_device_and_its_shapes_are_its_own(parameters):
    other, shapes = parameters.zeros_like(), dict(SHAPES)
    assert (other.theta.dtype, other.shapes) == (torch.float64, SHAPES)
    assert not other.theta.any()
    assert parameters.theta[12] == 12
    elsewhere = Parameters(shapes, device="meta")
    for each in (elsewhere, elsewhere.zeros_like()):
        assert each.theta.device == each["layer1.weight"].device == torch.device("meta")
    shapes.clear()
    assert elsewhere.split(elsewhere.theta).keys() == SHAPES.keys()


def test_the_setter_casts_and_broadcasts_nothing(parameters):
    before = parameters.theta.clone()
    for value in (torch.zeros(1).double(), torch.zeros(3, 1).double(), torch.zeros(3)):
        said = f"layer1.bias is (3,) torch.float64, so {tuple(value.shape)} {value.dtype} cannot be put there"
        with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
            parameters["layer1.bias"] = value
    with pytest.raises(KeyError, match=r"layer3\.bias"):
        parameters["layer3.bias"] = torch.zeros(3)
    assert torch.equal(parameters.theta, before)


def test_vector_holds_one_value_per_tensor(parameters):
    decay = parameters.vector(lambda name: 0.5 if name.endswith(".weight") else 0.0)
    assert decay.tolist() == [0.5] * 6 + [0.0] * 3 + [0.5] * 3 + [0.0]
    assert decay.dtype == torch.float64
    assert parameters.theta.tolist() == list(range(13))


def test_split_names_the_pieces_of_any_vector_as_long_as_theta(parameters):
    vector = -parameters.theta
    pieces = parameters.split(vector)
    assert shapes_of(pieces) == SHAPES
    pieces["layer2.bias"][0] = 7
    assert vector[12] == 7
    with pytest.raises(ValueError, match=re.escape("θ has 13 elements, a tensor of shape (12,) has not")):
        parameters.split(torch.zeros(12))


def test_a_state_dict_is_a_copy_that_loads_back_and_into_another_dtype(parameters):
    """A copy of its own memory: a view would be saved with the whole vector."""
    state = parameters.state_dict()
    parameters.theta.zero_()
    assert all(tensor.untyped_storage().nbytes() == tensor.nbytes for tensor in state.values())
    for dtype in (torch.float64, torch.float32):
        other = Parameters(SHAPES, dtype=dtype)
        other.load_state_dict(state)
        assert torch.equal(other.theta, torch.arange(13, dtype=dtype))


MISFITS = {
    "a name missing": ("layer2.bias", None, f"layer2.bias is missing; {NAMES}"),
    "a name too many": ("layer3.bias", (1,), f"layer3.bias is not a parameter here; {NAMES}"),
    "transposed": ("layer1.weight", (2, 3), "layer1.weight is (2, 3), this network's is (3, 2)"),
    "a scalar": ("layer2.bias", (), "layer2.bias is (), this network's is (1,)"),
}


@pytest.mark.parametrize(("name", "shape", "said"), MISFITS.values(), ids=MISFITS)
def test_loading_is_strict_and_all_or_nothing(parameters, name, shape, said):
    state = {name: torch.zeros_like(tensor) for name, tensor in parameters.items()} | {name: torch.zeros(shape or ())}
    if shape is None:
        del state[name]
    before = parameters.theta.clone()
    with pytest.raises(ValueError, match=f"^{re.escape(said)}$"):
        parameters.load_state_dict(state)
    assert torch.equal(parameters.theta, before)
