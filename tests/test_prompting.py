"""IOPrompt and CARP: classifiers that ask, under the scikit-learn contract, against scripted and real models."""

import json
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from loopback import Loopback, Reply
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.metrics import accuracy_score
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.model_selection import cross_val_score
from test_local_model import writer

from sonde import ActivationFeatures
from sonde.baselines import CARP, Endpoint, IOPrompt, LocalModel
from sonde.errors import ArgumentError, BudgetError, DataError, EndpointError, SondeWarning

TRAIN = [
    "a film of great joy", "joy and wit in every scene", "great wit", "the cast is a joy",
    "a dull film", "boring and dull scenes", "every scene is boring", "a dull cast",
]  # fmt: skip
MOODS = ["good"] * 4 + ["bad"] * 4
TEST = ["such joy", "so dull", "great joy, great cast", "boring"]
TRUTH = ["good", "bad", "good", "bad"]


def last_text(prompt: str) -> str:
    return re.findall(r"^Text: (.*)$", prompt, re.MULTILINE)[-1]


def sense(text: str) -> str:
    return "good" if re.search("joy|wit|great", text) else "bad"


def sensible(prompt: str, number: int) -> Reply:
    """What a good model would answer to any of the prompts."""
    if prompt.endswith("Reasoning:"):
        return Reply(f"The words of {last_text(prompt)!r} say so.")
    if "Write them in one line" in prompt:
        return Reply(f"{last_text(prompt)}, tone")
    label = sense(last_text(prompt))
    return Reply(f"{label} words\nReasoning: clear\nLabel: {label}" if prompt.endswith("Clues:") else label)


@pytest.fixture
def server() -> Iterator[Loopback]:
    with Loopback(sensible) as one:
        yield one


def endpoint(server: Loopback, **settings: Any) -> Endpoint:
    return Endpoint(server.url, "toy", **{"longest_wait_seconds": 0.02, "retries": 2, **settings})


def io(model: Any, **settings: Any) -> IOPrompt:
    return IOPrompt(model, **{"answers": None, **settings})


def carp(model: Any, **settings: Any) -> CARP:
    return CARP(model, **{"answers": None, "retriever": TfidfVectorizer(), "k": 3, "samples": 2, **settings})


def codes(said: Any) -> list[str]:
    return sorted(one.message.code for one in said if isinstance(one.message, SondeWarning))


# --------------------------------------------------------------------- IO


def test_zero_shot(server: Loopback) -> None:
    classifier = io(endpoint(server)).fit(TRAIN, MOODS)
    assert server.requests == []
    assert classifier.predict(TEST).tolist() == TRUTH
    assert classifier.score(TEST, TRUTH) == 1.0 and classifier.failure_rate_ == 0.0
    prompt = classifier.prompts_for(["so dull"])[0]
    assert prompt in server.answered and prompt.endswith("Text: so dull\nLabel:")
    assert "exactly one of these labels: bad, good" in prompt and prompt.count("Text:") == 1
    assert len(server.answered) == 4, "the second time all answers were known"
    words = sum(len(one.split()) for one in server.answered)
    assert classifier.summary_["usage"]["inference"] == {
        "answers": 8, "asked": 4, "prompt_tokens": 2 * words, "new_tokens": 8, "asked_prompt_tokens": words,
        "asked_new_tokens": 4,
    }, "both times, and what was paid for at the first"  # fmt: skip
    assert not hasattr(classifier, "predict_proba")


def test_drawn_demonstrations_are_balanced_and_the_same_for_all(server: Loopback) -> None:
    classifier = io(endpoint(server), demonstrations=4).fit(TRAIN, MOODS)
    prompts = classifier.prompts_for(TEST)
    shown = [re.findall(r"^Label: (\w+)$", prompt, re.MULTILINE) for prompt in prompts]
    assert sorted(shown[0]) == ["bad", "bad", "good", "good"] and all(one == shown[0] for one in shown)
    assert prompts == io(endpoint(server), demonstrations=4).fit(TRAIN, MOODS).prompts_for(TEST)
    others = [io(endpoint(server), demonstrations=4, random_state=seed).fit(TRAIN, MOODS) for seed in range(1, 6)]
    assert any(other.prompts_for(TEST) != prompts for other in others)
    assert classifier.predict(TEST).tolist() == TRUTH


