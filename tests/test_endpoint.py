"""Endpoint: against a real HTTP server, whatever it does, nothing that was paid for is lost."""

import copy
import errno
import logging
import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback import Loopback, Reply

from sonde.baselines import Endpoint
from sonde.baselines.answers import AnswerFile
from sonde.baselines.asking import Asker
from sonde.baselines.budget import TEMPLATE_TOKENS
from sonde.baselines.generation import Answer
from sonde.cost import Prices
from sonde.errors import ArgumentError, BudgetError, DataError, EndpointError, MissingExtraError

KEY = "sk-very-secret-0123456789"


@pytest.fixture(autouse=True)
def no_endpoint_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def server() -> Iterator[Loopback]:
    with Loopback(lambda prompt, number: Reply(prompt.upper())) as one:
        yield one


def ask(endpoint: Endpoint, prompts: list[str], **more: Any) -> list[Answer]:
    settings = {"max_new_tokens": 5, "temperature": 0.0, "seeds": [0] * len(prompts), **more}
    return endpoint.generate(prompts, **settings)


def quick(url: str, **more: Any) -> Endpoint:
    return Endpoint(url, "toy", **{"longest_wait_seconds": 0.02, "retries": 2, "read_seconds": 30.0, **more})


# --------------------------------------------------------------- protocol


def test_answers_come_in_the_order_of_the_prompts(server: Loopback) -> None:
    prompts = [f"word {number}" for number in range(20)]
    answers = ask(quick(server.url), prompts)
    assert [answer.text for answer in answers] == [prompt.upper() for prompt in prompts]
    assert answers[3] == Answer("WORD 3", 2, 2)
    assert sorted(server.answered) == sorted(prompts)


def test_what_is_sent(server: Loopback) -> None:
    ask(quick(server.url, key=KEY), ["hello"], temperature=0.7, seeds=[3])
    (sent,) = server.requests
    assert sent == {
        "model": "toy", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 5, "temperature": 0.7,
        "seed": 3, "top_p": 1, "path": "/v1/chat/completions", "authorization": f"Bearer {KEY}",
    }  # fmt: skip


def test_fields_can_be_added_renamed_and_left_out(server: Loopback) -> None:
    extra = {"temperature": None, "reasoning_effort": "low"}
    ask(quick(server.url, max_tokens_field="max_completion_tokens", extra=extra), ["hello"])
    (sent,) = server.requests
    assert sent["max_completion_tokens"] == 5 and sent["reasoning_effort"] == "low"
    assert "temperature" not in sent and "max_tokens" not in sent and sent["authorization"] is None


def test_models_that_only_continue_text(server: Loopback) -> None:
    (answer,) = ask(quick(server.url, chat=False), ["hello"])
    assert answer.text == "HELLO"
    assert server.requests[0]["path"] == "/v1/completions" and server.requests[0]["prompt"] == "hello"


def test_requests_are_under_way_side_by_side_and_no_more_than_allowed() -> None:
    with Loopback(lambda prompt, number: Reply(seconds=0.5)) as server:
        ask(quick(server.url, concurrency=3), [str(number) for number in range(9)])
        assert server.most_at_once == 3


def test_probabilities_are_read_where_they_spell_the_answer() -> None:
    pieces = [("a ", -0.5), ("word", -0.25)]
    with Loopback(lambda prompt, number: Reply("a word" if number == 0 else "else", logprobs=pieces)) as server:
        endpoint = quick(server.url)
        (told,) = ask(endpoint, ["one"], logprobs=True)
        (untold,) = ask(endpoint, ["two"], logprobs=True)
    assert server.requests[0]["logprobs"] is True
    assert told.logprobs == (-0.5, -0.25) and told.ends == (2, 6)
    assert told.probability(2, 6) == pytest.approx(0.7788, abs=1e-4)
    assert untold.logprobs is None and untold.probability(0, 4) is None


def test_an_endpoint_that_counts_nothing_is_estimated() -> None:
    with Loopback(lambda prompt, number: Reply("abcdef", usage=False)) as server:
        assert ask(quick(server.url), ["x" * 30])[0] == Answer("abcdef", 10, 2)


def test_an_empty_answer_is_an_answer() -> None:
    with Loopback(lambda prompt, number: Reply(None)) as server:
        assert ask(quick(server.url), ["x"])[0].text == ""


def test_the_only_model_is_found_and_several_are_listed() -> None:
    with Loopback() as server:
        assert Endpoint(server.url).model == "toy"
    with (
        Loopback(models=("one", "two")) as server,
        pytest.raises(ArgumentError, match=r"lists one, two; name one with"),
    ):
        _ = Endpoint(server.url).model


