"""Checkpoints: from the name of a backbone to a complete local folder, and what its files say.

complete_folder   a folder that has what a checkpoint needs, or a sentence
read_config       config.json of a folder
refuse_giants     sizes that its weights do not bear out
read_sentence     how a sentence-transformers folder turns token states into a sentence embedding
refuse_adapters   folders whose weights are changes of others
unread_vocabulary the vocabulary for which a library is missing
fingerprint       what identifies a checkpoint: config, tokenizer files, tensors
stamp             what changes when a file of a folder is written again
Sentence          the recipe of a sentence embedding
"""

import hashlib
import importlib.util
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sonde.errors import BackboneError
from sonde.read.sites import Site

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_PIECES = ("tokenizer.model", "spiece.model", "sentencepiece.bpe.model", "spm.model", "source.spm")
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", *_PIECES)
_WITHOUT_VOCABULARY = ("ByT5Tokenizer", "PerceiverTokenizer", "CanineTokenizer")
_TOKENIZER = (
    *_VOCABULARIES,
    *("target.spm", "bpe.codes", "merges.txt"),
    *("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
)
_VOLATILE = {"transformers_version", "_name_or_path", "name_or_path", "dtype", "torch_dtype", "use_cache"}
_LAYERS = {
    *("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    *("num_decoder_layers", "encoder_layers", "decoder_layers"),
}
_SIZES = _LAYERS | {
    *("vocab_size", "hidden_size", "embedding_size", "d_model", "n_embd", "dim", "d_kv", "head_dim", "n_head"),
    *("intermediate_size", "d_ff", "n_inner", "ffn_dim", "hidden_dim", "encoder_ffn_dim", "decoder_ffn_dim"),
    "num_attention_heads",
}
MOST_LAYERS = 1000
"""The deepest open models have 126; each takes time and memory before any weight is looked at."""
GIANT = 64
"""The two largest sizes span a matrix at most so many times as large as all weights have bytes: in real checkpoints
vocabulary times feed-forward width is at most about once that, as far as they are neither quantised nor shared."""
MAX_JSON_BYTES = 64 * 2**20
"""The index of a model of 10,000 weights has a megabyte."""
LONGEST_NAME = 255
"""What file systems take."""
WHOLE_BYTES = 2**30
"""Of larger checkpoints a sample of each weight is hashed: the whole would take longer than to load them."""
_SAMPLES = 8  # values read from each of three rows of a tensor: another checkpoint differs in nearly all of them


@dataclass(frozen=True)
class Sentence:
    """How a backbone embeds a sentence."""

    site: Site
    """Where the states are read."""
    pooling: str | None
    """How tokens are pooled; None where the site has no token axis."""
    normalise: bool = False
    """Whether the embedding is scaled to unit length."""
    refusal: str = ""
    """Why the embedding cannot be computed here; empty if it can."""


NO_SENTENCE = Sentence(Site("main", "hidden", 0), None)
"""Stands in the fingerprint of a checkpoint that embeds no sentence."""


def read_config(folder: Path) -> dict[str, Any]:
    """Return the checkpoint's config.json."""
    config = _read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise BackboneError(f"{folder / 'config.json'} is not a model's configuration.")
    return config


def refuse_giants(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse sizes for which room would be made before it is noticed that the weights have others."""
    there = sum((folder / name).stat().st_size for name in _weight_files(folder))
    sizes = {name: size for name, size in config.items() if name in _SIZES and type(size) is int}
    if (layers := max((sizes[name] for name in _LAYERS & sizes.keys()), default=0)) > MOST_LAYERS:
        raise BackboneError(f"{folder / 'config.json'} names {layers:,} layers; sonde reads up to {MOST_LAYERS:,}.")
    large = sorted(sizes.items(), key=lambda entry: entry[1])[-2:]
    if math.prod(size for _, size in large) > GIANT * there:
        raise BackboneError(
            f"{folder / 'config.json'} says {' and '.join(f'{name} {size:,}' for name, size in large)}, which the "
            f"{there:,} bytes of its weights cannot hold; the checkpoint is damaged or not what it says."
        )
    for part in config.values():  # of models with several towers
        if isinstance(part, dict):
            refuse_giants(folder, part)


def refuse_adapters(folder: Path) -> None:
    """Refuse a folder from which transformers would take changes, and the weights that they change from elsewhere."""
    if (folder / "adapter_config.json").is_file():
        raise BackboneError(
            f"{folder} holds an adapter (adapter_config.json): changes of the weights of another checkpoint. Merge "
            "them, and give the folder that this writes: model.merge_and_unload().save_pretrained(FOLDER)."
        )


def read_sentence(folder: Path, last: Site) -> Sentence | None:
    """Return what the folder's sentence-transformers modules do, or None if it has none."""
    if not (folder / "modules.json").is_file():
        return None
    pooling, normalise, refusal = "mean", False, ""
    modules = _read_json(folder / "modules.json")
    if not isinstance(modules, list) or not all(isinstance(module, dict) for module in modules):
        raise BackboneError(f"{folder / 'modules.json'} is not a list of sentence-transformers modules.")
    for module in modules:
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            pooling, refusal = _read_pooling(_inside(folder, module.get("path", "")) / "config.json")
        elif kind == "Normalize":
            normalise = True
        elif kind != "Transformer":
            refusal = f"its sentence-transformers modules hold a {kind}, which sonde does not apply"
    return Sentence(last, pooling, normalise, refusal or _unread_texts(folder))


def _unread_texts(folder: Path) -> str:
    """What sentence-transformers does to texts before they are read; empty if nothing."""
    for name in ("sentence_bert_config.json", "config_sentence_transformers.json"):
        path = folder / name
        settings = _read_json(path) if path.is_file() else {}
        if not isinstance(settings, dict):
            raise BackboneError(f"{path} is not a configuration of sentence-transformers.")
        if settings.get("do_lower_case"):
            return f"{name} has texts written in lower case first, which sonde does not do"
        prompt = settings.get("default_prompt_name")
        prompts = settings.get("prompts")
        if prompt and isinstance(prompts, dict) and prompts.get(prompt):
            return f"{name} puts the prompt {prompt!r} before each text, which sonde does not do"
    return ""


def stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of change of the files that make a checkpoint; nothing where some are gone."""
    if lacking(folder):
        return ()
    names = ["config.json", "modules.json", *_TOKENIZER, *(path.name for path in _weight_files(folder))]
    there = [(name, (folder / name).stat()) for name in names if (folder / name).is_file()]
    return tuple((name, status.st_size, status.st_mtime_ns) for name, status in there)


def fingerprint(folder: Path, sentence: Sentence = NO_SENTENCE) -> str:
    """Identify a checkpoint.

    SHA-256 over the configuration without volatile fields, the tokenizer files, the recipe of the sentence embedding,
    and of every tensor its name, shape and values as stored, hence equal however the weights are loaded. Where the
    weights have more than `WHOLE_BYTES`, of each tensor some values: there the change of a few neurons is not seen.

    Raises
    ------
    BackboneError
        If a file cannot be read: it is cut or damaged.
    """
    digest = hashlib.sha256()
    config = {key: value for key, value in read_config(folder).items() if key not in _VOLATILE}
    digest.update(json.dumps(config, sort_keys=True).encode())
    for name in sorted(_TOKENIZER):
        if (folder / name).is_file():
            digest.update(name.encode() + hashlib.sha256((folder / name).read_bytes()).digest())
    digest.update(f"{sentence.site} {sentence.pooling} {sentence.normalise}".encode())
    whole = sum((folder / name).stat().st_size for name in _weight_files(folder)) <= WHOLE_BYTES
    for name, shape, values in sorted(_tensors(folder, _all_of if whole else _sample), key=lambda one: one[0]):
        digest.update(f"{name} {shape} ".encode() + values)
    return digest.hexdigest()


def complete_folder(folder: Path, name: str) -> Path:
    """Return a folder with its links resolved, or raise a `BackboneError` that says what it lacks."""
    absent = lacking(folder)
    if absent:
        raise BackboneError(
            f"Backbone {name!r} is a folder without {absent}. A model's folder holds config.json, the files of its "
            "tokenizer and its weights, as save_pretrained writes them."
        )
    return folder.resolve()


def lacking(folder: Path) -> str:
    """What a folder lacks to be a checkpoint; empty if nothing."""
    if not (folder / "config.json").is_file():
        return "config.json"
    if not any((folder / name).is_file() for name in _VOCABULARIES) and not _needs_no_vocabulary(folder):
        return "a tokenizer (tokenizer.json or a vocabulary)"
    for name in _WEIGHTS:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return ""
        if index.is_file():
            absent = [shard for shard in _shards(index) if not (folder / shard).is_file()]
            return f"the weight files {', '.join(absent)}" if absent else ""
    return "weights (model.safetensors)"


def unread_vocabulary(folder: Path) -> str:
    """The vocabulary that cannot be read for want of the extra `sentencepiece`; empty if there is none."""
    if (folder / "tokenizer.json").is_file() or importlib.util.find_spec("sentencepiece") is not None:
        return ""
    return next((name for name in _PIECES if (folder / name).is_file()), "")


def _needs_no_vocabulary(folder: Path) -> bool:
    """Whether the tokenizer is named, as one that reads bytes."""
    path = folder / "tokenizer_config.json"
    settings = _read_json(path) if path.is_file() else {}
    return isinstance(settings, dict) and settings.get("tokenizer_class") in _WITHOUT_VOCABULARY


def _shards(index: Path) -> list[str]:
    content = _read_json(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise BackboneError(f"{index} does not say which file holds which weight; the checkpoint is damaged.")
    for name in set(names.values()):
        _inside(index.parent, name)
    return sorted(set(names.values()))


def _inside(folder: Path, name: Any) -> Path:
    """A part of a checkpoint; a name that leads out of its folder is refused, whatever lies there."""
    parts = Path(str(name)).parts
    if Path(str(name)).is_absolute() or ".." in parts or "\0" in str(name) or len(str(name)) > LONGEST_NAME:
        shown = repr(str(name)[:80])
        raise BackboneError(f"The checkpoint {folder} names {shown}, which is outside its folder; it is not read.")
    return folder / str(name)


def _weight_files(folder: Path) -> list[Path]:
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        if (folder / f"{name}.index.json").is_file():
            return [folder / shard for shard in _shards(folder / f"{name}.index.json")]
    raise AssertionError(f"no weights in {folder}")


def _read_json(path: Path) -> Any:
    try:
        if (size := path.stat().st_size) > MAX_JSON_BYTES or not path.is_file():
            raise ValueError(f"it has {size:,} bytes; at most {MAX_JSON_BYTES:,} are read")
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise BackboneError(f"{path} cannot be read: {error}.") from error


def _read_pooling(path: Path) -> tuple[str, str]:
    """(pooling, refusal) of a sentence-transformers pooling module, in its older and newer spelling."""
    config = _read_json(path)
    if not isinstance(config, dict):
        raise BackboneError(f"{path} is not the configuration of a pooling module.")
    modes = config.get("pooling_mode") or [
        key.removeprefix("pooling_mode_") for key, on in config.items() if key.startswith("pooling_mode_") and on
    ]
    modes = [modes] if isinstance(modes, str) else [str(mode) for mode in modes] if isinstance(modes, list) else []
    ours = {"cls": "first", "cls_token": "first", "mean": "mean", "mean_tokens": "mean", "max": "max",
            "max_tokens": "max", "lasttoken": "last"}  # fmt: skip
    if len(modes) == 1 and modes[0] in ours:
        return ours[modes[0]], ""
    return "mean", f"its sentence-transformers pooling ({', '.join(modes) or 'none'}) is none that sonde applies"


def _tensors(folder: Path, read: Callable[[Any, Any], bytes]) -> Iterator[tuple[str, list[int], bytes]]:
    """(name, shape, what is read of it) of every stored tensor."""
    for path in _weight_files(folder):
        try:
            yield from _tensors_of(path, read)
        except Exception as error:  # safetensors and torch raise nearly every kind; all mean that it is no such file
            said = next(iter(str(error).splitlines()), type(error).__name__)
            raise BackboneError(f"{path} is cut or damaged ({said}). Write or download the checkpoint anew.") from error


def _tensors_of(path: Path, read: Callable[[Any, Any], bytes]) -> Iterator[tuple[str, list[int], bytes]]:
    from safetensors import safe_open

    if path.suffix == ".bin":
        stored: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        yield from ((name, list(t.shape), read(t, t.shape)) for name, t in stored.items())
        return
    with safe_open(path, framework="pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118  (no mapping)
            view = tensors.get_slice(name)
            yield name, view.get_shape(), read(view, view.get_shape())


def _all_of(view: Any, shape: Any) -> bytes:
    """A hash of all values of a tensor or of a slice of one on disk."""
    values = view[...] if shape else view[...].reshape(1)
    return hashlib.blake2b(values.contiguous().float().numpy().data).digest()


def _sample(view: Any, shape: Any) -> bytes:
    """The head of the first, the middle and the last row of a tensor or of a slice of one on disk."""
    if 0 in shape:
        return b""
    if len(shape) < 2:
        values = view[:_SAMPLES] if len(shape) == 1 else view[...]
        return bytes(values.reshape(-1).float().numpy().tobytes())
    rows = [view[row : row + 1].reshape(-1)[:_SAMPLES] for row in sorted({0, shape[0] // 2, shape[0] - 1})]
    return bytes(torch.cat(rows).float().numpy().tobytes())
