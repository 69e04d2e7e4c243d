"""Training heads: LLMEmbed's row 15 beside the released loop, logistic heads beside scikit-learn.

    python benchmarks/training.py --data DIR --model FOLDER [--scale 1.0] [--cache DIR] [--out docs/results]

FOLDER holds a decoder, the deep backbone of row 15; the bundle is its sentence encoder. Features of SST-2 are read by
sonde, through a store where --cache names one. Two loops train the same network on them, with the released code's
layers, loss, optimiser, batch and learning rate:

released   a data set that gives row by row, a loader with one worker, float32; accuracy, precision, recall and F1 of
           scikit-learn on every batch
sonde      `sonde.learn.training.train`, as the recipe `llmembed-15` calls it

Each is timed over a few epochs of a few rows, in turn; what the whole set takes is estimated from that, by epoch and
row. On fewer rows both train to the end with equal settings, and their accuracy is compared; beside them the recipe
with the setting and the learning rate that it chooses itself. Differences to the released code that are on both sides:
the cross entropy takes logits, and the features were pooled over real tokens.

run          measure, and write training.{json,md}
released     the loop of the released code, from its description
to_markdown  the page, from the JSON alone

Source: LLMEmbed (ACL 2024, arXiv 2406.03725), sections 3 and 4, and its released code.
"""

import json
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from heads import compared, heads_table, solvers_sentence
from ratios import ROUNDS, against, asked_of, interleaved, publish, ratio, sha256_of, shown, threads, timed
from sklearn.metrics import accuracy_score, precision_recall_fscore_support
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from sonde.bench import machine
from sonde.bench.cells import table
from sonde.bench.datasets import DataSet, read_split
from sonde.bench.machine import Stopwatch
from sonde.learn import mlp
from sonde.learn.fusion import Dropout, Roles
from sonde.learn.head import PAPER, FusionNetwork, Setting, predict
from sonde.learn.metrics import mcnemar
from sonde.learn.problem import Problem
from sonde.learn.splitting import make_folds
from sonde.learn.targets import Targets, encode, encode_against
from sonde.learn.training import Data, train
from sonde.plan import BUNDLE
from sonde.read.extract import read
from sonde.read.sources import Cache, expand_blocks, open_sources, open_store

ROW = 15
ROWS = 67_349  # the training split of SST-2
EPOCHS = 50  # the paper's heads converge around there
TIMED_ROWS, TIMED_EPOCHS = 16_384, 1
"""What each loop is timed on, in every round: enough that the start of the worker, once an epoch, weighs little."""
WHOLE_ROWS = 2000
WHOLE = replace(PAPER, batch=256)
"""Where both train to the end: smaller batches, so that so few rows give as many steps as learning takes."""
WHOLE_RATE = 1e-3
HEAD_ROWS, PATH_ROWS = 6000, 3000
HEAD_SETS = ("ag_news", "sst2")
DEPTHS = "hidden.-5:"  # phi(m, 1) to phi(m, 5) of the paper
LEAST = 10.0
SEED = 0


@dataclass(frozen=True)
class Features:
    """What row 15 fuses, of one split."""

    blocks: tuple[Tensor, ...]
    """Deep, the last layer first, then the sentence embedding, each (row, width) float32."""
    targets: Targets
    """Labels."""

    def repeated(self, rows: int) -> "Features":
        """So many rows, in turn and again from the first."""
        order = np.arange(rows) % self.targets.rows
        return Features(tuple(block[torch.from_numpy(order)] for block in self.blocks), self.targets.take(order))

    def data(self) -> Data:
        """As sonde's loop takes them."""
        indicator = torch.from_numpy(self.targets.indicator)
        return Data(self.blocks, indicator, torch.ones(len(indicator)), self.targets.multilabel)

    def network(self, setting: Setting) -> FusionNetwork:
        """Untrained, the same for the same seed."""
        widths = [block.shape[1] for block in self.blocks]
        return FusionNetwork(ROW, Roles(tuple(widths[:-1]), (widths[-1],)), self.targets.n_classes, setting)


