"""To which characters a prediction of the next one is sensitive: the numbers, and the page, of explain.py for texts.

The log-probability of one token is differentiated with respect to the embedding's output at every token before it: by
the hand-written backward pass, in float64, at the trained θ, with a gradient at the last step's output only. Central
differences measure the same.
"""

import html
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from string import Template

import torch
from torch import Tensor

from explanation.plotly_layout import Chart, Panel
from explanation.plotly_traces import PALE, number
from manual_backprop.losses import SoftmaxCrossEntropy
from manual_backprop.parameters import Parameters
from manual_backprop.tape import Tape
from training.data import Dataset
from training.data.text import ENDS_OF_LINES, SPACES, Vocabulary, visible
from training.errors import UserError
from training.evaluation import BLOCK, examples_of
from training.families.model import Model
from training.prediction import Trained
from training.usual import usual_torch

TEMPLATE = Path(__file__).with_name("text.html")
LONGEST = 128  # tokens before the predicted one
PLACES = 1000  # of the held-out text at most, among which one is picked
SHOWN = 8  # predictions, and rows of the first table
STEP = 1e-5  # of central differences, of an embedding's length
SEQUENCES = 32  # at a time, because forward keeps every step
DARK = (0, 75, 55)  # of the largest gradient; a gradient of zero is white


@dataclass(frozen=True)
class Place:
    """Ids `before` (T,) a predicted token, `target`, which is None for a prompt. `why` may be empty."""

    before: Tensor
    target: int | None
    what: str
    why: str = ""


@dataclass(frozen=True, eq=False)
class Reading:
    """What the page shows, in float64: `norms` (T,) are ‖∂ log p/∂e_t‖, and `measured` (T,) the same by differences."""

    trained: Trained
    place: Place
    target: int  # the token that p is the probability of
    probabilities: Tensor  # (V,)
    norms: Tensor
    measured: Tensor

    @property
    def unit(self) -> str:
        return self.trained.config.tokens.removesuffix("s")

    def name(self, id_: int) -> str:
        return visible(self.trained.data.classes[id_])

    @property
    def likeliest(self) -> list[int]:
        return self.probabilities.argsort(descending=True, stable=True)[:SHOWN].tolist()

    @property
    def off(self) -> float:
        """The largest difference between `norms` and `measured`, over the largest norm."""
        return ((self.norms - self.measured).abs().max() / self.norms.max()).item() if self.norms.any() else 0.0


def prompted(trained: Trained, prompt: str) -> Place:
    """The end of the user's text. Raises UserError if it is empty or has tokens that the network never saw."""
    ids = Vocabulary(trained.data.classes, trained.config.tokens).encode("--prompt", prompt)
    return Place(torch.tensor(ids[-_window(trained) :]), None, "the end of your prompt")


def at_index(trained: Trained, data: Dataset, index: int) -> Place:
    """The token at this place of the held-out text, counted from 0."""
    ids = data.test.tensors()["ids"]
    if not 1 <= index < len(ids):
        raise UserError(
            f"--index is {index}, but it must be from 1 to {len(ids) - 1:,}: the held-out text has {len(ids):,} "
            f"{trained.config.tokens}, and the first has none before it"
        )
    before = ids[max(0, index - _window(trained)) : index]
    return Place(before, int(ids[index]), f"{trained.config.tokens.removesuffix('s')} {index:,} of the held-out text")


@usual_torch()
def picked(trained: Trained, data: Dataset, pick: str) -> Place:
    """Among the ends of the held-out text's segments, the costliest, or the one about which the network is undecided.

    The data set is as the network reads it, in segments.
    """
    test, unit = data.test, trained.config.tokens.removesuffix("s")
    T, kind = test.targets, f"places of the held-out text, the end of each {test.targets:,} {trained.config.tokens}"
    rows, targets = [], []
    for indices in torch.arange(min(len(test), PLACES)).split(examples_of(BLOCK, test)):
        x, y = test.batch(indices, trained.dtype)
        rows.append(trained.learner.outputs(x).view(*x.shape, -1)[:, -1].double().softmax(dim=1))
        targets.append(y.view(x.shape)[:, -1])
    p, y = torch.cat(rows), torch.cat(targets)
    costs, best = -p[range(len(y)), y].log(), p.topk(2)[0]
    if pick == "costly":
        segment = int(costs.argmax())
        why = f"its cost is the highest of {len(y):,} {kind} (their median is {costs.median():.2g})"
    else:
        segment = int((2 * best[:, 1] - best[:, 0]).argmax())
        first, second = (f"{value:.3g}" for value in best[segment].tolist())
        why = f"the network is the least decided about it of {len(y):,} {kind} (two {unit}s have {first} and {second})"
    place = at_index(trained, data, (segment + 1) * T)
    return Place(place.before, place.target, place.what, why)


