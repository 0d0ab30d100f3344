"""Makes the bundled sample of MNIST from a full copy: python -m training.data.make_sample --data-dir data"""

import argparse
import sys
from pathlib import Path

import torch

from training.data.idx import write_idx
from training.data.mnist import SAMPLE, SAMPLE_COUNTS, load_mnist
from training.terminal.output import command


def make_sample(data_dir: Path, folder: Path = SAMPLE) -> list[Path]:
    """Write the first images and labels of both splits of the MNIST in `data_dir` into `folder`; returns the paths."""
    mnist = load_mnist(data_dir)
    paths = []
    for prefix, split, count in zip(("train", "t10k"), (mnist.train, mnist.test), SAMPLE_COUNTS, strict=True):
        indices = torch.arange(count)
        images, labels = folder / f"{prefix}-images-idx3-ubyte.gz", folder / f"{prefix}-labels-idx1-ubyte.gz"
        write_idx(images, split.stored(indices).view(count, 28, 28))
        write_idx(labels, split.batch(indices, torch.float32)[1].byte())
        paths += [images, labels]
    return paths


@command("make_sample")
def main() -> None:
    parser = argparse.ArgumentParser(description="make the bundled sample from a full copy of MNIST")
    parser.add_argument("--data-dir", type=Path, default=Path("data"), help="holds MNIST/raw; default: data")
    for path in make_sample(parser.parse_args().data_dir):
        print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    sys.exit(main())
