"""What one training example wants, as a page: python explain.py --checkpoint RUN [--index 7 | --image own.png]"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from explanation.numbers import Explanation, explain
from explanation.page import charts, page
from training.data import Dataset, load, preparation_of, read_picture
from training.errors import UserError
from training.prediction import Trained, load_trained
from training.terminal.output import command

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # of the run's own η
MAX_BATCH = 1000
YOURS = -1  # index of a picture that is not in the training set


@dataclass(frozen=True)
class Arguments:
    """Write a page about what one training example wants of a trained network: wishes, sums, gradients, a step."""

    checkpoint: Annotated[Path, tyro.conf.arg(metavar="RUN_OR_PT")]
    """The directory of a run (its last.pt is read) or a .pt file."""
    index: Annotated[int | None, tyro.conf.arg(metavar="N", help="Which training example; left out, the first, 0.")] = (
        None
    )
    image: Annotated[Path | None, tyro.conf.arg(metavar="PNG", help="A picture of your own instead.")] = None
    label: Annotated[
        str | None, tyro.conf.arg(metavar="CLASS", help="What your picture shows; left out, what the network says.")
    ] = None
    batch_size: Annotated[int, tyro.conf.arg(metavar="B")] = 32
    """Examples of the mini-batch: this one, and others drawn from the training set, always the same."""
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Where the data set lies; left out, where the run's own data lay."""
    out: Annotated[Path, tyro.conf.arg(metavar="HTML")] = Path("page.html")
    """The page; one that is there is replaced."""
    tensorboard: bool = False
    """Also write the figures as images into the run's directory, for TensorBoard."""

    def __post_init__(self) -> None:
        if self.index is not None and self.image is not None:
            raise UserError("give either --index or --image")
        if self.label is not None and self.image is None:
            raise UserError("--label goes with --image: a training example has its label")
        if not 2 <= self.batch_size <= MAX_BATCH:
            raise UserError(f"--batch-size is {self.batch_size}, but it must be a whole number from 2 to {MAX_BATCH:,}")


def examples(trained: Trained, data: Dataset, arguments: Arguments) -> tuple[Tensor, Tensor, list[int], str]:
    """x (B, features) in float64, y (B,), indices in the training set, and what the first one is called."""
    n = len(data.train)
    if n < 2:
        raise UserError(f"{data.name} has one training example, but a mini-batch needs two: give more")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).tolist()
    if arguments.image is not None:
        picture = read_picture(arguments.image, preparation_of(data.name)).views[:1]
        label = _label(trained, picture, arguments.label)
        indices = order[: arguments.batch_size - 1]
        x, y = data.train.batch(torch.tensor(indices), torch.float64)
        own = picture.double() / 255
        what = f"{arguments.image.name} (class {trained.data.classes[label]})"
        return torch.cat([own, x]), torch.cat([torch.tensor([label]), y]), [YOURS, *indices], what
    index = arguments.index or 0
    if not 0 <= index < n:
        raise UserError(
            f"--index is {index}, but it must be from 0 to {n - 1:,}, the training set having {n:,} examples"
        )
    indices = [index, *(i for i in order[: arguments.batch_size] if i != index)][: arguments.batch_size]
    return *data.train.batch(torch.tensor(indices), torch.float64), indices, f"training example {index:,}"


def _label(trained: Trained, picture: Tensor, name: str | None) -> int:
    classes = trained.data.classes
    if name is None:
        return int(trained.outputs(picture).argmax())
    if name not in classes:
        raise UserError(f"--label is {name!r}, but it must be one of {', '.join(classes)}")
    return classes.index(name)


def write(text: str, path: Path) -> None:
    """Whole or not at all."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; give another --out") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_images(explanation: Explanation, run_dir: Path) -> None:
    """The page's figures for TensorBoard, at the step of the checkpoint."""
    from explanation.static_figures import static_image
    from training.dashboard import tensorboard  # takes long to load, and so does what draws images

    pictures = {f"explain/{name}": static_image(chart) for name, chart in charts(explanation).items()}
    tensorboard.write_images(run_dir, pictures, explanation.trained.learner.steps)


@command("explain.py")
def main(argv: list[str]) -> int:
    """The exit status: 0, 2 for a mistake in what was asked for, 141 for a closed pipe."""
    arguments = tyro.cli(Arguments, args=argv, config=(tyro.conf.FlagCreatePairsOff,))
    trained = load_trained(arguments.checkpoint)
    trained.require_classes()
    config = trained.config
    folder = arguments.data_dir or Path(config.data_dir)
    data = load(config.dataset, folder, validation=config.validation, examples=config.examples)
    trained.require_like(data)
    x, y, indices, what = examples(trained, data, arguments)
    explanation = explain(trained, x, y, indices, [config.lr * rate for rate in RATES])
    write(page(explanation, what), arguments.out)
    if arguments.tensorboard:
        run_dir = arguments.checkpoint if arguments.checkpoint.is_dir() else arguments.checkpoint.parent
        write_images(explanation, run_dir)
    print(f"{what}: cost {explanation.cost:.4g}; page in {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