class PerRow(Dataset[tuple[list[Tensor], Tensor]]):
    """Features that are handed out row by row."""

    def __init__(self, features: Features) -> None:
        self.blocks, self.ids = features.blocks, torch.from_numpy(features.targets.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, row: int) -> tuple[list[Tensor], Tensor]:
        return [block[row] for block in self.blocks], self.ids[row]


def run(
    *,
    data: Path,
    model: Path,
    out: Path,
    scale: float = 1.0,
    rounds: int = ROUNDS,
    thread_count: int | None = None,
    rows: int = ROWS,
    epochs: int = EPOCHS,
    timed_rows: int = TIMED_ROWS,
    timed_epochs: int = TIMED_EPOCHS,
    backbone: str = BUNDLE,
    cache: Path | None = None,
    note: str = "",
) -> list[Path]:
    """Train, compare, time, and write the page.

    Parameters
    ----------
    data, model, out : Path
        Folders of the data sets, of a decoder, and of `training.{json,md}`.
    scale : float
        Share of the rows that are read, trained on and timed; below 1 for a trial.
    rounds : int
    thread_count : int, optional
        By default the machine's cores.
    rows, epochs : int
        Of the run whose time is estimated; `epochs` also those of the comparison of accuracies.
    timed_rows, timed_epochs : int
        What each loop is timed on.
    backbone : str
        The sentence encoder.
    cache : Path, optional
        A store for the features; none by default.
    note : str
        A sentence for the page.

    Returns
    -------
    list of Path
    """
    names, timing = {0: str(model), 1: backbone}, (timed_rows, timed_epochs)
    with threads(thread_count) as count:
        content: dict[str, Any] = {
            "setting": {
                "model": Path(model).name, "backbone": backbone, "rounds": rounds, "threads": count, "note": note,
                "rows": rows, "epochs": epochs, "timed_epochs": timed_epochs,
            },
            "machine": machine.describe(),
            "fusion": fusion(data, names, scale, rounds, epochs, timing, cache),
            "heads": heads(data, backbone, scale, rounds, cache),
        }  # fmt: skip
    return publish(out, "training", content, to_markdown)


# ------------------------------------------------------------------- row 15


def fusion(
    data: Path, names: Mapping[int, str], scale: float, rounds: int, epochs: int, timing: tuple[int, int], cache: Cache
) -> dict[str, Any]:
    """Accuracy of both loops run to the end, and times of both over some rows and epochs."""
    known = read_split(data, "sst2", "train").take(max(int(WHOLE_ROWS * scale), 40), SEED)
    unseen = read_split(data, "sst2", "test").take(None if scale >= 1 else max(int(872 * scale), 20), SEED)
    trained, tested = features(known, unseen, names, cache)
    many = trained.repeated(max(int(timing[0] * scale), 8))
    setting = replace(PAPER, epochs=timing[1])
    contenders = {
        "released": lambda: timed(lambda: released(many, setting, PAPER.learning_rates[0])),
        "sonde": lambda: timed(lambda: ours(many, setting, PAPER.learning_rates[0])),
    }
    return {
        "accuracy": accuracy(known, trained, tested, epochs),
        "timed_rows": many.targets.rows, "read_rows": len(known.texts), "widths": [b.shape[1] for b in many.blocks],
        "batch": setting.batch, "learning_rate": setting.learning_rates[0], "sha256": sha256_of(known.texts),
        "times": interleaved(contenders, rounds),
    }  # fmt: skip


def features(known: DataSet, unseen: DataSet, names: Mapping[int, str], cache: Cache) -> tuple[Features, Features]:
    """What row 15 fuses, of both splits, read by sonde."""
    sources = open_sources(names, max_tokens=None, long_text="cut", dtype="auto", device="cpu")
    blocks = [*expand_blocks(0, sources[0], DEPTHS, "mean")[::-1], *expand_blocks(1, sources[1], "sentence", "")]
    store, targets = open_store(cache), encode(known.labels.tolist())
    found = []
    for one, labels in ((known, targets), (unseen, encode_against(unseen.labels.tolist(), targets.classes, False))):
        window = read(one.texts, sources, blocks, store)
        found.append(Features(tuple(torch.from_numpy(window.blocks[block.name]) for block in blocks), labels))
    return found[0], found[1]


