"""Data sets, whole in memory: `load` finds one by name and checks it."""

from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from training.data.arrays import load_npz
from training.data.dataset import Dataset, Examples, Split, as_format, hashes_of, scaled
from training.data.expansion import expand
from training.data.folders import load_images
from training.data.images import preparation_of, read_picture
from training.data.mnist import MNIST_COUNTS, has_mnist, load_fashion_mnist, load_mnist, load_sample
from training.data.order import epoch_order
from training.data.streams import Streams
from training.data.synthetic import load_points, load_spiral, points_rule
from training.data.text import Tokens, Vocabulary, load_shakespeare, load_text
from training.errors import UserError

__all__ = [
    "DATASETS",
    "TEXTS",
    "Dataset",
    "Examples",
    "Split",
    "Streams",
    "Tokens",
    "Vocabulary",
    "as_format",
    "epoch_order",
    "expand",
    "load",
    "points_rule",
    "preparation_of",
    "read_picture",
    "scaled",
]

LOADERS = {
    "auto": lambda data_dir: (load_mnist if has_mnist(data_dir) else load_sample)(data_dir),
    "mnist": load_mnist,
    "fashion-mnist": load_fashion_mnist,
    "sample": load_sample,
    "images": load_images,
    "npz": load_npz,
    "points": lambda data_dir: load_points(),
    "spiral": lambda data_dir: load_spiral(),
}
TEXTS = {
    "shakespeare": lambda data_dir, tokens: load_shakespeare(tokens),
    "text": load_text,
}
DATASETS: tuple[str, ...] = (*LOADERS, *TEXTS)


def load(
    name: str,
    data_dir: Path = Path("data"),
    *,
    validation: int = 0,
    examples: int = 0,
    tokens: Tokens = "characters",
) -> Dataset:
    """The data set `name`, one of DATASETS.

    "auto" is MNIST if it lies in `data_dir`, else the bundled sample; any other name means that set and no other.
    `data_dir` holds MNIST or Fashion-MNIST (downloaded if missing), or the class folders of "images"; for "npz" and
    "text" it is the file itself. With `validation` = K > 0 the last K training examples leave `train` and become
    `test`, and the real test set is not used. With `examples` = K > 0 only the first K of what is then `train` stay.
    Of a text, `tokens` says what an id stands for, and K counts them.

    Raises UserError, a ValueError, with one sentence if the data are missing, broken, or not to be had.
    """
    if name not in DATASETS:
        near = get_close_matches(name, DATASETS, n=1)
        hint = f", did you mean {near[0]!r}?" if near else ","
        raise UserError(f"unknown dataset {name!r}{hint} use one of {', '.join(DATASETS)}")
    if name in TEXTS:
        dataset = TEXTS[name](data_dir, tokens)
    elif tokens != "characters":
        texts = " or ".join(TEXTS)
        raise UserError(f"--tokens is {tokens}, but {name} is no text: leave it out, or give --dataset {texts}")
    else:
        dataset = LOADERS[name](data_dir)
    dataset = replace(dataset, path=str(data_dir.absolute()), hashes=hashes_of(dataset))
    dataset = hold_out(dataset, validation) if validation else dataset
    return keep_first(dataset, examples, validation) if examples else dataset


def hold_out(dataset: Dataset, count: int) -> Dataset:
    """The data set with the last `count` training examples in the place of its test set."""
    kept = len(dataset.train) - count
    if not 0 < kept < len(dataset.train):
        raise UserError(too_many("validation", count, len(dataset.train) - 1, dataset))
    return replace(
        dataset,
        train=dataset.train.first(kept),
        test=dataset.train.part(kept, len(dataset.train)),
        source=f"{dataset.source}; the last {count:,} training {dataset.train.unit} are held out and take the test "
        "set's place",
    )


def keep_first(dataset: Dataset, count: int, held_out: int = 0) -> Dataset:
    """The data set with only the first `count` training examples; `held_out` others are no longer among them."""
    if not 0 < count <= len(dataset.train):
        raise UserError(too_many("examples", count, len(dataset.train), dataset, held_out))
    return replace(
        dataset,
        train=dataset.train.first(count),
        source=f"{dataset.source}; of the training {dataset.train.unit} the first {count:,}",
    )


def too_many(option: str, count: int, most: int, dataset: Dataset, held_out: int = 0) -> str:
    """The sentence for a --validation or --examples that the training set does not suffice for."""
    has = f"{dataset.name} has {len(dataset.train):,} training {dataset.train.unit}"
    left = f" besides the {held_out:,} that --validation holds out" if held_out else ""
    text = f"--{option} is {count:,}, but it must be from 0 to {most:,}: {has}{left}"
    if dataset.name == "sample" and count < MNIST_COUNTS[0]:
        mnist = f"--dataset mnist, which has {MNIST_COUNTS[0]:,} and is downloaded if missing"
        return f"{text}; give {mnist}, or --{option} 0"
    return text
