"""Tunable: a transformers model with a classification head, whose weights may change.

Tunable            texts -> logits, and which weights are the head's
load_tunable       name of a backbone -> Tunable
write_checkpoint   its model -> a folder that transformers and every recipe read
"""

import math
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

from sonde.baselines.causal import first_line
from sonde.errors import ArgumentError, BackboneError, ReadingError
from sonde.read.backbone import max_positions, quiet
from sonde.read.batching import TOKEN_BUDGET, collate, plan
from sonde.read.checkpoint import fingerprint
from sonde.read.location import find_checkpoint
from sonde.read.sources import max_tokens_of, view_of
from sonde.read.truncation import POOLER
from sonde.read.view import Pieces, View, clean, filler_id, tokenise

_COPIED = (".json", ".txt", ".model", ".jinja")
"""Files beside the weights: tokenizers, and what sentence-transformers knows of a model."""
_LEFT_OUT = ("config.json", "generation_config.json", "adapter_config.json")
"""Written anew, or of a model that this is not any more; so are the indexes of weight files."""


@dataclass(frozen=True)
class Tunable:
    """A model, its tokenizer, and how both see texts."""

    model: Any
    """Of a class ...ForSequenceClassification; in evaluation mode unless it is being trained."""
    tokenizer: Any
    """Unchanged."""
    path: Path
    """Folder of the checkpoint."""
    view: View
    """How much of a text is seen."""
    filler: int
    """Id that stands in pads; the model's head knows it as such."""
    head: frozenset[str]
    """Names of the parameters outside the backbone, and of those in it that the checkpoint lacks."""
    absent: frozenset[str]
    """Names of the parameters that the checkpoint does not hold in this shape: their values are random."""
    device: torch.device
    """Where the model is."""
    precision: torch.dtype
    """Of the products; below float32 the model runs under autocast."""

    def encode(self, texts: Sequence[str]) -> Pieces:
        """Texts -> ids, one piece a text."""
        pieces = tokenise([clean(text) for text in texts], self.tokenizer, self.view)
        config = self.model.config
        if not config.is_encoder_decoder:
            return pieces
        end = config.eos_token_id  # these heads read the state of the one end of a text
        return replace(pieces, ids=[_one_end(ids, end, self.view.max_tokens) for ids in pieces.ids])

    def logits(self, pieces: Pieces, rows: np.ndarray) -> Float[Tensor, "row class"]:
        """Float32 logits of some of the texts, in one batch."""
        batch = collate(pieces, rows, self.filler, causal=False)
        mask = None if batch.mask is None else batch.mask.long().to(self.device)
        with torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32):
            out = self.model(input_ids=batch.ids.to(self.device), attention_mask=mask)
        found: Tensor = out.logits.float()  # row class
        return found

    @torch.inference_mode()
    def predict(self, pieces: Pieces) -> Float32[np.ndarray, "row class"]:
        """Logits of all texts, in batches of like length; the model is left in evaluation mode.

        Raises
        ------
        ReadingError
            If one is not finite.
        """
        self.model.eval()
        found = np.zeros((len(pieces.ids), self.model.config.num_labels), dtype=np.float32)  # row class
        for rows in plan([len(ids) for ids in pieces.ids], TOKEN_BUDGET[self.device.type]):
            found[rows] = self.logits(pieces, rows).cpu().numpy()
        if not np.isfinite(found).all():
            raise ReadingError("The fine-tuned model gives NaN or infinity; try dtype='float32' or a lower rate.")
        return found

    @property
    def trained(self) -> dict[str, Tensor]:
        """The parameters that training changes."""
        return {name: one for name, one in self.model.named_parameters() if one.requires_grad}

    @property
    def fingerprint(self) -> str:
        """Identifies the checkpoint."""
        return fingerprint(self.path)


def _one_end(ids: list[int], end: int, most: int) -> list[int]:
    """The ids with the last `end` alone; a text may spell that token too."""
    if end not in ids:
        return [*ids[: most - 1], end]
    last = len(ids) - 1 - ids[::-1].index(end)
    return [one for place, one in enumerate(ids) if one != end or place == last]


def load_tunable(
    name: str,
    classes: Sequence[Any],
    *,
    multilabel: bool,
    max_tokens: int | None,
    long_text: str,
    device: torch.device,
    precision: torch.dtype,
    stored: torch.dtype = torch.float32,
) -> Tunable:
    """Load a backbone under a new classification head; the head's first weights come from torch's generator.

    Parameters
    ----------
    name : str
        Hub id or folder of any encoder or decoder, or of an encoder-decoder that transformers has a head for.
    classes : sequence
        Labels, in the order of the logits; their names go into the configuration.
    multilabel : bool
    max_tokens, long_text
        As in `TextClassifier`.
    device, precision : of the products
    stored : torch.dtype
        Of the backbone's weights; the head's are float32.

    Raises
    ------
    BackboneError
        If there is no such checkpoint, no such head, or the checkpoint lacks weights of the backbone.
    ArgumentError
        If `max_tokens` is more than the model has positions.
    """
    path = find_checkpoint(name)
    bound = max_tokens_of(max_tokens, 0)
    names = dict(enumerate(map(str, classes)))
    settings = {
        "num_labels": len(names), "id2label": names, "label2id": {label: place for place, label in names.items()},
        "problem_type": "multi_label_classification" if multilabel else "single_label_classification",
    }  # fmt: skip
    model, tokenizer, absent = _load(name, path, settings, stored)
    head = _head(name, model, absent)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name in head:
            parameter.data = parameter.data.float()
    view = view_of(name, max_positions(model), bound, long_text)
    lacking = frozenset(key for key, _ in model.named_parameters() if key in absent)
    return Tunable(
        model.to(device).eval(), tokenizer, path, view, _agree_on_pads(model, tokenizer), head, lacking, device,
        precision,
    )  # fmt: skip


