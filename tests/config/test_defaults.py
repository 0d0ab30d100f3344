"""What is left out follows from what is set; one line says what was chosen, and it learns, as docs/defaults.md says."""

import re
import tomllib
from dataclasses import replace
from statistics import mean

import pytest

import train
from benchmarks.defaults import EPOCHS, SEEDS, Job, jobs
from tests.support import running
from tests.support.filling import CHOSEN, filled, parsed
from tests.support.running import ROOT, call, resolved, train_loop
from training.errors import UserError
from training.families import FAMILIES, defaults
from training.families.configure import default_preset, load_preset, preset_values

CE, SAID = "softmax-cross-entropy", "softmax cross-entropy"
RELU, SIGMOIDS, TANHS = ("relu",), ("sigmoid", "sigmoid", "identity"), ("tanh", "tanh", "sigmoid")
RELUS, CNN = dict(activation=RELU, init="he", lr=1.0), dict(model="cnn", optimizer="sgd")


def choice(**asked):
    """The one line, if any, that says what was filled in."""
    return [note for note in filled(**asked)[1] if not note.startswith("note: ")]


@pytest.mark.parametrize("model", FAMILIES)
def test_without_a_choice_what_is_filled_in_is_the_models_own_preset(model):
    usual = vars(load_preset(default_preset(model)))
    assert defaults.fill({**usual, **dict.fromkeys(CHOSEN)}, usual.keys() - set(CHOSEN)) == usual
    assert train.parse(["--model", model]).notes == []


@pytest.mark.parametrize(
    ("asked", "chosen"),
    [
        (dict(hidden=(30,)), ("quadratic", "scaled-normal", 10)),
        (dict(hidden=(100,)), (CE, "xavier", 1)),
        (dict(hidden=(16, 16, 16)), (CE, "xavier", 1)),
        (dict(activation=RELU), (CE, "he", 0.1)),
        (dict(activation=("tanh",)), (CE, "xavier", 0.1)),
        (dict(activation=("tanh", "gelu", "identity")), (CE, "he", 0.1)),
        (dict(activation=SIGMOIDS), (CE, "scaled-normal", 1)),
        (dict(activation=SIGMOIDS, loss="quadratic"), ("quadratic", "scaled-normal", 0.1)),
        (dict(activation=("sigmoid", "relu"), hidden=(16,)), ("quadratic", "xavier", 0.1)),
        (dict(activation=TANHS), ("quadratic", "xavier", 0.3)),
        (dict(optimizer="adam"), (CE, "xavier", 0.005)),
        (dict(optimizer="muon", activation=("silu",)), (CE, "he", 0.02)),
        (dict(momentum=0.9), (CE, "xavier", 0.1)),
        (dict(momentum=0.9, activation=RELU), (CE, "he", 0.01)),
        (dict(optimizer="nesterov", momentum=0.95, activation=RELU), (CE, "he", 0.05)),
        (dict(optimizer="nesterov", momentum=0.5, activation=RELU), (CE, "he", 0.1)),
        (dict(label_smoothing=0.1), (CE, "scaled-normal", 1)),
        (dict(loss="squared-error"), ("squared-error", "scaled-normal", 5)),
        (dict(loss="squared-error", activation=RELU), ("squared-error", "he", 0.15)),
        (dict(loss="sigmoid-cross-entropy"), ("sigmoid-cross-entropy", "scaled-normal", 1)),
        (dict(loss="quadratic", activation=("relu", "relu", "identity")), ("quadratic", "he", 0.1)),
        (dict(model="lenet5", optimizer="sgd"), (CE, "xavier", 0.1)),
        (dict(model="cnn", optimizer="adam"), (CE, "he", 0.005)),
        (dict(model="cnn", loss="quadratic", optimizer="sgd"), ("quadratic", "he", 0.1)),
    ],
    ids=str,
)
def test_cost_start_and_rate_follow(asked, chosen):
    config, _ = filled(**asked)
    assert (config.loss, config.init, config.lr) == chosen