def _window(trained: Trained) -> int:
    return min(*trained.data.shape, LONGEST)


class Network:
    """A trained network that reads text, in float64. Its cost is the softmax cross-entropy, as that of every text."""

    def __init__(self, trained: Trained) -> None:
        self.model: Model = trained.learner.model
        self.params = Parameters(self.model.shapes, dtype=torch.float64)
        self.params.load_state_dict(trained.learner.params)
        self.buffers = trained.learner.buffers
        self.tokens = len(trained.data.classes)

    def outputs(self, x: Tensor, tape: Tape, **others: Tensor) -> Tensor:
        """Logits (B·T, V) for ids x (B, T); `others` replace parameters."""
        params: Mapping[str, Tensor] = dict(self.params) | others
        return self.model.forward(params, x, tape)

    def backward(self, ids: Tensor, target: int | None) -> tuple[Tensor, int, Tensor, str]:
        """p (V,) after ids (T,), the target, ∂ log p_target/∂e (T, C), and the name of the embedding's matrix.

        Without a target it is the likeliest token.
        """
        tape = Tape(buffers=self.buffers, observes=True)
        output = self.outputs(ids.unsqueeze(0), tape)
        if not output.isfinite().all():
            raise UserError("the outputs are not finite: give the checkpoint of a network that did not diverge")
        if target is None:
            target = int(output[-1].argmax())
        loss = SoftmaxCrossEntropy()
        _, cache = loss.forward(output[-1:], torch.tensor([target]))
        d_output = torch.zeros_like(output)
        d_output[-1:] = -loss.backward(1.0, cache)  # log p is minus the cost
        self.model.backward(self.params, d_output, {}, tape)
        name, call = next((name, call) for name, call in tape.calls.items() if call.kind == "embedding")
        matrix = next(key for key, value in self.params.items() if value.data_ptr() == call.given[0][0].data_ptr())
        return output[-1].softmax(dim=0), target, tape.deltas[name][0], matrix

    def differences(self, ids: Tensor, target: int, gradient: Tensor, matrix: str) -> Tensor:
        """(T,): the slope of log p_target along each token's gradient (T, C), by central differences.

        To move the vector of one token alone, it gets a row of its own behind the embedding's.
        """
        T, E = len(ids), self.params[matrix]
        norms = gradient.norm(dim=1, keepdim=True)
        step = STEP * E[ids].norm(dim=1, keepdim=True).clamp(min=1e-3)
        move = step * torch.where(norms > 0, gradient / norms, 0.0)
        rows = torch.cat([E, E[ids] + move, E[ids] - move])
        x = ids.repeat(2 * T, 1)
        x[range(2 * T), [*range(T), *range(T)]] = torch.arange(len(E), len(rows))
        logs = []
        for some in x.split(SEQUENCES):
            output = self.outputs(some, Tape(buffers=self.buffers, records=False), **{matrix: rows})
            last = output.view(len(some), T, -1)[:, -1, : self.tokens]  # a tied output has more
            logs.append(last.log_softmax(dim=1)[:, target])
        up, down = torch.cat(logs).split(T)
        return (up - down) / (2 * step[:, 0])


@usual_torch()
def read(trained: Trained, place: Place) -> Reading:
    network = Network(trained)
    with torch.inference_mode():
        p, target, gradient, matrix = network.backward(place.before, place.target)
        measured = network.differences(place.before, target, gradient, matrix)
    return Reading(trained, place, target, p, gradient.norm(dim=1), measured)


