"""What is left out follows from what is set: the first experiment learns, and one line says what was chosen."""

import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import train
from tests.support.filling import CHOSEN, filled, parsed
from tests.support.running import call
from training.errors import UserError
from training.families import FAMILIES, defaults
from training.families.configure import default_preset, load_preset, preset_values

Capsys = pytest.CaptureFixture[str]


def choice(**asked: object) -> list[str]:
    """The one line, if any, that says what was filled in."""
    return [note for note in filled(**asked)[1] if not note.startswith("note: ")]


@pytest.mark.parametrize("model", FAMILIES)
def test_without_a_choice_what_is_filled_in_is_the_models_own_preset(model: str) -> None:
    usual = vars(load_preset(default_preset(model)))
    assert defaults.fill({**usual, **dict.fromkeys(CHOSEN)}, usual.keys() - set(CHOSEN)) == usual
    assert train.parse(["--model", model]).notes == []


@pytest.mark.parametrize(
    ("asked", "loss", "init", "lr"),
    [
        (dict(), "quadratic", "scaled-normal", 10),
        (dict(hidden=(30,)), "quadratic", "scaled-normal", 10),
        (dict(hidden=(100,)), "softmax-cross-entropy", "xavier", 1),
        (dict(hidden=(16, 16, 16)), "softmax-cross-entropy", "xavier", 1),
        (dict(activation=("relu",)), "softmax-cross-entropy", "he", 0.1),
        (dict(activation=("tanh",)), "softmax-cross-entropy", "xavier", 0.1),
        (dict(activation=("tanh", "gelu", "identity")), "softmax-cross-entropy", "he", 0.1),
        (dict(activation=("sigmoid", "sigmoid", "identity")), "softmax-cross-entropy", "scaled-normal", 1),
        (dict(activation=("sigmoid", "sigmoid", "identity"), loss="quadratic"), "quadratic", "scaled-normal", 0.1),
        (dict(activation=("sigmoid", "relu"), hidden=(16,)), "quadratic", "xavier", 0.1),
        (dict(activation=("tanh", "tanh", "sigmoid")), "quadratic", "xavier", 0.3),
        (dict(optimizer="adam"), "softmax-cross-entropy", "xavier", 0.005),
        (dict(optimizer="muon", activation=("silu",)), "softmax-cross-entropy", "he", 0.02),
        (dict(momentum=0.9), "softmax-cross-entropy", "xavier", 0.1),
        (dict(momentum=0.9, activation=("relu",)), "softmax-cross-entropy", "he", 0.01),
        (dict(optimizer="nesterov", momentum=0.95, activation=("relu",)), "softmax-cross-entropy", "he", 0.05),
        (dict(optimizer="nesterov", momentum=0.5, activation=("relu",)), "softmax-cross-entropy", "he", 0.1),
        (dict(label_smoothing=0.1), "softmax-cross-entropy", "scaled-normal", 1),
        (dict(loss="squared-error"), "squared-error", "scaled-normal", 5),
        (dict(loss="squared-error", activation=("relu",)), "squared-error", "he", 0.15),
        (dict(loss="sigmoid-cross-entropy"), "sigmoid-cross-entropy", "scaled-normal", 1),
        (dict(loss="quadratic", activation=("relu", "relu", "identity")), "quadratic", "he", 0.1),
        (dict(model="lenet5", optimizer="sgd"), "softmax-cross-entropy", "xavier", 0.1),
        (dict(model="cnn", optimizer="adam"), "softmax-cross-entropy", "he", 0.005),
        (dict(model="cnn", loss="quadratic", optimizer="sgd"), "quadratic", "he", 0.1),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_cost_start_and_rate_follow(asked: dict[str, Any], loss: str, init: str, lr: float) -> None:
    config, _ = filled(**asked)
    assert (config.loss, config.init, config.lr) == (loss, init, lr)


@pytest.mark.parametrize(
    ("activation", "output"),
    [(name, name) for name in ("sigmoid", "tanh", "scaled_tanh")]
    + [(name, "sigmoid") for name in ("relu", "leaky_relu", "softplus", "gelu", "gelu_tanh", "silu", "identity")],
)
def test_a_cost_of_activations_has_outputs_between_its_targets(activation: str, output: str) -> None:
    def activations(loss: str, *names: str) -> tuple[str, ...]:
        return filled(activation=names, loss=loss)[0].activations

    assert activations("quadratic", activation) == (activation, activation, output)
    assert activations("sigmoid-cross-entropy", activation)[-1] == "identity"
    assert activations("quadratic", activation, activation, "identity")[-1] == "identity", "what is named stays"


def test_the_optimizer_decides_about_l2_of_the_convolutional_networks() -> None:
    for model in ("lenet5", "cnn"):
        assert filled(model=model, activation=("tanh",))[0].l2 == 0.05
        assert filled(model=model, optimizer="sgd")[0].l2 == 0, "coupled, so much would be all that is learned"
        assert filled(model=model, optimizer="sgd", l2=0.01)[0].l2 == 0.01
    assert filled(optimizer="adamw")[0].l2 == 0


@pytest.mark.sweep(4)
@pytest.mark.parametrize(
    ("given", "value"), [("lr", 0.25), ("loss", "sigmoid-cross-entropy"), ("init", "zeros"), ("l2", 0.125)]
)
@pytest.mark.parametrize("form", ["--{} {}", "--{}={}"])
def test_what_the_command_line_sets_stays(given: str, value: object, form: str) -> None:
    config = parsed(f"--activation relu --optimizer adam {form.format(given, value)}")
    assert getattr(config, given) == value
    if given != "loss":
        assert config.loss == "softmax-cross-entropy"


@pytest.mark.sweep(4)
@pytest.mark.parametrize("preset", ["3b1b", "nielsen-ch1", "best-mlp", "lenet5", "small-cnn"])
def test_what_a_named_preset_sets_stays(preset: str) -> None:
    own, changed = load_preset(preset), parsed(f"--preset {preset} --optimizer muon --eps 1e-8")
    kept = {"loss", "init", "lr"} & preset_values(preset).keys()
    assert kept
    for name in kept:
        assert getattr(changed, name) == getattr(own, name), name


@pytest.mark.slow
def test_what_a_preset_leaves_out_follows_from_what_it_sets(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('activation = ["relu"]\nhidden = [20]\n')
    assert (load_preset(str(mine)).loss, load_preset(str(mine)).init) == ("softmax-cross-entropy", "he")
    assert parsed(f"--preset {mine}") == load_preset(str(mine))
    assert parsed(f"--preset {mine} --optimizer adam").lr == 0.005, "and from the command line"
    mine.write_text('activation = ["relu"]\nlr = 0.7\n')
    assert parsed(f"--preset {mine} --optimizer adam").lr == 0.7


@pytest.mark.slow
def test_outputs_that_were_filled_in_are_not_taken_for_named(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('activation = ["relu"]\nloss = "quadratic"\n')
    assert parsed(f"--preset {mine}").activation == ("relu", "relu", "sigmoid")
    assert parsed(f"--preset {mine} --hidden 30").activation == ("relu", "sigmoid")
    assert parsed(f"--preset {mine} --loss softmax-cross-entropy").activations[-1] == "identity"
    assert parsed(f"--preset {mine} --model lenet5").activation == ("relu",)
    told = train.parse(["--preset", str(mine), "--init", "he", "--lr", "1"]).notes[0]
    assert "sigmoid outputs: chosen for relu, quadratic and sgd" in told


@pytest.mark.parametrize("line", ["--activation --loss quadratic", "--hidden --activation relu", "--momentum 1 --lr 1"])
def test_a_wrong_value_is_refused_where_others_are_left_out(line: str) -> None:
    with pytest.raises(UserError, match=r"^--(activation|hidden|momentum) is "):
        train.parse(line.split())


def test_a_run_is_resumed_with_what_it_had(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(replace(load_preset("3b1b"), activation=("relu",)).to_toml())
    assert parsed(f"--resume {tmp_path}").lr == 10


RELU, CE = ("relu",), "softmax cross-entropy"


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (dict(activation=RELU), f"{CE}, he, rate 0.1: chosen for relu and sgd; --loss, --init or --lr changes that"),
        (dict(activation=RELU, lr=1.0), f"{CE}, he: chosen for relu and sgd; --loss or --init changes that"),
        (dict(optimizer="adam"), f"{CE}, xavier, rate 0.005: chosen for sigmoid and adam; --loss, --init or --lr"),
        (dict(activation=("tanh",), loss="quadratic"), "xavier, rate 0.3: chosen for tanh, quadratic and sgd; --init"),
        (
            dict(activation=RELU, loss="quadratic", init="he", lr=1.0),
            "chosen for relu, quadratic and sgd; --activation changes",
        ),
        (dict(hidden=(100,)), "chosen for sigmoid, hidden layers of 100 and sgd;"),
        (dict(label_smoothing=0.1), "chosen for sigmoid, label smoothing and sgd;"),
        (
            dict(activation=("tanh", "tanh", "sigmoid"), init="he"),
            "rate 0.3: chosen for tanh, sigmoid outputs and sgd;",
        ),
        (dict(model="cnn", optimizer="sgd", init="he", lr=1.0), f"{CE}, L2 0: chosen for relu and sgd; --loss or --l2"),
        (dict(momentum=0.9), "chosen for sigmoid and sgd with momentum 0.9;"),
        (
            dict(model="cnn", optimizer="sgd"),
            "he, rate 0.1, L2 0: chosen for relu and sgd; --loss, --init, --lr or --l2",
        ),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_one_line_says_what_was_filled_in(asked: dict[str, Any], told: str) -> None:
    (said,) = choice(**asked)
    assert told in said


@pytest.mark.parametrize(
    "asked",
    [
        dict(epochs=3, seed=4, batch_size=10),
        dict(lr=3.0),
        dict(activation=RELU, loss="softmax-cross-entropy", init="he", lr=1.0),
    ],
    ids=str,
)
def test_nothing_is_said_where_nothing_else_was_filled_in(asked: dict[str, Any]) -> None:
    assert choice(**asked) == []


def test_nothing_is_said_of_a_presets_own_settings() -> None:
    assert train.parse(["--preset", "best-mlp"]).notes == []
    assert train.parse(["--preset", "3b1b", "--model", "lenet5"]).notes == []


@pytest.mark.slow
def test_the_line_follows_the_data_and_the_written_configuration_holds_what_it_says(
    tmp_path: Path, capsys: Capsys
) -> None:
    done = call(capsys, train.main, "--activation", "gelu", "--max-steps", 1, "--run-dir", tmp_path / "run")
    assert done.status == 0
    assert done.out.splitlines()[1].startswith("softmax cross-entropy, he, rate 0.1: chosen for gelu and sgd;")
    written = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert (written["loss"], written["init"], written["lr"]) == ("softmax-cross-entropy", "he", 0.1)
    assert written["activation"] == ["gelu", "gelu", "identity"]
    printed = call(capsys, train.main, "--activation", "gelu", "--print-config")
    assert tomllib.loads(printed.out)["lr"] == 0.1
