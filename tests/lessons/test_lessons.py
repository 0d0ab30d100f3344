"""python -m lessons: every claim holds, but not where something is wrong; the list, a run, its traces, and the page."""

import json
import re
import sys
from dataclasses import replace
from importlib import import_module
from types import ModuleType

import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout

import lessons.universal_approximation as approximation
import lessons.vanishing_gradients as vanishing
import lessons.what_layers_learn as neurons
from benchmarks import lessons as pages
from gallery.perceptron import SpelledMLP
from gallery.taught import NOTICED, WrongLesson, everywhere
from lessons import __main__ as script
from lessons import lesson as lessons
from lessons.lesson import FIGURE, LESSONS, REPORT, Report, load_lesson, teach
from tests.support.running import ROOT, call, one_sentence
from training.dashboard.figures import new_figure
from training.data import points_rule


class Falling(ModuleType):
    """A lesson whose claim does not hold."""

    TITLE, CLAIM, SOURCE, SEE = "Falling up", "Things fall up [sic].", "nobody", "A stone."

    def run(self, data, seed, run_dir):
        figure = new_figure(3, 2)
        figure.add_subplot().plot([0, seed])
        (run_dir / "own.txt").write_text("of the lesson", encoding="utf-8")
        curves = {"height": {"a (stone)": [(0, 2.0), (10, 0.5)], "feather": [(0, 2.0)]}}
        return Report([["what", "height"], ["a|b", "0.5"]], False, "it fell down.", figure, curves)


@pytest.fixture
def falling(monkeypatch):
    lesson = Falling("lessons.falling")
    monkeypatch.setitem(sys.modules, "lessons.falling", lesson)
    monkeypatch.setattr(lessons, "LESSONS", ("falling", *LESSONS))
    return lesson


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory without data, in which runs/ is made."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.long
@pytest.mark.parametrize("name", LESSONS)
def test_the_claim_holds_and_its_table_is_small(taught, name):
    report, run_dir = taught(name)
    assert report.holds, report.verdict
    heading, *rows = report.table
    assert len(heading) <= 6
    assert 2 <= len(rows) <= 12
    assert {len(row) for row in rows} == {len(heading)}
    assert (run_dir / FIGURE).stat().st_size > 10_000
    assert (run_dir / REPORT).exists()
    assert [path.parent for path in run_dir.rglob("events.*")] == [run_dir], "one run for TensorBoard"


def test_without_a_name_all_are_listed_in_order(capsys):
    done = call(capsys, script.main)
    assert done.status == 0
    rows = re.findall(r"^ *(\d+) +([a-z-]+) +\S", done.out, re.MULTILINE)
    assert rows == [(str(number), name) for number, name in enumerate(LESSONS, start=1)]


@pytest.mark.parametrize("name", LESSONS)
def test_a_lesson_has_its_texts_a_file_of_its_own_and_a_part_of_the_page(name):
    lesson, text = load_lesson(name), pages.PAGE.read_text(encoding="utf-8")
    assert "\n" not in lesson.TITLE + lesson.CLAIM + lesson.SOURCE + lesson.SEE
    assert (lesson.CLAIM[-1], lesson.SEE[-1]) == (".", ".")
    assert not lesson.SOURCE.endswith(".")
    assert (ROOT / "lessons" / pages.module(name)).is_file()
    headings = re.findall(r"^## \d+\. (.*)$", text, re.MULTILINE)
    assert headings == [load_lesson(name).TITLE for name in LESSONS]
    assert text.count("**Holds:**") == len(LESSONS)
    for part in (lesson.CLAIM, lesson.SOURCE, lesson.SEE, f"`python -m lessons {name}`", f"(lessons/{name}.png)"):
        assert part in text


def test_every_file_of_the_package_is_a_lesson_or_used_by_one():
    sources = {path.stem: path.read_text(encoding="utf-8") for path in (ROOT / "lessons").glob("*.py")}
    own = {name.replace("-", "_") for name in LESSONS} | {"__init__", "__main__"}
    assert own <= sources.keys()
    for name in sources.keys() - own:
        assert any(f"lessons.{name} import" in source for source in sources.values()), name