def test_retrieved_demonstrations_stand_nearest_last(server: Loopback) -> None:
    classifier = io(endpoint(server), demonstrations=3, retriever=TfidfVectorizer()).fit(TRAIN, MOODS)
    (prompt,) = classifier.prompts_for(["great wit in a film"])
    texts = re.findall(r"^Text: (.*)$", prompt, re.MULTILINE)
    words = TfidfVectorizer().fit(TRAIN)
    alike = cosine_similarity(words.transform(["great wit in a film"]), words.transform(TRAIN))[0]
    assert texts == [*(TRAIN[row] for row in alike.argsort()[-3:]), "great wit in a film"]
    assert texts[-2] == "great wit" and len(set(alike)) > 4


def test_any_block_retrieves(server: Loopback) -> None:
    from tiny import build

    features = ActivationFeatures("hidden.2", "mean", (str(build("bert")),), dtype="float32", cache=None)
    classifier = io(endpoint(server), demonstrations=3, retriever=features).fit(TRAIN, MOODS)
    (prompt,) = classifier.prompts_for([TRAIN[5]])
    assert re.findall(r"^Text: (.*)$", prompt, re.MULTILINE)[-2:] == [TRAIN[5], TRAIN[5]]


def test_numbers_are_named_and_come_back_as_numbers(server: Loopback) -> None:
    numbers = [int(mood == "good") for mood in MOODS]
    for names in ({0: "bad", 1: "good"}, ["bad", "good"], {"0": "bad", "1": "good"}):
        classifier = io(endpoint(server), label_names=names).fit(TRAIN, numbers)
        assert classifier.predict(TEST).tolist() == [1, 0, 1, 0]
    as_text = io(endpoint(server), label_names=["bad", "good"]).fit(TRAIN, [str(number) for number in numbers])
    assert as_text.predict(TEST).tolist() == ["1", "0", "1", "0"]
    flags = io(endpoint(server), label_names={False: "bad", True: "good"}).fit(TRAIN, [bool(one) for one in numbers])
    assert flags.predict(TEST).tolist() == [True, False, True, False]
    with pytest.raises(
        ArgumentError, match=r"The labels are numbers \(0, 1, \.\.\.\), which say nothing to a language mo"
    ):
        io(endpoint(server)).fit(TRAIN, numbers)
    with pytest.raises(ArgumentError, match="label_names has no name for 1 of the 2 labels, such as 1"):
        io(endpoint(server), label_names=["bad"]).fit(TRAIN, numbers)
    with pytest.raises(ArgumentError, match="label_names is 'bad'; give a dict"):
        io(endpoint(server), label_names="bad").fit(TRAIN, numbers)


@pytest.mark.parametrize(
    ("labels", "names", "nothing"),
    [(MOODS, None, ""), ([1, 1, 1, 1, 5, 5, 5, 5], {1: "good", 5: "bad"}, 0),
     ([True] * 4 + [False] * 4, {True: "good", False: "bad"}, None)],
)  # fmt: skip
def test_an_answer_that_names_no_label_is_wrong(labels: list[Any], names: Any, nothing: Any) -> None:
    replies = {"such joy": "good", "so dull": "no idea", "boring": "", "great joy, great cast": "good"}
    with Loopback(lambda prompt, number: Reply(replies[last_text(prompt)])) as server:
        classifier = io(endpoint(server), label_names=names).fit(TRAIN, labels)
        with pytest.warns(SondeWarning, match="2 of 4 texts got no answer that names a label; they count as wrong"):
            predicted = classifier.predict(TEST)
        good = labels[0]
        assert predicted.tolist() == [good, nothing, good, nothing] and classifier.no_label_ == nothing
        assert classifier.failure_rate_ == classifier.summary_["failure_rate"] == 0.5
        truth = [good if mood == "good" else labels[-1] for mood in TRUTH]
        with pytest.warns(SondeWarning):
            assert classifier.score(TEST, truth) == 0.5
        if nothing is not None:
            assert accuracy_score(truth, predicted) == 0.5