def ours(given: Features, setting: Setting, rate: float) -> FusionNetwork:
    """Train with sonde's loop."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        rows = torch.arange(given.targets.rows)
        return train(given.network(setting), given.data(), rows, setting, rate).network


def released(given: Features, setting: Setting, rate: float) -> FusionNetwork:
    """Train as the released code does, written anew from its description."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        network = with_plain_dropout(given.network(setting)).train()
        optimizer, loss_of = torch.optim.Adam(network.parameters(), lr=rate), nn.CrossEntropyLoss()
        loader = DataLoader(PerRow(given), batch_size=setting.batch, shuffle=True, num_workers=1)
        for _ in range(setting.epochs):
            for blocks, ids in loader:
                logits = network(blocks)  # row class
                loss = loss_of(logits, ids)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                predicted = logits.argmax(dim=1).numpy()  # row class -> row
                accuracy_score(ids.numpy(), predicted)
                precision_recall_fscore_support(ids.numpy(), predicted, average="macro", zero_division=0)
    return network.eval()


def with_plain_dropout(network: FusionNetwork) -> FusionNetwork:
    """The same network with torch's own dropout."""
    for parent in list(network.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Dropout):
                setattr(parent, name, nn.Dropout(child.rate))
    return network


def accuracy(known: DataSet, trained: Features, tested: Features, epochs: int) -> dict[str, Any]:
    """Both loops to the end at equal settings, and the recipe as it is; accuracies on the test split, and seconds."""
    setting = replace(WHOLE, epochs=epochs)
    blocks = {f"{place}": block.numpy() for place, block in enumerate(trained.blocks)}
    folds = make_folds(known.texts, trained.targets, seed=SEED)
    problem = Problem(blocks, known.texts, trained.targets, np.ones(len(known.texts)), folds, "accuracy", SEED)
    *deep, sentence = blocks
    ways: dict[str, Callable[[], FusionNetwork]] = {
        "released": lambda: released(trained, setting, WHOLE_RATE),
        "sonde": lambda: ours(trained, setting, WHOLE_RATE),
        "recipe": lambda: mlp.fit(problem, deep, [sentence], ROW).model.network,  # type: ignore[attr-defined]
    }
    right, seconds = {}, {}
    for name, way in ways.items():
        watch = Stopwatch()
        network = way()
        seconds[name] = watch.read()["seconds"]
        found = predict(network, tested.blocks).argmax(dim=1).numpy()  # row class -> row
        right[name] = found == tested.targets.ids
    return {
        "train_rows": len(known.texts), "test_rows": tested.targets.rows, "batch": setting.batch, "rate": WHOLE_RATE,
        "accuracy": {name: round(float(bits.mean()), 5) for name, bits in right.items()}, "seconds": seconds,
        "p": {name: round(mcnemar(right[name], right["released"]), 4) for name in ("sonde", "recipe")},
    }  # fmt: skip


# --------------------------------------------------------------------- heads


def heads(data: Path, backbone: str, scale: float, rounds: int, cache: Cache) -> dict[str, Any]:
    """Logistic regressions on the last layer of each set."""
    sources = open_sources({0: backbone}, max_tokens=None, long_text="cut", dtype="auto", device="cpu")
    blocks, store = expand_blocks(0, sources[0], "hidden.-1", "mean"), open_store(cache)
    found = {}
    for name in HEAD_SETS:
        known = read_split(data, name, "train").take(max(int(HEAD_ROWS * scale), 40), SEED)
        x = read(known.texts, sources, blocks, store).blocks[blocks[0].name]
        found[name] = compared(x, known.labels, max(int(PATH_ROWS * scale), 40), rounds, SEED)
    return found


# --------------------------------------------------------------------- page


