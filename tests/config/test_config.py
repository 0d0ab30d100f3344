"""The configuration: what is allowed, how it is put together, and that it survives being written and read."""

import os
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import train
from tests.support import running
from tests.support.running import resolved
from training import prepare
from training.config import Config
from training.data import Dataset, load
from training.errors import UserError
from training.families import FAMILIES
from training.families.configure import configure, default_preset, from_mapping, load_preset, preset_names
from training.prepare import resolve_device
from training.tasks import CLASSIFICATION


def changed(config: Config, **values: object) -> Config:
    """As `replace`, for another family too."""
    return configure(**{**vars(config), **values})


EVERY_FIELD_CHANGED = configure(
    impl="manual",
    dataset="npz",
    data_dir='folder with "quotes", ünïcode and 😀',
    validation=7,
    examples=300,
    hidden=(5, 4, 3),
    activation=("tanh", "relu", "gelu", "identity"),
    loss="softmax-cross-entropy",
    label_smoothing=0.1,
    optimizer="muon",
    lr=1e-3,
    schedule="plateau",
    lr_epochs=3,
    lr_factor=0.1,
    warmup=4,
    momentum=0.9,
    betas=(0.8, 0.99),
    eps=1e-7,
    l2=1e-4,
    l1=1e-5,
    dropout=0.25,
    max_norm=3.0,
    clip_norm=2.0,
    expand=("rotations", "shifts"),
    shift=2,
    rotate=7.5,
    batch_size=33,
    epochs=2,
    patience=5,
    max_steps=9,
    init="he",
    seed=2**63 - 1,
    dtype="float64",
    device="cpu",
    threads=2,
    check_every=5,
    eval_every=13,
    log_every=11,
    histogram_every=0,
)


CNN_CHANGED = changed(
    EVERY_FIELD_CHANGED, model="cnn", hidden=(16, 16), channels=(5, 4), blocks=3, activation=("scaled_tanh",)
)


def toml(path: Path, text: str) -> str:
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_the_default_is_the_preset_3b1b() -> None:
    assert configure() == load_preset("3b1b")


def test_there_are_the_presets_of_the_readme() -> None:
    assert {"3b1b", "nielsen-ch1", "points", "lenet5", "small-cnn"} <= set(preset_names())


@pytest.mark.parametrize("model", FAMILIES)
def test_where_only_the_model_is_named_its_own_preset_is_the_start(model: str) -> None:
    start = load_preset(default_preset(model))
    assert start.model == model
    if CLASSIFICATION.name in FAMILIES[model].tasks:
        start = replace(start, dataset="auto")
    assert train.parse(["--model", model]).config == train.parse([f"--model={model}"]).config == start
    assert train.parse(["--model", model, "--lr", "0.25"]).config == replace(start, lr=0.25)


def test_a_named_preset_beats_that_of_the_model(tmp_path: Path) -> None:
    for asked in (["--preset", "lenet5", "--model", "cnn"], ["--model=cnn", "--preset=lenet5"]):
        assert train.parse(asked).config == changed(load_preset("lenet5"), model="cnn")
    mine = toml(tmp_path / "mine.toml", 'model = "cnn"\nchannels = [2]\n')
    assert train.parse(["--preset", mine]).config == load_preset(mine)
    assert load_preset(mine).channels == (2,)


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_survives_being_written_and_read(name: str, tmp_path: Path) -> None:
    config = load_preset(name)
    assert load_preset(toml(tmp_path / "c.toml", config.to_toml())) == config


def test_every_field_survives_being_written_and_read(tmp_path: Path) -> None:
    same_by_nature = {"impl", "clip_value"}  # check_every needs manual, clip_norm excludes clip_value
    both = (EVERY_FIELD_CHANGED, CNN_CHANGED)
    usual = vars(configure(model="cnn")) | vars(configure())
    for name in usual.keys() - same_by_nature:
        assert any(getattr(config, name) != usual[name] for config in both if hasattr(config, name)), name
    for config in both:
        assert load_preset(toml(tmp_path / "c.toml", config.to_toml())) == config


def test_command_line_beats_preset_beats_default() -> None:
    config = train.parse(["--preset", "nielsen-ch1", "--lr", "0.5"]).config
    assert config.lr == 0.5
    assert (config.hidden, config.batch_size, config.init) == ((30,), 10, "standard-normal")
    assert config.momentum == configure().momentum


