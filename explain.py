"""What one example wants, as a page: python explain.py --checkpoint RUN [--index 7 | --image my.png | --prompt TEXT]"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import training  # noqa: F401  it says how torch's threads wait, before torch is loaded

# isort: split
import torch
import tyro
from torch import Tensor

from explanation import text
from explanation.beginning import moment, untrained
from explanation.numbers import explain
from explanation.page import charts, page
from explanation.picking import PICKS
from explanation.plotly_layout import Chart
from training.data import Dataset, preparation_of, read_picture
from training.errors import UserError
from training.families.networks import arranged, loaded
from training.files import replacing
from training.prediction import Trained, load_trained
from training.tasks import NEXT_TOKEN
from training.terminal.output import command

RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # of the run's own η
BATCH, MAX_BATCH = 32, 1000


@dataclass(frozen=True)
class Arguments:
    """Write a page about what one example wants of a trained network: wishes, sums, gradients, a step."""

    checkpoint: Annotated[Path, tyro.conf.arg(metavar="RUN_OR_PT")]
    """The directory of a run (its last.pt is read) or a .pt file."""
    pick: Annotated[
        Literal["costly", "undecided"] | None,
        tyro.conf.arg(metavar="{costly,undecided}", help_behavior_hint="(default: costly)"),
    ] = None
    """Which example of the test set: the one with the highest cost, or the one that the network is least decided
    about."""
    index: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """A training example instead; of a text, the character at this place of the held-out text."""
    prompt: Annotated[str | None, tyro.conf.arg(metavar="TEXT")] = None
    """Of a network that predicts the next character: a text of your own instead."""
    image: Annotated[Path | None, tyro.conf.arg(metavar="PNG", help="A picture of your own instead.")] = None
    label: Annotated[
        str | None, tyro.conf.arg(metavar="CLASS", help="What your picture shows; left out, what the network says.")
    ] = None
    batch_size: Annotated[int, tyro.conf.arg(metavar="B")] = BATCH
    """Examples of the mini-batch: this one, and others drawn from the training set, always the same."""
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Where the data set lies; left out, where the run's own data lay."""
    out: Annotated[Path, tyro.conf.arg(metavar="HTML")] = Path("page.html")
    """The page; one that is there is replaced."""
    tensorboard: bool = False
    """Also write the figures as images into the run's directory, for TensorBoard."""

    def __post_init__(self) -> None:
        named = {"--pick": self.pick, "--index": self.index, "--image": self.image, "--prompt": self.prompt}
        if len(several := [flag for flag, value in named.items() if value is not None]) > 1:
            raise UserError(f"{' and '.join(several)} name an example each: give one of them")
        if self.label is not None and self.image is None:
            raise UserError("--label goes with --image: a training example has its label")
        if not 2 <= self.batch_size <= MAX_BATCH:
            raise UserError(f"--batch-size is {self.batch_size}, but it must be a whole number from 2 to {MAX_BATCH:,}")


class Chosen(NamedTuple):
    """Examples x (B, features), float64, and their classes y (B,); the first is explained, `why` may be empty."""

    x: Tensor
    y: Tensor
    names: list[str]
    what: str
    why: str = ""


def examples(trained: Trained, data: Dataset, arguments: Arguments) -> Chosen:
    """The example that the arguments name or pick, and others drawn from the training set."""
    n, size = len(data.train), arguments.batch_size
    if n < 2:
        raise UserError(f"{data.name} has one training example, but a mini-batch needs two: give more")
    order = torch.randperm(n, generator=torch.Generator().manual_seed(0)).tolist()
    if (index := arguments.index) is not None:
        if not 0 <= index < n:
            raise UserError(
                f"--index is {index}, but it must be from 0 to {n - 1:,}, the training set having {n:,} examples"
            )
        indices = [index, *(i for i in order[:size] if i != index)][:size]
        names = [_training_example(i) for i in indices]
        return Chosen(*data.train.batch(torch.tensor(indices), torch.float64), names, names[0])
    if arguments.image is not None:
        picture = read_picture(arguments.image, preparation_of(data.name)).views[:1]
        label = _label(trained, picture, arguments.label)
        own_x, own_y, name, why = picture.double() / 255, torch.tensor([label]), "your picture", ""
        what = f"{arguments.image.name} (class {trained.data.classes[label]})"
    else:
        kind = "held-out example" if trained.config.validation else "test example"
        picked, why = PICKS[arguments.pick or "costly"](trained, data, kind)
        own_x, own_y = data.test.batch(torch.tensor([picked]), torch.float64)
        what = name = f"{kind} {picked:,}"
    x, y = data.train.batch(torch.tensor(order[: size - 1]), torch.float64)
    names = [name, *map(_training_example, order[: size - 1])]
    return Chosen(torch.cat([own_x, x]), torch.cat([own_y, y]), names, what, why)


