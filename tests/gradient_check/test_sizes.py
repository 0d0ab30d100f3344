"""Axes of other sizes: each cut in turn where a reference allows it, and never so that a kernel reads out of bounds."""

import torch

from gradient_check.cases import repeated
from gradient_check.report import Notes
from gradient_check.sizes import SOME, Sizes, resized
from gradient_check.structure import taken
from gradient_check.subject import Subject
from tests.support.checking import draw, function_of

ROWS, SQUARE = draw(3, 4), draw(3, 3)


def fed(forward, *arguments, reference=None):
    """The arguments that forward is given, but for so many that it may be slow, and the notes."""
    seen, notes = [], Notes()

    def run(given):
        seen.append(given)
        return [forward(*given)], None

    subject = Subject(taken(forward, arguments)[1], (), run, forward, "backward")
    sizes = Sizes(subject, arguments, run(arguments)[0], reference, notes)
    assert len([*sizes.batch(), *sizes.ones(batch_too=False)]) < len(seen)
    return [
        given for given in seen[1:] if all(len(v) < SOME for v in given if isinstance(v, torch.Tensor))
    ], notes.lines()


def test_arguments_as_long_as_the_batch_are_cut_together_and_only_a_reference_tells_them_apart():
    def asked(y, reference=None, x=ROWS):
        seen, _ = fed(lambda x, y: x @ y.T, x, y, reference=reference)
        return ["{}×{} {}×{}".format(*a.shape, *b.shape) for a, b in seen]

    assert asked(draw(5, 4)) == ["2×4 5×4", "1×4 5×4", "7×4 5×4", "0×4 5×4"]
    assert asked(draw(5, 4), lambda x, y: x @ y.T)[4:] == ["3×1 5×1", "3×4 1×4"]
    assert asked(draw(3, 4)) == ["2×4 2×4", "1×4 1×4", "7×4 7×4"]
    assert asked(SQUARE, x=SQUARE) == ["5×3 3×3", "2×3 3×3", "2×3 3×3", "1×3 3×3", "7×3 3×3"]
    assert len(fed(lambda x: x.sum(0)[:3], ROWS)[0]) == 1  # its output has no batch
    assert asked(SQUARE, lambda x, y: x @ y.T, SQUARE) == ["2×3 3×3", "1×3 3×3", "7×3 3×3", "0×3 3×3", "3×1 1×1"]


def test_integers_stay_inside_and_what_may_be_a_length_is_not_cut():
    """A kernel that checks no bounds reads x at every index, `lengths` steps of x, or n rows of it."""
    assert all((at < len(x)).all() for x, at in fed(lambda x, at: x[at], ROWS, torch.tensor([2, 0, 2]))[0])
    scaled = lambda x, n: x * n.reshape(-1, 1, 1)  # noqa: E731
    seen, _ = fed(scaled, draw(3, 5, 2), torch.tensor([5, 2, 1]), reference=scaled)
    sizes = {(len(x), len(n), x.shape[1]) for x, n in seen}
    assert sizes == {(3, 3, 1), *((rows, rows, 5) for rows in (0, 1, 2, 3, 7))}
    assert all((n <= x.shape[1]).all() for x, n in seen)
    for n in (3, [3]):
        seen, notes = fed(lambda x, n: x, ROWS, n)
        said = f"n = {n!r} may be the length 3 that would change"
        assert (seen, notes[0].endswith(said), "(one example less, one example, 7" in notes[0]) == ([], True, True)
    assert "at may hold places" in fed(lambda x, at: x[at], ROWS, torch.tensor([2, 1, 2]))[1][0]


def test_offsets_stay_in_order_and_no_id_is_left_without_one():
    """torch's own embedding_bag reads out of bounds for no offsets, and for some in disorder."""
    seen, notes = fed(lambda ids, offsets: (offsets + ids[0]).double(), torch.arange(7) % 5, torch.tensor([0, 2, 2, 6]))
    offsets = [given[1].tolist() for given in seen]
    assert [len(some) for some in offsets] == [3, 1, 9]
    assert all(some == sorted(some) for some in offsets)
    assert [repeated(torch.tensor(some)).tolist() for some in ([0, 2, 3, 6], [4, 1, 3])] == [[0, 0, 2, 6], [4, 1, 4]]
    said = "axis 0 of offsets may divide other integers, of which some would belong to none"
    assert f"edge cases were skipped (an empty batch): {said}" in notes


def test_without_a_reference_only_torchs_own_operators_are_asked_which_axis_is_the_batch():
    """A kernel would read beyond the end of an axis that belongs to the batch, too."""
    kernel = lambda x, y: torch.from_numpy(x.detach().numpy() @ y.detach().numpy().T)  # noqa: E731
    seen, notes = fed(kernel, SQUARE, SQUARE)
    assert (seen, "torch's operators alone" in notes[0]) == ([], True)
    assert all(len(x) == 3 for x, _ in fed(function_of(lambda x, y: (x @ y, 0), None), SQUARE, SQUARE)[0])


def test_a_batch_grows_by_rows_that_differ_and_keeps_masks_and_signs():
    x, mask = draw(2, 3), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    grown, masks = resized([x, mask], ["x", "mask"], [(0, 0), (1, 0)], 9)
    assert torch.equal(masks, mask.repeat(5, 1)[:9])
    assert torch.equal(grown.sign(), x.sign().repeat(5, 1)[:9])
    assert (len(grown.unique(dim=0)), bool((grown.abs() <= x.abs().max()).all())) == (9, True)


def test_forward_never_sees_sizes_that_the_reference_does_not_take():
    seen, notes = fed(lambda x: x, ROWS, reference=lambda x: x + torch.zeros(4))
    assert {x.shape[1] for (x,) in seen} == {4}
    assert notes[0].startswith(
        "edge cases were skipped (axis 1 of x of size 1): the reference raised RuntimeError: The size"
    )
    assert fed(lambda x: x, ROWS)[1][0].endswith("only a reference shows that forward takes them, or isolation")
    kept = "forward gives (3, 1), its reference (3,)"
    assert kept in fed(lambda x: x, ROWS, reference=lambda x: x.squeeze(1))[1][0]
