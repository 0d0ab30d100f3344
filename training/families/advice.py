"""What to try where a run does not learn."""

from collections.abc import Mapping
from dataclasses import asdict
from math import inf
from types import MappingProxyType

from training.config import Config
from training.config.rules import flag
from training.families import FAMILIES, defaults

LONG = 1000  # steps in which a network that learns shows it
USUAL = {  # the smallest and the largest, beyond which an option is the likely fault
    **dict.fromkeys(("l2", "l1"), (0, 0.1)),
    "eps": (1e-16, 0.1),
    "clip_norm": (1e-3, inf),
    "clip_value": (1e-6, inf),
    "max_norm": (1e-2, inf),
    "lr_factor": (1e-3, 1),
}
SHORT_OF_1 = {"momentum": 1e-3, "betas": 1e-5, "dropout": 0.05, "label_smoothing": 0.05}  # the least
RATES = (1e-4, 10)  # the same as USUAL, of the learning rate that suits


def advice(config: Config, total: int) -> str:
    """Which settings suit such a network better, in a run of so many steps; where all do, what else may help."""
    values, family = asdict(config), FAMILIES[config.model]
    fixed = [] if defaults.has_rate(values) else ["lr"]
    suits = defaults.fill(values, ["loss", "l2", *fixed])
    better = [(name, shown(suits[name]), shown(values[name])) for name in ("lr", "init") if suits[name] != values[name]]
    tips = extremes(config)
    if better and not tips:
        now = " and ".join(present for _, _, present in better)
        tips.append(" ".join(f"{flag(name)} {wanted}" for name, wanted, _ in better) + f" (not {now})")
    elif not tips:
        large = [name for name in ("l2", "l1", "dropout") if values.get(name)]
        tips += [f"a smaller {flag(name)} (not {shown(values[name])})" for name in large]
    hidden = {*family.hidden_activations(values)}
    if len(hidden) == 1 and defaults.has_rate({**values, "loss": defaults.COSTS[0]}):
        other = defaults.fill({**values, "activation": (*hidden,)}, [])
        if other["loss"] != config.loss:
            named = ["activation"] if other["activation"] != values["activation"] else []  # with the outputs' own
            names = ["loss", *named, "lr", "init"]
            tips.append(" ".join(f"{flag(name)} {shown(other[name])}" for name in names))
    if not tips:
        return ", or ".join([*family.advice(config), general_advice(config, total)])
    return f"{', or '.join(tips)}{', and more --epochs' * (total < LONG)}"


def general_advice(config: Config, total: int) -> str:
    """What may help any network that does not learn."""
    tips = extremes(config) or [f"a smaller --lr (not {config.lr:g})", "another --optimizer or --seed"]
    return f"{', or '.join(tips)}{', and more --epochs' * (total < LONG)}"


def remedy(config: Config) -> str:
    """What may keep the values of a run finite: to change the option that is farthest from what is usual."""
    values = asdict(config)
    alone = {**values, "momentum": 0.0}  # which has a range of its own
    usual = defaults.fill(alone, ["loss", "l2"])["lr"] if defaults.has_rate(values) else config.lr
    tips = extremes(config, {"lr": (RATES[0] * usual, RATES[1] * usual)})
    return f"try {tips[0] if tips else f'a smaller --lr (not {config.lr:g})'}"


def extremes(config: Config, more: Mapping[str, tuple[float, float]] = MappingProxyType({})) -> list[str]:
    """What to give in the place of the options that are beyond what is usual, the farthest first."""
    values, far = asdict(config), []
    for name, (low, high) in {**USUAL, **more}.items():
        if value := values[name]:  # 0 is without
            far += [(value / high, "smaller", name), (low / value, "larger", name)]
    for name, least in SHORT_OF_1.items():
        if value := values.get(name):  # not every family drops
            far.append((least / (1 - max(value if isinstance(value, tuple) else (value,))), "smaller", name))
    beyond = sorted((fault for fault in far if fault[0] > 1), reverse=True)
    return [f"a {word} {flag(name)} (not {shown(values[name])})" for _, word, name in beyond]


def shown(value: object) -> str:
    """As a command line has it."""
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)
