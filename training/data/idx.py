"""IDX, the file format of MNIST: a big-endian header, then unsigned bytes, optionally gzipped.

The header is the magic number 0x00000800 + number of dimensions, then every dimension as an unsigned 32-bit integer.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path

import torch
from torch import Tensor

from training.errors import UserError


def read_idx(path: Path, ndim: int, remedy: str) -> Tensor:
    """The uint8 tensor of `ndim` dimensions in `path`, which is decompressed if its name ends in .gz.

    Raises UserError, ending in `remedy`, if the file is missing, unreadable, of another kind, or not as long as its
    header says.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = bytearray(file.read())
    except FileNotFoundError:
        raise UserError(f"{path} is missing; {remedy}") from None
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} cannot be read ({error}); {remedy}") from error

    header = 4 + 4 * ndim
    if len(data) < header:
        raise UserError(f"{path} has {len(data)} bytes, fewer than the {header} of its header; {remedy}")
    magic, *shape = struct.unpack_from(f">{1 + ndim}I", data)
    if magic != 0x800 + ndim:
        raise UserError(f"{path} starts with 0x{magic:08x} where an IDX file has 0x{0x800 + ndim:08x}; {remedy}")
    expected = header + math.prod(shape)
    if len(data) != expected:
        raise UserError(f"{path} has {len(data):,} bytes where its header announces {expected:,}; {remedy}")
    if expected == header:
        raise UserError(f"{path} holds no examples; {remedy}")
    return torch.frombuffer(data, dtype=torch.uint8, offset=header).view(shape)


def write_idx(path: Path, values: Tensor) -> None:
    """Write the uint8 tensor `values` gzipped; the same values give the same bytes, whatever the time and the name."""
    header = struct.pack(f">{1 + values.ndim}I", 0x800 + values.ndim, *values.shape)
    with path.open("wb") as file, gzip.GzipFile("", "wb", compresslevel=9, fileobj=file, mtime=0) as compressed:
        compressed.write(header + values.contiguous().numpy().tobytes())