@pytest.mark.slow
def test_lessons_run_one_after_another_and_print_claim_what_to_see_numbers_and_verdict(here, falling, capsys):
    for options, parent in (([], "runs/lessons"), (["--run-dir", "mine"], "mine")):
        done = call(capsys, script.main, "falling", "shared-nodes", "falling", *options)
        out = " ".join(done.out.split())
        assert done.status == 1, "one claim does not hold"
        assert out.count("DOES NOT HOLD: it fell down.") == 1
        lesson = load_lesson("shared-nodes")
        order = [
            lesson.TITLE,
            lesson.CLAIM,
            lesson.SEE,
            "error of the sum",
            "Holds: the sums agree",
            f"--logdir {parent}",
        ]
        assert sorted(order, key=out.index) == order
        assert {path.name for path in (here / parent).iterdir()} == {"falling", "shared-nodes"}


def test_a_claim_that_does_not_hold_is_said_and_is_the_exit_status(here, falling, capsys):
    done = call(capsys, script.main, "falling", "falling", "--seed", 3, "--run-dir", "mine")
    assert done.status == 1
    assert "DOES NOT HOLD: it fell down." in done.out
    assert "Things fall up [sic]." in done.out
    assert (here / "mine" / REPORT).exists(), "of a single lesson, --run-dir is its directory"


def test_what_a_run_leaves_behind(falling, sample, tmp_path):
    run_dir = tmp_path / "run"
    teach("falling", sample, 3, run_dir)
    facts = json.loads((run_dir / "report.json").read_text(encoding="utf-8"))
    assert facts.pop("seconds") > 0
    assert facts == {
        **{"lesson": "falling", "title": "Falling up", "claim": "Things fall up [sic].", "source": "nobody"},
        **{"see": "A stone.", "data": sample.source, "seed": 3, "table": [["what", "height"], ["a|b", "0.5"]]},
        **{"holds": False, "verdict": "it fell down."},
    }
    with Image.open(run_dir / "figure.png") as picture:
        assert picture.size == (330, 220)
    assert (run_dir / "own.txt").exists()
    events = EventAccumulator(str(run_dir)).Reload()
    assert events.Tags()["images"] == ["lesson"]
    text = events.Tensors("lesson/text_summary")[0].tensor_proto.string_val[0].decode()
    assert "| what | height |\n| --- | --- |\n| a\\|b | 0.5 |" in text, "a cell with a bar stays one cell"
    assert text.index("A stone.") < text.index("| what") < text.index("it fell down.")
    curve = events.Scalars("lesson/falling/height/a (stone)")
    assert [(event.step, event.value) for event in curve] == [(0, 2.0), (10, 0.5)]
    layout = Layout.FromString(events.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0])
    (chart,) = layout.category[0].chart
    lines = [[tag for tag in events.Tags()["scalars"] if re.search(line, tag)] for line in chart.multiline.tag]
    assert lines == [["lesson/falling/height/a (stone)"], ["lesson/falling/height/feather"]]


