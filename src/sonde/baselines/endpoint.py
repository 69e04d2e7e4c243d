"""Endpoint: a language model behind an OpenAI-compatible HTTP address.

Endpoint   `POST /chat/completions` (or `/completions`): side by side, with retries, within a budget

The key goes into the header of requests and nowhere else: no log, message, file or repr holds it.
"""

import logging
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from typing import Any, NoReturn
from urllib.parse import urlsplit

from sonde.baselines.budget import Budget, Reservation
from sonde.baselines.generation import Answer, Keep
from sonde.baselines.replies import complaint, estimate_tokens, is_counted, is_filtered, to_answer
from sonde.baselines.retrying import Patience, is_passing
from sonde.cost import Prices
from sonde.errors import ArgumentError, BudgetError, EndpointError, need

logger = logging.getLogger(__name__)

_LOCAL = ("localhost", "127.0.0.1", "::1")


class Endpoint:
    """An OpenAI-compatible endpoint. Nothing is sent before the first question.

    Parameters
    ----------
    url : str, optional
        Base URL, such as `http://127.0.0.1:8000/v1`; by default `OPENAI_BASE_URL`.
    model : str, optional
        What the endpoint calls the model; by default the only one that it lists.
    key : str, optional
        By default `OPENAI_API_KEY`; "" for an endpoint that wants none. Addresses of this machine need none.
    chat : bool
        `/chat/completions`, for models that were taught to chat; False = `/completions`, for models that continue text.
    context_tokens : int, optional
        Most tokens of a prompt and its answer together, where you know it.
    concurrency : int
        Requests under way at once.
    budget_tokens, budget_usd : int, float, optional
        What this object may spend, in all; 0 = only what is in the file of answers.
    prices : Prices, optional
        What tokens cost; `budget_usd` needs it.
    connect_seconds, read_seconds : float
        How long to wait for a connection, and for the next bytes of an answer.
    retries : int
        How often a request is sent again after 408, 409, 425, 429, a 5xx or a broken connection.
    longest_wait_seconds : float
        Longest pause before a request is sent again; an endpoint that asks for more (`Retry-After`) ends the work.
    max_tokens_field : str
        What the endpoint calls the bound of an answer: `max_tokens`, or `max_completion_tokens`.
    extra : mapping, optional
        More fields of a request; a value None leaves out a field that would be sent.

    Attributes
    ----------
    budget : Budget
        With what was spent.

    Raises
    ------
    ArgumentError, MissingExtraError
        If no URL or key is known, or an argument is out of range; `budget_usd` without `prices`; a budget where `extra`
        takes the bound of an answer away.
    """

    def __init__(
        self,
        url: str | None = None,
        model: str | None = None,
        *,
        key: str | None = None,
        chat: bool = True,
        context_tokens: int | None = None,
        concurrency: int = 4,
        budget_tokens: int | None = None,
        budget_usd: float | None = None,
        prices: Prices | None = None,
        connect_seconds: float = 10.0,
        read_seconds: float = 120.0,
        retries: int = 6,
        longest_wait_seconds: float = 60.0,
        max_tokens_field: str = "max_tokens",
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        if isinstance(concurrency, bool) or not isinstance(concurrency, int) or concurrency < 1:
            raise ArgumentError(f"concurrency is {concurrency!r}; it must be a whole number of at least 1.")
        self.url = _check_url(url or os.environ.get("OPENAI_BASE_URL"))
        self._key = _find_key(self.url, key)
        self.chat, self.context_tokens, self.concurrency = chat, context_tokens, concurrency
        self.max_tokens_field, self.extra = max_tokens_field, dict(extra or {})
        if budget_usd is not None and prices is None:
            raise ArgumentError("budget_usd needs to know what tokens cost: give prices=Prices(...) of the model.")
        if (budget_usd, budget_tokens) != (None, None) and not _most_new(
            {max_tokens_field: 1, **self.extra}, max_tokens_field
        ):
            raise ArgumentError(
                f"extra leaves {max_tokens_field} out, so that an answer has no bound, and a budget cannot hold."
            )
        self.patience = Patience(retries, longest_wait_seconds)
        self.budget = Budget(budget_tokens, budget_usd, prices or Prices())
        self._http = need("httpx2", "prompt")
        self._timeout = self._http.Timeout(read_seconds, connect=connect_seconds, pool=None)
        self._model = model
        self._lock = threading.Lock()

    def __repr__(self) -> str:
        return f"Endpoint({self.url!r}, {self._model!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> "Endpoint":
        """Itself: copies of a classifier share one budget."""
        return self

    def __reduce__(self) -> NoReturn:
        raise ArgumentError(
            "An Endpoint goes to no other process and into no file: it holds a key, and its budget would count anew. "
            "Requests are under way side by side anyway (concurrency); use n_jobs=1."
        )

    @property
    def model(self) -> str:
        """What the endpoint calls the model; asks for its list of models if none was named."""
        with self._lock:
            if self._model is None:
                self._model = self._only_model()
            return self._model

    @property
    def identity(self) -> str:
        """URL, model, and what else decides an answer."""
        fields = "".join(f" {name}={self.extra[name]!r}" for name in sorted(self.extra))
        return f"{self.url} {self.model} {'chat' if self.chat else 'completions'}{fields}"

    def count_tokens(self, prompt: str) -> int:
        """An estimate on the safe side for texts in words: a token for every three bytes (English has four to five)."""
        return estimate_tokens(prompt)

    def generate(
        self,
        prompts: Sequence[str],
        *,
        max_new_tokens: int,
        temperature: float,
        seeds: Sequence[int],
        logprobs: bool = False,
        keep: Keep | None = None,
    ) -> list[Answer]:
        """Answer each prompt; arguments as in `Generator`. The endpoint may or may not honour seeds.

        After an error no request is sent any more; those under way are waited for, and their answers kept.

        Raises
        ------
        EndpointError
            If the endpoint is not reached, refuses, or answers in another form.
        BudgetError
            If the budget ends. What was answered is kept.
        """
        found: dict[int, Answer] = {}
        stop = threading.Event()
        fields = {self.max_tokens_field: max_new_tokens, "temperature": temperature, "model": self.model}
        with self._client() as client, ThreadPoolExecutor(self.concurrency) as pool:

            def answer(row: int) -> None:
                if stop.is_set():
                    return
                body = self._body(prompts[row], seeds[row], fields, logprobs)
                found[row] = self._ask(client, body, prompts[row], logprobs, stop)
                if keep is not None:
                    keep(row, found[row])

            futures = [pool.submit(answer, row) for row in range(len(prompts))]
            try:
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                stop.set()
                pool.shutdown(wait=True, cancel_futures=True)
        raised = [error for future in done if not future.cancelled() and (error := future.exception()) is not None]
        if raised:
            raise next((error for error in raised if not isinstance(error, BudgetError)), raised[0])
        return [found[row] for row in range(len(prompts))]

    def _client(self) -> Any:
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        proxies = urlsplit(self.url).hostname not in _LOCAL  # of the environment; none leads back to this machine
        return self._http.Client(base_url=self.url, headers=headers, timeout=self._timeout, trust_env=proxies)

    def _body(self, prompt: str, seed: int, fields: Mapping[str, Any], logprobs: bool) -> dict[str, Any]:
        text = prompt.encode("utf-8", "replace").decode()
        body: dict[str, Any] = {**fields}
        body |= {"messages": [{"role": "user", "content": text}]} if self.chat else {"prompt": text}
        if body["temperature"]:
            body |= {"seed": seed, "top_p": 1}
        if logprobs:
            body |= {"logprobs": True} if self.chat else {"logprobs": 1}
        return {name: value for name, value in {**body, **self.extra}.items() if value is not None}

    def _ask(
        self,
        client: Any,
        body: Mapping[str, Any],
        prompt: str,
        logprobs: bool,
        stop: threading.Event,
    ) -> Answer:
        """One answer, however often the request must be sent again for it."""
        for attempt in range(self.patience.retries + 1):
            reserved = self.budget.reserve(prompt, _most_new(body, self.max_tokens_field))
            if stop.is_set():  # while it waited for its share of the budget
                self.budget.release(reserved)
                raise EndpointError("The work was stopped.")
            trouble, passing, asked_wait = "", True, None
            try:
                reply = client.post("/chat/completions" if self.chat else "/completions", json=body)
            except self._http.RequestError as error:  # not reached, broken off, or not to be decoded
                self.budget.release(reserved, charged=not self._is_unsent(error))
                trouble, passing = self._broken(error), not isinstance(error, self._http.UnsupportedProtocol)
            except BaseException:
                self.budget.release(reserved)
                raise
            else:
                if reply.status_code == 200:
                    return self._answered(reply, reserved, prompt, logprobs)
                self.budget.release(reserved)
                if is_filtered(reply):
                    logger.warning("%s; it counts as an answer without a label", self._refused(reply))
                    return Answer("", 0, 0, False)
                trouble, passing = self._refused(reply), is_passing(reply.status_code)
                asked_wait = reply.headers.get("retry-after")
            if not passing:
                raise EndpointError(trouble)
            logger.info("%s (attempt %d)", trouble, attempt + 1)
            self.patience.wait(attempt, asked_wait, trouble, stop)
        raise AssertionError("patience ends with an error")

    def _answered(self, reply: Any, reserved: Reservation, prompt: str, logprobs: bool) -> Answer:
        try:
            body = reply.json()
            answer = to_answer(body, prompt, self.chat, logprobs)
        except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
            self.budget.release(reserved, charged=True)
            raise EndpointError(
                f"{self.url} answered with something that is no {'chat ' if self.chat else ''}completion: "
                f"{self._hushed(reply.text)[:200]!r}. Is this the base URL of an OpenAI-compatible endpoint?"
            ) from error
        if is_counted(body):
            self.budget.settle(reserved, answer.prompt_tokens, answer.new_tokens)
        else:
            self.budget.release(reserved, charged=True)
        return answer

    def _is_unsent(self, error: Exception) -> bool:
        """Whether a request that broke off never left this machine; others may have been charged."""
        return isinstance(error, (self._http.ConnectError, self._http.ConnectTimeout, self._http.UnsupportedProtocol))

    def _broken(self, error: Exception) -> str:
        if isinstance(error, self._http.ReadTimeout):
            return f"{self.url} did not answer within {self._timeout.read:g} seconds (read_seconds)."
        if isinstance(error, self._http.ConnectError | self._http.ConnectTimeout | self._http.UnsupportedProtocol):
            return (
                f"{self.url} cannot be reached ({self._hushed(str(error))}). Is the address right, and the server up?"
            )
        return f"{self.url} broke the connection off ({type(error).__name__})."

    def _refused(self, reply: Any, what: str = "") -> str:
        said = self._hushed(complaint(reply))[:200]
        status = reply.status_code
        advice = _ADVICE.get(status, "")
        if status == 400 and "context" in said.lower():
            advice = " The prompt is longer than the model's context: give context_tokens, or fewer demonstrations."
        if self.chat and "template" in said.lower():
            advice = " The model has no chat template: use Endpoint(..., chat=False)."
        asked = what or f"a request of model {self.model!r}"
        return f"{self.url} refused {asked} with status {status}: {said}{advice}"

    def _only_model(self) -> str:
        with self._client() as client:
            try:
                reply = client.get("/models")
            except self._http.RequestError as error:
                raise EndpointError(self._broken(error)) from error
        if reply.status_code in (401, 403):
            raise EndpointError(self._refused(reply, "to list its models"))
        try:
            listed = [str(one["id"]) for one in reply.json()["data"]] if reply.status_code == 200 else []
        except (ValueError, KeyError, TypeError):
            listed = []
        if len(listed) == 1:
            return listed[0]
        there = f"lists {', '.join(listed[:10])}" if listed else "lists none"
        raise ArgumentError(f"Which model of {self.url}? It {there}; name one with model=...")

    def _hushed(self, said: str) -> str:
        """What an endpoint said, without the key."""
        return said.replace(self._key, "***") if self._key else said


BOUNDS = ("max_tokens", "max_completion_tokens")
"""Fields that bound an answer."""


def _most_new(body: Mapping[str, Any], field: str) -> int:
    """Tokens that the answers to a request have at most; 0 if nothing bounds them, neither the field nor its kin."""
    bounds = [body[name] for name in (field, *BOUNDS) if isinstance(body.get(name), int)]
    choices = body.get("n")
    return max(bounds, default=0) * (choices if isinstance(choices, int) else 1)


_ADVICE = {
    401: " The key is not accepted: check key=... or OPENAI_API_KEY.",
    403: " The key may not do this.",
    404: " Either the address is no base URL of an OpenAI-compatible endpoint, or it has no such model.",
}


def _check_url(url: str | None) -> str:
    if not url:
        raise ArgumentError(
            "No endpoint is known: give its base URL, such as url='http://127.0.0.1:8000/v1', or set OPENAI_BASE_URL."
        )
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not host:
        raise ArgumentError(f"{url!r} is no URL of an endpoint; it must look like http://host:port/v1.")
    if parts.username or parts.password or parts.query:
        raise ArgumentError(f"The URL of the endpoint at {host} holds a password or a query; give the key with key=...")
    return url.rstrip("/")


def _find_key(url: str, key: str | None) -> str:
    found = key if key is not None else os.environ.get("OPENAI_API_KEY")
    if found is None and urlsplit(url).hostname not in _LOCAL:
        raise ArgumentError(
            f"There is no key for {url}: pass key=..., or set OPENAI_API_KEY; key='' for an endpoint that wants none."
        )
    found = (found or "").strip()
    if not found.isascii() or any(not sign.isprintable() for sign in found):
        raise ArgumentError("The key holds characters that no key has; was something else pasted?")
    return found
