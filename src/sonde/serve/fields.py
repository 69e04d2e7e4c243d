"""What stands in the bodies of requests and answers, as FastAPI documents and checks it.

ClassifyRequest, ClassifyAnswer, Result   of POST /v1/classify
ExplainRequest, ExplainAnswer             of POST /v1/explain
ModelList, ModelEntry                     of GET /v1/models, and of a reload
State, Problem                            of probes, and of every error
sentence_of                               what pydantic found -> a sentence without the input in it
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, JsonValue, model_validator

Label = str | int | float | bool
"""Labels keep the type that they had in training."""

MODEL_HELP = "Name of a served model; the first one if it is left out."
MAX_TOP = 1000
"""Neurons and n-grams that an explanation lists at most: more nobody reads, and bodies stay small."""

TEXT = "My parcel never came. Where is it?"
CLASSIFY_EXAMPLES: list[JsonValue] = [
    {"text": TEXT},
    {"texts": [TEXT, "Please cancel my order."], "model": "support", "alpha": 0.1, "abstain_below": 0.6},
]
RESULT_EXAMPLE: dict[str, JsonValue] = {
    "label": "order_status",
    "probability": 0.97,
    "probabilities": [0.01, 0.97, 0.02],
    "label_set": ["order_status"],
    "abstained": False,
    "truncated": False,
    "layers_run": 4,
}
LABELS_EXAMPLE: list[JsonValue] = ["cancel_order", "order_status", "refund"]


# Bounds stand inside of `... | None`: pydantic applies those outside to None as well, and fails.
_Texts = Annotated[list[str], Field(min_length=1, fail_fast=True)]
"""Of a body with millions of wrong elements one error is made, not millions: they would hold up every request."""
_Probability = Annotated[float, Field(ge=0, le=1)]


class _Asked(BaseModel):
    """Unknown fields are refused and nothing is converted: a misspelt option would otherwise do nothing.

    What is null counts as left out: clients that write every field of theirs send it.
    """

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _name_one(cls, given: Any) -> Any:
        """Of unknown fields one is enough: a body may have a million of them, and pydantic makes an error of each."""
        if not isinstance(given, dict):
            return given
        known = cls.model_fields
        unknown = next((name for name in given if name not in known), None)
        return given if unknown is None else {name: given[name] for name in (*(known.keys() & given.keys()), unknown)}


class ClassifyRequest(_Asked):
    """One text, or many."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": CLASSIFY_EXAMPLES,
            "oneOf": [
                {"required": ["text"], "properties": {"text": {"type": "string"}}},
                {"required": ["texts"], "properties": {"texts": {"type": "array"}}},
            ],
        }
    )

    text: Annotated[str | None, Field(description="A text.")] = None
    texts: Annotated[_Texts | None, Field(description="Or many texts.")] = None
    model: Annotated[str | None, Field(description=MODEL_HELP)] = None
    alpha: Annotated[
        float,
        Field(gt=0, lt=1, description="Label sets miss the true label of this share of texts at most."),
    ] = 0.05
    abstain_below: Annotated[
        _Probability | None, Field(description="Withhold the label where its probability is below this.")
    ] = None


class ExplainRequest(_Asked):
    """One text, and what to say of it."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"text": TEXT}, {"text": TEXT, "label": "refund", "top": 3}]}
    )

    text: Annotated[str, Field(description="A text that is not blank, of at most 20,000 characters.")]
    model: Annotated[str | None, Field(description=MODEL_HELP)] = None
    label: Annotated[Label | None, Field(description="The label to explain; the most probable one if left out.")] = None
    against: Annotated[Label | None, Field(description="One other label, instead of all others.")] = None
    top: Annotated[int, Field(ge=0, le=MAX_TOP, description="Neurons and n-grams that are listed.")] = 10


class Result(BaseModel):
    """What a model says of one text."""

    label: Annotated[
        Label | list[Label] | None,
        Field(description="The most probable label; a list of multi-label models; null where the model abstains."),
    ]
    probability: Annotated[
        float | None, Field(description="Of the most probable label, also where it is withheld; null if multi-label.")
    ]
    probabilities: Annotated[list[float], Field(description="Of every label, in the order of `labels`.")]
    label_set: Annotated[list[Label], Field(description="Labels of which one is true, but for a share of alpha.")]
    abstained: Annotated[bool, Field(description="Whether the label is withheld.")]
    truncated: Annotated[bool, Field(description="Whether the text is longer than the model reads.")]
    layers_run: Annotated[int, Field(description="Blocks of the backbones that the text went through.")]


class ClassifyAnswer(BaseModel):
    """One result a text, in the order of the texts."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"model": "support", "labels": LABELS_EXAMPLE, "alpha": 0.05, "results": [RESULT_EXAMPLE]}]
        }
    )

    model: str
    labels: list[Label]
    alpha: float
    results: list[Result]


class ExplainAnswer(BaseModel):
    """The log-odds of a label, taken apart: score = bias + contributions of all tokens + remainder."""

    model_config = ConfigDict(extra="allow")

    model: str
    label: Label
    against: Label | None
    probability: float
    score: float
    bias: float
    remainder: float
    method: str
    tokens: list[dict[str, Any]]
    layers: list[dict[str, Any]]
    neurons: list[dict[str, Any]]
    grams: list[dict[str, Any]]


class ModelEntry(BaseModel):
    """A model that is served."""

    name: str
    recipe: str
    labels: list[Label]
    multilabel: bool
    backbones: list[str]
    layers_run: Annotated[int, Field(description="Blocks that a text goes through at most.")]
    layers: Annotated[int, Field(description="Blocks that the backbones have.")]
    loaded: Annotated[str, Field(description="When, in UTC.")]


class ModelList(BaseModel):
    """The first is asked where a request names none."""

    models: list[ModelEntry]
    max_texts: Annotated[int, Field(description="Texts that one request may have.")]


class State(BaseModel):
    """What a probe reads."""

    status: str


class Problem(BaseModel):
    """Every error: a sentence, and the id under which the log has the request."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"error": "There is no model 'suport'; there are: support.", "request_id": "7f"}]
        }
    )

    error: str
    request_id: str


_SENTENCES = {
    "missing": "{where} is missing.",
    "extra_forbidden": "{where} is no field of this request; it may have: {known}.",
    "string_type": "{where} must be text.",
    "model_attributes_type": "The body must be a JSON object.",
    "model_type": "The body must be a JSON object.",
    "list_type": "{where} must be a list.",
    "too_short": "{where} is empty; give one text at least.",
}
"""By pydantic's kind of error; others say what pydantic says."""


def sentence_of(errors: Sequence[Mapping[str, Any]], known: Sequence[str] = ()) -> str:
    """The first thing that is wrong, in a sentence that repeats nothing of the text."""
    first = errors[0]
    path = [part for part in first["loc"] if part != "body"]
    where = f"The field '{_path(path)}'" if path else "The body"
    if first["type"] == "missing" and not path:
        return "The body is missing: send a JSON object, with 'Content-Type: application/json'."
    if first["type"] in _SENTENCES:
        return _SENTENCES[first["type"]].format(where=where, known=", ".join(known))
    said = str(first["msg"])
    return f"{where} is wrong: {said[:1].lower()}{said[1:]}."


def _path(parts: Sequence[str | int]) -> str:
    """`texts[3]`; names of fields that we do not know are cut. Further words are kinds that pydantic tried."""
    return f"{parts[0]:.60}" + "".join(f"[{part}]" for part in parts[1:] if isinstance(part, int))