def test_samples_vote_and_their_shares_are_probabilities() -> None:
    with Loopback(lambda prompt, number: Reply()) as server:
        server.script = lambda prompt, number: Reply(
            ["good", "bad", "good", "what?"][server.requests[number].get("seed", 0) % 4]
        )
        classifier = io(endpoint(server, concurrency=1), samples=4, temperature=0.7).fit(TRAIN, MOODS)
        assert classifier.predict(["a film", "a film", "a play"]).tolist() == ["good"] * 3
        assert [one["seed"] for one in server.requests] == [0, 1, 2, 3] * 2
        assert np.allclose(classifier.predict_proba(["a film"]), [[1 / 3, 2 / 3]])
        assert classifier.summary_["unread_answers"] == 0.25 and classifier.failure_rate_ == 0.0


def test_votes_weigh_what_the_model_believes() -> None:
    believed = [("good", -3.0), ("bad", -0.1), ("good", -2.5)]
    with Loopback() as server:
        server.script = lambda prompt, number: Reply(
            believed[server.requests[number]["seed"]][0], logprobs=[believed[server.requests[number]["seed"]]]
        )
        settings = {"samples": 3, "temperature": 0.7}
        assert io(endpoint(server), **settings).fit(TRAIN, MOODS).predict(["a film"]).tolist() == ["good"]
        weighted = io(endpoint(server), vote="weighted", **settings).fit(TRAIN, MOODS)
        assert weighted.predict(["a film"]).tolist() == ["bad"]
        total = np.exp(-0.1) + np.exp(-3.0) + np.exp(-2.5)
        assert weighted.predict_proba(["a film"])[0, 0] == pytest.approx(np.exp(-0.1) / total)
    with Loopback(sensible) as server:
        mute = io(endpoint(server), vote="weighted", **settings).fit(TRAIN, MOODS)
        with pytest.warns(SondeWarning, match="12 answers came without probabilities; they count as 1"):
            assert mute.predict(TEST).tolist() == TRUTH


# ------------------------------------------------------------------- CARP


def test_carp_step_by_step(server: Loopback) -> None:
    classifier = carp(endpoint(server)).fit(TRAIN, MOODS)
    asked = list(server.answered)
    assert len(asked) == 16, "clues and reasoning of eight texts"
    clues = [prompt for prompt in asked if "Write them in one line" in prompt]
    reasons = [prompt for prompt in asked if prompt.endswith("Reasoning:")]
    assert len(clues) == len(reasons) == 8
    assert any("Text: great wit\nLabel: good" in prompt for prompt in clues)
    assert any("Text: great wit\nClues: great wit, tone\nLabel: good" in prompt for prompt in reasons)
    assert classifier.explanations_[2] == ("great wit, tone", "The words of 'great wit' say so.")
    (prompt,) = classifier.prompts_for(["great wit indeed"])
    assert prompt.endswith(
        "Text: great wit\nClues: great wit, tone\nReasoning: The words of 'great wit' say so.\nLabel: good\n\n"
        "Text: great wit indeed\nClues:"
    )
    assert prompt.count("Reasoning:") == 3 and len(server.answered) == 16
    assert classifier.predict(TEST).tolist() == TRUTH
    answers = server.requests[16:]
    assert len(answers) == 8 and {one["seed"] for one in answers} == {0, 1}
    assert all(one["temperature"] == 0.7 and one["top_p"] == 1 and one["max_tokens"] == 200 for one in answers)
    assert classifier.predict_proba(TEST).argmax(axis=1).tolist() == [1, 0, 1, 0]
    assert classifier.summary_["demonstrations"] == 3.0
    assert set(classifier.summary_["seconds"]) == {"reading_train", "generating_reasons", "retrieving", "inference"}
    assert classifier.summary_["usage"]["generating_reasons"]["asked"] == 16


def test_carp_explains_only_what_it_retrieves(server: Loopback) -> None:
    classifier = carp(endpoint(server), explain="retrieved", k=1).fit([*TRAIN, *TRAIN], [*MOODS, *MOODS])
    assert server.answered == [] and len(classifier.pool_) == 8
    classifier.predict(["great wit", "great wit!"])
    assert len(classifier.explanations_) == 1 and len(server.answered) == 2 + 2 * 2


def test_carp_with_the_paper_s_number_of_neighbours_takes_all_there_are(server: Loopback) -> None:
    classifier = carp(endpoint(server), k=16).fit(TRAIN, MOODS)
    assert classifier.prompts_for(["joy"])[0].count("Reasoning:") == 8


