"""What each command prints: one function a command, from the plain data that `--json` gives.

fit, evaluation, report, prediction, explanation, comparison, listening, exported, extraction, sites, inspection,
recipes, written
"""

import re
from collections.abc import Mapping
from typing import Any

from sonde.errors import ModelError
from sonde.show.layers import strata
from sonde.show.reasons import explanation
from sonde.show.terminal import facts, table

__all__ = [
    "comparison", "evaluation", "explanation", "exported", "extraction", "fit", "inspection", "listening", "prediction",
    "recipes", "report", "sites", "written",
]  # fmt: skip

Result = Mapping[str, Any]

SHOWN_CLASSES = 20
"""Classes that `inspect` names; the rest are in the manifest."""


def fit(result: Result) -> None:
    """What was trained, on what, how well it does out of fold, how long it took."""
    seconds, held = result["seconds"], result["out_of_fold"]
    drawn = f" drawn from {result['drawn_from']:,}" if result.get("drawn_from", 0) > result["rows"] else ""
    facts(
        {
            "model": result["model"],
            "recipe": result["recipe"],
            "rows": f"{result['rows']:,}{drawn}",
            "classes": result["classes"],
            "chosen": _choices(result["learner"]),
            "out-of-fold accuracy": held["accuracy"],
            "out-of-fold macro F1": held["macro_f1"],
            "out-of-fold log loss": held["log_loss"],
            "truncated rows": result["truncated_rows"],
            "seconds": f"{seconds['reading']:.1f} reading, {seconds['training']:.1f} training",
        }
    )


def evaluation(result: Result) -> None:
    """The figures, the error when only the surest texts are answered, then a line a class."""
    facts({name: value for name, value in result.items() if name not in ("per_class", "risk_coverage", "warnings")})
    if "risk_coverage" in result:
        points = [[p["coverage"], p["error"], p["threshold"]] for p in result["risk_coverage"]]
        table(["answered", "error", "from probability"], points)
    rows = [[str(r["label"]), r["precision"], r["recall"], r["f1"], int(r["support"])] for r in result["per_class"]]
    table(["label", "precision", "recall", "f1", "rows"], rows)


def report(result: Result) -> None:
    """Where the page is, and the figures that it begins with."""
    named = ("out", "bytes", "n", "accuracy", "macro_f1", "log_loss", "ece", "ece_95")
    facts({name: result[name] for name in named})


def prediction(result: Result) -> None:
    """Where the labels went, and how many of each."""
    known = {name: value for name, value in result.items() if name not in ("labels", "warnings") and value is not None}
    facts(known)
    if result["labels"]:
        table(["label", "rows"], [[label, rows] for label, rows in result["labels"].items()])
    else:
        facts({"labels": "none: no text is sure enough" if result["rows"] else "none: there are no rows"})


def comparison(result: Result) -> None:
    """A line a candidate, the best first; what was refused or not reached; which to take."""
    from sonde.bench.compare import HEADS, NOTE, lines

    table(["candidate", *HEADS], [[name, *line] for name, line in lines(result["cells"], result["metric"]).items()])
    facts({f"{name} failed": cell["failed"] for name, cell in result["cells"].items() if "failed" in cell})
    missing = ", ".join(result["missing"])
    facts({
        **({"not reached": f"{missing}; the same command goes on with them"} if missing else {}),
        "take": result["reason"],
        "kept in": ", ".join(result["written"]),
        "columns": NOTE,
    })  # fmt: skip


def listening(result: Result) -> None:
    """Where a service answers, and with which models."""
    facts({**result, "models": ", ".join(result["models"])})


def exported(result: Result) -> None:
    """The files, how large and fast the graph is, and how close to the model."""
    facts({
        "model": result["model"],
        "beside it": ", ".join(map(str, [result["about"], *result["tokenizers"]])),
        "weights": result["weights"],
        "bytes": result["bytes"],
        "texts per second": f"{result['texts_per_second']:.0f}",
        "compared on": f"{result['checked']:,} texts",
        "probabilities differ by": f"{result['difference']:.1e} at most",
        "labels that differ": result["changed"],
    })  # fmt: skip


def extraction(result: Result) -> None:
    """What was read into the store."""
    facts({**result, "blocks": len(result["blocks"])})