def _load(name: str, path: Path, settings: dict[str, Any], stored: torch.dtype) -> tuple[Any, Any, set[str]]:
    """(model, tokenizer, names of parameters that the checkpoint does not hold in this shape)."""
    try:
        with quiet():
            config = AutoConfig.from_pretrained(str(path), local_files_only=True)
            _check_head(name, config)
            tokenizer = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
            model, info = AutoModelForSequenceClassification.from_pretrained(
                str(path), dtype=stored, output_loading_info=True, local_files_only=True,
                ignore_mismatched_sizes=True, **settings,
            )  # fmt: skip
    except BackboneError:
        raise
    except Exception as error:  # transformers raises nearly every kind; all mean that this folder is of no use
        raise BackboneError(f"Backbone {name!r} cannot be loaded from {path}: {first_line(error)}") from error
    if hasattr(model.config, "use_cache"):
        model.config.use_cache = False  # nothing is written, so that keys and values need not be kept
    return model, tokenizer, set(info["missing_keys"]) | {key for key, *_ in info["mismatched_keys"]}


def _check_head(name: str, config: Any) -> None:
    if type(config) in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        return
    kind = "encoder-decoder" if config.is_encoder_decoder else "model"
    raise BackboneError(
        f"Backbone {name!r} cannot be fine-tuned: transformers has no classification head for this {kind} "
        f"({config.model_type}). Its encoder-decoders with one are those of the families of BART and T5. Classify from "
        "the inside of the frozen model instead: TextClassifier."
    )


def _head(name: str, model: Any, absent: set[str]) -> frozenset[str]:
    inside = f"{model.base_model_prefix}."
    lacking = sorted(key for key in absent if key.startswith(inside) and POOLER not in key)
    if lacking:
        raise BackboneError(
            f"Backbone {name!r} cannot be fine-tuned: its checkpoint lacks {len(lacking)} weights, such as "
            f"{lacking[0]}."
        )
    return frozenset(key for key, _ in model.named_parameters() if key in absent or not key.startswith(inside))


def _agree_on_pads(model: Any, tokenizer: Any) -> int:
    """The id in pads. Heads of decoders look for the last token that is none, so their configuration must name it."""
    config = model.config.get_text_config()
    known = config.pad_token_id
    if known is None or not 0 <= known < config.vocab_size:
        config.pad_token_id = known = filler_id(tokenizer)
    return int(known)


def write_checkpoint(tunable: Tunable, folder: Path | str) -> Path:
    """Write model, configuration and tokenizer as `save_pretrained` does; the folder appears whole or not at all.

    The files of the tokenizer, and those of sentence-transformers, are copies: texts become the same tokens.

    Raises
    ------
    ArgumentError
        If the folder holds something already, or cannot be made.
    """
    target = free_folder(folder)
    fresh = target.parent / f".{target.name}.tmp-{os.getpid()}"
    try:
        fresh.mkdir(parents=True)
        with quiet():
            tunable.model.save_pretrained(fresh)
        for path in _beside(tunable.path):
            copy = fresh / path.relative_to(tunable.path)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(path, copy)
        if target.exists():
            target.rmdir()  # empty
        fresh.rename(target)
    except OSError as error:
        raise ArgumentError(f"Writing to {target} failed: {error}. Make room or give another folder.") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return target


def free_folder(folder: Path | str) -> Path:
    """The folder, if it is absent or empty; `ArgumentError` else."""
    target = Path(folder).absolute()
    if target.is_file() or (target.is_dir() and any(target.iterdir())):
        raise ArgumentError(f"{target} exists already; nothing was written. Give a folder that is new or empty.")
    return target


def _beside(source: Path) -> list[Path]:
    """What a folder holds beside configuration and weights, and the modules of sentence-transformers."""
    own = [path for path in source.iterdir() if path.suffix in _COPIED and path.name not in _LEFT_OUT]
    modules = source.glob("*/config.json") if (source / "modules.json").is_file() else []
    return [*(path for path in own if not path.name.endswith(".index.json")), *modules]


def parameters(model: Any) -> dict[str, int]:
    """How many numbers the model holds, and how many of them training changes."""
    counts = [(math.prod(one.shape), one.requires_grad) for one in model.parameters()]
    return {"all": sum(count for count, _ in counts), "trained": sum(count for count, on in counts if on)}