@pytest.mark.parametrize(
    ("activation", "output"),
    [(name, name) for name in ("sigmoid", "tanh", "scaled_tanh")]
    + [(name, "sigmoid") for name in ("relu", "leaky_relu", "softplus", "gelu", "gelu_tanh", "silu", "identity")],
)
def test_a_cost_of_activations_has_outputs_between_its_targets(activation, output):
    def activations(loss, *names):
        return filled(activation=names, loss=loss)[0].activations

    assert activations("quadratic", activation) == (activation, activation, output)
    assert activations("sigmoid-cross-entropy", activation)[-1] == "identity"
    assert activations("quadratic", activation, activation, "identity")[-1] == "identity", "what is named stays"


def test_the_optimizer_decides_about_l2_of_the_convolutional_networks():
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
def test_what_the_command_line_sets_stays(given, value, form):
    config = parsed(f"--activation relu --optimizer adam {form.format(given, value)}")
    assert getattr(config, given) == value
    if given != "loss":
        assert config.loss == "softmax-cross-entropy"


@pytest.mark.sweep(4)
@pytest.mark.parametrize("preset", ["3b1b", "nielsen-ch1", "best-mlp", "lenet5", "small-cnn"])
def test_what_a_named_preset_sets_stays(preset):
    own, changed = load_preset(preset), parsed(f"--preset {preset} --optimizer muon --eps 1e-8")
    kept = {"loss", "init", "lr"} & preset_values(preset).keys()
    assert kept
    for name in kept:
        assert getattr(changed, name) == getattr(own, name), name


@pytest.mark.slow
def test_what_a_preset_leaves_out_follows_from_what_it_sets(tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text('activation = ["relu"]\nhidden = [20]\n')
    assert (load_preset(str(mine)).loss, load_preset(str(mine)).init) == ("softmax-cross-entropy", "he")
    assert parsed(f"--preset {mine}") == load_preset(str(mine))
    assert parsed(f"--preset {mine} --optimizer adam").lr == 0.005, "and from the command line"
    mine.write_text('activation = ["relu"]\nlr = 0.7\n')
    assert parsed(f"--preset {mine} --optimizer adam").lr == 0.7


@pytest.mark.slow
def test_outputs_that_were_filled_in_are_not_taken_for_named(tmp_path):
    mine = tmp_path / "mine.toml"
    mine.write_text('activation = ["relu"]\nloss = "quadratic"\n')
    assert parsed(f"--preset {mine}").activation == ("relu", "relu", "sigmoid")
    assert parsed(f"--preset {mine} --hidden 30").activation == ("relu", "sigmoid")
    assert parsed(f"--preset {mine} --loss softmax-cross-entropy").activations[-1] == "identity"
    assert parsed(f"--preset {mine} --model lenet5").activation == RELU
    told = train.parse(["--preset", str(mine), "--init", "he", "--lr", "1"]).notes[0]
    assert "sigmoid outputs: chosen for relu, quadratic and sgd" in told


@pytest.mark.parametrize("line", ["--activation --loss quadratic", "--hidden --activation relu", "--momentum 1 --lr 1"])
def test_a_wrong_value_is_refused_where_others_are_left_out(line):
    with pytest.raises(UserError, match=r"^--(activation|hidden|momentum) is "):
        train.parse(line.split())


def test_a_run_is_resumed_with_what_it_had(tmp_path):
    (tmp_path / "config.toml").write_text(replace(load_preset("3b1b"), activation=RELU).to_toml())
    assert parsed(f"--resume {tmp_path}").lr == 10


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        (dict(activation=RELU), f"{SAID}, he, rate 0.1: chosen for relu and sgd; --loss, --init or --lr changes that"),
        (dict(activation=RELU, lr=1.0), f"{SAID}, he: chosen for relu and sgd; --loss or --init changes that"),
        (dict(optimizer="adam"), f"{SAID}, xavier, rate 0.005: chosen for sigmoid and adam; --loss, --init or --lr"),
        (dict(activation=("tanh",), loss="quadratic"), "xavier, rate 0.3: chosen for tanh, quadratic and sgd; --init"),
        (dict(RELUS, loss="quadratic"), "chosen for relu, quadratic and sgd; --activation changes"),
        (dict(hidden=(100,)), "chosen for sigmoid, hidden layers of 100 and sgd;"),
        (dict(label_smoothing=0.1), "chosen for sigmoid, label smoothing and sgd;"),
        (dict(activation=TANHS, init="he"), "rate 0.3: chosen for tanh, sigmoid outputs and sgd;"),
        (dict(CNN, init="he", lr=1.0), f"{SAID}, L2 0: chosen for relu and sgd; --loss or --l2"),
        (dict(momentum=0.9), "chosen for sigmoid and sgd with momentum 0.9;"),
        (CNN, "he, rate 0.1, L2 0: chosen for relu and sgd; --loss, --init, --lr or --l2"),
    ],
    ids=str,
)
def test_one_line_says_what_was_filled_in(asked, told):
    (said,) = choice(**asked)
    assert told in said


