"""Draws one forward pass, a run from folder to folder, and a served answer, for docs/architecture.md and docs/serve.md.

Run it with ``make docs``. Every box names its file below src/evomoe.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

FOLDER = Path(__file__).parent / "architecture"

WIDTH = 9.0
"""Of every picture, in inches: 864 pixels in a browser."""
LINE = 0.165
"""From one line of a box to the next, in inches."""
TITLE, TEXT, FILE = 9.5, 8.5, 8.0
"""Font sizes in points."""


@dataclass(frozen=True)
class Kind:
    """What a box stands for, and its colours, which differ in lightness too."""

    name: str
    fill: str
    edge: str
    dashed: bool = False


CODE = Kind("code of EvoMoE, and its file", "#dcebf7", "#0072b2")
DATA = Kind("data: tensors or files", "#fff3d6", "#b87700")
FOREIGN = Kind("code of transformers", "#f2f2f2", "#777777", dashed=True)
ROOM = Kind("", "#ffffff", "#0072b2")


@dataclass(frozen=True)
class Box:
    """A box of a picture: x and y of its upper left corner, width and height, in inches from the upper left."""

    x: float
    y: float
    width: float
    height: float

    @property
    def left(self) -> tuple[float, float]:
        return self.x, self.y + self.height / 2

    @property
    def right(self) -> tuple[float, float]:
        return self.x + self.width, self.y + self.height / 2

    @property
    def top(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y

    @property
    def bottom(self) -> tuple[float, float]:
        return self.x + self.width / 2, self.y + self.height


class Picture:
    """A white page of so many inches, on which boxes and arrows are put."""

    def __init__(self, height: float) -> None:
        self.figure = Figure(figsize=(WIDTH, height))
        self.axes: Axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.set(xlim=(0, WIDTH), ylim=(height, 0))
        self.axes.axis("off")

    def box(
        self, at: tuple[float, float, float], kind: Kind, title: str, text: Sequence[str] = (), files: Sequence[str] = ()
    ) -> Box:
        """A box at (x, y, width), as high as its lines: a title, what happens, and the files where it does."""
        x, y, width = at
        lines = [(title, TITLE, {"weight": "bold"})]
        lines += [(line, TEXT, {}) for line in text]
        lines += [(file, FILE, {"family": "monospace", "color": kind.edge}) for file in files]
        found = Box(x, y, width, LINE * len(lines) + 0.17)
        self._frame(found, kind)
        for number, (line, size, style) in enumerate(lines):
            self.axes.text(x + width / 2, y + 0.17 + LINE * number, line, size=size, ha="center", va="center", **style)
        return found

    def room(self, box: Box, title: str, file: str = "") -> Box:
        """A large box around others, with a title in its upper left corner."""
        self._frame(box, ROOM)
        self.axes.text(box.x + 0.12, box.y + 0.17, title, size=TITLE, weight="bold", va="center")
        self.axes.text(box.x + box.width - 0.12, box.y + 0.17, file, size=FILE, family="monospace", color=ROOM.edge, ha="right",
                       va="center")  # fmt: skip
        return box

    def listing(self, at: tuple[float, float, float], folder: str, files: Sequence[tuple[str, str]]) -> Box:
        """A box at (x, y, width) of a folder's files, with what each holds."""
        x, y, width = at
        heads = [folder] if folder else []
        found = Box(x, y, width, LINE * (len(heads) + len(files)) + 0.17)
        self._frame(found, DATA)
        for number, head in enumerate([*heads, *(name for name, _ in files)]):
            indent = 0.15 if folder and number else 0.0
            style = {"weight": "bold" if number == 0 else "normal", "family": "monospace", "size": FILE}
            self.axes.text(x + 0.12 + indent, y + 0.17 + LINE * number, head, va="center", **style)
        for number, (_, what) in enumerate(files, start=len(heads)):
            self.label((x + width - 0.1, y + 0.17 + LINE * number), what, side="right", slanted=False)
        return found

    def arrow(self, *points: tuple[float, float]) -> None:
        """A line through the points with a head at its end."""
        for start, end in pairwise(points[:-1]):
            self.axes.plot(*zip(start, end, strict=True), color="#333333", linewidth=1.2, solid_capstyle="round")
        style = {"arrowstyle": "-|>", "color": "#333333", "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 11}
        self.axes.annotate("", xy=points[-1], xytext=points[-2], arrowprops=style)

    def label(self, at: tuple[float, float], text: str, kind: Kind | None = None, side: str = "left", angle: int = 0,
              slanted: bool = True) -> None:  # fmt: skip
        """Words beside an arrow or a file's name of a kind, aligned to a side."""
        if kind:
            style: dict[str, Any] = {"size": FILE, "family": "monospace", "color": kind.edge}
        else:
            style = {"size": TEXT, "style": "italic" if slanted else "normal"}
        self.axes.text(*at, text, ha="center" if angle else side, va="center", rotation=angle, **style)

    def legend(self, y: float, kinds: Sequence[Kind], x: float = 0.25) -> None:
        """One small box for each kind, in a row."""
        for kind in kinds:
            self._frame(Box(x, y, 0.26, 0.16), kind)
            self.axes.text(x + 0.36, y + 0.08, kind.name, size=TEXT, va="center")
            x += 2.6

    def _frame(self, box: Box, kind: Kind) -> None:
        style = "dashed" if kind.dashed else "solid"
        self.axes.add_patch(
            FancyBboxPatch((box.x, box.y), box.width, box.height, boxstyle="round,pad=0,rounding_size=0.06",
                           facecolor=kind.fill, edgecolor=kind.edge, linewidth=1.2, linestyle=style)
        )  # fmt: skip

    def save(self, path: Path) -> None:
        """Writes the picture; the same picture gives the same file."""
        with matplotlib.rc_context({"svg.hashsalt": "evomoe", "svg.fonttype": "path"}):
            self.figure.savefig(path, metadata={"Date": None, "Creator": None} if path.suffix == ".svg" else {})


STEPS = (
    ("score", "logits_TE"),
    ("hide", "dropout"),
    ("probabilities", "probs_TE"),
    ("choose", "index_TK"),
    ("weigh", "weight_TK"),
)
"""The steps of a router's ``route``, and what each gives."""


def forward_pass() -> Picture:
    """From token ids to logits and loss."""
    picture = Picture(7.95)
    left, width = 0.2, 2.85
    inputs = picture.box((left, 0.2, width), DATA, "inputs", ["input_ids, attention_mask,", "pixel_values, labels"])
    modality = picture.box(
        (left, 1.2, width),
        CODE,
        "modality",
        ["image, text or padding:", "read off the inputs, once a pass"],
        ["model/modality.py"],
    )
    noted = picture.box(
        (left, 2.35, width), CODE, "forward pass", ["holds the modality and the records,", "seen by every MoE layer"],
        ["model/forward_pass.py"],
    )  # fmt: skip
    layers = picture.box(
        (left, 3.95, width), FOREIGN, "the model's own layers",
        ["vision tower, projector, attention,", "dense FFNs: as before;", "an MoE layer in place of an FFN"],
    )  # fmt: skip
    output = picture.box((left, 5.4, width), FOREIGN, "output", ["logits and language loss"])
    loss = picture.box(
        (left, 6.55, width), CODE, "loss", ["language loss + sum of", "coefficient x auxiliary loss"], ["model/sparse_model.py"]
    )
    for start, end in pairwise([inputs, modality, noted, layers, output, loss]):
        picture.arrow(start.bottom, end.top)

    block = picture.room(Box(3.9, 0.2, 4.9, 5.85), "MoE layer", "model/block.py")
    column, wide = 4.3, 2.5
    real = picture.box((column, 0.6, wide), CODE, "real", ["takes the padding out: x_TD"], ["model/modality.py"])
    route = picture.room(Box(column, 1.55, 4.35, 1.5), "router: route", "model/routers/router.py")
    x, before = route.x + 0.075, None
    for name, gives in STEPS:
        step = picture.box((x, 1.95, 1.04 if name == "probabilities" else 0.69), CODE, name, [gives])
        if before:
            picture.arrow(before.right, step.left)
        x, before = step.x + step.width + 0.1, step
    picture.label((route.x + 0.12, 2.72), "score calls the router's own forward, such as")
    picture.label((route.x + 0.12, 2.9), "model/routers/dtr.py", CODE)
    routing = picture.box((column, 3.3, wide), DATA, "Routing", ["who goes where, how much it counts"], ["model/routing.py"])
    experts = picture.box((column, 4.25, wide), CODE, "experts", ["each runs once, on its tokens: y_TD"], ["model/experts.py"])
    restore = picture.box((column, 5.2, wide), CODE, "restore", ["back in place, padding is zero"], ["model/modality.py"])
    picture.arrow(real.bottom, (real.bottom[0], route.y))
    picture.arrow((routing.top[0], route.y + route.height), routing.top)
    picture.arrow(routing.bottom, experts.top)
    picture.arrow(experts.bottom, restore.top)
    picture.arrow(real.left, (4.1, real.left[1]), (4.1, experts.left[1]), experts.left)
    picture.label((4.02, 2.3), "x_TD", angle=90)

    record = picture.box((7.05, 3.3, 1.6), DATA, "LayerRecord", ["routing, modality,", "x_TD, experts"], ["model/routing.py"])
    picture.arrow(routing.right, (record.x, routing.right[1]))
    losses = picture.box(
        (5.75, 6.55, 3.05),
        CODE,
        "auxiliary losses",
        ["one number a layer,", "then the layers' mean or sum"],
        ["model/aux_losses/"],
    )
    picture.arrow(record.bottom, (record.bottom[0], losses.y))
    picture.label((record.bottom[0] - 0.1, 6.3), "the records of all MoE layers", side="right")
    picture.arrow(losses.left, loss.right)

    gap = (left + width + block.x) / 2
    for y, name in ((noted.right[1], "modality"), (4.2, "hidden_BSD"), (4.65, "hidden_BSD")):
        picture.label((gap, y - 0.11), name, side="center")
    picture.arrow(noted.right, (block.x, noted.right[1]))
    picture.arrow((left + width, 4.2), (block.x, 4.2))
    picture.arrow((block.x, 4.65), (left + width, 4.65))
    picture.legend(7.62, [CODE, DATA, FOREIGN])
    return picture


def run() -> Picture:
    """From a dense model and a recipe to the sparse model, folder by folder."""
    picture = Picture(10.2)
    left, width = 0.2, 4.0
    right, wide, elbow = 5.05, 3.6, 4.55
    picture.room(Box(4.9, 0.95, 3.9, 8.7), "the run's folder", "recipe/run_folder.py")

    inputs = picture.box((left, 0.2, width), DATA, "inputs", ["a dense model, training records, options"])
    check = picture.box(
        (left, 0.95, width), CODE, "read and check", ["every option and record of every stage,", "before anything is written"],
        ["recipe/recipe.py", "training/checked_run.py"],
    )  # fmt: skip
    stage1 = picture.box(
        (left, 2.2, width), CODE, "Stage I: warm-up", ["language model and projector train"], ["training/stages/stage1_warmup.py"]
    )
    stage2 = picture.box(
        (left, 3.2, width), CODE, "Stage II: expert evolution", ["the FFNs of the MoE layers train: expert 1;", "experts 2..E follow after each step"],
        ["training/stages/stage2_evolution.py", "training/evolution.py"],
    )  # fmt: skip
    stage3 = picture.room(Box(left, 4.5, width, 3.1), "Stage III: routing", "training/stages/stage3_routing.py")
    collapsed = picture.box(
        (left + 0.15, 4.85, width - 0.3), CODE, "collapsed?", ["reads diversity.json, refuses experts all alike"],
        ["training/collapse.py"],
    )  # fmt: skip
    upcycle = picture.box(
        (left + 0.15, 5.73, width - 0.3), CODE, "upcycle", ["expert 1 is the model's FFN, the others come from", "evolved_experts.safetensors"],
        ["conversion/upcycling.py", "conversion/expert_init/evolved.py"],
    )  # fmt: skip
    trains = picture.box((left + 0.15, 6.95, width - 0.3), CODE, "train", ["the router alone"])
    logged = picture.box(
        (left, 7.8, width), CODE, "log", ["every stage, while it trains: loss, distances, loads"], ["training/callbacks.py"]
    )
    report = picture.box((left, 8.75, width), CODE, "report", ["reads metrics.jsonl and the last model"], ["training/report.py"])

    recipe = picture.listing((right, 1.25, wide), "", [("recipe.json", "all that was asked for")])
    model1 = picture.listing((right, 2.2, wide), "stage1_warmup/", [("model/", "dense")])
    files2 = picture.listing(
        (right, 3.35, wide), "stage2_evolution/",
        [("model/", "dense, with expert 1 as FFN"), ("evolved_experts.safetensors", "2..E"), ("diversity.json", "distances to expert 1")],
    )  # fmt: skip
    model3 = picture.listing((right, 6.95, wide), "stage3_routing/", [("model/", "sparse, with a model card")])
    metrics = picture.listing((right, 7.97, wide), "", [("metrics.jsonl", "a line for every log")])
    written = picture.listing((right, 8.92, wide), "", [("report.md", "and its pictures")])

    picture.arrow(inputs.bottom, check.top)
    picture.arrow(check.bottom, stage1.top)
    picture.arrow(collapsed.bottom, upcycle.top)
    picture.arrow(upcycle.bottom, trains.top)
    for code, files in (
        (check, recipe),
        (stage1, model1),
        (stage2, files2),
        (trains, model3),
        (logged, metrics),
        (report, written),
    ):
        y = files.left[1] if files.height < 0.45 else files.y + 0.17
        picture.arrow((code.x + code.width, y), (files.x, y))
    for files, y in ((model1, stage2.y + 0.12), (files2, stage3.y + 0.17)):
        low = files.y + files.height - 0.1
        picture.arrow((files.x, low), (elbow, low), (elbow, y), (left + width, y))
    picture.legend(9.88, [CODE, DATA])
    return picture


def served() -> Picture:
    """From a request to its answer, by either engine."""
    picture = Picture(6.95)
    width, middle = 4.0, WIDTH / 2
    request = picture.box((middle - 1.9, 0.2, 3.8), DATA, "request", ["OpenAI's protocol: messages, pictures"])
    left, right = 0.2, WIDTH - width - 0.2
    picture.room(Box(left, 1.1, width, 4.5), "--engine transformers")
    picture.room(Box(right, 1.1, width, 4.5), "--engine vllm, or plain vllm serve")
    inside = width - 0.3

    def column(x: float, boxes: Sequence[tuple[Kind, str, Sequence[str], Sequence[str]]]) -> list[Box]:
        found: list[Box] = []
        for kind, title, text, files in boxes:
            y = found[-1].y + found[-1].height + 0.2 if found else 1.5
            found.append(picture.box((x + 0.15, y, inside), kind, title, text, files))
        for start, end in pairwise(found):
            picture.arrow(start.bottom, end.top)
        return found

    ours = column(
        left,
        [
            (CODE, "load, at the start", ["any model that evomoe loads, dense or sparse"], ["serving/transformers_server.py"]),
            (FOREIGN, "server", ["one answer at a time"], []),
            (CODE, "the model as it was trained", ["the modality is read off each pass"], ["model/sparse_model.py"]),
        ],
    )
    theirs = column(
        right,
        [
            (
                CODE,
                "check and register, at the start",
                ["refuses what would answer otherwise"],
                ["serving/vllm_engine.py", "serving/vllm_plugin.py"],
            ),
            (FOREIGN, "scheduler", ["chunks, cached prefixes, many users"], []),
            (CODE, "kinds of this step's tokens", ["read off their ids, once a step"], ["serving/vllm_model.py"]),
            (CODE, "router", ["no shape depends on the data"], ["serving/served_block.py"]),
            (FOREIGN, "experts", ["kernels of vLLM"], []),
        ],
    )
    answer = picture.box((middle - 1.9, 5.95, 3.8), DATA, "answer", ["streamed; greedy tokens are the same"])
    for boxes in (ours, theirs):
        x = boxes[0].top[0]
        picture.arrow(request.left if x < middle else request.right, (x, request.left[1]), boxes[0].top)
        picture.arrow(boxes[-1].bottom, (x, answer.left[1]), answer.left if x < middle else answer.right)
    picture.legend(6.62, [CODE, DATA, replace(FOREIGN, name="code of transformers or vLLM")])
    return picture


PICTURES: dict[str, Callable[[], Picture]] = {"forward_pass": forward_pass, "run": run, "served": served}
"""What each file of the folder shows."""


def draw(folder: Path, suffix: str = ".svg") -> None:
    """Writes every picture into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, make in PICTURES.items():
        make().save(folder / f"{name}{suffix}")


if __name__ == "__main__":
    draw(FOLDER)
