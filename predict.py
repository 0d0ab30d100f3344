"""What a trained network says of pictures or of a data set: python predict.py --checkpoint RUN image.png"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro
from PIL import Image
from rich import box
from rich.markup import escape
from rich.table import Table

from training.data import DATASETS, load, preparation_of, read_picture
from training.errors import UserError
from training.evaluation import evaluate
from training.prediction import Trained, answer, load_trained
from training.terminal.output import Console, command

SHOWN = 3  # classes on a picture's line


@dataclass(frozen=True)
class Arguments:
    """Ask a trained network, by the hand-written forward pass, about pictures of your own or about a data set."""

    checkpoint: Annotated[Path, tyro.conf.arg(metavar="RUN_OR_PT")]
    """The directory of a run (its last.pt is read) or a .pt file."""
    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[IMAGE ...]")] = ()
    """Pictures of any size: grey or color, dark on light or light on dark."""
    show: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Write the 28x28 pixels that the network saw of each picture into this directory."""
    dataset: Annotated[
        str | None, tyro.conf.arg(metavar="NAME", help=f"Evaluate on a data set instead: {', '.join(DATASETS)}.")
    ] = None
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Where the data set lies; left out, where the run's own data lay."""
    validation: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Evaluate on the last N training examples instead of the test set."""
    json: bool = False
    """Print one JSON object and nothing else."""

    def __post_init__(self) -> None:
        if bool(self.images) == bool(self.dataset):
            raise UserError("give either pictures or --dataset NAME")
        if self.images and (self.data_dir or self.validation):
            raise UserError("--data-dir and --validation go with --dataset, not with pictures")
        if self.show and self.dataset:
            raise UserError("--show goes with pictures, not with --dataset")
        if self.show and self.show.is_file():
            raise UserError(f"--show is {self.show}, which is a file: give a directory before the pictures")


def predict(trained: Trained, images: tuple[Path, ...], show: Path | None) -> dict[str, Any]:
    """For every picture that can be read its class, each class's probability (or activation), the largest first, and
    the doubts about it. The reason why another cannot be read goes to stderr."""
    preparation = preparation_of(trained.data.name)
    predictions = []
    for number, path in enumerate(images, start=1):
        try:
            reading = read_picture(path, preparation)
        except UserError as error:
            print(f"predict.py: {error}", file=sys.stderr)
            continue
        said = answer(trained, reading)
        sure = {"class": said.best, "sure": not said.doubts, "doubts": said.doubts}
        predictions.append({"image": str(path), **sure, said.kind: said.values})
        if show:
            show.mkdir(parents=True, exist_ok=True)
            seen = Image.fromarray(reading.views[0].view(trained.data.shape).numpy())
            seen.save(show / f"{number}-{path.stem}.png")
    return {"predictions": predictions}


def print_predictions(result: dict[str, Any]) -> None:
    for prediction in result["predictions"]:
        image, best_class = prediction["image"], prediction["class"]
        if "probability" in prediction:
            kind, best = "probability", [f"{name} {p:.2%}" for name, p in prediction["probability"].items()]
        else:
            kind, best = "activation", [f"{name} {a:.3f}" for name, a in prediction["activation"].items()]
        said = f"({kind} {', '.join(best[:SHOWN])})"
        if prediction["sure"]:
            print(f"{image}: {best_class} {said}")
        else:
            print(f"{image}: not sure, perhaps {best_class} {said}: {'; '.join(prediction['doubts'])}")


def evaluate_on(trained: Trained, arguments: Arguments) -> dict[str, Any]:
    """Loss, accuracy and the confusion matrix, whose rows are the true classes, on the test set."""
    assert arguments.dataset is not None
    data = load(arguments.dataset, arguments.data_dir or Path(trained.config.data_dir), validation=arguments.validation)
    trained.require_like(data)
    result = evaluate(trained.learner, data.test, trained.dtype)
    assert result is not None
    n = len(data.classes)
    pairs = result.labels * n + result.outputs.argmax(dim=1)
    return {
        "data": data.source,
        "examples": len(data.test),
        "loss": result.loss,
        "accuracy": result.values["accuracy"],
        "classes": data.classes,
        "confusion": pairs.bincount(minlength=n * n).view(n, n).tolist(),
    }


def print_evaluation(result: dict[str, Any]) -> None:
    print(result["data"])
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("true class", justify="right")
    table.add_column()
    for i in range(len(result["classes"])):
        table.add_column(str(i), justify="right")
    for i, (name, counts) in enumerate(zip(result["classes"], result["confusion"], strict=True)):
        cells = [str(count) if count else "." for count in counts]
        cells[i] = f"[bold]{cells[i]}[/bold]"
        table.add_row("" if name == str(i) else escape(name), str(i), *cells)
    print("\nhow often the true class of a row was taken for the class of a column:")
    Console(highlight=False).print(table)
    print(f"{result['examples']:,} examples: loss {result['loss']:.4f}, accuracy {result['accuracy']:.2%}")


@command("predict.py")
def main(argv: list[str]) -> int:
    arguments = tyro.cli(Arguments, args=argv, config=(tyro.conf.FlagCreatePairsOff,))
    trained = load_trained(arguments.checkpoint)
    trained.require_classes()
    if arguments.images:
        result, show = predict(trained, arguments.images, arguments.show), print_predictions
    else:
        result, show = evaluate_on(trained, arguments), print_evaluation
    if arguments.json:
        print(json.dumps(result))
    else:
        show(result)
    return 2 if len(result.get("predictions", ())) < len(arguments.images) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