def test_nothing_is_said_where_nothing_else_was_filled_in():
    for asked in (dict(epochs=3, seed=4, batch_size=10), dict(lr=3.0), dict(RELUS, loss=CE)):
        assert choice(**asked) == []
    for preset in ("--preset best-mlp", "--preset 3b1b --model lenet5"):
        assert train.parse(preset.split()).notes == []


@pytest.mark.slow
def test_the_line_follows_the_data_and_the_written_configuration_holds_what_it_says(tmp_path, capsys):
    done = call(capsys, train.main, "--activation", "gelu", "--max-steps", 1, "--run-dir", tmp_path / "run")
    assert done.status == 0
    assert done.out.splitlines()[1].startswith("softmax cross-entropy, he, rate 0.1: chosen for gelu and sgd;")
    written = tomllib.loads((tmp_path / "run" / "config.toml").read_text())
    assert (written["loss"], written["init"], written["lr"]) == ("softmax-cross-entropy", "he", 0.1)
    assert written["activation"] == ["gelu", "gelu", "identity"]
    assert tomllib.loads(call(capsys, train.main, "--activation", "gelu", "--print-config").out)["lr"] == 0.1


def measured_jobs():
    """One of each combination that has figures; an optimizer or activation that somebody added need not have any."""
    mlp = defaults.measured()["mlp"]
    known = [job for job in jobs() if job.seed == 0 and job.optimizer in mlp]
    return [job for job in known if job.activation in mlp["sgd"]["quadratic"]]


def test_what_is_measured_is_measured_with_everything_else_and_on_the_page():
    figures = defaults.measured()
    for job in measured_jobs():
        accuracies = figures[job.model][job.optimizer][job.cost][job.activation]
        assert len(accuracies) == SEEDS
        assert all(0 <= accuracy <= 1 for accuracy in accuracies), job
    page = (ROOT / "docs" / "defaults.md").read_text(encoding="utf-8")
    for cost in defaults.COSTS:
        table = page.partition(f"### 784-16-16-10, {defaults.spelled(cost)}\n")[2].partition("###")[0]
        (activations,) = re.findall(r"^\| optimizer \| rate \| (.*) \|$", table, re.M)
        for optimizer, by_cost in figures["mlp"].items():
            (row,) = re.findall(rf"^\| {optimizer} \| (.*) \|$", table, re.M)
            rate, *cells = row.split(" | ")
            shown = dict(zip(activations.split(" | "), cells, strict=True))
            assert float(rate) == Job("mlp", optimizer, cost, "relu", 0).config.lr
            assert shown.keys() == by_cost[cost].keys()
            for activation, accuracies in by_cost[cost].items():
                assert shown[activation].strip("*").split(" ± ")[0] == f"{100 * mean(accuracies):.1f}"
                assert shown[activation].startswith("*") == (mean(accuracies) < defaults.GOOD)
    assert figures["epochs"] == EPOCHS == 8
    assert "torch" in figures["machine"]