def test_explanations_are_one_short_paragraph() -> None:
    def script(prompt: str, number: int) -> Reply:
        if prompt.endswith("Reasoning:"):
            return Reply("Reasoning: because\nof this.\nLabel: good\n\nText: more")
        return Reply("word " * 150 if "Write them in one line" in prompt else "Label: good")

    with Loopback(script) as server:
        classifier = carp(endpoint(server), max_explanation_words=10).fit(TRAIN, MOODS)
    assert set(classifier.explanations_.values()) == {(" ".join(["word"] * 10), "because of this.")}
    assert classifier.summary_["empty_explanations"] == 0.0


def test_long_texts_are_cut_and_counted(server: Loopback) -> None:
    long = ["joy " * 300, *TRAIN[1:]]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        classifier = carp(endpoint(server), max_words=20).fit(long, MOODS)
        classifier.predict(["dull " * 300, "joy"])
    assert codes(said) == ["truncated_rows", "truncated_rows"]
    assert "joy " * 21 not in "\n".join(server.answered) and "joy " * 19 in "\n".join(server.answered)


def test_prompts_keep_the_limit_and_say_when_nothing_fits(server: Loopback) -> None:
    whole = carp(endpoint(server)).fit(TRAIN, MOODS)
    tokens = [whole.asker_.generator.count_tokens(prompt) for prompt in whole.prompts_for(TEST)]
    less = carp(endpoint(server), max_prompt_tokens=min(tokens) - 1).fit(TRAIN, MOODS)
    assert {prompt.count("Reasoning:") for prompt in less.prompts_for(TEST)} == {2}
    frame = io(endpoint(server), max_prompt_tokens=None).fit(TRAIN, MOODS)
    assert frame.prompt_tokens_ is None
    bare = carp(endpoint(server), max_prompt_tokens=160).fit(TRAIN, MOODS)
    with pytest.warns(SondeWarning, match="4 of 4 prompts have no room for a demonstration"):
        bare.predict(TEST)
    with pytest.raises(ArgumentError, match=r"The prompt 'clues' takes \d+ tokens beside the text, but 50 is all"):
        carp(endpoint(server), max_prompt_tokens=50).fit(TRAIN, MOODS)


def test_prompts_of_a_user(server: Loopback, tmp_path: Path) -> None:
    (tmp_path / "carp_demonstration.txt").write_text(
        "Satz: {text}\nHinweise: {clues}\nSchluss: {reasoning}\nEtikett: {label}", encoding="utf-8"
    )
    (tmp_path / "carp.txt").write_text("{task} {labels}\n{demonstrations}Satz: {text}\nHinweise:", encoding="utf-8")
    server.script = lambda prompt, number: (
        Reply("kurz\nSchluss: ja\nEtikett: bad\n\nSatz: x\nEtikett: good")
        if prompt.endswith("Hinweise:")
        else sensible(prompt, number)
    )
    classifier = carp(endpoint(server), prompts=tmp_path, task="Film gut?").fit(TRAIN, MOODS)
    assert classifier.predict(TEST).tolist() == ["bad"] * 4
    assert classifier.prompts_for(["x"])[0].startswith("Film gut? bad, good\nSatz: ")


# -------------------------------------------------------- nothing is lost


def test_an_error_in_the_middle_keeps_what_was_paid(tmp_path: Path) -> None:
    def script(prompt: str, number: int) -> Reply:
        return Reply("overloaded", 500) if number >= 11 else sensible(prompt, number)

    with Loopback(script) as server:
        classifier = carp(endpoint(server, concurrency=1, retries=0), answers=tmp_path)
        with pytest.raises(EndpointError, match=r"status 500.* answers came before that and are kept in .*\.jsonl"):
            classifier.fit(TRAIN, MOODS)
        assert len(server.answered) == 11
        server.script = sensible
        assert carp(endpoint(server), answers=tmp_path).fit(TRAIN, MOODS).predict(TEST).tolist() == TRUTH
        assert len(server.answered) == 16 + 8
        carp(endpoint(server, budget_tokens=0), answers=tmp_path).fit(TRAIN, MOODS).predict(TEST)
        assert len(server.answered) == 16 + 8


