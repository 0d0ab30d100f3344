"""What the tests of the dashboard share: pictures to train on, a writer, and TensorBoard's own reader."""

import io
import math
from contextlib import closing, contextmanager

import numpy as np
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.dashboard.tensorboard import MetricsWriter
from training.data import Dataset
from training.data.dataset import Split
from training.families.configure import configure
from training.learners.base import Backpropagation

BLUE, WHITE, VERMILION = [0, 114, 178], [255, 255, 255], [213, 94, 0]  # above, at and below zero
BLACK, GRAY = [0, 0, 0], [190, 190, 190]
NOTHING = Backpropagation(torch.tensor(0.0), gradients={}, deltas={}, outputs={}, buffers={}, memory={})


def random_pictures(shape=(4, 5), train=24, test=6):
    """Of three classes in turn."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (train + test, math.prod(shape)), generator=generator, dtype=torch.uint8)
    train_set, test_set = Split(x[:train], torch.arange(train) % 3), Split(x[train:], torch.arange(test) % 3)
    return Dataset("npz", train_set, test_set, shape, ("class 0", "class 1", "class 2"), "random")


@contextmanager
def writing(run_dir, start_step=0, config=None, data=None):
    run_dir.mkdir(exist_ok=True)
    environment = {"torch": torch.__version__, "threads": 1}
    config, data = config or configure(), data or random_pictures()
    with closing(MetricsWriter(run_dir, config, data, start_step=start_step, environment=environment)) as writer:
        yield writer


def events(run_dir):
    everything = {"scalars": 0, "histograms": 0, "images": 0, "tensors": 0}
    return EventAccumulator(str(run_dir), size_guidance=everything).Reload()


def texts(reader, tag):
    """Step and Markdown of each text."""
    return [(event.step, event.tensor_proto.string_val[0].decode()) for event in reader.Tensors(f"{tag}/text_summary")]


def images(reader):
    """Of every image in the folder `images`, the only one, its steps and its pixels."""
    found = {}
    for tag in reader.Tags()["images"]:
        folder, _, name = tag.partition("/")
        assert folder == "images"
        found[name] = [(e.step, colors_of(Image.open(io.BytesIO(e.encoded_image_string)))) for e in reader.Images(tag)]
        assert [(e.height, e.width, 3) for e in reader.Images(tag)] == [colors.shape for _, colors in found[name]]
    return found


def image_steps(reader):
    return {name: [step for step, _ in shown] for name, shown in images(reader).items()}


def colors_of(picture):
    return np.asarray(picture.convert("RGB")).astype(int)


def image(run_dir, data, call, *arguments):
    """Name and pixels of the one image that a call of the writer leaves for TensorBoard; None if it leaves none."""
    with writing(run_dir, data=data) as writer:
        getattr(writer, call)(7, *arguments)
    found = images(events(run_dir))
    if not found:
        return None
    ((name, [(step, colors)]),) = found.items()
    assert step == 7
    return name, colors
