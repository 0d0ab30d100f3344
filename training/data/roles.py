"""Which arrays of a file hold examples and labels, for training, validation and testing: by the names people use."""

import re
from collections import defaultdict
from collections.abc import Iterable
from itertools import product

KINDS = {
    "x": ("x", "data", "dataset", "image", "img", "picture", "pixel", "feature", "input", "sample"),
    "y": ("y", "label", "target", "lbl"),
}
PARTS = {
    "train": ("train", "training", "tr", "trn"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing", "te", "tst"),
}
IGNORED = ("set", "split")  # as in train_set_x
MEANINGS = {word: meaning for group in (KINDS, PARTS) for meaning, words in group.items() for word in words}
JOINED = {  # xtrain, trainimages
    pair: (kind, part)
    for kind, whats in KINDS.items()
    for part, words in PARTS.items()
    for what, word in product(whats, words)
    for pair in (what + word, word + what)
}

Role = tuple[str, str]  # a part and a kind: ("train", "x")


def part_of(name: str) -> str:
    """The part that a name alone stands for: "train" for Training; empty for a name that is none of PARTS."""
    meaning = MEANINGS.get(name.lower(), "")
    return meaning if meaning in PARTS else ""


def role_of(name: str) -> Role | None:
    """The role of an array: ("test", "y") for y_test, testLabels and TEST_TARGETS; a bare x or y is for training.

    None for a name with any other word in it, such as target_names.
    """
    found: list[str] = []
    for camel in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[^\W_a-zA-Z]+", name):
        word = camel.lower()
        if word in IGNORED:
            continue
        single = word if word in MEANINGS or word in JOINED else word.removesuffix("s")
        meanings = JOINED.get(single) or (MEANINGS.get(single, ""),)
        found.extend(meanings)
    kinds, parts = [m for m in found if m in KINDS], [m for m in found if m in PARTS]
    if len(kinds) != 1 or len(parts) > 1 or len(kinds) + len(parts) != len(found):
        return None
    return (parts or ["train"])[0], kinds[0]


def names_by_role(names: Iterable[str]) -> dict[Role, list[str]]:
    """The names of the arrays that have a role, several where more than one could have it."""
    result: dict[Role, list[str]] = defaultdict(list)
    for name in names:
        if role := role_of(name):
            result[role].append(name)
    return dict(result)
