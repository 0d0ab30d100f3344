"""The configuration: how it is put together, what is allowed, and that it survives being written and read."""

import os
import subprocess
import sys
from dataclasses import replace
from math import inf, nan

import pytest
import torch

import train
from tests.support.refusals import refused
from tests.support.running import ROOT, call, files, resolved
from training import prepare
from training.data import load
from training.families import FAMILIES
from training.families.configure import configure, default_preset, from_mapping, load_preset, preset_names
from training.prepare import resolve_device
from training.tasks import CLASSIFICATION

OPTIONS = """
    --impl manual --dataset text --tokens bytes --validation 7 --examples 300 --hidden 5 4 3
    --activation tanh relu gelu identity
    --loss softmax-cross-entropy --label-smoothing 0.1 --optimizer muon --lr 1e-3 --momentum 0.9 --betas 0.8 0.99
    --schedule plateau --lr-epochs 3 --lr-factor 0.1 --warmup 4 --eps 1e-7 --l2 1e-4 --l1 1e-5 --dropout 0.25
    --max-norm 3 --clip-norm 2 --expand rotations shifts --shift 2 --rotate 7.5 --batch-size 33 --epochs 2 --patience 5
    --max-steps 9 --init he --seed 9223372036854775807 --dtype float64 --device cpu --threads 2 --check-every 5
    --eval-every 13 --log-every 11 --histogram-every 0
"""
EVERY_FIELD_CHANGED = train.parse([*OPTIONS.split(), "--data-dir", 'folder with "quotes", ünïcode and 😀']).config
OF_THE_CNN = {"model": "cnn", "hidden": (16, 16), "channels": (5, 4), "blocks": 3, "activation": ("scaled_tanh",)}
CNN_CHANGED = configure(**vars(EVERY_FIELD_CHANGED) | OF_THE_CNN)


def toml(path, text):
    path.write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.sweep(4)
@pytest.mark.parametrize("model", FAMILIES)
def test_where_only_the_model_is_named_its_own_preset_is_the_start(model):
    start = load_preset(default_preset(model))
    assert start.model == model
    if CLASSIFICATION.name in FAMILIES[model].tasks:
        start = replace(start, dataset="auto")
    assert train.parse(["--model", model]).config == train.parse([f"--model={model}"]).config == start
    assert train.parse(["--model", model, "--lr", "0.25"]).config == replace(start, lr=0.25)


@pytest.mark.slow
def test_a_named_preset_beats_that_of_the_model(tmp_path):
    for asked in (["--preset", "lenet5", "--model", "cnn"], ["--model=cnn", "--preset=lenet5"]):
        assert train.parse(asked).config == configure(**vars(load_preset("lenet5")) | {"model": "cnn"})
    mine = toml(tmp_path / "mine.toml", 'model = "cnn"\nchannels = [2]\n')
    assert train.parse(["--preset", mine]).config == load_preset(mine)
    assert load_preset(mine).channels == (2,)


def test_command_line_beats_preset_beats_default():
    assert configure() == load_preset("3b1b")
    config = train.parse(["--preset", "nielsen-ch1", "--lr", "0.5"]).config
    assert (config.lr, config.hidden, config.batch_size, config.init) == (0.5, (30,), 10, "standard-normal")
    assert config.momentum == configure().momentum


DEFAULTS = {
    "sgd": {"momentum": 0.0},
    "nesterov": {"momentum": 0.9},
    "adagrad": {"eps": 1e-8},
    "rmsprop": {"betas": (0.99,), "eps": 1e-8},
    "adam": {"betas": (0.9, 0.999), "eps": 1e-8},
    "lion": {"betas": (0.9, 0.99)},
    "muon": {"momentum": 0.95, "betas": (0.9, 0.999), "eps": 1e-8},
}


@pytest.mark.parametrize("optimizer", DEFAULTS)
def test_an_optimizer_has_its_own_defaults(optimizer):
    assert configure(optimizer=optimizer).optimizer_settings == DEFAULTS[optimizer]


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_survives_being_written_and_read(name, tmp_path):
    config = load_preset(name)
    assert load_preset(toml(tmp_path / "c.toml", config.to_toml())) == config


