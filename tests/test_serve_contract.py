"""The OpenAPI document keeps its word: requests made from it, good ones and bad ones, never break the service."""

from collections.abc import Iterator
from typing import Any

import pytest
from samples import make, worded
from serving import running

pytest.importorskip("schemathesis", reason="schemathesis is not installed")

import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

from sonde.serve.service import Service

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::sonde.errors.SondeWarning")]
TOKEN = "a-token-of-sixteen-signs"
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
OPERATIONS = [
    ("/v1/classify", "POST"),
    ("/v1/explain", "POST"),
    ("/v1/models", "GET"),
    ("/v1/models/{name}/reload", "POST"),
    ("/healthz", "GET"),
    ("/readyz", "GET"),
    ("/metrics", "GET"),
]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    root = tmp_path_factory.mktemp("models")
    make("lexical").fit(*worded(90)).save(root / "words")
    with running({"words": root / "words"}, token=TOKEN) as started:
        yield started


@pytest.fixture(scope="module")
def document(service: Service) -> Any:
    found = schemathesis.openapi.from_url(f"{service.url}/openapi.json")
    described = {(one.ok().path, one.ok().method.upper()) for one in found.get_all_operations()}
    assert described == set(OPERATIONS)
    return found


@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_no_request_made_from_the_document_breaks_the_service(
    document: Any, path: str, method: str, mode: GenerationMode
) -> None:
    operation = document[path][method]
    bad = mode == GenerationMode.NEGATIVE
    if bad and not (operation.body or operation.path_parameters):
        pytest.skip("nothing to get wrong in a request without a body")
    statuses = set()

    @given(operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=60 if operation.body else 10,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def ask(case: Any) -> None:
        response = case.call(headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30)
        statuses.add(response.status_code)
        case.validate_response(response, checks=[*CHECKS, negative_data_rejection] if bad else CHECKS)
        if response.status_code >= 400:
            assert set(response.json()) == {"error", "request_id"}

    ask()
    if not bad and "{" not in path and path != "/v1/explain":
        assert 200 in statuses, "nothing that it allows was answered"