def page(r: Reading) -> str:
    """The HTML."""
    steps, T, p = r.trained.learner.steps, len(r.place.before), r.probabilities[r.target].item()
    comes = "the likeliest" if r.place.target is None else "the one that comes"
    order = r.norms.argsort(descending=True, stable=True).tolist()
    context = f" The network reads the {T:,} {r.unit}s before the predicted one, from an empty state."
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        title=f"Sensitivity of a prediction: {html.escape(r.place.what)}",
        why=f"<p>It was picked because {html.escape(r.place.why)}.</p>" if r.place.why else "",
        facts=f"Model {r.trained.config.model}, after {steps:,} steps.{context}",
        unit=r.unit,
        target=html.escape(r.name(r.target)),
        comes=comes,
        p=number(p),
        cost=number(-r.probabilities[r.target].log().item()),
        alt=html.escape(_alt(r, order)),
        strip=_strip(r),
        predictions=_predictions(r),
        largest=_norms(r, order[:SHOWN]),
        every=_norms(r, list(range(T))),
        full=number(r.norms.max().item()),
        off=number(r.off, digits=2),
    )


def _alt(r: Reading, order: list[int]) -> str:
    text = "".join(r.name(i) for i in r.place.before.tolist())
    largest = ", ".join(f"{r.name(int(r.place.before[t]))} ({_back(r, t)} back)" for t in order[:3])
    return f"{text} → {r.name(r.target)}. The darkest, with the largest gradients: {largest}."


def _back(r: Reading, t: int) -> int:
    """How far before the predicted token."""
    return len(r.place.before) - t


def _strip(r: Reading) -> str:
    full = r.norms.max().item() or 1.0
    spans = []
    for t, (id_, norm) in enumerate(zip(r.place.before.tolist(), r.norms.tolist(), strict=True)):
        depth, token = norm / full, r.trained.data.classes[id_]
        color = ",".join(f"{255 + depth * (end - 255):.0f}" for end in DARK)
        ink = ";color:#fff" if depth > 0.7 else ""
        tip = f"{r.name(id_)}, {_back(r, t)} back: {number(norm)}"
        shown = " " if token in SPACES else html.escape(r.name(id_))
        spans.append(f'<span style="background:rgb({color}){ink}" title="{html.escape(tip)}">{shown}</span>')
        if token in ENDS_OF_LINES:
            spans.append("<br>")
    return "".join(spans)


def _predictions(r: Reading) -> str:
    best, rows = r.probabilities.max().item(), []
    for id_ in dict.fromkeys([*r.likeliest, r.target]):
        p = r.probabilities[id_].item()
        name = html.escape(r.name(id_))
        bar = f'<i style="width:{100 * p / best:.1f}%"></i>'
        rows.append(f"<tr><td>{f'<b>{name}</b>' if id_ == r.target else name}<td>{number(p)}<td class=bar>{bar}")
    return "".join(rows)


def _norms(r: Reading, places: list[int]) -> str:
    return "".join(
        f"<tr><td>{html.escape(r.name(int(r.place.before[t])))}<td>{_back(r, t)}"
        f"<td>{number(r.norms[t].item())}<td>{number(r.measured[t].item())}"
        for t in places
    )


def chart(r: Reading) -> Chart:
    """The same as a figure, for TensorBoard."""
    T, best = len(r.place.before), r.likeliest
    bar = {"type": "bar", "marker": {"color": PALE}}
    names = [html.escape(r.name(i)) for i in r.place.before.tolist()]
    norms = bar | {"x": list(range(T)), "y": r.norms.tolist()}
    odds = bar | {"orientation": "h", "x": r.probabilities[best].tolist(), "y": list(range(len(best)))}
    across = {"tickvals": list(range(T)), "ticktext": names}
    down = {"tickvals": list(range(len(best))), "ticktext": [html.escape(r.name(i)) for i in best]}
    down["range"] = [len(best) - 0.5, -0.5]
    title = f"‖∂ log p({html.escape(r.name(r.target))})/∂e‖ of each {r.unit} before it"
    return Chart([[Panel(title, [norms], across, {}, 3.0), Panel("probability of the next", [odds], {}, down)]])
