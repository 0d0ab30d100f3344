"""Every known mistake is rejected, most are named, and nothing right is."""

from collections import Counter

import pytest

from benchmarks.gallery import PAGE, examine, page
from gallery import ENTRIES, OWN, Wrong, WrongFunction, WrongModel, named, verdict
from gallery.right.choices import CHOICES
from gradient_check import check_backward
from gradient_check.cases import CASES

ONE_CASE = [entry for entry in ENTRIES if isinstance(entry, Wrong) and entry.only]
FUNCTIONS = [entry for entry in ENTRIES if isinstance(entry, WrongFunction)]
MODELS = [entry for entry in ENTRIES if isinstance(entry, WrongModel)]


def test_the_gallery_is_large_and_its_names_are_distinct():
    assert len(ENTRIES) >= 60
    assert len({entry.name for entry in ENTRIES}) == len(ENTRIES)


@pytest.mark.sweep(10)
@pytest.mark.parametrize("entry", ENTRIES, ids=[entry.name for entry in ENTRIES])
def test_ours_rejects_it_and_gives_it_no_wrong_name_and_the_naive_test_misses_it(entry):
    report = entry.ours(right=False)
    assert not report.passed
    said = verdict(entry, named(report))
    assert (
        said in ("right", "–") if isinstance(entry, Wrong | WrongFunction) and entry.where == OWN else said != "wrong"
    )
    assert entry.misses(right=True)
    assert entry.misses(right=False)


@pytest.mark.parametrize("entry", ONE_CASE, ids=[entry.name for entry in ONE_CASE])
def test_only_its_case_finds_it(entry):
    entry.ours(right=True).assert_passed()
    entry.ours(right=False, cases=[group for group in CASES if group != entry.only]).assert_passed()
    assert not entry.ours(right=False, cases=[entry.only]).passed


@pytest.mark.parametrize("entry", FUNCTIONS, ids=[entry.name for entry in FUNCTIONS])
def test_a_function_is_right_but_for_what_only_one_row_finds(entry):
    entry.ours(right=True).assert_passed()
    assert not entry.only or {entry.only}.issuperset(row.case or row.name for row in entry.ours(right=False).failures)


@pytest.mark.sweep(4)
@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("entry", MODELS, ids=[entry.name for entry in MODELS])
def test_the_first_row_that_fails_is_where_the_network_is_wrong(entry, seed):
    entry.ours(right=True, seed=seed).assert_passed()
    assert entry.ours(right=False, seed=seed).failures[0].name == entry.place


@pytest.mark.slow
@pytest.mark.parametrize("choice", CHOICES)
def test_another_choice_at_a_kink_is_no_mistake(choice):
    layer, backward = CHOICES[choice]
    check_backward(layer.forward, backward, layer.arguments(0)).assert_passed()


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 6))
def test_the_numbers_do_not_matter(seed):
    """Each entry at one of five other seeds."""
    entries = ENTRIES[seed - 1 :: 5]
    alarms = [f"{entry.name}\n{report}" for entry in entries if not (report := entry.ours(True, seed)).passed]
    missed = [entry.name for entry in entries if entry.ours(False, seed).passed]
    seen = [entry.name for entry in entries if not entry.misses(False, seed)]
    assert not alarms, "\n".join(alarms)
    assert not missed
    assert not seen, "the naive test sees these"


@pytest.mark.long
def test_mistakes_of_a_known_kind_are_named():
    verdicts = [(verdict(entry, named(entry.ours(False, seed=1))), entry) for entry in ENTRIES if entry.where != OWN]
    counts = Counter(said for said, entry in verdicts if entry.diagnosis)
    wrong = [entry.name for said, entry in verdicts if said == "wrong"]
    assert counts["right"] >= 0.8 * counts.total(), counts
    assert len(wrong) <= 0.05 * counts.total(), wrong


@pytest.mark.long
def test_the_page_is_what_the_checks_say_now():
    assert PAGE.read_text(encoding="utf-8") == page([examine(entry) for entry in ENTRIES])
