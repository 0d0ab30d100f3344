"""What a configuration leaves out follows from what it sets: cost, initial values, learning rate and λ of L2.

A learning rate that suits one network is useless to another: at 10, the rate of the lessons' sigmoid network, a relu
network stays at chance. docs/defaults.md shows how well each combination learns with these defaults.
"""

import json
from collections.abc import Callable, Collection, Mapping
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

from manual_backprop.losses import LOSSES
from manual_backprop.optimizers import OPTIMIZERS

Values = Mapping[str, Any]  # the fields of a configuration, by name

RECTIFIERS = ("relu", "leaky_relu", "softplus", "gelu", "silu", "gelu_tanh")
UNBOUNDED = (*RECTIFIERS, "identity")  # as outputs they do not stay between the targets, 0 and 1

COSTS = ("softmax-cross-entropy", "sigmoid-cross-entropy", "quadratic", "squared-error")
RATES = {  # of each optimizer, in the order of COSTS
    "sgd": (0.1, 0.1, 0.3, 0.15),
    "nesterov": (0.1, 0.03, 0.03, 0.015),
    "adagrad": (0.05, 0.05, 0.03, 0.03),
    "rmsprop": (0.005, 0.005, 0.003, 0.003),
    "adam": (0.005, 0.005, 0.003, 0.003),
    "adamw": (0.005, 0.005, 0.003, 0.003),
    "lion": (0.005, 0.005, 0.001, 0.001),
    "muon": (0.02, 0.02, 0.02, 0.02),
}
RATES_OF_SIGMOIDS = {  # where a step is as long as the gradient, which each σ′ ≤ ¼ on its way back makes shorter
    "sgd": (1.0, 1.0, 1.0, 0.5),
    "nesterov": (0.3, 0.3, 0.3, 0.15),
}
LESSONS_TIMES = 10  # the rate of the quadratic cost in the lessons' network; with 100 neurons it saturates the outputs
RATES_OF_PRESETS = {("lenet5", "adamw"): 0.003, ("cnn", "adamw"): 0.01}
GOOD = 0.85  # the accuracy below which a combination is named as one that learns badly
MEASURED = Path(__file__).with_name("defaults.json")  # what benchmarks/defaults.py measured


def fill(values: Values, given: Collection[str]) -> dict[str, Any]:
    """`values` with what suits them in the place of each of CHOICES that is not `given`, and of a missing output's σ.

    The output layer has the activation that is named for all layers, but sigmoid where that one has no bounds and the
    cost compares activations with the targets 0 and 1.
    """
    filled = dict(values)
    if not values["activation"]:
        return filled  # which a configuration refuses
    for name, choose in CHOICES.items():
        if name not in given:
            filled[name] = choose(filled)
        if name == "loss" and values["model"] == "mlp" and _needs_bounds(filled):
            filled["activation"] = (*values["activation"] * len(values["hidden"]), "sigmoid")
    return filled


def loss(values: Values) -> str:
    """Softmax cross-entropy, but for the lessons' network, and where an activation of the outputs' own is named."""
    if values["label_smoothing"]:
        return "softmax-cross-entropy"
    if _names_output(values):
        return "softmax-cross-entropy" if values["activation"][-1] == "identity" else "quadratic"
    return "quadratic" if _of_the_lessons(values) else "softmax-cross-entropy"


def init(values: Values) -> str:
    """He for relu and its kind, else Xavier; the lessons' network has its own."""
    if _of_the_lessons(values):
        return "scaled-normal"
    return "he" if any(name in RECTIFIERS for name in hidden_activations(values)) else "xavier"


def lr(values: Values) -> float:
    """The optimizer's rate for this cost; less with momentum, and where a cost of activations has unbounded outputs."""
    optimizer, cost = values["optimizer"], COSTS.index(values["loss"])
    if (values["model"], optimizer) in RATES_OF_PRESETS:
        return RATES_OF_PRESETS[values["model"], optimizer]
    unbounded = output_activation(values) in UNBOUNDED and not takes_logits(values["loss"])
    sigmoids = values["model"] == "mlp" and set(hidden_activations(values)) == {"sigmoid"} and not unbounded
    rates = RATES_OF_SIGMOIDS if sigmoids and optimizer in RATES_OF_SIGMOIDS else RATES
    rate = rates[optimizer][cost]
    if optimizer in ("sgd", "nesterov") and 0 < values["momentum"] < 1:  # each gradient is taken 1/(1 − μ) times in all
        rate *= min(1, (1 - values["momentum"]) / (1 - OPTIMIZERS[optimizer]().momentum))  # type: ignore[attr-defined]
    if optimizer == "sgd" and unbounded:
        rate /= 3
    if _of_the_lessons(values) and output_activation(values) == "sigmoid":
        rate *= LESSONS_TIMES
    return float(f"{rate:.2g}")


def l2(values: Values) -> float:
    """0.05 for the convolutional networks under adamw, as their presets have it."""
    return 0.05 if values["model"] != "mlp" and values["optimizer"] == "adamw" else 0.0


CHOICES: dict[str, Callable[[Values], Any]] = {"loss": loss, "init": init, "lr": lr, "l2": l2}  # each sees those before