def test_a_second_run_replaces_the_first_and_nothing_is_left_of_a_failed_one(falling, sample, tmp_path, monkeypatch):
    run_dir = tmp_path / "run"
    teach("falling", sample, 0, run_dir)
    (run_dir / "stale").mkdir()
    teach("falling", sample, 1, run_dir)
    assert not (run_dir / "stale").exists()
    monkeypatch.setattr(falling, "run", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        teach("falling", sample, 2, run_dir)
    assert json.loads((run_dir / "report.json").read_text(encoding="utf-8"))["seed"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


REFUSED = {
    "shared-node": "lessons: there is no lesson 'shared-node' (did you mean 'shared-nodes'?)",
    "overfitting nothing": "there is no lesson 'nothing'; there are three-ways, sensitivity,",
    "shared-nodes --seed -1": "--seed is -1, but it must be",
    "shared-nodes --run-dir mine": "mine holds files that no lesson wrote",
    "shared-nodes --run-dir mine/thesis.txt/x": "cannot write to mine/thesis.txt",
}


@pytest.mark.parametrize(("arguments", "said"), REFUSED.items())
def test_what_is_refused(here, capsys, arguments, said):
    (here / "mine").mkdir()
    (here / "mine" / "thesis.txt").write_text("years of work", encoding="utf-8")
    done = call(capsys, script.main, *arguments.split())
    assert done.status == 2
    assert said in one_sentence(done.err)
    assert [path.relative_to(here).as_posix() for path in sorted(here.rglob("*"))] == ["mine", "mine/thesis.txt"]


# What is wrong (gallery/taught.py) is noticed, and nothing else


def accuracies(**changed):
    """What training is made to say where it would take long."""
    made = {"sigmoid_1_layer": 0.8, "sigmoid_6_layers": 0.1, "tanh_xavier_6_layers": 0.8, "relu_he_6_layers": 0.8}
    made = {name.replace("_", "-"): [(0, 0.1), (400, accuracy)] for name, accuracy in (made | changed).items()}
    return lambda data, seed, run_dir: made


def says_blue(width, seed, run_dir):
    truth = points_rule(approximation.square())
    return truth if width > 1 else ~truth


SMALLER = {
    "three_ways": {"DIRECTIONS": 10},
    "sensitivity": {"PER_LAYER": 100},
    "fire_together": {"EXAMPLES": 20, "STEPS": 10},
    "one_example": {"STAGES": (0, 30, 40), "EXAMPLES": 300, "PICTURES": 50},
    "vanishing_gradients": {"learn": accuracies()},
    "universal_approximation": {"STEPS": 500, "FELL": 5, "says_blue": says_blue},
    "vanishing_through_time": {"WIDTH": 100, "SEQUENCES": 4, "STEPS": 40},
    "why_lstm_remembers": {"LENGTH": 15, "GATES": 13, "STEPS": 100, "BATCH": 30, "TESTED": 200},
    "what_layers_learn": {"NETWORK": replace(neurons.NETWORK, epochs=1), "STEPS": 100},
}
LONG = [
    *("cost_functions", "fire_together", "one_example"),
    *("universal_approximation", "what_layers_learn", "why_lstm_remembers"),
]
# The right network, written in the same way as the wrong ones, must not be taken for one of them.
RIGHT = [WrongLesson(lesson, "right", everywhere(SpelledMLP)) for lesson in {wrong.lesson: None for wrong in NOTICED}]


@pytest.mark.sweep(4)
@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(wrong, id=f"{wrong.lesson} {wrong.title}", marks=[pytest.mark.long] * (wrong.lesson in LONG))
        for wrong in NOTICED + RIGHT
    ],
)
def test_a_lesson_notices_a_mistake_and_only_that(monkeypatch, sample, tmp_path, wrong):
    lesson = import_module(f"lessons.{wrong.lesson}")
    for name, value in SMALLER.get(wrong.lesson, {}).items():
        monkeypatch.setattr(lesson, name, value)
    wrong.spoil(lesson, monkeypatch)
    report = lesson.run(sample, 0, tmp_path)
    assert report.holds == (wrong in RIGHT)
    assert wrong.lesson != "one_example" or len(report.figure.axes[-1].lines) == 3 * 10  # of every stage, every digit


@pytest.mark.slow
def test_vanishing_gradients_can_fail_in_training(sample, tmp_path, monkeypatch):
    for changed in ({"sigmoid_6_layers": 0.6}, {"relu_he_6_layers": 0.3}, {"sigmoid_1_layer": 0.15}):
        monkeypatch.setattr(vanishing, "learn", accuracies(**changed))
        assert not vanishing.run(sample, 0, tmp_path).holds
