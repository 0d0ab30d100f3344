"""The hand-written half is hand-written: no autograd at run time, none in the source, and nobody's help."""

import ast
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from gallery.parts import Cheating, Leaning
from lessons.lesson import LESSONS
from manual_backprop import layers
from manual_backprop.layers.activations import ACTIVATIONS
from manual_backprop.models.mlp import MLP
from manual_backprop.optimizers import SGD
from tests.support.against_torch import normal
from tests.support.both_ways import LOSSES, layer_examples
from tests.support.problems import manual_learner, random_batches, rates
from tests.support.running import manual_of, resolved
from training.data import Split
from training.families.configure import load_preset
from training.learners.manual import ManualLearner

ROOT = Path(__file__).resolve().parents[2]


class Operators(TorchDispatchMode):
    """Lists the operators that really run, by name; it sees them under inference mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        self.names.append(str(operator))
        return operator(*args, **(kwargs or {}))

    @property
    def backward(self) -> list[str]:
        return [name for name in self.names if "backward" in name]


NOISE = Split(normal(0, 40, 6), torch.arange(40) % 3)


def operators_of_two_steps(learner: ManualLearner) -> Operators:
    with Operators() as operators:
        learner.advance(random_batches(2, 5, 40), rates(2, 0.1))
    return operators


def perceptron(model: MLP, loss: str = "quadratic") -> ManualLearner:
    return manual_learner(model, loss, NOISE, dtype=torch.float32, momentum=0.9, l2=0.01)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_step_runs_no_backward_operator(activation, loss):
    operators = operators_of_two_steps(perceptron(MLP((6, 5, 4, 3), (activation, activation, "identity")), loss))
    assert len(operators.names) > 20
    assert {"aten.addmm.default", "aten.sub_.Tensor"} < set(operators.names)
    assert operators.backward == []


@pytest.mark.parametrize("preset", ["lenet5", "small-cnn"])
def test_a_step_of_a_convolutional_network_runs_no_backward_operator(preset, sample):
    operators = operators_of_two_steps(manual_of(resolved(load_preset(preset), sample), sample))
    assert any("conv2d" in name for name in operators.names)
    assert [name for name in operators.names if "batch_norm" in name or "pool" in name] == []
    assert operators.backward == []


@pytest.mark.parametrize("example", list(layer_examples(layers)), ids=lambda example: example[0])
def test_no_layer_runs_a_backward_operator(example):
    _, forward, backward, arguments, options = example
    with torch.inference_mode(), Operators() as operators:
        backward(*forward(*arguments)[: options["outputs"] + 1])
    assert len(operators.names) > 1
    assert operators.backward == []


def test_a_step_that_leans_on_a_backward_operator_is_caught():
    operators = operators_of_two_steps(perceptron(Leaning((6, 3), ("sigmoid",))))
    assert operators.backward == ["aten.sigmoid_backward.default"] * 2


def test_a_step_that_asks_autograd_raises():
    with pytest.raises(RuntimeError):
        operators_of_two_steps(perceptron(Cheating((6, 3), ("sigmoid",))))


@dataclass(frozen=True)
class Witness(MLP):
    """Notes in which grad mode it is called."""

    def forward(self, p, x, tape):
        assert torch.is_inference_mode_enabled()
        assert not torch.is_grad_enabled()
        assert not x.requires_grad
        return super().forward(p, x, tape)

    def backward(self, p, d_output, g, tape):
        assert torch.is_inference_mode_enabled()
        assert d_output.is_inference()
        return super().backward(p, d_output, g, tape)


@dataclass(frozen=True)
class WitnessSGD(SGD):
    def update(self, theta, gradient, state, lr, t, decay, split):
        assert torch.is_inference_mode_enabled()
        super().update(theta, gradient, state, lr, t, decay, split)


def test_the_whole_step_runs_under_inference_mode_and_nothing_requires_grad():
    learner = manual_learner(Witness((6, 5, 3), ("tanh", "identity")), "softmax-cross-entropy", NOISE)
    learner.optimizer = WitnessSGD(0.9)
    learner.optimizer_state = learner.optimizer.init(learner.params.theta)
    learner.advance(random_batches(3, 5, 40), rates(3, 0.1))
    nine = NOISE.batch(torch.arange(9), torch.float64)
    learner.evaluate(*nine)
    result = learner.backpropagate(*nine)
    tensors = [result.loss, *result.deltas.values(), *result.gradients.values(), *learner.parameters.values()]
    assert not any(tensor.requires_grad or tensor.grad_fn is not None for tensor in tensors)
    assert not learner.params.theta.is_inference()  # so that autograd, the oracle, can take it over


def sources(package: str) -> list[Path]:
    paths = sorted((ROOT / package).rglob("*.py"))
    assert paths
    return paths


def imports(path: Path) -> set[str]:
    """The full names of all modules and objects that a file imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