def test_a_preset_given_as_one_word_with_equals() -> None:
    assert train.parse(["--preset=nielsen-ch1"]).config == load_preset("nielsen-ch1")


def test_print_config_read_back_is_the_same(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    asked = ["--preset", "points", "--hidden", "7", "5", "--lr", "1e-3", "--loss", "quadratic"]
    first = running.call(capsys, train.main, *asked, "--print-config")
    again = running.call(capsys, train.main, "--preset", toml(tmp_path / "c.toml", first.out), "--print-config")
    assert first.status == again.status == 0
    assert first.out == again.out
    assert "hidden = [7, 5]" in first.out


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("learning_rate = 3.0", "unknown key 'learning_rate'"),
        ("lrr = 3.0", "did you mean 'lr'"),
        ("batchsize = 3", "did you mean 'batch_size'"),
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
        ("data_dir = 3", "data_dir is 3, but it must be text in quotes"),
        ("[training]\nlr = 3.0", "unknown key 'training'"),
        ("lr = 3.0 4.0", "is not a TOML file"),
        ("lr = 3.0\nlr = 4.0", "is not a TOML file"),
    ],
)
def test_a_wrong_preset_is_refused_by_name(text: str, wanted: str, tmp_path: Path) -> None:
    path = toml(tmp_path / "mine.toml", text)
    with pytest.raises(UserError) as refusal:
        load_preset(path)
    assert wanted in str(refusal.value)
    assert path in str(refusal.value)


def test_a_preset_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_bytes(b"\xff\xfe\x00lr")
    with pytest.raises(UserError, match="not a TOML file"):
        load_preset(str(tmp_path / "c.toml"))


@pytest.mark.parametrize("name", ["3b1c", "none.toml", ""])
def test_an_unknown_preset_is_refused_with_those_that_there_are(name: str) -> None:
    with pytest.raises(UserError, match="nielsen-ch1"):
        load_preset(name)


def test_a_whole_number_is_a_number() -> None:
    config = from_mapping({"lr": 3})
    assert type(config.lr) is float
    assert config.lr == 3.0


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("lr", [1e-9, 1e9], [0.0, -1.0, float("nan"), float("inf")]),
        ("l2", [0.0, 1.0], [-1e-9, float("nan"), float("inf")]),
        ("l1", [0.0, 1.0], [-1e-9, float("nan"), float("inf")]),
        ("max_norm", [0.0, 1.0], [-1e-9, float("nan"), float("inf")]),
        ("clip_norm", [0.0, 1.0], [-1e-9, float("nan"), float("inf")]),
        ("clip_value", [0.0, 1.0], [-1e-9, float("nan"), float("inf")]),
        ("dropout", [0.0, 0.999], [-0.1, 1.0, float("nan")]),
        ("expand", [(), ("shifts",), ("rotations", "shifts")], [("shifts", "shifts")]),
        ("momentum", [0.0, 0.999], [-0.1, 1.0, float("nan")]),
        ("betas", [()], [(-0.1, 0.9), (0.9, 1.0), (float("nan"),)]),
        ("eps", [1e-8], [0.0, -1.0, float("nan"), float("inf")]),
        ("batch_size", [1], [0, -1]),
        ("epochs", [1], [0, -1]),
        ("log_every", [1], [0, -1]),
        ("histogram_every", [0, 1], [-1]),
        ("max_steps", [0, 1], [-1]),
        ("warmup", [0, 1], [-1]),
        ("lr_epochs", [0], [-1]),
        ("patience", [0], [-1]),
        ("lr_factor", [0.5], [0.0, 1.0, -0.1, float("nan")]),
        ("validation", [0, 1], [-1]),
        ("examples", [0, 1], [-1]),
        ("threads", [0, 1, 1024], [-1, 1025]),
        ("check_every", [0, 1], [-1]),
        ("eval_every", [0, 1], [-1]),
        ("seed", [0, 2**63 - 1], [-1, 2**63]),
        ("hidden", [(1,), (3, 2, 1)], [(), (0,), (16, -1)]),
        ("shift", [0, 1, 100], [-1]),
        ("rotate", [0.0, 180.0], [-1e-9, 180.1, float("nan"), float("inf")]),
        ("activation", [("relu",), ("tanh", "relu", "sigmoid")], [(), ("relu", "relu"), ("relu",) * 4]),
    ],
)
def test_ranges(name: str, good: list, bad: list) -> None:
    for value in good:
        assert getattr(replace(configure(), **{name: value}), name) == value
    for value in bad:
        with pytest.raises(UserError, match=f"^--{name.replace('_', '-')} is .*, but it must be "):
            replace(configure(), **{name: value})


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("channels", [(1,), (3, 2, 1)], [(), (0,), (16, -1)]),
        ("blocks", [0, 1, 100], [-1]),
        ("dropout", [0.0, 0.999], [-0.1, 1.0, float("nan")]),
        ("activation", [("relu",), ("scaled_tanh",)], [(), ("relu", "relu")]),
    ],
)
def test_ranges_of_cnn(name: str, good: list, bad: list) -> None:
    for value in good:
        assert getattr(configure(model="cnn", **{name: value}), name) == value
    for value in bad:
        with pytest.raises(UserError, match=f"^--{name} is .*, but it must be "):
            configure(model="cnn", **{name: value})