def test_every_field_survives_being_written_and_read(tmp_path):
    same_by_nature = {"impl", "clip_value"}  # check_every needs manual, clip_norm excludes clip_value
    both = (EVERY_FIELD_CHANGED, CNN_CHANGED)
    usual = vars(configure(model="cnn")) | vars(configure())
    for name in usual.keys() - same_by_nature:
        assert any(getattr(config, name) != usual[name] for config in both if hasattr(config, name)), name
    for config in both:
        assert load_preset(toml(tmp_path / "c.toml", config.to_toml())) == config
    assert repr(from_mapping({"lr": 3}).lr) == "3.0", "a whole number is a number"


@pytest.mark.slow
def test_print_config_trains_nothing_and_read_back_is_the_same(capsys, tmp_path):
    asked = ["--preset", "points", "--hidden", "7", "5", "--lr", "1e-3", "--loss", "quadratic"]
    first = call(capsys, train.main, *asked, "--run-dir", tmp_path / "run", "--print-config")
    assert files(tmp_path) == set()
    again = call(capsys, train.main, "--preset", toml(tmp_path / "c.toml", first.out), "--print-config")
    assert first == again
    assert first.status == 0
    assert "hidden = [7, 5]" in first.out


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("learning_rate = 3.0", "unknown key 'learning_rate'"),
        ("lrr = 3.0", "did you mean 'lr'"),
        ("batch_size = true", "batch_size is True, but it must be a whole number"),
        ("batch_size = 10.0", "batch_size is 10.0, but it must be a whole number"),
        ('batch_size = "10"', "batch_size is '10', but it must be a whole number"),
        ('lr = "3.0"', "lr is '3.0', but it must be a number"),
        ("lr = [3.0]", "lr is [3.0], but it must be a number"),
        ("lr = nan", "--lr is nan, but it must be a positive number"),
        ("hidden = 16", "hidden is 16, but it must be a list"),
        ("hidden = [16, true]", "hidden is True, but it must be a whole number"),
        ('activation = "relu"', "activation is 'relu', but it must be a list"),
        ('activation = ["sigmod"]', "did you mean 'sigmoid'"),
        ('impl = "manul"', "did you mean 'manual'"),
        ("model = 'recurrent'\nbidirectional = 1", "bidirectional is 1, but it must be true or false"),
        ("data_dir = 3", "data_dir is 3, but it must be text in quotes"),
        ("[training]\nlr = 3.0", "unknown key 'training'"),
        ("lr = 3.0\nlr = 4.0", "is not a TOML file"),
        (b"\xff\xfe\x00lr", "is not a TOML file in UTF-8 (line 1: truncated data): save it as UTF-8"),
        ("lr = 3.0\n".encode("utf-16-le"), "is not a TOML file in UTF-8 (line 1: zero byte): save it as UTF-8"),
        ("lr = 3.0\n# é".encode("latin-1"), "is not a TOML file in UTF-8 (line 2"),
    ],
)
def test_a_wrong_preset_is_refused_by_name(text, wanted, tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with refused(wanted, str(path)):
        load_preset(str(path))


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_a_preset_is_read_as_windows_editors_save_it(encoding, tmp_path):
    text = "\ufeff" * (encoding == "utf-16-be") + '# größe\r\nepochs = 1\r\ndata_dir = "größe"\r\n'
    (tmp_path / "NOTEPAD.TOML").write_bytes(text.encode(encoding))
    config = load_preset(str(tmp_path / "NOTEPAD.TOML"))
    assert (config.epochs, config.data_dir) == (1, "größe")


@pytest.mark.parametrize("name", ["3b1c", "none.toml", ""])
def test_an_unknown_preset_is_refused_with_those_that_there_are(name):
    with refused("nielsen-ch1"):
        load_preset(name)


NO_SHARE = [-0.1, 1.0, nan]
LIMITS = ("l1", "l2", "max_norm", "clip_norm", "clip_value")
COUNTS = ("max_steps", "warmup", "validation", "examples", "check_every", "eval_every", "histogram_every")
RANGES = [
    ("mlp", "lr", [1e-9, 1e9], [0.0, -1.0, nan, inf, 1e39, 1e-46]),
    ("mlp", "eps", [1e-8], [0.0, -1.0, nan, inf]),
    *[("mlp", name, [0.0, 1.0], [-1e-9, nan, inf]) for name in LIMITS],
    *[("mlp", name, [0.0, 0.999], NO_SHARE) for name in ("dropout", "momentum")],
    *[("mlp", name, [1], [0, -1]) for name in ("batch_size", "epochs", "log_every")],
    *[("mlp", name, [0, 1], [-1]) for name in COUNTS],
    *[("mlp", name, [0], [-1]) for name in ("lr_epochs", "patience")],
    ("mlp", "lr_factor", [0.5], [0.0, *NO_SHARE]),
    ("mlp", "rotate", [0.0, 180.0], [-1e-9, 180.1, nan, inf]),
    ("mlp", "betas", [()], [(-0.1, 0.9), (0.9, 1.0), (nan,)]),
    ("mlp", "expand", [(), ("shifts",), ("rotations", "shifts")], [("shifts", "shifts")]),
    ("mlp", "threads", [0, 1, 1024], [-1, 1025]),
    ("mlp", "shift", [0, 1, 100], [-1, 10**30]),
    ("mlp", "seed", [0, 2**63 - 1], [-1, 2**63]),
    ("mlp", "hidden", [(1,), (3, 2, 1)], [(), (0,), (16, -1)]),
    ("mlp", "activation", [("relu",), ("tanh", "relu", "sigmoid")], [(), ("relu", "relu"), ("relu",) * 4]),
    ("cnn", "activation", [("relu",), ("scaled_tanh",)], [(), ("relu", "relu")]),
    ("cnn", "channels", [(1,), (3, 2, 1)], [(), (0,), (16, -1)]),
    ("cnn", "blocks", [0, 1, 100], [-1]),
    ("cnn", "dropout", [0.0, 0.999], NO_SHARE),
    ("cnn", "label_smoothing", [0.0, 0.5], NO_SHARE),  # with softmax cross-entropy, which the preset has
]


@pytest.mark.parametrize(("model", "name", "good", "bad"), RANGES, ids=[f"{row[0]}-{row[1]}" for row in RANGES])
def test_ranges(model, name, good, bad):
    start = load_preset(default_preset(model))
    for value in good:
        assert getattr(replace(start, **{name: value}), name) == value
    for value in bad:
        with refused(f"--{name.replace('_', '-')} is ", ", but it must be "):
            replace(start, **{name: value})


HELD_OUT = ("is decided on held-out", "give --validation")
REFUSED = [
    (dict(model="cnnn"), f"model is 'cnnn' (did you mean 'cnn'?), but it must be one of {', '.join(FAMILIES)}"),
    (dict(model="mlp", blocks=0), "--blocks goes with --model cnn, not with mlp"),
    (dict(model="lenet5", activation=("tanh",) * 4), "--activation is", "it must be one name for all", "lenet5"),
    (dict(clip_norm=1.0, clip_value=1.0), "--clip-norm and --clip-value are two ways to clip", "give one of them"),
    (dict(loss="quadratic", label_smoothing=0.1), "label smoothing goes with", "softmax-cross-entropy"),
    (dict(loss="softmax-cross-entropy", activation=("tanh", "tanh", "relu")), "must be identity, not relu"),
    (dict(loss="sigmoid-cross-entropy", activation=("tanh", "tanh", "relu")), "must be identity, not relu"),
    (dict(activation=("relu", "tanh")), "3 names"),
    (dict(optimizer="sgd", betas=(0.9,)), "give --betas without a value)"),
    (dict(optimizer="sgd", eps=1e-3), "sgd has no eps"),
    (dict(optimizer="adam", momentum=0.9), "(where a preset sets it, give --momentum 0.0)"),
    (dict(optimizer="adam", betas=(0.9,)), "adam takes 2 betas, such as 0.9 0.999, not 1"),
    (dict(optimizer="rmsprop", betas=(0.9, 0.99)), "rmsprop takes 1 betas, such as 0.99"),
    (dict(schedule="step"), "--schedule step has no length: give --lr-epochs"),
    (dict(schedule="exponential"), "--schedule exponential has no length"),
    (dict(schedule="plateau", validation=10), "--schedule plateau has no length"),
    (dict(schedule="halve", validation=10), "--schedule halve has no length"),
    (dict(schedule="cosine", lr_epochs=3), "--lr-epochs goes with --schedule step, exponential, plateau, halve, not"),
    (dict(schedule="one-cycle", lr_factor=0.1), "--lr-factor goes with --schedule step, exponential, plateau, not"),
    (dict(schedule="halve", lr_epochs=3, lr_factor=0.1), "--lr-factor goes with", "not with halve"),
    (dict(schedule="one-cycle", warmup=3), "one-cycle has a warm-up of its own"),
    (dict(schedule="plateau", lr_epochs=3), "--schedule plateau", *HELD_OUT),
    (dict(schedule="halve", lr_epochs=3), "--schedule halve", *HELD_OUT),
    (dict(patience=3), "--patience", *HELD_OUT),
    (dict(impl="reference", check_every=2), "--check-every goes with --impl manual"),
    (dict(impl="both", check_every=2), "--check-every goes with --impl manual"),
    (dict(device="mps", dtype="float32", impl="both"), "--device mps has no float64"),
    (dict(device="mps", dtype="float32", check_every=10), "--device mps has no float64"),
]


@pytest.mark.parametrize(("options", "words"), [(case[0], case[1:]) for case in REFUSED], ids=lambda v: str(v)[:60])
def test_options_that_do_not_go_together_are_refused(options, words):
    with refused(*words):
        configure(**options)


def test_resolved_leaves_nothing_open_and_keeps_what_was_asked_for(sample):
    asked = configure(dataset="auto", loss="softmax-cross-entropy", activation=("tanh",), optimizer="muon")
    config = resolved(asked, sample)
    assert config.dataset == "sample"
    assert config.device in ("cpu", "cuda")
    assert config.threads >= 1
    assert config.activation == ("tanh", "tanh", "identity")
    assert (config.momentum, config.betas, config.eps) == (0.95, (0.9, 0.999), 1e-8), "muon's own"
    assert resolved(config, sample) == config
    asked = resolved(configure(dataset="sample", device="cpu", threads=3, warmup=99, epochs=1), sample)
    assert (asked.device, asked.threads, asked.warmup) == ("cpu", 3, 99), "and a warm-up of all but one of the steps"


MISFITS = {
    "--channels 20000 makes 7,200,500,010 parameters, but at most": {"model": "cnn", "channels": (20_000,)},
    "--hidden 1000000000 makes 795,000,000,010 parameters, but at most": {"hidden": (1_000_000_000,)},
    "--warmup is 100, but it must be less than the run's 100 steps": {"warmup": 100, "epochs": 1},
    "--warmup is 9, but it must be less than the run's 9 steps": {"warmup": 9, "max_steps": 9},
}


@pytest.mark.parametrize("wanted", MISFITS)
def test_what_does_not_fit_the_data_is_refused(wanted, sample):
    with refused(wanted):
        resolved(configure(**MISFITS[wanted]), sample)


@pytest.mark.parametrize(("option", "value"), [("shift", 1), ("rotate", 5.0)])
def test_only_pictures_are_moved(option, value, sample):
    with refused(f"--{option} moves pictures of height×width, and an example of points is 2"):
        resolved(configure(dataset="points", **{option: value}), load("points"))
    assert getattr(resolved(configure(**{option: value}), sample), option) == value


@pytest.mark.long
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_the_threads_found_are_those_of_torch_and_no_more_than_the_process_may_use():
    """In a process of its own: not as many as there are cores."""
    program = "import torch; found = torch.get_num_threads(); import train; from training import prepare; "
    program += "print(found, prepare.FOUND_THREADS)"
    others = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}

    def said(**environment):
        command = [sys.executable, "-c", program]
        return subprocess.check_output(command, cwd=ROOT, env=others | environment, text=True).split()

    assert said(OMP_NUM_THREADS="1") == ["1", "1"]
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert said() == ["1", "1"]
    finally:
        os.sched_setaffinity(0, allowed)


def test_a_small_network_gets_one_thread_and_a_large_one_what_torch_found(sample, monkeypatch):
    monkeypatch.setattr(prepare, "FOUND_THREADS", 7)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert resolved(configure(dataset="sample"), sample).threads == 1
    assert resolved(configure(dataset="sample", hidden=(512, 512)), sample).threads == 7
    assert resolved(load_preset("lenet5"), sample).threads == 7


@pytest.mark.parametrize("device", ["nonsense", "meta", "cuda:99", ""])
def test_a_device_that_is_not_there_is_refused_in_one_line(device):
    with pytest.raises(ValueError, match="this machine has cpu") as refusal:
        resolve_device(device, "float32")
    assert len(str(refusal.value)) < 400


def test_float64_on_mps_is_refused_and_so_is_mps_where_there_is_none():
    if torch.mps.is_available():
        assert resolve_device("mps", "float32") == "mps"
    with refused("--device mps cannot be used"):
        resolve_device("mps", "float64")