def to_markdown(content: Mapping[str, Any]) -> str:
    """The whole page, from the JSON alone."""
    setting, found = content["setting"], content["fusion"]
    parts = [
        "# Training",
        "Written by `python benchmarks/training.py`; every figure comes from `training.json` beside this page.",
        " ".join(filter(None, [machine.sentence(content["machine"]), setting["note"]])),
        "## LLMEmbed row 15",
        f"{setting['model']} and {setting['backbone']}, features of {', '.join(map(str, found['widths']))} numbers of "
        f"SST-2, read by sonde; {found['read_rows']:,} rows, in turn, make up the {found['timed_rows']:,} that are "
        f"timed. Both loops train the same network in batches of {found['batch']:,} at a rate of "
        f"{found['learning_rate']:g}, {setting['threads']} threads; {setting['rounds']} rounds in turn, medians. The "
        "released loop would take hours for the whole set of a large model, so neither was run on it: what it takes is "
        "estimated by epoch and row. The worker starts once an epoch, which weighs more here than it would there.",
        loops_table(content),
        accuracy_sentence(content),
        "## Logistic heads",
        f"Last layer of {setting['backbone']}, mean, standardised, without units that are shut on all "
        "rows; both within 1e-5 of the lowest loss.",
        heads_table(content["heads"]),
        solvers_sentence(content["heads"]),
    ]
    return "\n\n".join(parts) + "\n"


def loops_table(content: Mapping[str, Any]) -> str:
    """Seconds of both loops, what the whole run takes by estimate, and their ratio."""
    setting, found = content["setting"], content["fusion"]
    measured = f"{setting['timed_epochs']} epoch(s) of {found['timed_rows']:,} rows, seconds"
    times = found["times"]
    share = setting["rows"] * setting["epochs"] / (found["timed_rows"] * setting["timed_epochs"])
    gain = ratio(times["released"], times["sonde"])
    rows = []
    for name in ("released", "sonde"):
        seconds = statistics.median(one["seconds"] for one in times[name])
        rows.append([name, f"{seconds:.2f}", f"{seconds * share / 60:,.1f}"])
    whole = f"{setting['epochs']} epochs of {setting['rows']:,} rows, minutes (estimated)"
    verdict = f"released / sonde: {shown(gain)}; at least {LEAST:g} is asked: {against(gain, LEAST)}."
    return f"{table(['loop', measured, whole], rows)}\n\n{verdict}"


def accuracy_sentence(content: Mapping[str, Any]) -> str:
    """Accuracy of both loops at equal settings, and of the recipe as it is."""
    found, epochs = content["fusion"]["accuracy"], content["setting"]["epochs"]
    said = {name: f"{100 * value:.2f}% ({found['seconds'][name]:.0f} s)" for name, value in found["accuracy"].items()}
    kept = found["p"]["sonde"] > 0.05 or found["accuracy"]["sonde"] >= found["accuracy"]["released"]
    return (
        f"Accuracy, {found['train_rows']:,} training and {found['test_rows']:,} test rows, both loops run to the end: "
        f"{epochs} epochs, batches of {found['batch']}, rate {found['rate']:g}: released {said['released']}, sonde "
        f"{said['sonde']}, McNemar p = {found['p']['sonde']:.3f}: {'equal' if kept else '**not equal**'}. The recipe "
        f"llmembed-15 as it is, its search for a rate and its epochs included: {said['recipe']}, p = "
        f"{found['p']['recipe']:.3f}."
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, write, and print the ratios."""
    parser = asked_of(__doc__)
    parser.add_argument("--model", type=Path, required=True, help="folder of a decoder")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the rows, for a trial (%(default)s)")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of the estimate (%(default)s)")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="epochs of the estimate (%(default)s)")
    parser.add_argument("--timed-rows", type=int, default=TIMED_ROWS, help="rows that are timed (%(default)s)")
    parser.add_argument("--timed-epochs", type=int, default=TIMED_EPOCHS, help="epochs that are timed (%(default)s)")
    parser.add_argument("--backbone", default=BUNDLE, help="sentence encoder, folder or id (%(default)s)")
    parser.add_argument("--cache", type=Path, help="a store for the features (default: none)")
    written = run(**vars(parser.parse_args(arguments)))
    content = json.loads(written[0].read_text(encoding="utf-8"))
    sys.stdout.write(f"{loops_table(content)}\n\n{accuracy_sentence(content)}\n\n{heads_table(content['heads'])}\n")
    sys.stdout.write("".join(f"{path}\n" for path in written))


if __name__ == "__main__":
    main()