# ---------------------------------------------------------------- trouble


def test_429_waits_as_long_as_it_is_told() -> None:
    def script(prompt: str, number: int) -> Reply:
        return Reply("slow down", 429, {"Retry-After": "0.3"}) if number == 0 else Reply()

    with Loopback(script) as server:
        started = time.monotonic()
        assert ask(quick(server.url, longest_wait_seconds=1.0), ["x"])[0].text == "yes"
        assert time.monotonic() - started >= 0.3
    assert len(server.requests) == 2


def test_429_that_asks_for_an_hour_ends_the_work() -> None:
    with (
        Loopback(lambda prompt, number: Reply("quota", 429, {"Retry-After": "3600"})) as server,
        pytest.raises(EndpointError, match=r"status 429: quota It asks to wait 3600 seconds, more than longest_wait_s"),
    ):
        ask(quick(server.url), ["x"])


@pytest.mark.parametrize(
    "trouble", [Reply("oops", 500), Reply("busy", 503), Reply("gone", cut=True), Reply(seconds=30)]
)
def test_what_passes_is_asked_again(trouble: Reply) -> None:
    with Loopback(lambda prompt, number: trouble if number == 0 else Reply("fine")) as server:
        assert ask(quick(server.url, read_seconds=3), ["x"])[0].text == "fine"
    assert len(server.requests) == 2


@pytest.mark.parametrize(
    ("trouble", "sentence"),
    [
        (Reply("oops", 500), r"refused a request of model 'toy' with status 500: oops It was asked 3 times\."),
        (Reply(cut=True), r"broke the connection off \(RemoteProtocolError\)\. It was asked 3 times\."),
        (Reply(seconds=30), r"did not answer within 0\.5 seconds \(read_seconds\)\. It was asked 3 times\."),
    ],
)
def test_what_does_not_pass_ends_with_a_sentence(trouble: Reply, sentence: str) -> None:
    with Loopback(lambda prompt, number: trouble) as server, pytest.raises(EndpointError, match=sentence):
        ask(quick(server.url, read_seconds=0.5 if trouble.seconds else 30.0), ["x"])
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        (Reply("no such key", 401), r"status 401: no such key The key is not accepted: check key="),
        (Reply("no", 404), r"status 404: no Either the address is no base URL"),
        (
            Reply("maximum context length is 10", 400),
            r"The prompt is longer than the model's context: give context_tok",
        ),
        (Reply("no chat_template here", 500), r"The model has no chat template: use Endpoint\(\.\.\., chat=False\)"),
        (Reply(body="<html>hello</html>"), r"no chat completion: '<html>hello</html>'\. Is this the base URL"),
        (Reply(body="{}"), r"no chat completion"),
        (Reply(body="[1]"), r"no chat completion"),
        (Reply("moved", 301, {"Location": "http://127.0.0.1:1/"}), r"status 301"),
    ],
)
def test_refusals_are_sentences(reply: Reply, sentence: str) -> None:
    with Loopback(lambda prompt, number: reply) as server, pytest.raises(EndpointError, match=sentence):
        ask(quick(server.url, retries=0), ["x"])


def test_an_endpoint_that_is_not_there() -> None:
    with socket.socket() as free:  # nobody else can take the port meanwhile
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        with pytest.raises(EndpointError, match=r"cannot be reached .* Is the address right, and the server up\?"):
            ask(quick(f"http://127.0.0.1:{port}/v1", retries=0), ["x"])


def test_after_an_error_nothing_more_is_sent_and_what_is_under_way_is_kept() -> None:
    def script(prompt: str, number: int) -> Reply:
        return Reply("no", 401, seconds=0.1) if prompt == "1" else Reply(seconds=0.3)

    kept: dict[int, Answer] = {}
    with Loopback(script) as server, pytest.raises(EndpointError, match="401"):
        endpoint = quick(server.url, concurrency=2)
        ask(endpoint, [str(number) for number in range(50)], keep=lambda row, answer: kept.update({row: answer}))
    assert len(server.requests) <= 4
    assert sorted(str(row) for row in kept) == sorted(server.answered)


# ------------------------------------------------------------ key and URL


