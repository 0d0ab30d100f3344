"""The settings that every family of networks has, by subject: each with its help, its range and its default."""

from dataclasses import dataclass
from typing import Annotated, Literal

from manual_backprop.initializers import INITIALIZERS
from manual_backprop.losses import LOSSES
from manual_backprop.optimizers import OPTIMIZERS
from manual_backprop.schedules import SCHEDULES
from training.config.rules import COUNT, FRACTION, NUMBER, POSITIVE, SEED, UP_TO_1000, WHOLE, OneOf, Range
from training.data import DATASETS
from training.data.expansion import EXPANSIONS


@dataclass(frozen=True)
class Network:
    """Which network, and who computes its gradient."""

    model: str = "mlp"
    """Family of networks."""
    impl: Literal["manual", "reference", "both"] = "manual"
    """Gradients by hand, by autograd, or both in lock step, compared at every step."""
    init: Annotated[str, OneOf(INITIALIZERS)] = "scaled-normal"
    """Initial weights: N(0, 1), N(0, 1/fan_in), N(0, 0.01²), Xavier, He, all zero, all one half. Left out,
    scaled-normal for few sigmoids with sgd, else he for relu and its kind and xavier for the others."""
    seed: Annotated[int, SEED] = 0
    """Seed of the initial weights and of the order of the examples."""


@dataclass(frozen=True)
class Data:
    """What is learned, and how the examples are changed before the network sees them."""

    dataset: Annotated[str, OneOf(DATASETS)] = "auto"
    """Data set; auto is MNIST if it lies in the data directory, else the bundled sample of it."""
    data_dir: str = "data"
    """Directory of the data, which are downloaded to it if missing; for images the folder of class folders, for npz
    and text the file."""
    tokens: Literal["characters", "bytes"] = "characters"
    """What an id of a text stands for: a character, or a byte of any file, of which there are 256."""
    validation: Annotated[int, WHOLE] = 0
    """Hold out the last N training examples (of a text: tokens) and test on them instead of the test set."""
    examples: Annotated[int, WHOLE] = 0
    """Train on the first N training examples (of a text: tokens) only; 0 is all."""
    expand: Annotated[
        tuple[str, ...],
        OneOf(EXPANSIONS),
        Range("shifts, rotations, or both, once each", lambda names: len(set(names)) == len(names)),
    ] = ()
    """Add copies of the training pictures, moved by one pixel (four ways) or turned by 10 degrees (both ways)."""
    shift: Annotated[int, UP_TO_1000] = 0
    """Largest number of pixels by which every step moves each training picture, drawn at random for both
    directions."""
    rotate: Annotated[float, Range("from 0 to 180", lambda degrees: 0 <= degrees <= 180)] = 0.0
    """Largest angle in degrees by which every step turns each training picture either way, drawn at random."""


@dataclass(frozen=True)
class Learning:
    """The cost, and how its gradient moves the parameters."""

    loss: Annotated[str, OneOf(LOSSES)] = "quadratic"
    """Cost of an example: ½‖a−y‖², ‖a−y‖², or a cross-entropy from logits. Left out, quadratic for few sigmoids with
    sgd, softmax-cross-entropy for all else."""
    label_smoothing: Annotated[float, FRACTION] = 0.0
    """How far the targets are moved towards the uniform distribution, from 0 to below 1 (softmax-cross-entropy
    only)."""
    optimizer: Annotated[str, OneOf(OPTIMIZERS)] = "sgd"
    """Update rule of the parameters; adamw, lion and muon decouple --l2, and muon updates biases by adamw."""
    lr: Annotated[float, POSITIVE] = 10.0
    """Learning rate η at the start of the schedule; in one-cycle the largest. Left out, one that suits optimizer, cost
    and activation."""
    momentum: Annotated[float, FRACTION] = 0.0
    """Momentum μ, from 0 to below 1; left out, sgd has none, nesterov 0.9, muon 0.95."""
    betas: Annotated[
        tuple[float, ...], Range("from 0 to below 1 each", lambda betas: all(0 <= beta < 1 for beta in betas))
    ] = ()
    """Averaging factors: β of rmsprop, β₁ β₂ of adam, adamw, lion and muon; left out, those of torch or the paper."""
    eps: Annotated[float, POSITIVE] = 1e-8
    """ε in the denominator of adagrad, rmsprop, adam, adamw and muon."""


