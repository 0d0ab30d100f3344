"""The configuration of a run: one frozen dataclass, checked field by field, and how it is put together.

default < preset (a TOML file) < command line; what all of them leave out follows from what they set (defaults.py).
prepare.py replaces every `auto`, so that what is written into the run directory reproduces the run.
"""

import difflib
import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from manual_backprop.optimizers import OPTIMIZERS
from training import defaults
from training.errors import UserError

Activation = Literal[
    "sigmoid", "tanh", "scaled_tanh", "relu", "leaky_relu", "softplus", "gelu", "silu", "gelu_tanh", "identity"
]

PRESET_DIR = Path(__file__).parent / "presets"
DEFAULT_PRESETS = {"mlp": "3b1b", "lenet5": "lenet5", "cnn": "small-cnn"}  # where only the model is named


@dataclass(frozen=True)
class Config:
    """What is trained, on what, and how. Raises UserError for a value out of its range."""

    impl: Literal["manual", "reference", "both"] = "manual"
    """Gradients by hand, by autograd, or both in lock step, compared at every step."""
    dataset: Literal["auto", "mnist", "fashion-mnist", "sample", "images", "npz", "points", "spiral"] = "auto"
    """What to learn; auto is MNIST if it lies in the data directory, else the bundled sample of it."""
    data_dir: str = "data"
    """Where the data lies and is downloaded to; for images the folder of class folders, for npz the file."""
    validation: int = 0
    """Hold out the last N training examples and test on them instead of the test set."""
    examples: int = 0
    """Train on the first N training examples only; 0 is all."""
    model: Literal["mlp", "lenet5", "cnn"] = "mlp"
    """A perceptron, LeNet-5, or a residual convolutional network with batch normalization."""
    hidden: tuple[int, ...] = (16, 16)
    """Neurons in each hidden layer of mlp."""
    channels: tuple[int, ...] = (16, 32, 64)
    """Channels in each stage of cnn; every stage halves the picture."""
    blocks: int = 1
    """Residual blocks in each stage of cnn."""
    activation: tuple[Activation, ...] = ("sigmoid",)
    """One for all layers, or in mlp one per layer with the output's last. Left out, the output's is identity if the
    cost takes logits, else sigmoid if the hidden one has no bounds."""
    loss: Literal["quadratic", "squared-error", "sigmoid-cross-entropy", "softmax-cross-entropy"] = "quadratic"
    """The cost of an example: ½‖a−y‖², ‖a−y‖², or a cross-entropy from logits. Left out, quadratic for few sigmoids
    with sgd, softmax-cross-entropy for all else."""
    label_smoothing: float = 0.0
    """Move the targets this far, from 0 to below 1, towards the uniform distribution (softmax-cross-entropy only)."""
    optimizer: Literal["sgd", "nesterov", "adagrad", "rmsprop", "adam", "adamw", "lion", "muon"] = "sgd"
    """How the gradient moves the parameters; adamw, lion and muon decouple --l2, and muon moves biases by adamw."""
    lr: float = 10.0
    """Learning rate η at the start of the schedule; in one-cycle the largest. Left out, one that suits optimizer, cost
    and activation."""
    schedule: Literal["constant", "step", "exponential", "cosine", "one-cycle", "plateau", "halve"] = "cosine"
    """How the learning rate goes on: plateau follows the held-out cost, halve (Nielsen's rule) the held-out accuracy
    (of text, the cost)."""
    lr_epochs: int = 0
    """Epochs between falls (step) or for a fall (exponential); evaluations without improvement before a fall (plateau,
    halve), one an epoch unless --eval-every is given."""
    lr_factor: float = 0.5
    """What one fall of step, exponential or plateau multiplies the learning rate by."""
    warmup: int = 0
    """Steps in which the learning rate rises from near zero before its schedule begins; 0 is none."""
    momentum: float = 0.0
    """Momentum μ, from 0 to below 1; left out, sgd has none, nesterov 0.9, muon 0.95."""
    betas: tuple[float, ...] = ()
    """Averaging factors: β of rmsprop, β₁ β₂ of adam, adamw, lion and muon; left out, those of torch or the paper."""
    eps: float = 1e-8
    """ε in the denominator of adagrad, rmsprop, adam, adamw and muon."""
    l2: float = 0.0
    """λ of the penalty ½λΣw² on matrices and kernels (not biases): Nielsen's λ/n, torch's weight_decay."""
    l1: float = 0.0
    """λ of the penalty λΣ|w| on weights: Nielsen's λ/n."""
    dropout: float = 0.0
    """Probability, from 0 to below 1, with which a hidden activation (in cnn: a channel's mean) is dropped."""
    max_norm: float = 0.0
    """Longest that the weights into one neuron may become, together; 0 is no limit."""
    clip_norm: float = 0.0
    """Longest that the whole gradient may be, before L2; 0 is no limit."""
    clip_value: float = 0.0
    """Largest that an element of the gradient may be, before L2; 0 is no limit."""
    expand: tuple[Literal["shifts", "rotations"], ...] = ()
    """Add copies of the training pictures, moved by one pixel (four ways) or turned by 10 degrees (both ways)."""
    shift: int = 0
    """In every step, move each training picture by up to so many pixels, drawn at random for both directions."""
    rotate: float = 0.0
    """In every step, turn each training picture by up to so many degrees either way, drawn at random."""
    batch_size: int = 100
    """Examples per mini-batch; the last one of an epoch may be smaller."""
    epochs: int = 50
    """Passes over the training set."""
    patience: int = 0
    """Stop early after this many evaluations, one an epoch unless --eval-every is given, without a better accuracy (of
    text: cost) on held-out examples; 0 is never."""
    max_steps: int = 0
    """Stop after this many steps, if that is sooner; the schedule is laid out for it. 0 is no limit."""
    init: Literal["standard-normal", "scaled-normal", "small-normal", "xavier", "he", "zeros", "constant"] = (
        "scaled-normal"
    )
    """Initial weights: N(0, 1), N(0, 1/fan_in), N(0, 0.01²), Xavier, He, all zero, all one half. Left out,
    scaled-normal for few sigmoids with sgd, else he for relu and its kind and xavier for the others."""
    seed: int = 0
    """Seed of the initial weights and of the order of the examples."""
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    """Number format of parameters, activations and gradients."""
    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto is cuda where there is one, else cpu."""
    threads: int = 0
    """Threads for tensor operations; 0 is one for a small network, else as many as torch finds it may use."""
    check_every: int = 0
    """Check every N-th step of --impl manual against autograd; 0 is never."""
    eval_every: int = 0
    """Steps between evaluations, each of which is logged and saved; one more comes at the end. 0 is once an epoch."""
    log_every: int = 100
    """Steps between logged values of loss, learning rate, speed and gradient norms."""
    histogram_every: int = 1000
    """Steps between logged histograms; 0 is never."""

    def __post_init__(self) -> None:
        for name in ("batch_size", "epochs", "log_every"):
            self._check(name, getattr(self, name) >= 1, "a whole number from 1")
        for name in (
            "validation",
            "examples",
            "lr_epochs",
            "warmup",
            "patience",
            "max_steps",
            "check_every",
            "eval_every",
            "histogram_every",
            "blocks",
            "shift",
        ):
            self._check(name, getattr(self, name) >= 0, "a whole number from 0")
        self._check("threads", 0 <= self.threads <= 1024, "a whole number from 0 to 1024")
        self._check("seed", 0 <= self.seed < 2**63, "a whole number from 0 to 2⁶³ − 1")
        self._check("lr", 0 < self.lr < math.inf, "a positive number")
        for name in ("l2", "l1", "max_norm", "clip_norm", "clip_value"):
            self._check(name, 0 <= getattr(self, name) < math.inf, "a number from 0")
        self._check("dropout", 0 <= self.dropout < 1, "from 0 to below 1")
        self._check("expand", len(set(self.expand)) == len(self.expand), "shifts, rotations, or both, once each")
        if self.clip_norm and self.clip_value:
            raise UserError("--clip-norm and --clip-value are two ways to clip: give one of them")
        self._check("momentum", 0 <= self.momentum < 1, "from 0 to below 1")
        self._check("lr_factor", 0 < self.lr_factor < 1, "above 0 and below 1")
        self._check("betas", all(0 <= beta < 1 for beta in self.betas), "from 0 to below 1 each")
        self._check("eps", 0 < self.eps < math.inf, "a positive number")
        self._check("label_smoothing", 0 <= self.label_smoothing < 1, "from 0 to below 1")
        self._check("rotate", 0 <= self.rotate <= 180, "from 0 to 180")
        for name in ("hidden", "channels"):
            sizes = getattr(self, name)
            self._check(name, bool(sizes) and min(sizes) >= 1, "one or more whole numbers from 1")
        self._check_model()
        if self.label_smoothing and self.loss != "softmax-cross-entropy":
            raise UserError(f"label smoothing goes with --loss softmax-cross-entropy, not with {self.loss}")
        self._check_optimizer()
        self._check_schedule()
        if self.check_every and self.impl != "manual":
            raise UserError(f"--check-every goes with --impl manual, not with {self.impl}")
        if self.device.startswith("mps") and (self.impl == "both" or self.check_every):
            raise UserError("--device mps has no float64, which the comparison with autograd needs: give --device cpu")

    def _check_model(self) -> None:
        for name, users in {
            "hidden": ["mlp"],
            "channels": ["cnn"],
            "blocks": ["cnn"],
            "dropout": ["mlp", "cnn"],
        }.items():
            if self.model not in users and getattr(self, name) != getattr(Config, name):
                raise UserError(
                    f"{flag(name)} goes with --model {' and '.join(users)}, not with {self.model}: "
                    "leave it out, or the preset that sets it"
                )
        if self.model != "mlp":
            self._check("activation", len(self.activation) == 1, f"one name for all layers of {self.model}")
            return
        layers = len(self.hidden) + 1
        fits = len(self.activation) in (1, layers)
        self._check(
            "activation", fits, f"one name for all layers or {layers} names, one per layer with the output layer's last"
        )
        if self.loss_from_logits and len(self.activation) == layers and self.activation[-1] != "identity":
            raise UserError(
                f"{self.loss} works on logits, so the output layer's activation must be identity, "
                f"not {self.activation[-1]}: give identity last, or one activation for all hidden layers"
            )

    def _check_optimizer(self) -> None:
        own = self._optimizer_defaults
        for name, off in {"momentum": 0.0, "betas": (), "eps": Config.eps}.items():
            if name not in own and getattr(self, name) != off:
                raise UserError(
                    f"{self.optimizer} has no {name}: leave out {flag(name)}, or choose another --optimizer"
                )
        if self.betas and len(self.betas) != len(own["betas"]):
            count, example = len(own["betas"]), " ".join(map(str, own["betas"]))
            raise UserError(f"{self.optimizer} takes {count} betas, such as {example}, not {len(self.betas)}")

    def _check_schedule(self) -> None:
        falling = ("step", "exponential", "plateau", "halve")
        if self.schedule in falling and not self.lr_epochs:
            raise UserError(f"--schedule {self.schedule} has no length: give {flag('lr_epochs')}, 10 for example")
        for name, users in {"lr_epochs": falling, "lr_factor": falling[:3]}.items():
            if self.schedule not in users and getattr(self, name) != getattr(Config, name):
                raise UserError(f"{flag(name)} goes with --schedule {', '.join(users)}, not with {self.schedule}")
        if self.warmup and self.schedule == "one-cycle":
            raise UserError("one-cycle has a warm-up of its own: leave out --warmup")
        judged = [f"--schedule {self.schedule}"] if self.schedule in ("plateau", "halve") else []
        judged += ["--patience"] if self.patience else []
        if judged and not self.validation:
            raise UserError(
                f"{judged[0]} is decided on held-out training examples, because the test set must not decide: "
                f"give --validation, 10000 for example"
            )

    def _check(self, name: str, passed: bool, allowed: str) -> None:
        if not passed:
            value = getattr(self, name)
            shown = " ".join(map(str, value)) or "empty" if isinstance(value, tuple) else value
            raise UserError(f"{flag(name)} is {shown}, but it must be {allowed}")

    @property
    def optimizer_settings(self) -> dict[str, Any]:
        """What the optimizer is made with; where the option is left out, the optimizer's own default."""
        return {name: getattr(self, name) or default for name, default in self._optimizer_defaults.items()}

    @property
    def _optimizer_defaults(self) -> dict[str, Any]:
        return {field.name: field.default for field in fields(OPTIMIZERS[self.optimizer])}  # type: ignore[arg-type]

    @property
    def loss_from_logits(self) -> bool:
        return defaults.takes_logits(self.loss)

    @property
    def activations(self) -> tuple[str, ...]:
        """One per layer of mlp, one in all of the others."""
        if self.model != "mlp":
            return self.activation
        layers = len(self.hidden) + 1
        if len(self.activation) == layers:
            return self.activation
        return (*self.activation * (layers - 1), "identity" if self.loss_from_logits else self.activation[0])

    def total_steps(self, steps_per_epoch: int) -> int:
        """Steps of a whole run of epochs of so many steps, for which the schedule is laid out."""
        steps = self.epochs * steps_per_epoch
        return min(steps, self.max_steps) if self.max_steps else steps

    def to_toml(self) -> str:
        """A TOML file that `--preset` reads back as the same configuration."""
        return "".join(f"{name} = {json.dumps(value, ensure_ascii=False)}\n" for name, value in asdict(self).items())


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def preset_names() -> tuple[str, ...]:
    return tuple(sorted(path.stem for path in PRESET_DIR.glob("*.toml")))