def _training_example(index: int) -> str:
    return f"training example {index:,}"


def _label(trained: Trained, picture: Tensor, name: str | None) -> int:
    classes = trained.data.classes
    if name is None:
        return int(trained.outputs(picture).argmax())
    if name not in classes:
        raise UserError(f"--label is {name!r}, but it must be one of {', '.join(classes)}")
    return classes.index(name)


def write(html: str, path: Path) -> None:
    """Whole or not at all."""
    try:
        with replacing(path) as file:
            file.write(html.encode())
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}; give another --out") from error


def write_images(charts: dict[str, Chart], trained: Trained, checkpoint: Path) -> None:
    """The page's figures for TensorBoard, at the step of the checkpoint."""
    from explanation.static_figures import static_image
    from training.dashboard import tensorboard  # takes long to load, and so does what draws images

    run_dir = checkpoint if checkpoint.is_dir() else checkpoint.parent
    pictures = {f"explain/{name}": static_image(chart) for name, chart in charts.items()}
    tensorboard.write_images(run_dir, pictures, trained.learner.steps)


def explain_text(trained: Trained, arguments: Arguments) -> int:
    """The page about one character, for a network that predicts the next one."""
    given = {"--image": arguments.image, "--batch-size": arguments.batch_size != BATCH}
    for flag in (flag for flag, value in given.items() if value):
        raise UserError(
            f"{flag} goes with a network that classifies, and this one predicts the next token: leave it out"
        )
    if arguments.prompt is not None:
        place = text.prompted(trained, arguments.prompt)
    else:
        data = data_of(trained, arguments.data_dir)
        if arguments.index is not None:
            place = text.at_index(trained, data, arguments.index)
        else:
            place = text.picked(trained, data, arguments.pick or "costly")
    reading = text.read(trained, place)
    write(text.page(reading), arguments.out)
    if arguments.tensorboard:
        write_images({"text": text.chart(reading)}, trained, arguments.checkpoint)
    why = f", picked because {place.why}" if place.why else ""
    p = f"{reading.probabilities[reading.target]:.4g}"
    print(f"{place.what}: {reading.name(reading.target)} has probability {p}{why}; page in {arguments.out}")
    return 0


def data_of(trained: Trained, data_dir: Path | None) -> Dataset:
    """The run's data set, as the network reads it."""
    config = replace(trained.config, data_dir=str(data_dir or trained.config.data_dir))
    data = arranged(config, loaded(config))
    trained.require_like(data)
    return data


@command("explain.py")
def main(argv: list[str]) -> int:
    arguments = tyro.cli(Arguments, args=argv, config=(tyro.conf.FlagCreatePairsOff,))
    trained = load_trained(arguments.checkpoint)
    if trained.data.task == NEXT_TOKEN.name:
        return explain_text(trained, arguments)
    if arguments.prompt is not None:
        raise UserError(
            "--prompt goes with a network that predicts the next token, and this one classifies: leave it out"
        )
    data = data_of(trained, arguments.data_dir)
    chosen, rates = examples(trained, data, arguments), [trained.config.lr * rate for rate in RATES]
    first = untrained(trained, arguments.checkpoint)
    began = moment(explain(first, chosen.x, chosen.y, chosen.names, rates[:1])) if first else None
    explanation = explain(trained, chosen.x, chosen.y, chosen.names, rates)
    write(page(explanation, chosen.what, chosen.why, began), arguments.out)
    if arguments.tensorboard:
        write_images(charts(explanation, began), trained, arguments.checkpoint)
    why = f", picked because {chosen.why}" if chosen.why else ""
    print(f"{chosen.what}: cost {explanation.cost:.4g}{why}; page in {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
