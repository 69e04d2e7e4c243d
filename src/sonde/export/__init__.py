"""Fitted classifiers as ONNX files, which run without sonde, torch or Python.

to_onnx    fitted classifier -> files
Exported   what was written, how large it is, how fast, how close to the library
"""

import copy
import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sonde import __version__
from sonde.errors import ArgumentError, ReadingError, SondeWarning, need

if TYPE_CHECKING:
    from sonde.classifier import TextClassifier
    from sonde.export.running import Agreement
    from sonde.read.blocks import Source

__all__ = ["TOLERANCE", "Exported", "to_onnx"]

TOLERANCE = 1e-3
"""Most that a probability of the float32 file may differ from the library's. Other kernels alone give about 1e-6."""


@dataclass(frozen=True)
class Exported:
    """An exported classifier."""

    model: Path
    """The ONNX file."""
    about: Path
    """The same metadata as JSON, for languages whose onnxruntime does not read those of ONNX files."""
    tokenizers: tuple[Path, ...]
    """Tokenizers of the backbones."""
    weights: str
    """`float32` or `int8`."""
    bytes: int
    """Of the ONNX file."""
    texts_per_second: float
    """Of two sentences each, tokenised and classified in batches of 32 with as many threads as torch uses."""
    checked: int
    """Texts on which file and library were compared."""
    difference: float
    """Largest between their probabilities, the backbone read in float32."""
    changed: int
    """Of these texts, those that the file labels otherwise."""


def to_onnx(
    classifier: "TextClassifier", path: Path | str, *, int8: bool = False, texts: Sequence[str] | None = None
) -> Exported:
    """Write a fitted classifier as one ONNX graph: token ids in, calibrated probabilities out.

    The graph holds the backbone up to the deepest layer that is read, the taps, the poolings, the learner and the
    temperature. It takes `input_ids` and `attention_mask`, int64 (row, token), padded on the right; a second backbone
    has `input_ids_2` and `attention_mask_2`. It gives `probabilities`, float32 (row, class). Texts that are longer than
    the model reads are cut in the graph. For OUT.onnx, the tokenizer is written to OUT.tokenizer.json, and labels and
    the rest of the metadata to OUT.about.json.

    Parameters
    ----------
    classifier : TextClassifier
        Fitted. Recipes whose learner reads the text itself (`lexical`, and `auto` where its n-grams count) have no
        graph.
    path : path or str
        Of the ONNX file; what is there is replaced.
    int8 : bool
        Weights of 8 bits: a quarter of the size, about twice as fast, a little less exact.
    texts : sequence of str, optional
        On which file and library are compared; by default a few sentences of many lengths.

    Raises
    ------
    RecipeError, ArgumentError, BackboneError
        If the classifier has no graph, each with what to do instead.
    ReadingError
        If the float32 file disagrees with the library; nothing is written then.
    MissingExtraError
        If the extra `onnx` is not installed.
    """
    target, texts = _checked(classifier, path), None if texts is None else _some(texts)
    for module in ("onnx", "onnxscript", "onnxruntime"):
        need(module, "onnx")
    from sonde.export.graph import as_graph
    from sonde.export.running import CHECKED, Session, speed
    from sonde.export.vocabulary import check_ids, tokenizer_json
    from sonde.export.writing import as_onnx, check_size, in_int8

    exact = copy.copy(classifier)
    exact.dtype, exact.device, exact.cache = "float32", "cpu", None
    sources = exact.sources()
    graph = as_graph(exact, sources)
    check_size(graph)
    vocabularies = [tokenizer_json(source) for source in sources.values()]
    names = [_beside(target, "tokenizer", place) for place in range(len(sources))]
    about = _about(classifier, sources, [one.name for one in names], int8)
    content, head = as_onnx(graph, {name: _as_text(value) for name, value in about.items()})
    if int8:
        content = in_int8(content, head)
    session = Session(content, vocabularies)
    for tokenizer, source in zip(session.tokenizers, sources.values(), strict=True):
        check_ids(tokenizer, source, CHECKED)
    found = _compared(session, exact, CHECKED if texts is None else texts, int8)
    _write(target, content, about, dict(zip(names, vocabularies, strict=True)))
    return Exported(
        target, _beside(target, "about"), tuple(names), about["weights"], len(content), speed(session),
        found.texts, found.difference, found.changed,
    )  # fmt: skip


