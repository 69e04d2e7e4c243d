"""Answers: a file of what language models wrote, one JSON line each, so that nothing is asked or paid for twice.

AnswerFile     find an answer, keep an answer
open_answers   the `answers` argument -> the file of one generator
request_key    what makes two requests the same

A line is written in one piece and flushed to the disk as soon as its answer is there. A run that is killed may leave a
torn last line; it is skipped, and that request asked again. Lines hold answers and hashes of prompts, never prompts;
clues and reasoning do repeat words of the texts that they explain, so the file is as private as the texts.
"""

import hashlib
import json
import logging
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

from sonde.baselines.generation import Answer
from sonde.errors import ArgumentError, DataError

logger = logging.getLogger(__name__)

PROTOCOL = 1
_HEADER = "sonde_answers"


def request_key(
    prompt: str, *, max_new_tokens: int, temperature: float, seed: int, logprobs: bool, identity: str
) -> str:
    """SHA-256 of all that decides an answer; greedy answers do not depend on the seed."""
    parts = [identity, prompt, max_new_tokens, float(temperature), seed if temperature else 0, logprobs]
    return hashlib.sha256(json.dumps(parts).encode("utf-8")).hexdigest()


class AnswerFile:
    """Answers under their keys; `path` None keeps them in memory alone."""

    def __init__(self, path: Path | None, identity: str) -> None:
        self.path, self.identity = path, identity
        self._lock = threading.Lock()
        self._answers: dict[str, Answer] = {}
        self._torn = self._headed = False
        self._size = 0  # of the file, as far as it is known
        self._unwritten = ""
        if path is not None and path.is_file():
            self._read(path)

    def __len__(self) -> int:
        return len(self._answers)

    def find(self, key: str) -> Answer | None:
        """The answer kept under this key."""
        return self._answers.get(key)

    def look(self) -> None:
        """Take up what others have written to the file since."""
        if self.path is not None and self.path.is_file():
            with self._lock:
                if self.path.stat().st_size != self._size:
                    self._read(self.path)

    def keep(self, key: str, answer: Answer) -> None:
        """Add an answer, on the disk before this returns."""
        with self._lock:
            self._answers[key] = answer
            if self.path is not None:
                self._append(self.path, _to_line(key, answer))

    def _append(self, path: Path, line: str) -> None:
        if not self._headed:
            line = json.dumps({_HEADER: PROTOCOL, "generator": self.identity}) + "\n" + line
            self._headed = True
        self._unwritten += line  # behind those that a full disk has not taken
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                whole = rest = (("\n" if self._torn else "") + self._unwritten).encode("utf-8")
                self._torn = True
                while rest:  # the whole line in one call, unless the system takes less
                    rest = rest[os.write(handle, rest) :]
                os.fsync(handle)
                self._size += len(whole)  # what is beyond that others have written
                self._unwritten, self._torn = "", False
            finally:
                os.close(handle)
        except OSError as error:
            raise DataError(
                f"The file of answers {path} cannot be written: {error.strerror}. Make room, or name another folder "
                "with answers=...; the answers that it holds stay."
            ) from error

    def _read(self, path: Path) -> None:
        content = path.read_bytes()
        self._size = len(content)
        self._torn = bool(content) and not content.endswith(b"\n")
        found = [_from_line(line) for line in content.split(b"\n") if line.strip()]
        whole = [entry for entry in found if entry is not None]
        self._headed = any(_HEADER in entry for entry in whole)
        beginning = f'{{"{_HEADER}"'.encode()
        if content and not self._headed and not beginning.startswith(content[: len(beginning)]):
            raise DataError(f"{path} is no file of answers that sonde wrote; name another folder with answers=...")
        stated = [entry[_HEADER] for entry in whole if isinstance(entry.get(_HEADER), int)]
        if any(number > PROTOCOL for number in stated):
            raise DataError(f"{path} was written by a newer sonde; update sonde, or name another folder.")
        if len(whole) < len(found):
            logger.info("%s: %d torn lines are skipped; these requests are asked again", path, len(found) - len(whole))
        for entry in whole:
            answer = _to_answer(entry)
            if answer is not None and isinstance(entry.get("key"), str):
                self._answers[entry["key"]] = answer


def open_answers(answers: Any, identity: str) -> AnswerFile:
    """The file of a generator: "auto" = in sonde's cache folder, a path = in this folder, None = in memory.

    Raises
    ------
    ArgumentError, DataError
        If the argument is none of these, or the file is not sonde's.
    """
    if answers is None or answers is False:
        return AnswerFile(None, identity)
    if answers == "auto" or answers is True:
        from sonde.read.store import default_root

        folder = default_root() / "answers"
    elif isinstance(answers, str | Path):
        folder = Path(answers).expanduser()
    else:
        raise ArgumentError(f"answers is {answers!r:.60}; give 'auto', the path of a folder, or None for no file.")
    if folder.exists() and not folder.is_dir():
        raise ArgumentError(f"answers names {folder}, which is a file; give a folder.")
    return AnswerFile(folder / f"{hashlib.sha256(identity.encode()).hexdigest()[:16]}.jsonl", identity)


def _to_line(key: str, answer: Answer) -> str:
    entry: dict[str, Any] = {"key": key, "text": answer.text, "tokens": [answer.prompt_tokens, answer.new_tokens]}
    if answer.cut:
        entry["cut"] = True
    if answer.logprobs is not None and answer.ends is not None:
        entry |= {"logprobs": [round(value, 6) for value in answer.logprobs], "ends": answer.ends}
    return json.dumps(entry) + "\n"  # ASCII: a line separator of Unicode, or half a surrogate, splits no line


def _from_line(line: bytes) -> dict[str, Any] | None:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return entry if isinstance(entry, dict) else None


def _to_answer(entry: dict[str, Any]) -> Answer | None:
    try:
        into, out = map(int, entry["tokens"])
        plain = Answer(str(entry["text"]), into, out, bool(entry.get("cut")))
        if "logprobs" not in entry:
            return plain
        return replace(plain, logprobs=tuple(map(float, entry["logprobs"])), ends=tuple(map(int, entry["ends"])))
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