def test_url_and_key_come_from_the_environment(server: Loopback, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", server.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    ask(Endpoint(model="toy"), ["x"])
    assert server.requests[0]["authorization"] == f"Bearer {KEY}"


def test_without_a_key_only_this_machine_is_asked() -> None:
    Endpoint("http://127.0.0.1:9/v1", "toy")
    Endpoint("https://models.example/v1", "toy", key="")
    with pytest.raises(ArgumentError, match=r"There is no key for https://models\.example/v1: pass key="):
        Endpoint("https://models.example/v1", "toy")


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        (None, r"No endpoint is known: give its base URL"),
        ("models.example/v1", r"'models\.example/v1' is no URL of an endpoint"),
        ("ftp://models.example", r"is no URL of an endpoint; it must look like http://host:port/v1"),
        ("http://[::1", r"is no URL of an endpoint"),
        ("https://me:secret@models.example/v1", r"at models\.example holds a password or a query"),
        ("https://models.example/v1?key=secret", r"holds a password or a query"),
    ],
)
def test_urls_that_are_none(url: str | None, sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence) as raised:
        Endpoint(url, "toy", key=KEY)
    assert "secret" not in str(raised.value)


def test_a_key_that_cannot_be_one() -> None:
    with pytest.raises(ArgumentError, match="The key holds characters that no key has") as raised:
        Endpoint("http://127.0.0.1:9", "toy", key="secret\nX-Header: 1")
    assert "secret" not in str(raised.value)


