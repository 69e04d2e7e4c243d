"""Replies: what an OpenAI-compatible endpoint sends back -> an Answer.

to_answer         the body of a reply with status 200
is_counted        whether it says how many tokens it took
complaint         what a refusal says
is_filtered       whether it is this prompt alone that is refused, for what it says
estimate_tokens   an estimate of the tokens of a prompt, where the endpoint does not count
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

from sonde.baselines.generation import Answer

BYTES_PER_TOKEN = 3
"""English has 4 to 5 bytes a token in the vocabularies of today, Chinese about 3, German and code in between."""


def estimate_tokens(prompt: str) -> int:
    """A token for every three bytes: more than most texts take."""
    return -(-len(prompt.encode("utf-8", "replace")) // BYTES_PER_TOKEN)


def to_answer(body: Mapping[str, Any], prompt: str, chat: bool, logprobs: bool) -> Answer:
    """The first choice of a reply; `KeyError` and its kin if it has none."""
    choice = body["choices"][0]
    content = choice["message"].get("content") if chat else choice["text"]  # a refusal, or a cut thought, has none
    text = "" if content is None else str(content)
    usage = body.get("usage") or {}
    into, out = usage.get("prompt_tokens"), usage.get("completion_tokens")
    details = _details(choice.get("logprobs"), text, chat) if logprobs else (None, None)
    return Answer(
        text,
        estimate_tokens(prompt) if into is None else int(into),
        estimate_tokens(text) if out is None else int(out),
        choice.get("finish_reason") == "length",
        *details,
    )


def is_counted(body: Mapping[str, Any]) -> bool:
    """Whether a reply says how many tokens it took."""
    usage = body.get("usage") or {}
    return usage.get("prompt_tokens") is not None and usage.get("completion_tokens") is not None


Details = tuple[tuple[float, ...], tuple[int, ...]] | tuple[None, None]


def _details(logprobs: Mapping[str, Any] | None, text: str, chat: bool) -> Details:
    """(log-probabilities, ends) of the tokens, if together they spell the text."""
    if not logprobs:
        return None, None
    if chat:
        tokens = logprobs.get("content") or []
        pieces = [bytes(one["bytes"]) if one.get("bytes") else str(one["token"]).encode() for one in tokens]
        values = [float(one["logprob"]) for one in tokens]
    else:
        pieces = [str(token).encode() for token in logprobs.get("tokens") or []]
        values = [float(value) for value in logprobs.get("token_logprobs") or []]
    if not values or len(pieces) != len(values) or b"".join(pieces).decode("utf-8", "replace") != text:
        return None, None
    return tuple(values), tuple(_ends(pieces))


def _ends(pieces: Sequence[bytes]) -> list[int]:
    """Characters behind each piece; half a character belongs to the piece that ends it."""
    return [len(whole.decode("utf-8", "ignore")) for whole in accumulate(pieces)]


FILTERS = ("content_filter", "content_policy_violation", "ResponsibleAIPolicyViolation")
"""Codes of refusals by a filter of contents."""


def is_filtered(reply: Any) -> bool:
    """Whether a refusal is that of a filter of contents."""
    try:
        error = reply.json().get("error")
        inner = error.get("innererror") or {}
        return bool({error.get("code"), error.get("type"), inner.get("code")}.intersection(FILTERS))
    except (ValueError, AttributeError, TypeError):
        return False


def complaint(reply: Any) -> str:
    """The message of a refusal, on one line."""
    try:
        body = reply.json()
        error = body.get("error", body) if isinstance(body, dict) else body
        said = error.get("message") or error.get("detail") or error if isinstance(error, dict) else error
    except ValueError:
        said = reply.text
    return " ".join(str(said).split()) or "(no message)"
