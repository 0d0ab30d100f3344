"""What a trained network says of pictures, of a data set, or after a prompt: python predict.py --checkpoint RUN …"""

import json
import sys
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import training  # noqa: F401  it says how torch's threads wait, before torch is loaded

# isort: split
import torch
import tyro
from PIL import Image
from rich import box
from rich.markup import escape
from rich.table import Table

from training.config import rules
from training.config.rules import COUNT, NUMBER, SEED, WHOLE
from training.data import DATASETS, preparation_of, read_picture
from training.errors import UserError
from training.evaluation import evaluate
from training.generation import generate
from training.prediction import Trained, answer, load_trained
from training.tasks import task_of
from training.terminal.output import Console, command

SHOWN = 3  # classes on a picture's line


@dataclass(frozen=True)
class Pictures:
    """Which classes does it see? For a network of pictures."""

    images: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[IMAGE ...]")] = ()
    """Pictures of any size: grey or color, dark on light or light on dark."""
    show: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Write the 28x28 pixels that the network saw of each picture into this directory."""


@dataclass(frozen=True)
class Text:
    """How does it go on? For a network of texts."""

    prompt: Annotated[str | None, tyro.conf.arg(metavar="TEXT", constructor=str, help_behavior_hint="")] = None
    """Print this text and how the network goes on with it."""
    length: Annotated[int, COUNT] = 500
    """How many characters, or bytes, are generated."""
    temperature: Annotated[float, NUMBER] = 1.0
    """1 draws by the network's own probabilities, less draws likely ones more often; 0 takes the likeliest."""
    top_k: Annotated[int, WHOLE] = 0
    """Draw from the K likeliest only; 0 draws from all."""
    seed: Annotated[int, SEED] = 0
    """Seed of what is drawn: the same one gives the same text."""


@dataclass(frozen=True)
class Data:
    """How good is it? For every network."""

    dataset: Annotated[str | None, tyro.conf.arg(metavar="NAME", help=f"Evaluate on {', '.join(DATASETS)}.")] = None
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    """Where the data set lies; left out, where the run's own data lay."""
    validation: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Evaluate on the last N training examples (of a text: characters or bytes) instead of the test set."""


@dataclass(frozen=True)
class Arguments:
    """Ask a trained network, by the hand-written forward pass, about pictures, a text or a data set."""

    checkpoint: Annotated[Path, tyro.conf.arg(metavar="RUN_OR_PT")]
    """The directory of a run (its last.pt is read) or a .pt file."""
    json: bool = False
    """Print one JSON object and nothing else."""
    pictures: Pictures = field(default_factory=Pictures)
    text: Text = field(default_factory=Text)
    data: Data = field(default_factory=Data)

    def __post_init__(self) -> None:
        pictures, text, data = self.pictures, self.text, self.data
        if bool(pictures.images) + (text.prompt is not None) + (data.dataset is not None) != 1:
            raise UserError("give one of these three: pictures, --prompt TEXT or --dataset NAME")
        if data.dataset is None and data != Data():
            raise UserError("--data-dir and --validation go with --dataset")
        if text.prompt is None and text != Text():
            raise UserError("--length, --temperature, --top-k and --seed go with --prompt")
        if pictures.show and not pictures.images:
            raise UserError("--show goes with pictures")
        if pictures.show and pictures.show.is_file():
            raise UserError(f"--show is {pictures.show}, which is a file: give a directory before the pictures")
        rules.check(text)


def predict(trained: Trained, pictures: Pictures) -> dict[str, Any]:
    """For every picture that can be read its class, each class's probability (or activation), the largest first, and
    the doubts about it. The reason why another cannot be read goes to stderr."""
    preparation = preparation_of(trained.data.name)
    predictions = []
    for number, path in enumerate(pictures.images, start=1):
        try:
            reading = read_picture(path, preparation)
        except UserError as error:
            print(f"predict.py: {error}", file=sys.stderr)
            continue
        said = answer(trained, reading)
        sure = {"class": said.best, "sure": not said.doubts, "doubts": said.doubts}
        predictions.append({"image": str(path), **sure, said.kind: said.values})
        if pictures.show:
            pictures.show.mkdir(parents=True, exist_ok=True)
            seen = Image.fromarray(reading.views[0].view(trained.data.shape).numpy())
            seen.save(pictures.show / f"{number}-{path.stem}.png")
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


def go_on(trained: Trained, text: Text) -> dict[str, Any]:
    """The prompt as the network reads it, and how it goes on."""
    assert text.prompt is not None
    vocabulary, streams = trained.vocabulary, trained.text
    prompt = vocabulary.encode("--prompt", text.prompt)
    drawn = generate(
        trained.learner,
        streams,
        torch.tensor(prompt),
        temperature=text.temperature,
        top_k=text.top_k,
        seed=text.seed,
    )
    continuation = list(islice(drawn, text.length))
    return {"text": vocabulary.decode([*prompt, *continuation]), "continuation": vocabulary.decode(continuation)}


def print_text(result: dict[str, Any]) -> None:
    print(result["text"])


def evaluate_on(trained: Trained, arguments: Data) -> dict[str, Any]:
    """The task's metrics on the test set and, of classes, the confusion matrix, whose rows are the true classes."""
    assert arguments.dataset is not None
    data_dir = arguments.data_dir or Path(trained.config.data_dir)
    data = trained.held_out(arguments.dataset, data_dir, arguments.validation)
    result = evaluate(trained.learner, data.test, trained.dtype, task=task_of(data))
    assert result is not None
    if trained.reads_text:
        targets = len(data.test) * data.test.targets
        return {"data": data.source, "targets": targets, "unit": data.test.unit, **result.values}
    n = len(data.classes)
    pairs = result.labels * n + result.outputs.argmax(dim=1)
    confusion = pairs.bincount(minlength=n * n).view(n, n).tolist()
    told = {"data": data.source, "examples": len(data.test), **result.values}
    return {**told, "classes": data.classes, "confusion": confusion}


def print_evaluation(result: dict[str, Any]) -> None:
    print(result["data"])
    if "bits" in result:
        print(f"{result['targets']:,} {result['unit']}: loss {result['loss']:.4f}, bits {result['bits']:.3f}")
        return
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
    arguments = tyro.cli(Arguments, args=argv, config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes))
    trained, pictures = load_trained(arguments.checkpoint), arguments.pictures
    if pictures.images:
        trained.require_classes()
        result, show = predict(trained, pictures), print_predictions
    elif arguments.data.dataset is not None:
        result, show = evaluate_on(trained, arguments.data), print_evaluation
    else:
        result, show = go_on(trained, arguments.text), print_text
    if arguments.json:
        print(json.dumps(result))
    else:
        show(result)
    return 2 if len(result.get("predictions", ())) < len(pictures.images) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