def test_without_a_file_the_object_keeps_what_was_paid() -> None:
    def script(prompt: str, number: int) -> Reply:
        return Reply("no", 400) if number == 5 else sensible(prompt, number)

    with Loopback(script) as server:
        classifier = carp(endpoint(server, concurrency=1, retries=0), answers=None)
        with pytest.raises(
            EndpointError, match=r"[67] of 8 answers .* are kept in memory, for as long as this object lives"
        ):
            classifier.fit(TRAIN, MOODS)
        classifier.fit(TRAIN, MOODS)
        assert len(server.answered) == len(set(server.answered)) == 16


def test_objects_with_one_file_pay_once(server: Loopback, tmp_path: Path) -> None:
    one, other = (io(endpoint(server), answers=tmp_path).fit(TRAIN, MOODS) for _ in range(2))
    assert one.predict(TEST).tolist() == other.predict(TEST).tolist()
    assert len(server.answered) == len(TEST)


def test_labels_and_weights_are_judged_before_anything_is_asked(server: Loopback) -> None:
    classifier = io(endpoint(server), answers=None).fit(TRAIN, MOODS)
    with pytest.raises(DataError, match="labels"):
        classifier.score(TEST, TRUTH[:-1])
    with pytest.raises(ArgumentError, match="sample_weight"):
        classifier.score(TEST, TRUTH, sample_weight=[1.0])
    assert not server.answered
    assert classifier.score(TEST, TRUTH) == 1.0


def test_answers_that_break_off_are_named() -> None:
    with Loopback(lambda *_: Reply(None, finish="length")) as server:
        classifier = io(endpoint(server), answers=None, max_new_tokens=7).fit(TRAIN, MOODS)
        with pytest.warns(SondeWarning, match="broke off before they named one, at max_new_tokens=7"):
            classifier.predict(TEST)


def test_a_budget_ends_fit_and_predict(server: Loopback, tmp_path: Path) -> None:
    with pytest.raises(BudgetError, match="The budget of 0 tokens ends here"):
        carp(endpoint(server, budget_tokens=0), answers=tmp_path).fit(TRAIN, MOODS)
    spender = endpoint(server, budget_tokens=4000)
    with pytest.raises(BudgetError):
        for seed in range(100):
            io(spender, answers=tmp_path, random_state=seed, samples=2, temperature=1).fit(TRAIN, MOODS).predict(TEST)
    assert 3000 < spender.budget.spent_tokens <= 4000


RUN = """
import json, sys
from sklearn.feature_extraction.text import TfidfVectorizer
from sonde.baselines import CARP, Endpoint
train, moods, test = json.loads(sys.argv[3])
model = Endpoint(sys.argv[1], "toy", concurrency=1)
classifier = CARP(model, k=3, samples=2, retriever=TfidfVectorizer(), answers=sys.argv[2]).fit(train, moods)
print(*classifier.predict(test), not {"torch", "transformers"} & set(sys.modules))
"""


@pytest.mark.slow
def test_a_killed_classifier_goes_on_and_pays_once(tmp_path: Path) -> None:
    for stop in (5, 20):  # while it explains, while it answers
        with Loopback(lambda prompt, number: Reply()) as server:
            server.script = lambda prompt, number, stop=stop: (  # type: ignore[misc]
                Reply(seconds=60) if number == stop else sensible(prompt, number)
            )
            command = [
                sys.executable,
                "-c",
                RUN,
                server.url,
                str(tmp_path / str(stop)),
                json.dumps([TRAIN, MOODS, TEST]),
            ]
            first = subprocess.Popen(command)
            deadline = time.monotonic() + 200
            while len(server.requests) <= stop and time.monotonic() < deadline:
                time.sleep(0.05)
            first.kill()
            first.wait()
            assert len(server.answered) == stop
            second = subprocess.run(command, capture_output=True, text=True, check=True)
            assert second.stdout.split() == [*TRUTH, "True"], "an endpoint needs neither torch nor transformers"
            assert len(server.answered) == 16 + 8


# ----------------------------------------------------------- local models


@pytest.fixture
def short_prompts(tmp_path: Path) -> Path:
    (tmp_path / "io.txt").write_text("{task} {labels} {demonstrations} {text} :", encoding="utf-8")
    return tmp_path