def _checked(classifier: Any, path: Path | str) -> Path:
    """The target; what cannot be exported is refused before work starts."""
    from sklearn.utils.validation import check_is_fitted

    from sonde.classifier import TextClassifier

    if not isinstance(classifier, TextClassifier):
        raise ArgumentError(
            f"A {type(classifier).__name__} cannot be exported; a fitted TextClassifier can, of the recipes linear, "
            "stc, plm and llmembed."
        )
    check_is_fitted(classifier, "classes_")
    target = Path(path)
    if target.suffix != ".onnx":
        raise ArgumentError(f"{target} does not end in .onnx; name the file to write, such as model.onnx.")
    if not target.parent.is_dir():
        raise ArgumentError(f"{target} cannot be written: the folder {target.parent} does not exist. Create it first.")
    return target


def _some(texts: Sequence[str]) -> list[str]:
    from sonde.inputs import as_texts

    found = as_texts(texts)
    if not found:
        raise ArgumentError(
            "There are no texts on which file and library could be compared; leave out texts (--check)."
        )
    return found


def _beside(target: Path, what: str, place: int = 0) -> Path:
    """model.onnx -> model.about.json, model.tokenizer.json, model.tokenizer_2.json."""
    number = "" if place == 0 else f"_{place + 1}"
    return target.with_suffix(f".{what}{number}.json")


def _about(
    classifier: "TextClassifier", sources: Mapping[int, "Source"], tokenizers: Sequence[str], int8: bool
) -> dict[str, Any]:
    """What a user of the file must know, JSON values."""
    from sonde.export.graph import inputs_of, pad_ids

    inputs = [
        {
            "ids": ids, "mask": mask, "tokenizer": file, "pad_id": pad, "backbone": source.backbone.name,
            "max_tokens": source.view.max_tokens, "long_text": source.view.long_text,
        }
        for (ids, mask), file, pad, source in zip(
            inputs_of(len(sources)), tokenizers, pad_ids(sources), sources.values(), strict=True
        )
    ]  # fmt: skip
    thresholds = classifier.thresholds_
    return {
        "sonde_version": __version__,
        "recipe": classifier.recipe,
        "weights": "int8" if int8 else "float32",
        "labels": classifier.classes_.tolist(),
        "multilabel": classifier.multilabel_,
        "thresholds": None if thresholds is None else thresholds.tolist(),
        "max_tokens": inputs[0]["max_tokens"],
        "inputs": inputs,
    }


def _as_text(value: Any) -> str:
    """Metadata of ONNX files are strings: these as they are, all else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def _compared(session: Any, exact: "TextClassifier", texts: Sequence[str], int8: bool) -> "Agreement":
    from sonde.export.running import agreement

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SondeWarning)  # some of these texts are empty or too long on purpose
        found = agreement(session, exact, texts)
    if not int8 and not found.difference <= TOLERANCE:  # NaN is not
        raise ReadingError(
            f"The ONNX graph of this model gives probabilities that differ by {found.difference:.2g} from those of the "
            f"library (at most {TOLERANCE:g} is allowed), so nothing was written. Another version of torch or of "
            "onnxruntime may do; `sonde serve` runs the model as it is."
        )
    return found


def _write(target: Path, content: bytes, about: Mapping[str, Any], vocabularies: Mapping[Path, str]) -> None:
    """The graph last: where it stands, all that it needs does."""
    from sonde.tables import write_atomically

    texts = {**vocabularies, _beside(target, "about"): json.dumps(about, indent=1) + "\n"}
    with ExitStack() as stack:  # renamed when all are written: no graph stands beside the labels of another
        graph = stack.enter_context(write_atomically(target, "wb"))
        graph.write(content)
        graph.flush()  # a disk that is full says so now
        for file, text in texts.items():
            stack.enter_context(write_atomically(file)).write(text)
