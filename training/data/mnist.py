"""MNIST, Fashion-MNIST, and the sample of MNIST that ships with the project.

Missing files are downloaded by torchvision. What lies on the disk is read and checked here: torchvision does not look
at extracted files again, and importing it takes seconds.
"""

import contextlib
import http.client
import tempfile
from pathlib import Path

from training.data.dataset import Dataset, Split
from training.data.idx import read_idx
from training.errors import UserError

FILES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)
DIGITS = tuple("0123456789")
GARMENTS = ("T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
SAMPLE = Path(__file__).parent / "sample"
SAMPLE_COUNTS = (10_000, 2_000)
MNIST_COUNTS = (60_000, 10_000)


def load_mnist(data_dir: Path) -> Dataset:
    """The 60,000 training and 10,000 test images of MNIST, downloaded into `data_dir`/MNIST/raw where missing."""
    return _load_full("mnist", "MNIST", "MNIST", DIGITS, data_dir)


def load_fashion_mnist(data_dir: Path) -> Dataset:
    """The same numbers of pictures of garments, downloaded into `data_dir`/FashionMNIST/raw where missing."""
    return _load_full("fashion-mnist", "Fashion-MNIST", "FashionMNIST", GARMENTS, data_dir)


def load_sample(data_dir: Path) -> Dataset:
    """The first 10,000 training and 2,000 test images of MNIST, from the files beside this module.

    `data_dir` is only named in the advice on how to get the full set.
    """
    remedy = (
        f"restore it from the project's repository, or run python -m training.data.make_sample --data-dir {data_dir}"
    )
    train_count, test_count = SAMPLE_COUNTS
    return Dataset(
        name="sample",
        train=read_split(SAMPLE, "train", train_count, remedy),
        test=read_split(SAMPLE, "t10k", test_count, remedy),
        shape=(28, 28),
        classes=DIGITS,
        source=f"the bundled sample of MNIST: {train_count:,} training and {test_count:,} test images "
        f"(for all 70,000: --dataset mnist downloads them into {data_dir}/)",
    )


def has_mnist(data_dir: Path) -> bool:
    """Whether MNIST's four files, plain or gzipped, lie in `data_dir`/MNIST/raw."""
    return not _missing(data_dir / "MNIST" / "raw")


def read_split(folder: Path, prefix: str, count: int, remedy: str) -> Split:
    """The images and labels whose file names start with `prefix` ("train" or "t10k"), checked to be `count` of each.

    Raises UserError, ending in `remedy`, at the first thing that is not as MNIST's authors wrote it.
    """
    image_path = _find(folder, f"{prefix}-images-idx3-ubyte")
    label_path = _find(folder, f"{prefix}-labels-idx1-ubyte")
    images = read_idx(image_path, 3, remedy)
    labels = read_idx(label_path, 1, remedy)
    if images.shape[1:] != (28, 28):
        size = "x".join(str(n) for n in images.shape[1:])
        raise UserError(f"{image_path} holds images of {size} pixels, expected 28x28; {remedy}")
    for path, values, what in ((image_path, images, "images"), (label_path, labels, "labels")):
        if len(values) != count:
            raise UserError(f"{path} holds {len(values):,} {what}, expected {count:,}; {remedy}")
    if labels.max() > 9:
        row = int(labels.argmax())
        raise UserError(f"{label_path} has label {int(labels[row])} at row {row}, expected 0 to 9; {remedy}")
    return Split(images.flatten(1), labels.long())


def _load_full(name: str, title: str, torchvision_name: str, classes: tuple[str, ...], data_dir: Path) -> Dataset:
    folder = data_dir / torchvision_name / "raw"
    if _missing(folder):
        _download(name, title, torchvision_name, data_dir)
    remedy = "delete it and run again to download it anew"
    train_count, test_count = MNIST_COUNTS
    return Dataset(
        name=name,
        train=read_split(folder, "train", train_count, remedy),
        test=read_split(folder, "t10k", test_count, remedy),
        shape=(28, 28),
        classes=classes,
        source=f"{title} from {data_dir}/: {train_count:,} training and {test_count:,} test images",
    )


def _find(folder: Path, file: str) -> Path:
    """The plain file, or else the gzipped one if that is there."""
    plain, gzipped = folder / file, folder / f"{file}.gz"
    return gzipped if gzipped.exists() and not plain.exists() else plain


def _missing(folder: Path) -> list[str]:
    return [file for file in FILES if not _find(folder, file).exists()]


def _download(name: str, title: str, torchvision_name: str, data_dir: Path) -> None:
    """Let torchvision fetch, verify and extract into a scratch folder, then move the missing files into place.

    Interrupted at any point, it leaves no half-written file where the next run would find it.
    """
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"torchvision, which downloads {title}, cannot be imported ({error}); "
            "install torch and torchvision together, from the same package index"
        ) from error

    folder = data_dir / torchvision_name / "raw"
    made = [directory for directory in (folder, *folder.parents) if not directory.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".download-", dir=data_dir) as scratch:
            getattr(datasets, torchvision_name)(scratch, download=True)
            for file in _missing(folder):
                (Path(scratch) / torchvision_name / "raw" / file).replace(folder / file)
    except (OSError, RuntimeError, EOFError, http.client.HTTPException) as error:
        reason = " ".join(str(error).split())
        with contextlib.suppress(OSError):
            for directory in made:
                directory.rmdir()
        raise UserError(
            f"{title} could not be downloaded into {data_dir}/ ({reason}); check the network, give the "
            f"directory that holds {torchvision_name}/raw by --data-dir, "
            + ("or use --dataset sample" if name == "mnist" else "or use another --dataset, such as sample")
        ) from error
