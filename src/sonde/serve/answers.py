"""From what a model says to the bodies of answers.

classified   an `Answer` -> the body of POST /v1/classify
explained    an `Explanation` -> the body of POST /v1/explain
described    a model -> its entry in GET /v1/models
check_abstention   whether a model can withhold labels
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from sonde.explanation import Explanation
from sonde.learn import conformal
from sonde.serve.models import Answer, Model


def check_abstention(model: Model, abstain_below: float | None) -> None:
    """Raise an `ArgumentError` if a model has no one label to withhold."""
    if abstain_below is not None:
        model.classifier.answer_threshold(threshold=abstain_below)


def classified(model: Model, answer: Answer, alpha: float, abstain_below: float | None) -> dict[str, Any]:
    """The body of an answer, JSON values."""
    classifier = model.classifier
    probabilities = answer.probabilities
    labels = classifier.classes_.tolist()
    sets = conformal.predict_sets(probabilities, classifier.conformal_scores_, alpha)  # row class
    decided = classifier.decide(probabilities)  # row class
    results = []
    for row, every in enumerate(probabilities.tolist()):
        named = [labels[column] for column in decided[row].nonzero()[0]]
        top = None if classifier.multilabel_ else max(every)
        abstained = top is not None and abstain_below is not None and top < abstain_below
        results.append({
            "label": named if top is None else None if abstained else named[0],
            "probability": top,
            "probabilities": every,
            "label_set": [labels[column] for column in sets[row].nonzero()[0]],
            "abstained": abstained,
            "truncated": bool(answer.truncated[row]),
            "layers_run": int(answer.depths[row]),
        })  # fmt: skip
    return {"model": model.name, "labels": labels, "alpha": alpha, "results": results}


def explained(model: Model, found: Explanation) -> dict[str, Any]:
    """The body of an answer, JSON values; the text is not sent back."""
    body = {name: value for name, value in asdict(found).items() if name != "text"}
    return {"model": model.name, **body}


def described(model: Model) -> dict[str, Any]:
    """A model's entry in the list; folders of this machine are named by their last part alone."""
    classifier = model.classifier
    return {
        "name": model.name,
        "recipe": classifier.recipe,
        "labels": classifier.classes_.tolist(),
        "multilabel": classifier.multilabel_,
        "backbones": [_public(about["id"]) for about in classifier.backbones_.values()],
        "layers_run": model.layers_run,
        "layers": model.layers,
        "loaded": model.loaded,
    }


def _public(backbone: str) -> str:
    return Path(backbone).name if Path(backbone).exists() else backbone