@pytest.mark.parametrize(
    ("model", "option", "wanted"),
    [
        ("cnn", {"hidden": (5,)}, "--hidden goes with --model mlp, not with cnn"),
        ("lenet5", {"hidden": (5,)}, "--hidden goes with --model mlp, not with lenet5"),
        ("mlp", {"channels": (5,)}, "--channels goes with --model cnn, not with mlp"),
        ("lenet5", {"channels": (5,)}, "--channels goes with --model cnn, not with lenet5"),
        ("mlp", {"blocks": 0}, "--blocks goes with --model cnn, not with mlp"),
        ("lenet5", {"blocks": 0}, "--blocks goes with --model cnn, not with lenet5"),
        ("lenet5", {"dropout": 0.5}, "--dropout goes with --model mlp and cnn, not with lenet5"),
        ("lenet5", {"activation": ("tanh",) * 4}, "--activation is .*, but it must be one name for all .* lenet5"),
    ],
)
def test_an_option_that_the_model_has_not_is_refused(model: str, option: dict, wanted: str) -> None:
    with pytest.raises(UserError, match=wanted):
        configure(model=model, **option)


def test_only_one_way_to_clip() -> None:
    with pytest.raises(UserError, match="--clip-norm and --clip-value are two ways to clip"):
        configure(clip_norm=1.0, clip_value=1.0)


def test_label_smoothing_is_from_0_to_below_1_and_only_for_softmax() -> None:
    assert configure(loss="softmax-cross-entropy", label_smoothing=0.5).label_smoothing == 0.5
    for value in (-0.1, 1.0, float("nan")):
        with pytest.raises(UserError, match="label-smoothing"):
            configure(loss="softmax-cross-entropy", label_smoothing=value)
    with pytest.raises(UserError, match="label smoothing goes with"):
        configure(loss="quadratic", label_smoothing=0.1)