@dataclass(frozen=True)
class Schedule:
    """How long the run is, and the course of its learning rate."""

    epochs: Annotated[int, COUNT] = 50
    """Passes over the training set."""
    batch_size: Annotated[int, COUNT] = 100
    """Examples per mini-batch; the last one of an epoch may be smaller."""
    max_steps: Annotated[int, WHOLE] = 0
    """Stop after this many steps, if that is sooner; the schedule is laid out for it. 0 is no limit."""
    patience: Annotated[int, WHOLE] = 0
    """Stop early after this many evaluations, one an epoch unless --eval-every is given, without a better accuracy (of
    text: cost) on held-out examples; 0 is never."""
    schedule: Annotated[str, OneOf(SCHEDULES)] = "cosine"
    """Course of the learning rate: plateau follows the held-out cost, halve (Nielsen's rule) the held-out accuracy (of
    text, the cost)."""
    lr_epochs: Annotated[int, WHOLE] = 0
    """Epochs between falls (step) or for a fall (exponential); evaluations without improvement before a fall (plateau,
    halve), one an epoch unless --eval-every is given."""
    lr_factor: Annotated[float, Range("above 0 and below 1", lambda x: 0 < x < 1)] = 0.5
    """Factor by which one fall of step, exponential or plateau multiplies the learning rate."""
    warmup: Annotated[int, WHOLE] = 0
    """Steps in which the learning rate rises from near zero before its schedule begins; 0 is none."""


@dataclass(frozen=True)
class Regularization:
    """What keeps weights and gradients small."""

    l2: Annotated[float, NUMBER] = 0.0
    """λ of the penalty ½λΣw² on matrices and kernels (not biases): Nielsen's λ/n, torch's weight_decay."""
    l1: Annotated[float, NUMBER] = 0.0
    """λ of the penalty λΣ|w| on weights: Nielsen's λ/n."""
    max_norm: Annotated[float, NUMBER] = 0.0
    """Maximum norm of a neuron's incoming weights; 0 is no limit."""
    clip_norm: Annotated[float, NUMBER] = 0.0
    """Maximum norm of the whole gradient, before the L2 penalty is added; 0 is no limit."""
    clip_value: Annotated[float, NUMBER] = 0.0
    """Maximum size of each element of the gradient, before the L2 penalty is added; 0 is no limit."""


@dataclass(frozen=True)
class Machine:
    """Where the run computes, and how often it checks and logs."""

    device: str = "auto"
    """cpu, cuda, cuda:1, mps; auto is cuda where there is one, else cpu."""
    dtype: Literal["float32", "float64", "bfloat16"] = "float32"
    """Number format of parameters, activations and gradients."""
    threads: Annotated[int, Range("a whole number from 0 to 1024", lambda n: 0 <= n <= 1024)] = 0
    """Threads for tensor operations; 0 is one for a small network, else as many as torch finds it may use."""
    check_every: Annotated[int, WHOLE] = 0
    """Check every N-th step of --impl manual against autograd; 0 is never."""
    eval_every: Annotated[int, WHOLE] = 0
    """Steps between evaluations, each of which is logged and saved; one more comes at the end. 0 is once an epoch."""
    log_every: Annotated[int, COUNT] = 100
    """Steps between logged values of loss, learning rate, speed and gradient norms."""
    histogram_every: Annotated[int, WHOLE] = 1000
    """Steps between logged histograms; 0 is never."""


GROUPS = (Network, Data, Learning, Schedule, Regularization, Machine)  # in the order in which a newcomer needs them
