"""Saved models on the model hub.

fetch    hub id -> local folder of a saved model
push     folder of a saved model -> its page on the hub
within   a look-up that ends in time, whatever the network does
looks_like_an_id   whether a name could be a hub id

Three files go either way, `sonde.json`, `arrays.safetensors` and the card; nothing else that a repository holds is
fetched, and nothing of what is fetched is executed.
"""

import logging
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sonde.card import CARD, untouched
from sonde.errors import ModelError

logger = logging.getLogger(__name__)

FILES = ("sonde.json", "arrays.safetensors", CARD)
SECONDS = 9.0
"""The hub is given up within 10 seconds in all; one is left for the rest."""

_ID = re.compile(r"[\w][\w.-]{0,95}/[\w][\w.-]{0,95}")


def looks_like_an_id(name: str) -> bool:
    """Whether a name could be a hub id: an owner and a model."""
    return _ID.fullmatch(name) is not None


def fetch(name: str, revision: str | None = None) -> Path:
    """Return the local folder of a model that lies on the hub.

    Parameters
    ----------
    name : str
        Hub id.
    revision : str, optional
        Branch, tag or commit; by default the newest.

    Returns
    -------
    Path
        In the cache of the hub client. Where the hub is not reached, what an earlier look-up left there.

    Raises
    ------
    ModelError
        If the hub does not know the id or holds no model of sonde there; if it is not reached and the cache does not
        have the model either.
    """
    from huggingface_hub import HfApi, constants, snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError, RevisionNotFoundError

    if constants.HF_HUB_OFFLINE:
        return _in_cache(name, revision, "HF_HUB_OFFLINE is set")
    try:
        info = within(SECONDS, lambda: HfApi().model_info(name, revision=revision, timeout=SECONDS))
    except RepositoryNotFoundError as error:
        raise ModelError(f"{name} is no folder, and the hub has no model of this id that you may read.") from error
    except RevisionNotFoundError as error:
        raise ModelError(f"The hub has {name}, but not its revision {revision!r}.") from error
    except Exception as error:  # the client raises what its transport raises: all mean that the hub was not reached
        return _in_cache(name, revision, _why(error))
    if FILES[0] not in {sibling.rfilename for sibling in info.siblings or []}:
        raise ModelError(
            f"{name} is no saved model of sonde: the hub holds no {FILES[0]} there. A backbone is named when a model "
            "is trained: `sonde fit --backbone`, `TextClassifier(backbones=...)`."
        )
    try:
        return Path(
            snapshot_download(name, revision=revision, allow_patterns=list(FILES))
        )  # remembers what it stands for
    except Exception as error:
        raise ModelError(
            f"{name} could not be fetched from the hub: the download broke off ({_why(error)})."
        ) from error


def push(folder: Path, name: str, *, private: bool | None, token: str | None, message: str) -> str:
    """Upload a saved model, as `TextClassifier.save` writes it; arguments, result and errors as its `push_to_hub`."""
    from huggingface_hub import HfApi

    client = HfApi(token=token)
    try:
        client.create_repo(name, private=private, exist_ok=True)
        files = [file for file in FILES if file != CARD or not _is_edited(client, name)]
        commit = client.upload_folder(repo_id=name, folder_path=folder, allow_patterns=files, commit_message=message)
    except Exception as error:
        raise ModelError(
            f"{name} was not pushed: {_why(error)}. Is the name OWNER/MODEL, and may your token write there (`hf auth "
            "login`, HF_TOKEN or token=...)? What the hub had is unchanged unless the upload was complete."
        ) from error
    return str(commit.commit_url)


def within(seconds: float, look_up: Callable[[], Any]) -> Any:
    """Run a look-up in a thread of its own: the client's time-outs bound neither name resolution nor retries.

    Raises
    ------
    TimeoutError
        If there is no answer in time; else whatever the look-up raises.
    """
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
        raise TimeoutError(f"it did not answer within {seconds:.0f} seconds")
    if isinstance(answer[0], Exception):
        raise answer[0]
    return answer[0]


def _in_cache(name: str, revision: str | None, why: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(name, revision=revision, local_files_only=True, allow_patterns=list(FILES)))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{name} is neither a folder nor in the local cache of the hub, and the hub was not reached: {why}. Give a "
            "folder that `sonde fit --out` wrote, or come back when the hub can be reached."
        ) from error
    logger.warning("the hub was not reached (%s); %s is the one in the cache", why, name)
    return folder


def _is_edited(client: Any, name: str) -> bool:
    """Whether the repository's card was written by somebody else than sonde."""
    if not client.file_exists(name, CARD):
        return False
    return not untouched(Path(client.hf_hub_download(name, CARD)).read_text(encoding="utf-8", errors="replace"))


def _why(error: Exception) -> str:
    """The first line of what the client says, without its address."""
    return next(iter(str(error).splitlines()), "") or type(error).__name__