@pytest.mark.parametrize(
    ("optimizer", "option", "wanted"),
    [
        ("sgd", {"betas": (0.9,)}, "sgd has no betas"),
        ("sgd", {"eps": 1e-3}, "sgd has no eps"),
        ("adam", {"momentum": 0.9}, "adam has no momentum"),
        ("lion", {"eps": 1e-3}, "lion has no eps"),
        ("adam", {"betas": (0.9,)}, "adam takes 2 betas, such as 0.9 0.999, not 1"),
        ("rmsprop", {"betas": (0.9, 0.99)}, "rmsprop takes 1 betas, such as 0.99"),
    ],
)
def test_an_option_that_the_optimizer_has_not_is_refused(optimizer: str, option: dict, wanted: str) -> None:
    with pytest.raises(UserError, match=wanted):
        configure(optimizer=optimizer, **option)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"schedule": "step"}, "--schedule step has no length: give --lr-epochs"),
        ({"schedule": "exponential"}, "--schedule exponential has no length"),
        ({"schedule": "plateau", "validation": 10}, "--schedule plateau has no length"),
        ({"schedule": "halve", "validation": 10}, "--schedule halve has no length"),
        (
            {"schedule": "cosine", "lr_epochs": 3},
            "--lr-epochs goes with --schedule step, exponential, plateau, halve, not",
        ),
        (
            {"schedule": "one-cycle", "lr_factor": 0.1},
            "--lr-factor goes with --schedule step, exponential, plateau, not",
        ),
        ({"schedule": "halve", "lr_epochs": 3, "lr_factor": 0.1}, "--lr-factor goes with .* not with halve"),
        ({"schedule": "one-cycle", "warmup": 3}, "one-cycle has a warm-up of its own"),
        ({"schedule": "plateau", "lr_epochs": 3}, "--schedule plateau is decided on held-out .* give --validation"),
        ({"schedule": "halve", "lr_epochs": 3}, "--schedule halve is decided on held-out .* give --validation"),
        ({"patience": 3}, "--patience is decided on held-out .* give --validation"),
    ],
)
def test_a_schedule_without_what_it_needs_or_with_what_it_has_not_is_refused(options: dict, wanted: str) -> None:
    with pytest.raises(UserError, match=wanted):
        configure(**options)


def test_a_warmup_longer_than_the_run_is_refused(sample: Dataset) -> None:
    assert resolved(configure(warmup=99, epochs=1), sample).warmup == 99
    with pytest.raises(UserError, match="--warmup is 100, but it must be less than the run's 100 steps"):
        resolved(configure(warmup=100, epochs=1), sample)
    with pytest.raises(UserError, match="--warmup is 9, but it must be less than the run's 9 steps"):
        resolved(configure(warmup=9, max_steps=9), sample)


@pytest.mark.parametrize(
    ("optimizer", "settings"),
    [
        ("sgd", {"momentum": 0.0}),
        ("nesterov", {"momentum": 0.9}),
        ("adagrad", {"eps": 1e-8}),
        ("rmsprop", {"betas": (0.99,), "eps": 1e-8}),
        ("adam", {"betas": (0.9, 0.999), "eps": 1e-8}),
        ("lion", {"betas": (0.9, 0.99)}),
        ("muon", {"momentum": 0.95, "betas": (0.9, 0.999), "eps": 1e-8}),
    ],
)
def test_an_optimizer_has_its_own_defaults_and_they_are_written_down(
    optimizer: str, settings: dict, sample: Dataset
) -> None:
    config = configure(optimizer=optimizer)
    assert config.optimizer_settings == settings
    whole = resolved(config, sample)
    assert {name: getattr(whole, name) for name in settings} == settings


@pytest.mark.parametrize("impl", ["reference", "both"])
def test_check_every_is_for_manual_only(impl: str) -> None:
    with pytest.raises(UserError, match="--check-every goes with --impl manual"):
        configure(impl=impl, check_every=2)


@pytest.mark.parametrize(
    ("loss", "activation", "expected"),
    [
        ("quadratic", ("tanh",), ("tanh", "tanh", "tanh")),
        ("squared-error", ("relu", "tanh", "sigmoid"), ("relu", "tanh", "sigmoid")),
        ("softmax-cross-entropy", ("tanh",), ("tanh", "tanh", "identity")),
        ("sigmoid-cross-entropy", ("relu", "tanh", "identity"), ("relu", "tanh", "identity")),
    ],
)
def test_activations_per_layer(loss: str, activation: tuple, expected: tuple) -> None:
    assert configure(loss=loss, activation=activation).activations == expected


@pytest.mark.parametrize("loss", ["softmax-cross-entropy", "sigmoid-cross-entropy"])
def test_a_cost_of_logits_wants_identity_last(loss: str) -> None:
    with pytest.raises(UserError, match="must be identity, not relu"):
        configure(loss=loss, activation=("tanh", "tanh", "relu"))


def test_resolved_leaves_nothing_open(sample: Dataset) -> None:
    config = resolved(configure(dataset="auto", loss="softmax-cross-entropy", activation=("tanh",)), sample)
    assert config.dataset == "sample"
    assert config.device in ("cpu", "cuda")
    assert config.threads >= 1
    assert config.activation == ("tanh", "tanh", "identity")
    assert resolved(config, sample) == config