def test_the_key_is_told_to_nobody(caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    caplog.set_level(logging.DEBUG)
    said = f"Incorrect key {KEY}, and {'x' * 150} {KEY}"
    with Loopback(lambda prompt, number: Reply(said, 500 if number == 0 else 401)) as server:
        endpoint = quick(server.url, key=KEY)
        asker = Asker(endpoint, AnswerFile(tmp_path / "a.jsonl", endpoint.identity))
        with pytest.raises(EndpointError, match=r"Incorrect key \*\*\*, and x") as raised:
            asker.ask(["x"], max_new_tokens=5)
    assert server.requests[1]["authorization"] == f"Bearer {KEY}"
    told = [str(raised.value), repr(endpoint), endpoint.identity, caplog.text, str(vars(asker))]
    assert not [one for one in told if KEY[:12] in one]
    with pytest.raises(ArgumentError, match="An Endpoint goes to no other process and into no file"):
        pickle.dumps(endpoint)
    assert copy.deepcopy(endpoint) is endpoint


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(MissingExtraError, match=r"extra 'prompt': pip install 'sonde\[prompt\]'"):
        Endpoint("http://127.0.0.1:9", "toy")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"concurrency": 0}, "concurrency is 0"),
        ({"retries": -1}, "retries is -1"),
        ({"longest_wait_seconds": -1.0}, "longest_wait_seconds is -1.0"),
        ({"budget_tokens": -5}, "budget_tokens is -5"),
        ({"budget_tokens": 1.5}, "budget_tokens is 1.5"),
        ({"budget_usd": float("nan"), "prices": Prices()}, "budget_usd is nan"),
        ({"budget_usd": "5", "prices": Prices()}, "budget_usd is '5'"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        Endpoint("http://127.0.0.1:9", "toy", **settings)


# ----------------------------------------------------------------- budget


def test_a_budget_of_tokens_is_never_exceeded_and_what_it_bought_is_kept(tmp_path: Path) -> None:
    prompts = [f"{number:03} " + "some words " * 10 for number in range(60)]  # 21 tokens in, 1 out
    with Loopback() as server:
        endpoint = quick(server.url, budget_tokens=700, concurrency=4)
        file = AnswerFile(tmp_path / "answers.jsonl", endpoint.identity)
        with pytest.raises(
            BudgetError,
            match=r"The budget of 700 tokens ends here: \d+ tokens .* of 60 answers came before that and are kept",
        ):
            Asker(endpoint, file).ask(prompts, max_new_tokens=5)
        bought = len(server.answered)
        assert 20 <= bought <= 700 // 22
        assert endpoint.budget.spent_tokens == 22 * bought <= 700
        richer = quick(server.url)
        again = Asker(richer, AnswerFile(tmp_path / "answers.jsonl", richer.identity))
        assert len(again.ask(prompts, max_new_tokens=5)) == 60
        assert sorted(server.answered) == sorted(prompts)  # each paid for once
        assert again.usage.answers == 60 and again.usage.asked == 60 - bought
        assert again.usage.prompt_tokens == 60 * 21 and again.usage.asked_prompt_tokens == (60 - bought) * 21


def test_a_budget_of_money(tmp_path: Path) -> None:
    prices = Prices(usd_per_1k_prompt_tokens=1.0, usd_per_1k_new_tokens=2.0)
    prompts = [f"{number} and nine words more, so that there are ten" for number in range(30)]
    with Loopback() as server:
        endpoint = quick(server.url, budget_usd=0.3, prices=prices, concurrency=1)
        with pytest.raises(BudgetError, match=r"The budget of \$0\.3000 ends here"):
            ask(endpoint, prompts)
        assert endpoint.budget.spent_usd == pytest.approx(len(server.answered) * 0.012)
        assert 0.1 < endpoint.budget.spent_usd <= 0.3


def test_a_budget_of_zero_asks_nothing_and_still_finds_answers(tmp_path: Path, server: Loopback) -> None:
    path = tmp_path / "answers.jsonl"
    paying, free = quick(server.url), quick(server.url, budget_tokens=0)
    assert Asker(paying, AnswerFile(path, paying.identity)).ask(["known"], max_new_tokens=5)[0].text == "KNOWN"
    asker = Asker(free, AnswerFile(path, free.identity))
    assert asker.ask(["known"], max_new_tokens=5)[0].text == "KNOWN"
    with pytest.raises(BudgetError, match=r"The budget of 0 tokens ends here: 0 tokens \(\$0\.0000\) are spent"):
        asker.ask(["known", "unknown"], max_new_tokens=5)
    assert server.answered == ["known"]


def test_requests_that_broke_off_count_against_the_budget() -> None:
    with Loopback(lambda prompt, number: Reply(cut=True)) as server, pytest.raises(EndpointError):
        endpoint = quick(server.url, budget_tokens=1000, retries=1)
        ask(endpoint, ["x" * 30])
    assert endpoint.budget.unconfirmed_tokens == endpoint.budget.spent_tokens == 2 * (30 + TEMPLATE_TOKENS + 5)


def test_what_nobody_counts_is_counted_at_its_most() -> None:
    with Loopback(lambda prompt, number: Reply(usage=False)) as server, pytest.raises(BudgetError):
        endpoint = quick(server.url, budget_tokens=1000, concurrency=1)
        ask(endpoint, [f"{number:02} a b c d e f g h" for number in range(60)])
    most = len("00 a b c d e f g h") + TEMPLATE_TOKENS + 5
    assert endpoint.budget.unconfirmed_tokens == endpoint.budget.spent_tokens == len(server.answered) * most <= 1000


def test_what_is_set_aside_is_what_the_request_allows(server: Loopback) -> None:
    with pytest.raises(BudgetError):
        ask(quick(server.url, budget_tokens=1000, extra={"max_tokens": 2000}), ["a"])
    with pytest.raises(BudgetError):
        ask(quick(server.url, budget_tokens=1000, extra={"n": 400}), ["a"])
    assert not server.answered
    with pytest.raises(ArgumentError, match="extra leaves max_tokens out"):
        quick(server.url, budget_tokens=1000, extra={"max_tokens": None})
    with pytest.raises(ArgumentError, match="budget_usd needs to know what tokens cost"):
        quick(server.url, budget_usd=1.0)


def test_a_refused_key_is_said_where_no_model_was_named() -> None:
    with Loopback() as server:
        server.key = "right"
        with pytest.raises(EndpointError, match="refused to list its models with status 401"):
            ask(Endpoint(server.url, key="wrong"), ["a"])


# ---------------------------------------------------------- kept and found


def test_what_others_have_written_is_read_once_and_what_is_ones_own_never(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = (AnswerFile(tmp_path / "a.jsonl", "toy") for _ in range(2))
    reads: list[Path] = []
    read = AnswerFile._read
    monkeypatch.setattr(AnswerFile, "_read", lambda self, path: (reads.append(path), read(self, path)))
    one.keep("1", Answer("a", 1, 1, False))
    one.keep("2", Answer("b", 1, 1, False))
    one.look()
    assert not reads
    other.look()
    other.look()
    assert len(reads) == 1 and other.find("2") == Answer("b", 1, 1, False)


def test_equal_requests_are_asked_once(server: Loopback) -> None:
    endpoint = quick(server.url)
    asker = Asker(endpoint, AnswerFile(None, endpoint.identity))
    assert [one.text for one in asker.ask(["a", "b", "a"], max_new_tokens=5)] == ["A", "B", "A"]
    asker.ask(["a"], max_new_tokens=5, seeds=[7])  # the seed decides nothing at temperature 0
    assert sorted(server.answered) == ["a", "b"]
    asker.ask(["a", "a"], max_new_tokens=5, temperature=0.7, seeds=[1, 2])
    asker.ask(["a"], max_new_tokens=6)
    assert len(server.answered) == 5


def test_an_answer_with_probabilities_serves_without(server: Loopback) -> None:
    endpoint = quick(server.url)
    asker = Asker(endpoint, AnswerFile(None, endpoint.identity))
    asker.ask(["a"], max_new_tokens=5, logprobs=True)
    asker.ask(["a"], max_new_tokens=5)
    assert len(server.answered) == 1


def test_a_file_of_answers_survives_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    file = AnswerFile(path, "toy")
    file.keep("k1", Answer("line\u2028one", 3, 2))
    file.keep("k2", Answer("two \ud83d", 3, 2, True, (-0.5,), (3,)))
    whole = path.read_bytes()
    header, one, two = (len(line) for line in whole.splitlines(keepends=True))
    for end in range(len(whole)):
        path.write_bytes(whole[:end])
        found = AnswerFile(path, "toy")
        assert len(found) == (end >= header + one - 1) + (end >= header + one + two - 1)
        found.keep("k3", Answer("three", 1, 1))
        after = AnswerFile(path, "toy")
        assert after.find("k3") == Answer("three", 1, 1) and len(after) == len(found)
    path.write_bytes(whole)
    assert AnswerFile(path, "toy").find("k1") == Answer("line\u2028one", 3, 2)
    assert AnswerFile(path, "toy").find("k2") == Answer("two \ud83d", 3, 2, True, (-0.5,), (3,))


def test_a_foreign_file_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    for content in ('{"mine": 1}\n', "hello\n", "hello"):
        path.write_text(content)
        with pytest.raises(DataError, match=r"answers\.jsonl is no file of answers that sonde wrote"):
            AnswerFile(path, "toy")
        assert path.read_text() == content
    path.write_text('{"sonde_answers": 99, "generator": "x"}\n')
    with pytest.raises(DataError, match="written by a newer sonde"):
        AnswerFile(path, "toy")


RUN = """
import sys
from pathlib import Path
from sonde.baselines import Endpoint
from sonde.baselines.answers import AnswerFile
from sonde.baselines.asking import Asker
endpoint = Endpoint(sys.argv[1], "toy", concurrency=2)
asker = Asker(endpoint, AnswerFile(Path(sys.argv[2]), endpoint.identity))
asker.ask([f"question {number}" for number in range(40)], max_new_tokens=5)
print(asker.usage.asked)
"""


def test_a_run_that_is_killed_half_way_goes_on_and_pays_once(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"

    def script(prompt: str, number: int) -> Reply:
        return Reply(seconds=30 if number in (20, 21) else 0.01)

    with Loopback(script) as server:
        command = [sys.executable, "-c", RUN, server.url, str(path)]
        first = subprocess.Popen(command)
        deadline = time.monotonic() + 200
        while len(server.requests) < 22 and time.monotonic() < deadline:
            time.sleep(0.02)
        time.sleep(0.2)  # answers that were sent are written by now; 20 and 21 are under way and unanswered
        first.kill()
        first.wait()
        assert len(server.answered) == 20 == len(AnswerFile(path, "any"))
        second = subprocess.run(command, capture_output=True, text=True, check=True)
        assert second.stdout.strip() == "20"
        assert sorted(server.answered) == sorted(f"question {number}" for number in range(40))


def test_what_a_full_disk_did_not_take_is_written_with_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real, room = tmp_path / "answers.jsonl", os.write, [200, 20, 0]
    answers = AnswerFile(path, "toy")
    answers.keep("k0", Answer("first", 1, 1))

    def full(handle: int, content: bytes) -> int:
        if len(content) > 20:
            return real(handle, content[:20])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(DataError, match="cannot be written: No space left"):
        patched.setattr(os, "write", lambda handle, content: full(handle, content if room.pop(0) else b""))
        answers.keep("k1", Answer("paid for", 1, 1))
    answers.keep("k2", Answer("next", 1, 1))
    found = AnswerFile(path, "toy")
    assert [found.find(f"k{number}") for number in range(3)] == [
        Answer("first", 1, 1), Answer("paid for", 1, 1), Answer("next", 1, 1),
    ]  # fmt: skip


def test_a_reply_that_cannot_be_decoded_is_a_broken_connection() -> None:
    with Loopback(lambda prompt, number: Reply(headers={"Content-Encoding": "gzip"}, body="no gzip")) as server:
        endpoint = quick(server.url)
        with pytest.raises(EndpointError, match="broke the connection off"):
            ask(endpoint, ["hello"])
        assert endpoint.budget.unconfirmed_tokens > 0