def test_with_the_cost_that_is_filled_in_every_network_learns_but_for_few():
    """For each optimizer all activations but one at most; the cost is quadratic for sigmoid with sgd alone."""
    for optimizer, by_cost in defaults.measured()["mlp"].items():
        bad = []
        for activation in by_cost["quadratic"]:
            cost = filled(optimizer=optimizer, activation=(activation,))[0].loss
            assert cost == ("quadratic" if (optimizer, activation) == ("sgd", "sigmoid") else CE)
            bad += [activation] if mean(by_cost[cost][activation]) < defaults.GOOD else []
        assert len(bad) <= 1, (optimizer, bad)
    for model in ("lenet5", "cnn"):
        for by_cost in defaults.measured()[model].values():
            ((accuracies,),) = ([*by_activation.values()] for by_activation in by_cost.values())
            assert mean(accuracies) >= defaults.GOOD


@pytest.mark.long
def test_what_is_measured_is_what_train_makes_of_such_a_command_line():
    """Of every optimizer, cost and activation, but not of every combination."""
    for job in measured_jobs()[::13]:
        line = f"--model {job.model} --optimizer {job.optimizer} --loss {job.cost} --activation {job.activation}"
        asked, measured = (vars(FAMILIES[job.model].settled(config)) for config in (parsed(line), job.config))
        for name in (*CHOSEN, "activation", "hidden", "momentum", "schedule", "batch_size", "shift", "rotate"):
            assert asked.get(name) == measured.get(name), (line, name)


@pytest.mark.slow
def test_a_combination_that_learns_badly_is_named_with_its_figure():
    found = 0
    for job in measured_jobs():
        accuracy = mean(defaults.measured()[job.model][job.optimizer][job.cost][job.activation])
        _, said = filled(job.model, optimizer=job.optimizer, loss=job.cost, activation=(job.activation,))
        bad = [note for note in said if note.startswith(f"note: {job.optimizer} with {job.activation} and ")]
        assert len(bad) == (accuracy < defaults.GOOD), job
        assert not bad or f"reached only {accuracy:.0%} in 8 epochs of the sample" in bad[0]
        found += len(bad)
    assert found, "else the sentence is for nobody"


def test_the_cost_that_serves_better_is_named_and_nothing_is_said_of_settings_that_were_not_measured():
    _, (_, said) = filled(optimizer="lion", activation=RELU, loss="quadratic")
    better = mean(defaults.measured()["mlp"]["lion"][CE]["relu"])
    assert f"; with --loss softmax-cross-entropy it reached {better:.0%} (docs/defaults.md)" in said
    bad = dict(optimizer="lion", activation=("sigmoid",), loss="quadratic")
    assert any("reached only" in note for note in filled(**bad)[1])
    for other in (dict(lr=0.5), dict(init="he"), dict(activation=("sigmoid", "tanh", "sigmoid"))):
        assert not any("reached only" in note for note in filled(**bad | other)[1]), other


EXPERIMENTS = [
    *("--activation relu", "--activation tanh", "--optimizer adam", "--optimizer lion --activation gelu"),
    *("--momentum 0.9", "--hidden 100", "--hidden 60 40 --activation leaky_relu --optimizer rmsprop"),
    *("--activation relu --loss squared-error", "--dtype bfloat16 --activation silu --optimizer muon"),
]


@pytest.mark.long
@pytest.mark.parametrize("line", EXPERIMENTS)
def test_a_first_experiment_learns(line, sample, tmp_path):
    config = resolved(replace(parsed(line), dataset="sample", epochs=8), sample)
    train_loop(config, sample, tmp_path)
    assert running.values(tmp_path, "accuracy/test")[800] > 0.75


@pytest.mark.long
def test_the_first_command_does_what_it_did(tmp_path, capsys):
    """On the bundled sample with seed 0: 90.4% after 50 epochs, no line about settings or a run that does not learn."""
    options = ("--impl", "manual", "--dataset", "sample", "--threads", 1, "--run-dir", tmp_path / "run")
    done = call(capsys, train.main, *options)
    assert done.status == 0
    assert done.out.startswith("the bundled sample of MNIST")
    assert "does not learn" not in done.out
    assert running.values(tmp_path / "run", "accuracy/test")[5000] == pytest.approx(0.904, abs=0.01)
