"""The models that are served, and how they are replaced while they are.

named_folders   what a command line says -> name and folder of each model
Model           a loaded classifier under its name: texts -> probabilities, and how deep it reads
said_of         an error of a reload -> what is told of it
Models          all of them; a reload puts a new one in an old one's place, or changes nothing
"""

import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float, Int64

from sonde.classifier import TextClassifier
from sonde.errors import ArgumentError, SondeError
from sonde.learn.calibration import to_probabilities
from sonde.loading import load
from sonde.progress import watching
from sonde.scoring import blocks_of

if TYPE_CHECKING:
    from sonde.read.blocks import Source

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
"""Names stand in addresses, logs and metrics."""

CALL_TOKENS = {"cpu": 6144, "mps": 16384, "cuda": 65536}
"""By device type: what fills an accelerator; on a CPU half a second's work of a small encoder in float32, a quarter of
that in bfloat16, because that is how long who comes next must wait while so much waits. Calls of 2,048 tokens read a
tenth fewer texts a second, of 12,288 no more."""

CALL_TOKENS_OF_TEXT = 65536
"""The same for models that read no backbone, which are many times faster."""

WARM_UP = "One text, so that the first request finds everything in place."


def named_folders(arguments: Sequence[str]) -> dict[str, Path]:
    """`FOLDER` or `NAME=FOLDER` for each model; a folder's own name is the default.

    Raises
    ------
    ArgumentError
        If a name is no plain word, or stands twice.
    """
    found: dict[str, Path] = {}
    for argument in arguments:
        given, mark, rest = argument.partition("=")
        named = bool(mark) and not Path(argument).exists()
        folder = Path(rest if named else argument)
        name = given if named else folder.resolve().name
        if not re.fullmatch(NAME, name):
            raise ArgumentError(
                f"The model {argument!r} cannot be called {name!r}: names have up to 64 letters, digits, '.', '_', "
                "'-'. Give it one: NAME=FOLDER."
            )
        if name in found:
            raise ArgumentError(f"Two models are called {name!r}. Give one of them another name: NAME=FOLDER.")
        found[name] = folder
    return found


@dataclass(frozen=True)
class Answer:
    """What a model says of some texts."""

    probabilities: Float[np.ndarray, "row class"]
    """Calibrated, columns in the order of the labels."""
    truncated: Bool[np.ndarray, " row"]
    """Whether a text was longer than the model reads."""
    depths: Int64[np.ndarray, " row"]
    """Blocks that each text went through, all backbones together."""

    @classmethod
    def joined(cls, parts: "Sequence[Answer]") -> "Answer":
        """The answers to consecutive texts as one."""
        if len(parts) == 1:
            return parts[0]
        columns = ([getattr(part, name) for part in parts] for name in ("probabilities", "truncated", "depths"))
        return cls(*(np.concatenate(column) for column in columns))

    def take(self, rows: slice) -> "Answer":
        """The answer to some of the texts."""
        return Answer(self.probabilities[rows], self.truncated[rows], self.depths[rows])


@dataclass(frozen=True, eq=False)
class Model:
    """A loaded classifier under the name that requests use."""

    name: str
    """As in requests."""
    classifier: TextClassifier
    """Loaded, without a store: texts of requests are not kept."""
    most_tokens: int | None
    """Most tokens of a text that are read; None if all are."""
    call_tokens: int
    """Tokens that one call should read at most."""
    layers_run: int
    """Blocks that a text goes through at most, all backbones together; 0 if none is read."""
    layers: int
    """Blocks that these backbones have."""
    loaded: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    """When, in UTC."""

    def answer(self, texts: list[str]) -> Answer:
        """Read some texts in one call."""
        several = self.classifier.multilabel_
        parts = self.classifier.stream(texts)
        return Answer.joined([Answer(to_probabilities(p.logits, several), p.truncated, p.depths) for p in parts])


class Models:
    """Name -> Model. Names of requests are looked up here and never become part of a path.

    Parameters
    ----------
    folders : mapping of str to Path
    **load
        As in `sonde.load`.
    """

    def __init__(self, folders: Mapping[str, Path], **load: Any) -> None:
        if not folders:
            raise ArgumentError("No model was given; name at least one folder of a saved model.")
        self._folders = dict(folders)
        self._load = load
        self._reloading = threading.Lock()
        self._models = {name: _open(name, folder, load) for name, folder in self._folders.items()}

    def __iter__(self) -> Iterator[Model]:
        return iter(list(self._models.values()))

    def find(self, name: str | None) -> Model | None:
        """The model of this name, the first one for None; None if there is no such model."""
        return next(iter(self._models.values())) if name is None else self._models.get(name)

    @property
    def names(self) -> list[str]:
        """In the order in which they were given."""
        return list(self._folders)

    def reload(self, name: str) -> Model:
        """Load a model anew and serve it from now on; what waits for the old one is still answered by that.

        Raises
        ------
        SondeError and others
            If it cannot be loaded; the old one is then served on.
        """
        with self._reloading:  # one at a time: each holds a second copy of a model
            self._models[name] = _open(name, self._folders[name], self._load)
            return self._models[name]

    def reload_all(self, tell: Callable[[str, Exception | None], None]) -> None:
        """Reload one after the other; `tell` hears how each went."""
        for name in self.names:
            try:
                self.reload(name)
            except Exception as error:  # such as a lack of memory: for a moment there are two copies
                tell(name, error)
            else:
                tell(name, None)


def said_of(error: Exception) -> str:
    """The sentence of an error of ours; of others the kind and the first line."""
    if isinstance(error, SondeError):
        return str(error)
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])


def _open(name: str, folder: Path, settings: Mapping[str, Any]) -> Model:
    classifier = load(folder, cache=None, **settings)
    sources = classifier.sources()
    whole = not sources or any(source.view.long_text == "windows" for source in sources.values())
    model = Model(
        name,
        classifier,
        most_tokens=None if whole else max(source.view.max_tokens for source in sources.values()),
        call_tokens=min((_call_tokens(source) for source in sources.values()), default=CALL_TOKENS_OF_TEXT),
        layers_run=_layers_run(classifier, sources),
        layers=sum(sum(source.backbone.layers.values()) for source in sources.values()),
    )
    with watching(lambda *_: nullcontext(lambda _: None)):  # no bar for a text that nobody gave
        model.answer([WARM_UP])
    return model


def _call_tokens(source: "Source") -> int:
    return CALL_TOKENS.get(source.backbone.device.type, CALL_TOKENS["cpu"])


def _layers_run(classifier: TextClassifier, sources: "Mapping[int, Source]") -> int:
    if not sources:
        return 0
    from sonde.read.sources import layers_run

    return layers_run(blocks_of(classifier.model_, sources).values(), sources)