def load_preset(name: str) -> Config:
    """The configuration of a preset: what its file sets, and what follows from that.

    Raises UserError as `preset_values` does, or for values that do not go together.
    """
    values = preset_values(name)
    try:
        return Config(**defaults.fill({**vars(Config()), **values}, values.keys()))
    except UserError as error:
        raise UserError(f"{preset_path(name)}: {error}") from error


def preset_values(name: str) -> dict[str, Any]:
    """What the file of a preset sets: one that ships with the project, by its name, or a TOML file, by its path.

    Raises UserError for an unknown name, a file that is not TOML, an unknown key (naming the nearest) or an ill-typed
    value.
    """
    path = preset_path(name)
    if not path.is_file():
        raise UserError(f"there is no preset {name!r}; give {', '.join(preset_names())} or the path of a .toml file")
    try:
        return typed(tomllib.loads(path.read_text(encoding="utf-8")))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a TOML file: {error}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def preset_path(name: str) -> Path:
    return Path(name) if name.endswith(".toml") else PRESET_DIR / f"{name}.toml"


def from_mapping(values: Mapping[str, Any]) -> Config:
    """A Config from plain values, strictly: names and types must be those of its fields."""
    return Config(**typed(values))


def typed(values: Mapping[str, Any]) -> dict[str, Any]:
    """`values` as a Config's fields hold them; UserError for a name or a type that is none of theirs."""
    hints = get_type_hints(Config)
    names = [field.name for field in fields(Config)]
    result = {}
    for name, value in values.items():
        if name not in hints:
            near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
            raise UserError(
                f"unknown key {name!r}" + (f"; did you mean {near[0]!r}?" if near else f"; keys are {', '.join(names)}")
            )
        result[name] = _typed(name, hints[name], value)
    return result


def _typed(name: str, hint: Any, value: Any) -> Any:
    """`value` as a field of type `hint` holds it; UserError if it is of another type."""
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            near = difflib.get_close_matches(str(value), get_args(hint), n=1)
            meant = f" (did you mean {near[0]!r}?)" if near else ""
            raise UserError(f"{name} is {value!r}{meant}, but it must be one of {', '.join(get_args(hint))}")
        return value
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise UserError(f"{name} is {value!r}, but it must be a list")
        return tuple(_typed(name, get_args(hint)[0], item) for item in value)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        kind = {int: "a whole number", float: "a number", str: "text in quotes"}[hint]
        raise UserError(f"{name} is {value!r}, but it must be {kind}")
    return value