PACKAGES = ("manual_backprop", "reference", "gradient_check", "training")
OTHERS = ("explanation", "lessons", "tests", "train", "verify")
ALLOWED = {
    "manual_backprop": {"manual_backprop"},
    "reference": {"reference"},
    "gradient_check": {"gradient_check"},
    "training": {*PACKAGES},
    "explanation": {"explanation", "training", "manual_backprop"},
    "lessons": {"lessons", "training", "manual_backprop"},
}


@pytest.mark.parametrize("package", ALLOWED)
def test_arrows_run_one_way(package):
    for path in sources(package):
        ours = {name.split(".")[0] for name in imports(path)} & {*PACKAGES, *OTHERS}
        assert ours <= ALLOWED[package], f"{path} imports {ours - ALLOWED[package]}"


FORBIDDEN = re.compile(
    r"import (torch\.(nn|autograd|optim|func|jit|_C|ops|compile|library|utils)\b|functorch|importlib)"
    r"|\w*_backward$|call "
)
FORBIDDEN_NAMES = {
    "autograd", "nn", "optim", "func", "_C", "ops", "requires_grad", "requires_grad_", "retain_grad", "grad", "grad_fn",
    "no_grad", "enable_grad", "set_grad_enabled", "inference_mode", "item", "tolist", "numpy", "is_cuda", "detach",
}  # fmt: skip


def offences(source: str) -> list[str]:
    """What in a source text leans on autograd, decides the grad mode, or leaves the tensors.

    `getattr` by a name that stands there is no other than the attribute.
    """
    names, named = [], set()
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Call(func=ast.Name(id="getattr") as by_name, args=[_, ast.Constant(value=str(attribute)), *_]):
                named.add(by_name)
                names.append(attribute)
            case ast.Import():
                names += [f"import {alias.name}" for alias in node.names]
            case ast.ImportFrom():
                names += [f"import {node.module}.{alias.name}" for alias in node.names]
            case ast.Attribute():
                names.append(node.attr)
            case ast.Name(id="__import__" | "getattr" | "eval" | "exec") if node not in named:
                names.append(f"call {node.id}")
    return [name for name in names if name in FORBIDDEN_NAMES or FORBIDDEN.match(name)]


def test_the_source_uses_no_part_of_torch_that_differentiates():
    for path in sources("manual_backprop"):
        assert offences(path.read_text(encoding="utf-8")) == [], path


def test_the_lessons_differentiate_by_hand():
    """They may turn tensors into numbers and look up fields by name; everything else is as in manual_backprop."""
    for name in LESSONS:
        path = ROOT / "lessons" / f"{name.replace('-', '_')}.py"
        assert set(offences(path.read_text(encoding="utf-8"))) <= {"item", "tolist", "numpy", "call getattr"}, path


LEANING = [
    "import torch.nn.functional as F",
    "from torch import nn",
    "from torch.autograd import grad",
    "def f(x):\n    import torch.func",
    "import torch\ntorch.autograd.grad(C, x)",
    "x.requires_grad_()",
    "dz = torch.ops.aten.tanh_backward(dy, y)",
    "with torch.no_grad():\n    pass",
    "n = x.item()",
    "n = getattr(x, 'item', None)()",
    "dz = getattr(torch.ops, name)(dy, y)",
]


@pytest.mark.parametrize("source", LEANING)
def test_a_source_that_does_is_found(source):
    assert offences(source)


@pytest.mark.slow
@pytest.mark.parametrize("package", ["manual_backprop", "gradient_check", "reference"])
def test_each_package_loads_nothing_of_the_others(package):
    modules = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sources(package)]
    code = f"import sys, {', '.join(modules)}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert {*done.stdout.split()} & {*PACKAGES, *OTHERS} == {package}
