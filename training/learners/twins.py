"""What is written by hand has a twin of the same name, and the twin of a network is the same network.

Whatever was forgotten is named in one sentence (docs/adding.md).
"""

from collections.abc import Callable, Mapping
from typing import Any

from manual_backprop.layers.activations import ACTIVATIONS
from manual_backprop.losses import LOSSES
from manual_backprop.optimizers import OPTIMIZERS
from manual_backprop.tape import kind
from reference import layers as reference_layers
from reference import losses as reference_losses
from reference import mlp as reference_mlp
from reference import optimizers as reference_optimizers
from training.errors import UserError
from training.learners.manual import ManualLearner
from training.learners.reference import ReferenceLearner

REGISTRIES: tuple[tuple[str, Mapping[str, Any], str, Mapping[str, Any], str], ...] = (
    (
        "activation",
        ACTIVATIONS,
        "ACTIVATIONS of manual_backprop/layers/activations.py",
        reference_mlp.ACTIVATIONS,
        "ACTIVATIONS of reference/mlp.py",
    ),
    (
        "cost",
        LOSSES,
        "LOSSES of manual_backprop/losses.py",
        reference_losses.LOSSES,
        "LOSSES of reference/losses.py",
    ),
    (
        "optimizer",
        OPTIMIZERS,
        "OPTIMIZERS of manual_backprop/optimizers.py",
        reference_optimizers.OPTIMIZERS,
        "OPTIMIZERS of reference/optimizers.py",
    ),
)
"""For each kind of part: the hand-written ones, where they are listed, their twins, and where those are listed."""


def require_twins(*kinds: str) -> None:
    """Raises UserError for the first activation, cost or optimizer that only one side has; of `kinds`, if any."""
    for kind_of_part, by_hand, here, twins, there in REGISTRIES:
        if kinds and kind_of_part not in kinds:
            continue
        for name in by_hand:
            if name not in twins:
                raise UserError(f"the {kind_of_part} {name} has no twin: {there} has to name it too (docs/adding.md)")
        for name in twins:
            if name not in by_hand:
                raise UserError(
                    f"the {kind_of_part} {name} is not written by hand: {here} has to name it too (docs/adding.md)"
                )


def twin_of_layer(layer: Any) -> tuple[str, Callable[..., Any]]:
    """The layer's name, which is its twin's, and the forward of the twin. Raises UserError where there is no twin."""
    for name, activation in ACTIVATIONS.items():
        if activation is layer:
            return name, reference_mlp.ACTIVATIONS[name]()
    name = getattr(layer, "twin", None) or kind(layer)
    twin = getattr(reference_layers, name, None)
    if twin is None:
        raise UserError(
            f"the layer {name} has no twin: reference/layers.py has to define {name}, of the same arguments "
            "(docs/adding.md)"
        )
    return name, twin


def start_alike(manual: ManualLearner, reference: ReferenceLearner) -> None:
    """Put the twin where the hand-written learner is. Raises UserError where they are not the same network."""
    name, twin = type(manual.model).__name__, type(reference.module).__name__
    if not hasattr(reference.module, "observed"):
        raise UserError(
            f"the twin of {name} has no observed: {twin} has to map the name of each call to its module "
            "(docs/adding.md)"
        )
    optimizer = type(reference.optimizer)
    if optimizer not in reference_optimizers.STATES:
        raise UserError(
            f"the optimizer {optimizer.__name__} has no state: STATES of reference/optimizers.py has to name what it "
            "remembers (docs/adding.md)"
        )
    try:
        reference.load_state_dict(manual.state_dict())
    except ValueError as error:
        raise UserError(f"the twin of {name} differs from it: {error} (docs/adding.md)") from error