def hidden_activations(values: Values) -> tuple[str, ...]:
    """Without that of the output layer, if one is named."""
    return values["activation"][:-1] if _names_output(values) else values["activation"]


def output_activation(values: Values) -> str:
    if _names_output(values):
        return values["activation"][-1]
    return "identity" if values["model"] != "mlp" or takes_logits(values["loss"]) else values["activation"][0]


def takes_logits(cost: str) -> bool:
    return LOSSES[cost]().from_logits


def _needs_bounds(values: Values) -> bool:
    """Whether a single activation is named that is no use as the outputs'."""
    one = len(values["activation"]) == 1 and values["activation"][0] in UNBOUNDED
    return one and not takes_logits(values["loss"])


def _names_output(values: Values) -> bool:
    return values["model"] == "mlp" and len(values["activation"]) == len(values["hidden"]) + 1 > 1


def _of_the_lessons(values: Values) -> bool:
    """Whether this is the network of the lessons: few sigmoids, trained by plain SGD."""
    few = len(values["hidden"]) <= 2 and max(values["hidden"], default=0) <= 30
    plain = values["optimizer"] == "sgd" and not values["momentum"]
    sigmoids = set(hidden_activations(values)) == {"sigmoid"} and values["activation"][-1] in ("sigmoid", "identity")
    return values["model"] == "mlp" and sigmoids and few and plain


def notes(values: Values, asked: Values, usual: Values, given: Collection[str]) -> list[str]:
    """What to tell before a run: which settings were filled in, and whether they are known to learn badly.

    `asked` are the settings before `fill`, and `usual` those of the same model without any choice: where nothing that
    was filled in differs from them, nothing is told.
    """
    return [note for note in (_filled_in(values, asked, usual, given), doubt(values)) if note]


def _filled_in(values: Values, asked: Values, usual: Values, given: Collection[str]) -> str:
    """ "softmax cross-entropy, he, rate 0.1: chosen for relu and sgd; --loss, --init or --lr changes that" """
    names = {"loss": spelled(values["loss"]), "init": values["init"]}
    names |= {"lr": f"rate {values['lr']:g}", "l2": f"L2 {values['l2']:g}"}
    filled = {name: text for name, text in names.items() if name not in given}
    if values["l2"] == asked["l2"]:
        filled.pop("l2", None)
    changed = any(values[name] != usual[name] for name in filled)
    if values["activation"] != asked["activation"]:
        filled["activation"], changed = "sigmoid outputs", True
    if not changed:
        return ""
    hidden, optimizer = hidden_activations(values), values["optimizer"]
    reasons = [*dict.fromkeys(hidden)]
    if values["model"] == "mlp" and values["hidden"] != usual["hidden"]:
        reasons.append(f"hidden layers of {' '.join(map(str, values['hidden']))}")
    if _names_output(asked) and output_activation(values) not in ("identity", *hidden):
        reasons.append(f"{output_activation(values)} outputs")
    if "loss" in given:
        reasons.append(names["loss"])
    elif values["label_smoothing"]:
        reasons.append("label smoothing")
    reasons.append(f"{optimizer} with momentum {values['momentum']:g}" if values["momentum"] else optimizer)
    flags = _listed([f"--{name}" for name in filled], "or")
    return f"{', '.join(filled.values())}: chosen for {_listed(reasons, 'and')}; {flags} changes that"


def doubt(values: Values) -> str:
    """That such a network learned badly when it was measured; empty if it learned well, or was not measured."""
    accuracy = reached(values)
    if accuracy is None or accuracy >= GOOD:
        return ""
    activation, optimizer = hidden_activations(values)[0], values["optimizer"]
    plain = {**values, "activation": (activation,)}
    others = {cost: reached(fill({**plain, "loss": cost}, ["loss"])) or 0.0 for cost in COSTS}
    best = max(others, key=lambda cost: others[cost])
    advice = f"; with --loss {best} it reached {others[best]:.0%}" if others[best] >= GOOD else ""
    return (
        f"note: {optimizer} with {activation} and {spelled(values['loss'])} reached only {accuracy:.0%} in "
        f"{measured()['epochs']} epochs of the sample{advice} (docs/defaults.md)"
    )


def reached(values: Values) -> float | None:
    """The test accuracy that was measured for such a network; None unless its settings are those filled in here."""
    hidden = set(hidden_activations(values))
    if len(hidden) != 1:
        return None
    own = fill({**values, "activation": (*hidden,)}, ["loss"])
    if output_activation(values) != output_activation(own) or any(values[name] != own[name] for name in CHOICES):
        return None
    figures = measured()[values["model"]].get(values["optimizer"], {}).get(values["loss"], {}).get(*hidden)
    return mean(figures) if figures else None


@cache
def measured() -> dict[str, Any]:
    """`epochs`, and by model, optimizer, cost and activation the accuracies of the seeds."""
    return json.loads(MEASURED.read_text(encoding="utf-8"))


def spelled(cost: str) -> str:
    return cost.replace("-cross", " cross").replace("squared-", "squared ")


def _listed(names: list[str], word: str) -> str:
    return f" {word} ".join(filter(None, (", ".join(names[:-1]), names[-1])))