def sites(result: Result) -> None:
    """Where a backbone can be read."""
    bound = result["max_tokens"]
    facts(
        {
            "backbone": f"{result['backbone']}, {result['dtype']} on {result['device']}",
            "most tokens": f"{bound:,}" if bound else "no bound",
            "reads": result["reads"],
            "sentence": result["sentence"],
        }
    )
    table(
        ["site", "width", "poolings"],
        [
            [one["first"] if one["first"] == one["last"] else f"{one['first']} to {one['last']}", f"{one['width']:,}",
             " ".join(one["poolings"])]
            for one in result["sites"]
        ],
    )  # fmt: skip


def inspection(result: Result) -> None:
    """A saved model or a store; `ModelError` where somebody else has written what no fit writes."""
    try:
        _store(result) if result["kind"] == "store" else _model(result)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        what = " ".join([type(error).__name__, *str(error).splitlines()[:1]])
        raise ModelError(
            f"{result['path']} holds entries that sonde never writes ({what}); do not trust it."
        ) from error


def recipes(result: Result) -> None:
    """Every recipe: what it reads, how many backbones it needs."""
    rows = [[name, about["backbones"], about["title"]] for name, about in result["recipes"].items()]
    table(["recipe", "backbones", "what it reads"], rows)
    sources = dict.fromkeys(about["source"].split(", Table")[0] for about in result["recipes"].values())
    facts({"L B R": "the deep backbone's last five blocks, and sentence embeddings of a second and third backbone"})
    facts({"from": "; ".join(sources)})


def written(result: Result) -> None:
    """The files that a benchmark wrote."""
    facts({name: ", ".join(paths) for name, paths in result.items()})


def _choices(learner: Mapping[str, Any]) -> str:
    """What was chosen out of fold: weights of a blend, neurons and depth, C, learning rate and epochs."""
    if "weights" in learner:
        return " + ".join(f"{weight:.2f} {name}" for name, weight in learner["weights"].items() if weight)
    if "eta" in learner:
        chosen = f"eta {learner['eta']:g}, {learner['neurons']:,} neurons of the first {learner['layers']} layers"
        exits = learner.get("exits")
        return f"{chosen}; texts leave after {exits['mean_depth']:.2f} layers in the mean" if exits else chosen
    names = {"C": "C", "learning_rate": "learning rate", "epochs": "epochs"}
    return ", ".join(f"{shown} {learner[name]:g}" for name, shown in names.items() if learner.get(name) is not None)


def _store(result: Result) -> None:
    blocks = sorted(result["blocks"], key=lambda b: (b["backbone"], _natural(b["site"]), b["pooling"]))
    rows = [[b["backbone"], b["site"], b["pooling"], b["dtype"], b["rows"], b["dim"], b["bytes"]] for b in blocks]
    table(["backbone", "site", "pooling", "dtype", "rows", "dim", "bytes"], rows)
    facts({"bytes in all": sum(b["bytes"] for b in blocks)})


def _natural(site: str) -> list[str]:
    """hidden.10 comes after hidden.9."""
    return [part.zfill(8) for part in re.split(r"(\d+)", site)]


def _model(result: Result) -> None:
    summary = result["summary"]
    shown = {name: result[name] for name in ("path", "recipe", "protocol", "multilabel")}
    for index, about in result["backbones"].items():
        shown[f"backbone {index}"] = f"{about['id']} ({about['dtype']}, at most {about['max_tokens']} tokens)"
    shown["trained on rows"] = summary["rows"]
    shown["chosen"] = _choices(summary["learner"])
    shown["temperature"] = result["temperature"]
    shown["out-of-fold accuracy"] = summary["out_of_fold"]["accuracy"]
    more = " ..." if len(result["classes"]) > SHOWN_CLASSES else ""
    shown[f"{len(result['classes'])} classes"] = ", ".join(map(str, result["classes"][:SHOWN_CLASSES])) + more
    facts(shown)
    rows = [[name, str(tuple(about["shape"])), about["dtype"]] for name, about in result["arrays"].items()]
    table(["array", "shape", "dtype"], rows)
    strata(result["layers"])
    if "svg" in result:
        facts({"drawn": result["svg"]})
