"""What a configuration leaves out follows from what it sets: cost, initial values, learning rate and λ of L2.

A learning rate that suits one network is useless to another: at 10, the rate of the lessons' sigmoid network, a relu
network stays at chance. docs/defaults.md shows how well each combination learns with these defaults.
"""

import json
from collections.abc import Callable, Collection
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

from manual_backprop.optimizers import OPTIMIZERS
from training.config import takes_logits
from training.errors import UserError
from training.families.base import RECTIFIERS, UNBOUNDED, Values
from training.families.networks import family_of

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
GOOD = 0.85  # the accuracy below which a combination is named as one that learns badly
MEASURED = Path(__file__).with_name("defaults.json")  # what benchmarks/defaults.py measured


def fill(values: Values, given: Collection[str]) -> dict[str, Any]:
    """`values` with what suits them in the place of each of CHOICES that is not `given`, and of a missing output's σ.

    The output layer has the activation that is named for all layers, but sigmoid where that one has no bounds and the
    cost compares activations with the targets 0 and 1.
    """
    filled, family = dict(values), family_of(values["model"])
    if "activation" in values and not values["activation"]:
        return filled  # which a configuration refuses
    for name, choose in CHOICES.items():
        if name not in given:
            filled[name] = choose(filled)
        if name == "loss" and "activation" in values:
            filled["activation"] = family.bounded(filled)
    return filled


def has_rate(values: Values) -> bool:
    """Whether a learning rate can be filled in; there is none for optimizers and costs that were never tried."""
    tried = values["optimizer"] in RATES and values["loss"] in COSTS
    return tried or values["optimizer"] in family_of(values["model"]).rates


def loss(values: Values) -> str:
    """Softmax cross-entropy, but for the lessons' network, and where an activation of the outputs' own is named."""
    if values["label_smoothing"]:
        return "softmax-cross-entropy"
    family = family_of(values["model"])
    if family.names_output(values):
        return "softmax-cross-entropy" if values["activation"][-1] == "identity" else "quadratic"
    return "quadratic" if family.of_the_lessons(values) else "softmax-cross-entropy"


def init(values: Values) -> str:
    """He for relu and its kind, else Xavier; the lessons' network has its own."""
    family = family_of(values["model"])
    if family.of_the_lessons(values):
        return "scaled-normal"
    return "he" if any(name in RECTIFIERS for name in family.hidden_activations(values)) else "xavier"


def lr(values: Values) -> float:
    """The optimizer's rate for this cost; less with momentum, and where a cost of activations has unbounded outputs."""
    family, optimizer = family_of(values["model"]), values["optimizer"]
    if optimizer in family.rates:
        return family.rates[optimizer]
    if not has_rate(values):
        raise UserError(f"no learning rate is known for {optimizer} with {spelled(values['loss'])}: give --lr")
    cost = COSTS.index(values["loss"])
    output = family.output_activation(values)
    unbounded = output in UNBOUNDED and not takes_logits(values["loss"])
    rates = RATES_OF_SIGMOIDS if family.shrinks_gradients(values) and optimizer in RATES_OF_SIGMOIDS else RATES
    rate = rates[optimizer][cost]
    if optimizer in ("sgd", "nesterov") and 0 < values["momentum"] < 1:  # each gradient is taken 1/(1 − μ) times in all
        rate *= min(1, (1 - values["momentum"]) / (1 - OPTIMIZERS[optimizer]().momentum))  # type: ignore[attr-defined]
    if optimizer == "sgd" and unbounded:
        rate /= 3
    if family.of_the_lessons(values) and output == "sigmoid":
        rate *= LESSONS_TIMES
    return float(f"{rate:.2g}")


def l2(values: Values) -> float:
    """That of the family with this optimizer, as its preset has it; else 0."""
    return family_of(values["model"]).penalties.get(values["optimizer"], 0.0)


CHOICES: dict[str, Callable[[Values], Any]] = {"loss": loss, "init": init, "lr": lr, "l2": l2}  # each sees those before


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
    if values.get("activation") != asked.get("activation"):
        filled["activation"], changed = "sigmoid outputs", True
    if not changed:
        return ""
    family, optimizer = family_of(values["model"]), values["optimizer"]
    hidden, output = family.hidden_activations(values), family.output_activation(values)
    reasons = [*dict.fromkeys(hidden), *family.reasons(values, usual)]
    if family.names_output(asked) and output not in ("identity", *hidden):
        reasons.append(f"{output} outputs")
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
    activation, optimizer = family_of(values["model"]).hidden_activations(values)[0], values["optimizer"]
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
    family = family_of(values["model"])
    hidden = set(family.hidden_activations(values))
    if len(hidden) != 1:
        return None
    by_optimizer = measured().get(values["model"], {})
    figures = by_optimizer.get(values["optimizer"], {}).get(values["loss"], {}).get(*hidden)
    if not figures:
        return None
    own = fill({**values, "activation": (*hidden,)}, ["loss"])
    same_output = family.output_activation(values) == family.output_activation(own)
    return mean(figures) if same_output and all(values[name] == own[name] for name in CHOICES) else None


@cache
def measured() -> dict[str, Any]:
    """`epochs`, and by model, optimizer, cost and activation the accuracies of the seeds."""
    return json.loads(MEASURED.read_text(encoding="utf-8"))


def spelled(cost: str) -> str:
    return cost.replace("-cross", " cross").replace("squared-", "squared ")


def _listed(names: list[str], word: str) -> str:
    return f" {word} ".join(filter(None, (", ".join(names[:-1]), names[-1])))