def test_scoring(short_prompts: Path) -> None:
    model = LocalModel(str(writer("llama")), dtype="float32", device="cpu")
    texts = ["the first trains left early", "a cold wind came over the hills", "the parcel never arrived"]
    settings = {"answer": "score", "prompts": short_prompts, "task": "why"}
    names = {"good": "cold", "bad": "late"}
    classifier = io(model, label_names=names, **settings).fit(TRAIN, MOODS)
    chances = classifier.predict_proba(texts)
    assert chances.shape == (3, 2) and np.allclose(chances.sum(axis=1), 1) and (chances > 0).all()
    assert classifier.predict(texts).tolist() == [classifier.classes_[row] for row in chances.argmax(axis=1)]
    scores = model.score(classifier.prompts_for(texts), ["late", "cold"]).logprobs
    assert np.allclose(np.log(chances[:, 0] / chances[:, 1]), scores[:, 0] - scores[:, 1], atol=1e-4)
    assert classifier.failure_rate_ == 0.0
    assert classifier.predict([]).shape == (0,) and classifier.predict_proba([]).shape == (0, 2)
    split = io(model, label_names={"good": "cold wind came", "bad": "late"}, **settings).fit(TRAIN, MOODS)
    with pytest.warns(
        SondeWarning, match=r"splits 1 of 2 label names into more tokens than others \(1 to 3\); .* summed"
    ):
        summed = split.predict_proba(texts)
    mean = clone(split).set_params(length_normalised=True).fit(TRAIN, MOODS).predict_proba(texts)
    assert (mean[:, 1] > summed[:, 1]).all()
    nested = io(model, label_names={"good": "cold", "bad": "cold wind"}, **settings).fit(TRAIN, MOODS)
    with pytest.warns(
        SondeWarning, match="1 label names are beginnings of others, such as 'cold'; all are scored with"
    ):
        nested.predict(texts)


def test_a_real_model_writes_and_is_asked_once(models_dir: Path, tmp_path: Path) -> None:
    model = LocalModel(str(models_dir / "stories260K-llama"), dtype="float32", device="cpu")
    settings = {"max_new_tokens": 12, "label_names": {"good": "happy", "bad": "sad"}, "answers": tmp_path}
    classifier = IOPrompt(model, **settings).fit(TRAIN, MOODS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SondeWarning)
        first = classifier.predict(TEST).tolist()
        again = IOPrompt(model, **settings).fit(TRAIN, MOODS)
        assert again.predict(TEST).tolist() == first
    assert again.summary_["usage"]["inference"]["asked"] == 0
    assert set(first) <= {"good", "bad", ""} and 0 <= classifier.failure_rate_ <= 1


# ------------------------------------------------------------- bad input


def test_scikit_learn_contract(server: Loopback) -> None:
    for classifier in (io(endpoint(server), demonstrations=2), carp(endpoint(server))):
        copied = clone(classifier)
        assert copied.get_params().keys() == classifier.get_params().keys()
        assert copied.model is classifier.model, "a copy shares connection and budget"
        with pytest.raises(NotFittedError):
            copied.predict(TEST)
        assert cross_val_score(copied, TRAIN, MOODS, cv=2).tolist() == [1.0, 1.0]
        assert list(copied.fit(TRAIN, MOODS).classes_) == ["bad", "good"]
        assert copied.predict([]).tolist() == [] and len(copied.predict(np.array(TEST))) == 4


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"vote": "loudest"}, "vote 'loudest' is unknown; it must be one of: majority, weighted"),
        ({"samples": 0}, "samples is 0"),
        ({"samples": 3, "temperature": 0}, "3 samples at temperature 0 are one answer"),
        ({"temperature": -1}, "temperature is -1"),
        ({"max_words": 0}, "max_words is 0"),
        ({"max_new_tokens": True}, "max_new_tokens is True"),
        ({"max_prompt_tokens": 0}, "max_prompt_tokens is 0"),
        ({"random_state": -1}, "random_state is -1"),
        ({"answers": 5}, "answers is 5; give 'auto', the path of a folder, or None"),
        ({"retriever": "knn"}, "retriever is 'knn'; give a transformer such as ActivationFeatures"),
        ({"label_names": {"good": "x", "bad": "X"}}, "'X' and 'x' are the same to a reader of answers"),
    ],
)
def test_settings_that_cannot_be(server: Loopback, settings: dict[str, Any], sentence: str) -> None:
    for classifier in (io(endpoint(server), demonstrations=1), carp(endpoint(server))):
        if settings.keys() == {"samples"} and isinstance(classifier, IOPrompt):
            settings = {**settings, "temperature": 1}
        with pytest.raises(ArgumentError, match=re.escape(sentence)):
            classifier.set_params(**settings).fit(TRAIN, MOODS)
    assert server.requests == []