@pytest.mark.parametrize("model", ["lenet5", "cnn"])
def test_a_convolutional_network_is_resolved_with_one_activation(model: str, sample: Dataset) -> None:
    config = configure(model=model, activation=("tanh",), loss="softmax-cross-entropy")
    whole = resolved(config, sample)
    assert whole.activation == ("tanh",)
    assert resolved(whole, sample) == whole


def test_wide_channels_are_refused_by_their_name(sample: Dataset) -> None:
    with pytest.raises(UserError, match=r"--channels 20000 makes 7,200,500,010 parameters, but at most"):
        resolved(configure(model="cnn", channels=(20_000,)), sample)


@pytest.mark.parametrize(("option", "value"), [("shift", 1), ("rotate", 5.0)])
def test_only_pictures_are_moved(option: str, value: float, sample: Dataset) -> None:
    points = load("points")
    with pytest.raises(UserError, match=rf"--{option} moves pictures of height×width, and an example of points is 2"):
        resolved(configure(dataset="points", **{option: value}), points)
    assert getattr(resolved(configure(**{option: value}), sample), option) == value


def test_resolved_keeps_what_was_asked_for(sample: Dataset) -> None:
    config = resolved(configure(dataset="sample", device="cpu", threads=3), sample)
    assert (config.device, config.threads) == ("cpu", 3)


def found_threads(tmp_path: Path, *options: object, **environment: str) -> int:
    """The threads of a run of a large network in a process of its own."""
    command = [sys.executable, str(running.ROOT / "train.py"), "--hidden", "300", "300", "--dataset", "sample"]
    command += [*map(str, options), "--max-steps", "1", "--examples", "100", "--run-dir", str(tmp_path / "run")]
    subprocess.run(command, cwd=running.ROOT, env=environment_without_threads() | environment, check=True)
    return int(tomllib.loads((tmp_path / "run" / "config.toml").read_text())["threads"])


def environment_without_threads() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}


@pytest.mark.slow
@pytest.mark.parametrize("threads", ["1", "3"])
def test_threads_left_out_are_those_that_torch_found(threads: str, tmp_path: Path) -> None:
    environment = environment_without_threads() | {"OMP_NUM_THREADS": threads}
    command = [sys.executable, "-c", "import torch; print(torch.get_num_threads())"]
    alone = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert found_threads(tmp_path, OMP_NUM_THREADS=threads) == int(alone.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_threads_left_out_are_no_more_than_the_process_may_use(tmp_path: Path) -> None:
    allowed = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(allowed)})
        assert found_threads(tmp_path) == 1, "and not one for each of the machine's cores"
    finally:
        os.sched_setaffinity(0, allowed)


def test_a_small_network_gets_one_thread_and_a_large_one_what_torch_found(
    sample: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "FOUND_THREADS", 7)
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    assert resolved(configure(dataset="sample"), sample).threads == 1
    assert resolved(configure(dataset="sample", hidden=(512, 512)), sample).threads == 7
    assert resolved(load_preset("lenet5"), sample).threads == 7


def test_a_device_that_is_not_there_is_refused_in_one_line() -> None:
    for device in ("nonsense", "meta", "cuda:99", ""):
        with pytest.raises(UserError, match="this machine has cpu") as refusal:
            resolve_device(device, "float32")
        assert len(str(refusal.value)) < 400


@pytest.mark.skipif(torch.mps.is_available(), reason="there is an MPS device")
def test_mps_where_there_is_none_is_refused() -> None:
    with pytest.raises(UserError, match="--device mps cannot be used with --dtype float64"):
        resolve_device("mps", "float64")


@pytest.mark.parametrize("option", [{"impl": "both"}, {"check_every": 10}], ids=str)
def test_the_comparison_which_needs_float64_is_refused_on_mps(option: dict) -> None:
    with pytest.raises(UserError, match="--device mps has no float64"):
        configure(device="mps", dtype="float32", **option)


@pytest.mark.skipif(not torch.mps.is_available(), reason="no MPS device")
def test_float64_on_mps_is_refused() -> None:
    assert resolve_device("mps", "float32") == "mps"
    with pytest.raises(UserError, match="--device mps cannot be used with --dtype float64"):
        resolve_device("mps", "float64")
