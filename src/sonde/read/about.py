"""About: what the small files beside the shards of a store say, believed only as far as sonde can have written it.

key_of      what values are -> the name of the folder of their block
record_of   what values are -> the bytes of its block.json
about_of    a block.json -> what the values are, None if it is damaged
read_json   a small file -> JSON
"""

import hashlib
import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 2**20
"""Of a block.json or the header; ours have a few hundred."""


def record_of(about: Mapping[str, Any]) -> bytes:
    """The bytes of a block.json."""
    return json.dumps(about, indent=1, sort_keys=True).encode()


def key_of(about: Mapping[str, Any]) -> str:
    """Name of the folder of a block."""
    described = json.dumps({k: v for k, v in about.items() if k != "backbone"}, sort_keys=True)
    return hashlib.blake2b(described.encode(), digest_size=16).hexdigest()


def about_of(path: Path) -> dict[str, Any] | None:
    """What a block.json says; None if that is not what its folder is named after."""
    try:
        about = read_json(path)
    except ValueError:
        return None
    return about if isinstance(about, dict) and key_of(about) == path.parent.name else None


def read_json(path: Path) -> Any:
    """`ValueError` if it is none, is no plain file, or larger than any of ours."""
    if not stat.S_ISREG(path.lstat().st_mode):
        raise ValueError("it is no plain file")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"it has more than {MAX_JSON_BYTES:,} bytes")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
