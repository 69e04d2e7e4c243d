"""Models go to the hub and come back; the hub is a transport of its client, and answers as the real one does."""

import base64
import hashlib
import json
import logging
import re
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import huggingface_hub
import numpy as np
import pytest
import tiny
from huggingface_hub import constants
from samples import make, worded
from typer.testing import CliRunner

import sonde
from sonde import hub
from sonde.card import CARD
from sonde.cli import app
from sonde.errors import ArgumentError, ModelError, SondeWarning
from sonde.read.location import find_checkpoint

TEXTS, LABELS = worded(90)
NAME = "someone/words"
REPOSITORY = re.compile(
    r"/api/models/(?P<name>[\w.-]+/[\w.-]+?)(?:/(?P<what>revision|preupload|commit|tree)/(?P<revision>[^/]+))?"
)


class Hub(httpx2.BaseTransport):
    """A model hub that holds files in memory; every commit is kept."""

    def __init__(self) -> None:
        self.commits: dict[str, list[dict[str, bytes]]] = {}
        self.asked: list[str] = []
        self.private: dict[str, object] = {}
        self.tokens: set[str | None] = set()
        self.down = self.closed = False

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        path = request.url.path
        self.asked.append(f"{request.method} {path}")
        self.tokens.add(request.headers.get("authorization"))
        if self.down:
            raise httpx2.ConnectError("nobody there")
        if path == "/api/repos/create":
            return self._create(json.loads(request.read()))
        if path == "/api/validate-yaml":
            return httpx2.Response(200, json={"errors": [], "warnings": []})
        if found := REPOSITORY.fullmatch(path):
            return self._repository(request, **found.groupdict())
        owner, model, _, revision, file = path.strip("/").split("/", 4)
        return self._file(f"{owner}/{model}", revision, file)

    def _create(self, asked: dict[str, str]) -> httpx2.Response:
        if self.closed:
            return httpx2.Response(
                403, json={"error": "You don't have the rights to create a model under this namespace"}
            )
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        if name in self.commits:
            return httpx2.Response(409, json={"url": f"https://huggingface.co/{name}"})
        self.commits[name], self.private[name] = [{}], asked.get("private", asked.get("visibility"))
        return httpx2.Response(200, json={"url": f"https://huggingface.co/{name}"})

    def _repository(
        self, request: httpx2.Request, name: str, what: str | None, revision: str | None
    ) -> httpx2.Response:
        if name not in self.commits:
            return self._absent("RepoNotFound")
        if what == "preupload":
            files = json.loads(request.read())["files"]
            answers = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in files]
            return httpx2.Response(200, json={"files": answers})
        if what == "commit":
            return self._commit(name, [json.loads(line) for line in request.read().splitlines()])
        number = self._number(name, revision or "main")
        if number is None:
            return self._absent("RevisionNotFound")
        files = self.commits[name][number]
        if what == "tree":
            sized = [{"type": "file", "path": file, "size": len(held), "oid": "0" * 40} for file, held in files.items()]
            return httpx2.Response(200, json=sized)
        held = [{"rfilename": file} for file in files]
        return httpx2.Response(200, json={"id": name, "sha": self._sha(number), "siblings": held, "private": False})

    def _commit(self, name: str, lines: list[dict[str, dict[str, str]]]) -> httpx2.Response:
        files = {
            one["value"]["path"]: base64.b64decode(one["value"]["content"]) for one in lines if one["key"] == "file"
        }
        self.commits[name].append({**self.commits[name][-1], **files})
        sha = self._sha(len(self.commits[name]) - 1)
        address = f"https://huggingface.co/{name}/commit/{sha}"
        return httpx2.Response(200, json={"commitUrl": address, "commitOid": sha, "success": True})

    def _file(self, name: str, revision: str, file: str) -> httpx2.Response:
        number = self._number(name, revision) if name in self.commits else None
        if number is None or file not in self.commits[name][number]:
            return self._absent("EntryNotFound")
        held = self.commits[name][number][file]
        return httpx2.Response(
            200,
            headers={"x-repo-commit": self._sha(number), "etag": f'"{hashlib.sha256(held).hexdigest()}"'},
            content=held,
        )

    def _absent(self, code: str) -> httpx2.Response:
        return httpx2.Response(404, headers={"x-error-code": code}, json={"error": code})

    def _number(self, name: str, revision: str) -> int | None:
        if revision == "main":
            return len(self.commits[name]) - 1
        shas = [self._sha(number) for number in range(len(self.commits[name]))]
        return shas.index(revision) if revision in shas else None

    def _sha(self, number: int) -> str:
        return f"{number:040x}"


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that the client reaches, and an empty cache."""
    own = Hub()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    client = huggingface_hub.utils._http
    before = client._GLOBAL_CLIENT_FACTORY
    huggingface_hub.close_session()
    huggingface_hub.set_client_factory(lambda: httpx2.Client(transport=own, follow_redirects=True))
    yield own
    huggingface_hub.close_session()
    huggingface_hub.set_client_factory(before)


@pytest.fixture(scope="module")
def classifier() -> sonde.TextClassifier:
    return make("lexical").fit(TEXTS, LABELS)


def test_a_model_goes_up_and_comes_back(there: Hub, classifier: sonde.TextClassifier) -> None:
    address = classifier.push_to_hub(NAME, private=True)
    assert address == f"https://huggingface.co/{NAME}/commit/{1:040x}"
    assert sorted(there.commits[NAME][-1]) == sorted(hub.FILES)
    assert there.private[NAME] in (True, "private")
    assert "Bearer hf_mine" in there.tokens
    back = sonde.load(NAME)
    np.testing.assert_array_equal(back.predict_proba(TEXTS[:9]), classifier.predict_proba(TEXTS[:9]))


def test_revisions_are_told_apart_and_the_newest_is_the_default(there: Hub, classifier: sonde.TextClassifier) -> None:
    classifier.push_to_hub(NAME)
    make("lexical").fit(TEXTS, [label.upper() for label in LABELS]).push_to_hub(NAME, message="louder")
    assert sonde.load(NAME).classes_[0].isupper()
    assert sonde.load(NAME, revision=f"{1:040x}").classes_[0].islower()
    with pytest.raises(ModelError, match="The hub has someone/words, but not its revision 'v9'"):
        sonde.load(NAME, revision="v9")


def test_an_edited_card_on_the_hub_stays_as_it_is(there: Hub, classifier: sonde.TextClassifier) -> None:
    classifier.push_to_hub(NAME)
    there.commits[NAME].append({**there.commits[NAME][-1], CARD: b"# Words\n\nMine.\n"})
    classifier.push_to_hub(NAME)
    assert there.commits[NAME][-1][CARD] == b"# Words\n\nMine.\n"
    assert len(sonde.load(NAME).classes_) == 3


def test_nothing_else_that_lies_there_is_fetched(there: Hub, classifier: sonde.TextClassifier) -> None:
    classifier.push_to_hub(NAME)
    there.commits[NAME].append({**there.commits[NAME][-1], "run_me.py": b"1/0", "model.pkl": b"\x80"})
    there.asked.clear()
    sonde.load(NAME)
    assert not [line for line in there.asked if "run_me" in line or "pkl" in line]


def test_the_command_line_takes_an_id_too(there: Hub, classifier: sonde.TextClassifier, tmp_path: Path) -> None:
    classifier.push_to_hub(NAME)
    (tmp_path / "new.csv").write_text("text\nthe cold wind\n")
    result = CliRunner().invoke(app, ["predict", NAME, str(tmp_path / "new.csv"), "--out", str(tmp_path / "out.csv")])
    assert result.exit_code == 0, result.output
    assert "weather" in (tmp_path / "out.csv").read_text()
    found = json.loads(CliRunner().invoke(app, ["inspect", NAME, "--json"]).stdout)
    assert (found["kind"], found["path"], found["recipe"]) == ("model", NAME, "lexical")


def test_without_the_hub_the_cache_serves(
    there: Hub, classifier: sonde.TextClassifier, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    classifier.push_to_hub(NAME)
    sonde.load(NAME)
    there.down = True
    assert sonde.load(NAME).classes_.tolist() == classifier.classes_.tolist()
    assert "the one in the cache" in caplog.text
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert len(sonde.load(NAME).classes_) == 3


def test_a_hub_that_says_nothing_is_given_up(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "SECONDS", 0.2)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: time.sleep(5))
    start = time.perf_counter()
    with pytest.raises(ModelError, match=r"the hub was not reached: it did not answer within 0 seconds"):
        sonde.load(NAME)
    assert time.perf_counter() - start < 4.5


def test_what_is_not_there_or_no_model_of_sonde(there: Hub) -> None:
    with pytest.raises(ModelError, match="someone/words is no folder, and the hub has no model of this id"):
        sonde.load(NAME)
    there.commits[NAME] = [{"config.json": b"{}", "model.safetensors": b""}]
    with pytest.raises(ModelError, match=r"no saved model of sonde: the hub holds no sonde\.json there"):
        sonde.load(NAME)


def test_a_missing_folder_beside_others_is_no_id(
    there: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    sentence = "models/support does not exist: there is a folder models here, but it holds no support"
    with pytest.raises(ModelError, match=sentence):
        sonde.load("models/support")
    assert not there.asked
    with caplog.at_level(logging.INFO), pytest.raises(ModelError, match="the hub has no model of this id"):
        sonde.load(NAME)
    assert f"there is no folder {NAME}; the model hub is asked for it" in caplog.text


def test_a_damaged_model_from_the_hub_is_refused(there: Hub, classifier: sonde.TextClassifier) -> None:
    classifier.push_to_hub(NAME)
    there.commits[NAME].append({**there.commits[NAME][-1], "arrays.safetensors": b"cut"})
    with pytest.raises(ModelError, match="cut or damaged"):
        sonde.load(NAME)


def test_a_hub_that_refuses_is_a_sentence(there: Hub, classifier: sonde.TextClassifier) -> None:
    there.closed = True
    with pytest.raises(ModelError, match=r"someone/words was not pushed: .* may your token write there"):
        classifier.push_to_hub(NAME)
    with pytest.raises(ModelError, match="was not pushed"):
        classifier.push_to_hub("no name at all")
    assert not there.commits


def test_a_revision_of_a_folder_is_a_mistake(classifier: sonde.TextClassifier, tmp_path: Path) -> None:
    classifier.save(tmp_path / "words")
    with pytest.raises(ArgumentError, match="only models on the hub have revisions"):
        sonde.load(tmp_path / "words", revision="main")


def test_a_backbone_of_this_machine_is_warned_of(there: Hub) -> None:
    own = make("linear", backbones=(str(tiny.build("bert")),)).fit(TEXTS[:40], LABELS[:40])
    with pytest.warns(SondeWarning, match="is a folder of this machine"):
        own.push_to_hub(NAME)
    back = sonde.load(NAME, backbones=[str(tiny.build("bert"))])
    np.testing.assert_array_equal(back.predict(TEXTS[:9]), own.predict(TEXTS[:9]))


def test_a_backbone_that_was_fetched_once_is_there_offline(there: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {path.name: path.read_bytes() for path in tiny.build("bert").iterdir()}
    there.commits["someone/small-bert"] = [{**files, "pytorch_model.bin": b"other weights"}]
    found = find_checkpoint("someone/small-bert")
    assert (found / "model.safetensors").read_bytes() == files["model.safetensors"]
    assert not (found / "pytorch_model.bin").exists()
    there.down = True
    assert find_checkpoint("someone/small-bert") == found
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert find_checkpoint("someone/small-bert") == found
