"""Commands for work elsewhere or later: extract fills a store, export writes ONNX, serve answers over HTTP."""

import os
import warnings
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from sonde.cli.files import bound, cells
from sonde.cli.options import (
    CHECK_HELP,
    MODEL_HELP,
    SERVED_HELP,
    TOKEN_HELP,
    Address,
    Backbones,
    Device,
    Dtype,
    EngineName,
    EngineOption,
    Json,
    Long,
    LongText,
    MaxTokens,
    Moved,
    Text,
    WorkerCount,
    WorkerCpus,
    WorkerGpus,
    WorkerTimeout,
)
from sonde.cli.session import session
from sonde.errors import SondeWarning
from sonde.plan import BUNDLE
from sonde.scale.workers import TIMEOUT_SECONDS, Workers


def extract(
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="csv, tsv, jsonl (.gz) or parquet.")],
    out: Annotated[Path, typer.Option("--out", help="Folder of the store.")],
    text: Text = "text",
    backbone: Backbones = None,
    site: Annotated[
        list[str] | None, typer.Option("--site", help="hidden.*, ffn.3, hidden.-5:, sentence; repeatable.")
    ] = None,
    pooling: Annotated[list[str] | None, typer.Option("--pooling", help="mean max first last mean_content")] = None,
    max_tokens: MaxTokens = None,
    long_text: Long = LongText.cut,
    dtype: Dtype = "auto",
    device: Device = "auto",
    workers: WorkerCount = 1,
    engine: EngineOption = EngineName.local,
    address: Address = None,
    worker_timeout: WorkerTimeout = TIMEOUT_SECONDS,
    worker_cpus: WorkerCpus = None,
    worker_gpus: WorkerGpus = 0.0,
    as_json: Json = False,
) -> None:
    """Read activations into a store; run again, it continues where it was stopped."""
    with session("extraction", as_json) as result:
        from sonde.scale import extract_file

        who = Workers(workers, engine.value, address, worker_timeout, worker_cpus, worker_gpus)
        result |= extract_file(
            source,
            out,
            text=text,
            backbones=backbone or [BUNDLE],
            sites=site or ["hidden.*"],
            poolings=pooling or ["mean"],
            max_tokens=bound(max_tokens),
            long_text=long_text.value,
            dtype=dtype,
            device=device,
            workers=who,
        )


def sites(
    backbone: Annotated[str, typer.Argument(metavar="BACKBONE", help="Hub id or folder.")] = BUNDLE,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Say what can be read of a backbone: its sites, how wide they are, which poolings they take."""
    with session("sites", as_json) as result:
        from sonde.read.backbone import load_backbone

        result |= load_backbone(backbone, dtype=dtype, device=device).describe()


CHECKED_ROWS = 2000
"""Texts of --check that are read: enough to see a hundredth of the labels change, in a minute or so."""


def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    onnx: Annotated[Path, typer.Option("--onnx", help="The ONNX file to write; tokenizer and labels go beside it.")],
    int8: Annotated[bool, typer.Option("--int8", help="Weights of 8 bits: a quarter of the size, less exact.")] = False,
    check: Annotated[Path | None, typer.Option("--check", help=CHECK_HELP)] = None,
    text: Text = "text",
    backbone: Moved = None,
    as_json: Json = False,
) -> None:
    """Write a saved classifier as one ONNX graph, from token ids to probabilities."""
    with session("exported", as_json) as result:
        from sonde.export import to_onnx
        from sonde.loading import load

        texts = list(islice(cells(check, text), CHECKED_ROWS)) if check else None
        classifier = load(model, backbones=backbone, dtype="float32", device="cpu", cache=False)
        done = to_onnx(classifier, onnx, int8=int8, texts=texts)
        result |= asdict(done) | {"model": str(done.model), "about": str(done.about)}
        result["tokenizers"] = [str(path) for path in done.tokenizers]


def serve(
    models: Annotated[list[str], typer.Argument(metavar="MODEL...", help=SERVED_HELP)],
    host: Annotated[str, typer.Option("--host", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", help="0 takes any that is free.")] = 8000,
    token: Annotated[str | None, typer.Option("--token", envvar="SONDE_TOKEN", help=TOKEN_HELP)] = None,
    max_body_bytes: Annotated[int, typer.Option("--max-body-bytes", help="Of one request.")] = 4 * 2**20,
    max_texts: Annotated[int, typer.Option("--max-texts", help="In one request.")] = 1024,
    queue_texts: Annotated[int, typer.Option("--queue-texts", help="That may wait; past it, 503.")] = 4096,
    queue_characters: Annotated[int, typer.Option("--queue-characters", help="Of all that wait.")] = 16 * 2**20,
    body_seconds: Annotated[float, typer.Option("--body-seconds", help="A slower body gets 408.")] = 10,
    answer_seconds: Annotated[float, typer.Option("--answer-seconds", help="A later answer gets 504.")] = 30,
    stop_seconds: Annotated[float, typer.Option("--stop-seconds", help="A stop waits so long for answers.")] = 30,
    backbone: Moved = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Answer over HTTP, with a page at /, until SIGTERM or Ctrl+C; SIGHUP reloads the models."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: threads that spin keep requests from the cores
    bounds = (max_body_bytes, max_texts, queue_texts, queue_characters, body_seconds, answer_seconds, stop_seconds)
    with session("listening", as_json) as result:
        from sonde.serve import Settings, named_folders, open_service

        settings = Settings(host, port, token, *bounds)
        service = open_service(named_folders(models), settings, backbones=backbone, dtype=dtype, device=device)
        result |= {"url": service.url, "models": service.models.names}
    from sonde.serve.logs import to_stderr

    to_stderr()
    warnings.simplefilter("ignore", SondeWarning)  # the log is all JSON from here on
    service.run()
