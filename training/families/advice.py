"""What to try where a run does not learn."""

from dataclasses import asdict

from training.config import Config
from training.config.rules import flag
from training.families import FAMILIES, defaults

LONG = 1000  # steps in which a network that learns shows it


def advice(config: Config, total: int) -> str:
    """Which settings suit such a network better, in a run of so many steps; where all do, what else may help."""
    values, family = asdict(config), FAMILIES[config.model]
    fixed = [] if defaults.has_rate(values) else ["lr"]
    suits = defaults.fill(values, ["loss", "l2", *fixed])
    better = [(name, shown(suits[name]), shown(values[name])) for name in ("lr", "init") if suits[name] != values[name]]
    tips = []
    if better:
        now = " and ".join(present for _, _, present in better)
        tips.append(" ".join(f"{flag(name)} {wanted}" for name, wanted, _ in better) + f" (not {now})")
    else:
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
    more = ", and more --epochs" if total < LONG else ""
    return f"a smaller --lr (not {config.lr:g}), or another --optimizer or --seed{more}"


def shown(value: object) -> str:
    """As a command line has it."""
    if isinstance(value, tuple):
        return " ".join(map(str, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