def test_settings_of_one_of_them(server: Loopback) -> None:
    with pytest.raises(
        ArgumentError, match=r"CARP needs demonstrations: k must be at least 1\. IOPrompt asks without any"
    ):
        carp(endpoint(server), k=0).fit(TRAIN, MOODS)
    with pytest.raises(ArgumentError, match="explain 'some' is unknown; it must be one of: all, retrieved"):
        carp(endpoint(server), explain="some").fit(TRAIN, MOODS)
    with pytest.raises(ArgumentError, match=r"answer='score' needs the probabilities of given words, which Endpoint\("):
        io(endpoint(server), answer="score").fit(TRAIN, MOODS)
    with pytest.raises(ArgumentError, match="it has no 2 samples"):
        io(endpoint(server), answer="score", samples=2, temperature=1).fit(TRAIN, MOODS)
    with pytest.raises(ArgumentError, match=r"max_new_tokens is 200, but Endpoint.* has a context of 100 tokens"):
        carp(endpoint(server, context_tokens=100)).fit(TRAIN, MOODS)


def test_rows_that_cannot_be(server: Loopback, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There are no labels"):
        carp(endpoint(server)).fit([], [])
    with pytest.raises(DataError, match="IOPrompt gives one label a text; these rows have lists of labels"):
        io(endpoint(server)).fit(["a", "b"], [["x"], ["x", "y"]])
    with pytest.raises(DataError, match="texts is one string"):
        io(endpoint(server)).fit(TRAIN, MOODS).predict("joy")
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArgumentError, match="which is a file; give a folder"):
        io(endpoint(server), answers=tmp_path / "file").fit(TRAIN, MOODS)


def test_prompts_that_are_shown_cost_nothing(server: Loopback) -> None:
    classifier = carp(endpoint(server), explain="retrieved").fit(TRAIN, MOODS)
    shown = classifier.prompts_for(TEST)
    assert not server.requests and all("(asked for by predict)" in prompt for prompt in shown)
    assert classifier.predict(TEST).tolist() == TRUTH
    asked = classifier.summary_["usage"]["generating_reasons"]["asked"]
    assert asked > 0 and "(asked for by predict)" not in "".join(server.answered)
    classifier.predict(["great wit", "a dull film"])
    assert classifier.summary_["usage"]["generating_reasons"]["asked"] >= asked, "added up, not replaced"


def test_one_text_that_nobody_answers_is_no_ones_end(server: Loopback) -> None:
    filtered = json.dumps({"error": {"message": "flagged", "code": "content_filter"}})

    def answer(prompt: str, number: int) -> Reply:
        text = last_text(prompt)
        if "boring" in text:
            return Reply(status=400, body=filtered)
        if "dull" in text:  # a thought that was cut: a message without content
            return Reply(body=json.dumps({"choices": [{"message": {}, "finish_reason": "length"}]}))
        return sensible(prompt, number)

    server.script = answer
    classifier = io(endpoint(server), max_prompt_tokens=60).fit(TRAIN, MOODS)
    with pytest.warns(SondeWarning, match="2 of 5 texts got no answer"):
        said = classifier.predict([*TEST, "joy" * 2000]).tolist()
    assert said == ["good", "", "good", "", "good"], "and the word of 6,000 letters was cut"


def test_flags_stay_flags(server: Loopback) -> None:
    flags = np.array([mood == "good" for mood in MOODS])
    classifier = io(endpoint(server), label_names=["bad", "good"]).fit(TRAIN, flags)
    said = classifier.predict(TEST)
    assert said.dtype == bool and accuracy_score([one == "good" for one in TRUTH], said) == 1
