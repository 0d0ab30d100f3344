"""Published results: their presets say what the sources say, runs go on where they were, and tables tell the truth."""

import json
from dataclasses import asdict, replace

import pytest

import predict
import train
from benchmarks import reproduction, sequences
from benchmarks.published import BEST_OF_THREE, LAST_EPOCH, LAST_EPOCHS, NIELSEN, PUBLISHED, Published
from benchmarks.reproduction import Job, Run, carry_out, duration, jobs_of, lost, page, percent, summary, verdict
from tests.support.running import call
from training.errors import UserError
from training.families.configure import configure, load_preset, preset_names

DIGITS = {"batch_size": 10, "activation": ("sigmoid",), "init": "standard-normal", "schedule": "constant"}
CHAPTER_1 = DIGITS | {"loss": "quadratic", "lr": 3.0, "epochs": 30, "hidden": (30,), "examples": 50_000}
CHAPTER_3 = CHAPTER_1 | {"loss": "sigmoid-cross-entropy", "lr": 0.5}
REGULARIZED = CHAPTER_3 | {"hidden": (100,), "lr": 0.1, "l2": 5 / 50_000, "epochs": 60}
REGULARIZED |= {"examples": 0, "validation": 10_000}
SPIRAL = {"dataset": "spiral", "hidden": (64,), "activation": ("relu",), "optimizer": "adam", "lr": 0.05}
SPIRAL |= {"batch_size": 300, "epochs": 10_000, "init": "small-normal", "loss": "softmax-cross-entropy"}
RECIPES = {
    "nielsen-ch1": CHAPTER_1,
    "nielsen-ch1-100": CHAPTER_1 | {"hidden": (100,)},
    "nielsen-ch1-slow": CHAPTER_1 | {"hidden": (100,), "lr": 0.001},
    "nielsen-ch1-fast": CHAPTER_1 | {"lr": 100.0},
    "nielsen-ch3": CHAPTER_3,
    "nielsen-ch3-l2": REGULARIZED,
    "nielsen-ch3-1000": CHAPTER_3 | {"examples": 1000, "epochs": 400},
    "nielsen-ch3-1000-l2": CHAPTER_3 | {"examples": 1000, "epochs": 400, "l2": 0.1 / 1000},
    "nnfs-spiral": SPIRAL,
    "nnfs-spiral-l2": SPIRAL | {"l2": 0.0001},
    "lecun-300": {"hidden": (300,), "loss": "quadratic", "examples": 0, "validation": 0},
    "lecun-300-100": {"hidden": (300, 100), "loss": "quadratic", "examples": 0, "validation": 0},
}


@pytest.mark.parametrize("preset", RECIPES)
def test_a_preset_is_the_published_recipe(preset):
    config = load_preset(preset)
    assert {name: getattr(config, name) for name in RECIPES[preset]} == RECIPES[preset]


def test_every_preset_is_measured_and_on_the_page():
    assert {entry.preset for entry in PUBLISHED} | {row.preset for row in sequences.ROWS} == set(preset_names())
    text = reproduction.PAGE.read_text(encoding="utf-8")
    for entry in PUBLISHED:
        link = f"[`{entry.preset}`](../training/families/presets/{entry.preset}.toml)"
        assert f"{link} | {entry.seeds} | {entry.figure} |" in text
        assert f"- **`{entry.preset}`**: {entry.network}. {entry.source}" in text


def run_of(*accuracies, seconds=10.0, lost=()):
    return Run("", list(accuracies), list(lost), seconds, seconds and 0.9 * seconds)


RUNS = [run_of(0.8, 0.95, 0.9), run_of(0.7, 0.7, 0.7, seconds=None, lost=("8",)), run_of(0.5, 0.94, 0.93), run_of(0.99)]


def entry(**changes):
    return replace(Published("p", "a net", "94.5%", 0.945, BEST_OF_THREE, NIELSEN.format(1)), **changes)


def test_the_rules_and_the_verdicts():
    assert (BEST_OF_THREE.ours(RUNS), LAST_EPOCH.ours(RUNS)) == (0.95, 0.9)
    assert LAST_EPOCHS.ours(RUNS) == pytest.approx((0.9 + 0.7 + 0.93 + 0.99) / 4)
    assert verdict(entry(), RUNS) == "yes"
    assert verdict(entry(value=0.9512), RUNS) == "no, 0.12 points short, 0.4 σ above our mean"
    assert verdict(entry(value=0.9512), RUNS[:1]) == "no, 0.12 points short"
    assert verdict(entry(value=None), RUNS) == "–"
    assert verdict(entry(value=None, fails=0.96), RUNS) == "yes, it fails too"
    assert verdict(entry(value=None, fails=0.2), RUNS) == "no: 95.00%"


