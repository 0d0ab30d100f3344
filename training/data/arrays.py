"""Arrays of the user's own, in one .npz file."""

import zipfile
import zlib
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data.dataset import Dataset, Split
from training.errors import UserError

MAX_CLASSES = 10_000


def load_npz(path: Path) -> Dataset:
    """Examples x (N, …) and class indices y (N,) from the .npz file at `path`, for testing x_test and y_test.

    x is uint8, read as pictures with values from 0 to 255, or floating point, kept as float64 or else made float32.
    Without x_test and y_test the last fifth of the rows, in their order, is for testing. There are as many classes as
    the largest label of all, plus one. Raises UserError at whatever does not fit.
    """
    arrays = _read(path)
    for name in ("x", "y"):
        if name not in arrays:
            raise UserError(f"{path} has no array {name!r}; save it with numpy.savez(path, x=x, y=y)")
    if ("x_test" in arrays) != ("y_test" in arrays):
        raise UserError(f"{path} has only one of x_test and y_test; save both, or neither to test on the last fifth")

    x, y = _checked_pair(path, arrays, "x", "y")
    if "x_test" in arrays:
        x_test, y_test = _checked_pair(path, arrays, "x_test", "y_test")
        if x_test.shape[1:] != x.shape[1:] or x_test.dtype != x.dtype:
            raise UserError(
                f"{path}: x_test has examples of shape {x_test.shape[1:]}, {x_test.dtype}, and x of {x.shape[1:]}, "
                f"{x.dtype}; save both alike"
            )
    else:
        if len(x) < 2:
            raise UserError(f"{path} holds 1 example, at least 2 are needed: one to train on, one to test on")
        kept = len(x) - max(1, len(x) // 5)
        x, x_test, y, y_test = x[:kept], x[kept:], y[:kept], y[kept:]

    n_classes = int(max(y.max(), y_test.max())) + 1
    if not 2 <= n_classes <= MAX_CLASSES:
        raise UserError(
            f"{path}: labels up to {n_classes - 1:,} make {n_classes:,} class(es); 2 to {MAX_CLASSES:,} are possible, "
            "number them from 0"
        )
    return Dataset(
        name="npz",
        train=Split(_tensor(x), torch.from_numpy(y.astype(np.int64))),
        test=Split(_tensor(x_test), torch.from_numpy(y_test.astype(np.int64))),
        shape=x.shape[1:],
        classes=tuple(str(k) for k in range(n_classes)),
        source=f"arrays from {path}: {len(x):,} training and {len(x_test):,} test examples of {n_classes} classes",
    )


def _read(path: Path) -> dict[str, NDArray]:
    try:
        with path.open("rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UserError(f"{path} holds a single array; save x and y together with numpy.savez(path, x=x, y=y)")
            return {name: archive[name] for name in ("x", "y", "x_test", "y_test") if name in archive}
    except FileNotFoundError:
        raise UserError(
            f"{path} does not exist; --dataset npz needs --data-dir to be the path of a .npz file"
        ) from None
    except UserError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        raise UserError(
            f"{path} cannot be read as a .npz file of plain arrays ({error}); save it with numpy.savez(path, x=x, y=y)"
        ) from error


def _checked_pair(path: Path, arrays: dict[str, NDArray], x_name: str, y_name: str) -> tuple[NDArray, NDArray]:
    x, y = arrays[x_name], arrays[y_name]
    if x.dtype.type not in (np.uint8, np.float16, np.float32, np.float64):
        raise UserError(f"{path}: {x_name} is {x.dtype}; save it as uint8 (0 to 255) or as float32")
    if x.ndim < 2 or x.size == 0:
        raise UserError(
            f"{path}: {x_name} has shape {x.shape}; expected (N, features) or (N, height, width), none of them 0"
        )
    if not np.issubdtype(y.dtype, np.integer):
        raise UserError(f"{path}: {y_name} is {y.dtype}; labels are integers, save it as int64")
    if y.shape != x.shape[:1]:
        raise UserError(f"{path}: {y_name} has shape {y.shape} and {x_name} {len(x):,} rows; expected one label a row")
    if y.min() < 0:
        raise UserError(f"{path}: {y_name} has label {y.min()} at row {y.argmin()}; labels are class indices from 0")
    if x.dtype != np.uint8 and not np.isfinite(x).all():
        row = np.argwhere(~np.isfinite(x))[0][0]
        raise UserError(f"{path}: {x_name} has a value that is not finite in row {row}; remove or replace it")
    return x, y


def _tensor(x: NDArray) -> Tensor:
    """Rows of features (N, features) in a dtype that Split keeps, in the machine's own byte order."""
    dtype = x.dtype.type if x.dtype in (np.uint8, np.float64) else np.float32
    return torch.from_numpy(np.array(x.reshape(len(x), -1), dtype=dtype))