def test_the_cells():
    assert (percent([0.9, 0.92]), percent([0.9])) == ("91.00 ± 1.41%", "90.00%")
    assert lost(RUNS) == "seed 1: 8"
    assert (duration([10.0, None, 12.0]), duration([None])) == ("11 ± 1 s", "interrupted")
    row = next(line for line in page([entry()], lambda _: RUNS, 2).splitlines() if line.startswith("| [`p`]"))
    assert row.partition(") | ")[2] == (
        "4 | 94.5% | best epoch, best of three runs | 95.00% | yes | 88.00 ± 12.57% | "
        "89.50 ± 13.18%, 99.00% | seed 1: 8 | 9 ± 0 s | 10 ± 0 s |"
    )
    assert "| `p` |" in summary([entry(in_readme=True)], lambda _: RUNS)
    assert "| `p` |" not in summary([entry()], lambda _: RUNS)


def test_jobs_train_on_the_full_mnist_and_leave_other_data_alone(tmp_path):
    entries = [entry(preset="3b1b"), entry(preset="points"), entry(preset="best-mlp")]
    jobs = jobs_of(entries, 2, tmp_path / "data", tmp_path)
    made = [f"{job.preset} {job.seed} {job.config.seed}" for job in jobs]
    assert made == ["3b1b 0 0", "3b1b 1 1", "points 0 0", "points 1 1", "best-mlp 0 0", "best-mlp 1 1"]
    assert [job.config.dataset for job in jobs[::2]] == ["mnist", "points", "mnist"]
    assert {job.config.threads for job in jobs} == {1}
    assert jobs[0].config.data_dir == str(tmp_path / "data")
    assert len({job.run_dir for job in jobs}) == 6
    jobs = jobs_of([entry(preset="fashion-cnn", seeds=3), entry(preset="points")], 0, tmp_path / "data", tmp_path)
    assert [job.seed for job in jobs] == [0, 1, 2, 0, 1, 2, 3, 4]
    assert (jobs[0].config.dataset, jobs[0].config.data_dir) == ("fashion-mnist", str(tmp_path / "data"))


def test_a_run_made_before_an_option_was_there_still_counts(tmp_path):
    """Its result lacks the option, which then has its default."""
    job = Job("p", 0, configure(lr=0.3), tmp_path)
    text = "".join(line for line in job.config.to_toml().splitlines(keepends=True) if not line.startswith("shift"))
    result = replace(run_of(0.9), config=text)
    (tmp_path / reproduction.RESULT).write_text(json.dumps(asdict(result)), encoding="utf-8")
    assert job.done() == result
    assert replace(job, config=replace(job.config, shift=1)).done() is None


SMALL = {"dataset": "spiral", "hidden": (4,), "epochs": 2, "loss": "softmax-cross-entropy", "activation": ("tanh",)}


@pytest.mark.long
def test_a_run_is_made_once_goes_on_where_it_was_and_is_made_anew_for_another_recipe(tmp_path, monkeypatch, capsys):
    """With the scripts in this process: each of their own would load torch anew."""

    def call_here(script, *options):
        done = call(capsys, {"train.py": train.main, "predict.py": predict.main}[script], *options)
        assert done.status == 0, done.err
        return done.out, 1.25

    monkeypatch.setattr(reproduction, "call", call_here)
    job = Job("p", 0, configure(**SMALL), tmp_path / "run")
    assert job.done() is None
    first = carry_out(job)
    assert (len(first.accuracies), first.processor, first) == (2, 1.25, job.done())
    assert first.seconds is not None

    (job.run_dir / reproduction.RESULT).unlink()  # as if it had been stopped
    assert carry_out(job) == replace(first, seconds=None, processor=None)

    other = replace(job, config=replace(job.config, epochs=3))
    assert other.done() is None
    assert len(carry_out(other).accuracies) == 3


@pytest.mark.long
def test_a_script_in_a_process_of_its_own_says_what_it_took_and_why_it_failed(tmp_path):
    said, processor = reproduction.call("predict.py", "--help")
    assert "--checkpoint" in said
    assert processor > 0.5  # torch alone takes longer to load
    with pytest.raises(UserError, match="examples is 301"):
        carry_out(Job("p", 0, configure(**SMALL, examples=301), tmp_path / "run"))


@pytest.mark.parametrize(
    ("options", "said"), [({"only": ("nielsen",)}, "no published figure for 'nielsen'"), ({"jobs": 0}, "--jobs is 0")]
)
def test_what_is_refused(options, said, tmp_path):
    with pytest.raises(UserError, match=said):
        reproduction.main(runs=tmp_path / "runs", **options)
    assert list(tmp_path.iterdir()) == []
