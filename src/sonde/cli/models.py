"""Commands that make a classifier and use it: fit, evaluate, report, predict, explain, inspect."""

from dataclasses import asdict
from itertools import islice
from pathlib import Path
from textwrap import shorten
from typing import Annotated, Any

import typer

from sonde.cli.files import bound, cells, labelled, opened, opened_cache, read_names, texts_and_labels
from sonde.cli.options import (
    ABSTAIN_HELP,
    ETA_HELP,
    EXIT_HELP,
    GROUP_HELP,
    LAYERS_HELP,
    MODEL_HELP,
    NAMES_HELP,
    POOLING_HELP,
    ROWS_HELP,
    SAMPLE_HELP,
    SITE_HELP,
    TARGET_HELP,
    WEIGHT_HELP,
    Address,
    Backbones,
    Cache,
    Device,
    Dtype,
    EngineName,
    EngineOption,
    Json,
    Label,
    Long,
    LongText,
    MaxTokens,
    MetricName,
    Moved,
    NoCache,
    Separator,
    Text,
    WorkerCount,
    WorkerCpus,
    WorkerGpus,
    WorkerTimeout,
)
from sonde.cli.session import session
from sonde.errors import ArgumentError, DataError, warn
from sonde.learn.recipes import SAMPLE_ROWS
from sonde.plan import BUNDLE
from sonde.scale.workers import TIMEOUT_SECONDS, Workers
from sonde.tables import EXTENSIONS


def fit(
    train: Annotated[Path, typer.Argument(metavar="TRAIN", help="csv, tsv, jsonl (.gz) or parquet.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for the model.")],
    text: Text = "text",
    label: Label = "label",
    label_separator: Separator = None,
    label_names: Annotated[
        Path | None,
        typer.Option("--label-names", help=NAMES_HELP),
    ] = None,
    validation: Annotated[Path | None, typer.Option("--validation", help="Rows to choose settings on.")] = None,
    group: Annotated[str | None, typer.Option("--group", help=GROUP_HELP)] = None,
    recipe: Annotated[str, typer.Option("--recipe", help="See `sonde recipes`.")] = "auto",
    paper: Annotated[bool, typer.Option("--paper", help="The exact setting of the recipe's paper.")] = False,
    backbone: Backbones = None,
    site: Annotated[list[str] | None, typer.Option("--site", help=SITE_HELP)] = None,
    pooling: Annotated[list[str] | None, typer.Option("--pooling", help=POOLING_HELP)] = None,
    max_tokens: MaxTokens = None,
    long_text: Long = LongText.cut,
    class_weight: Annotated[str | None, typer.Option("--class-weight", help=WEIGHT_HELP)] = None,
    metric: Annotated[MetricName, typer.Option("--metric", help="What settings are chosen for.")] = MetricName.accuracy,
    rows: Annotated[int | None, typer.Option("--rows", help=ROWS_HELP)] = None,
    seed: Annotated[int, typer.Option("--seed", help="Seed of folds, heads and drawn rows.")] = 0,
    sample_rows: Annotated[int, typer.Option("--sample-rows", help=SAMPLE_HELP)] = SAMPLE_ROWS,
    eta: Annotated[float | None, typer.Option("--eta", help=ETA_HELP)] = None,
    layers: Annotated[int | None, typer.Option("--layers", help=LAYERS_HELP)] = None,
    exit_loss: Annotated[float | None, typer.Option("--exit-loss", help=EXIT_HELP)] = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    cache: Cache = None,
    no_cache: NoCache = False,
    as_json: Json = False,
) -> None:
    """Train a classifier on a file and save it."""
    with session("fit", as_json) as result:
        from sonde.classifier import TextClassifier

        names = read_names(label_names)
        _refuse_foreign(out)
        table = opened(train, [text, label, *([group] if group else [])], rows, seed)
        texts, labels = texts_and_labels(table, text, label, label_separator, names)
        held = labelled(validation, text, label, label_separator, names) if validation else None
        _warn_unread(recipe, bool(backbone))
        classifier = TextClassifier(
            recipe,
            tuple(backbone or [BUNDLE]),
            max_tokens=bound(max_tokens),
            long_text=long_text.value,
            class_weight=class_weight,
            metric=metric.value,
            dtype=dtype,
            device=device,
            cache=opened_cache(cache, no_cache),
            random_state=seed,
            paper=paper,
            sample_rows=sample_rows,
            eta=eta,
            layers=layers,
            exit_loss=exit_loss,
            sites=tuple(site) if site else None,
            poolings=tuple(pooling) if pooling else None,
        )
        classifier.fit(texts, labels, validation=held, groups=table.columns[group] if group else None)
        classifier.label_names_ = names
        classifier.save(out)
        result |= {"model": str(out), "classes": len(classifier.classes_), **classifier.summary_}
        if table.drawn_from is not None:
            result["drawn_from"] = table.drawn_from


def _refuse_foreign(out: Path) -> None:
    """A folder that cannot take the model is refused before hours of work, not after."""
    from sonde.saving import check_target

    check_target(out)


def _warn_unread(recipe: str, given: bool) -> None:
    """Options that a recipe has no use for are not swallowed in silence."""
    from sonde.learn.recipes import find

    if given and not find(recipe).reads:
        warn(
            f"The recipe {recipe!r} reads no backbone: --backbone says nothing to it.",
            "unused_options",
            1,
        )


def evaluate(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    test: Annotated[Path, typer.Argument(metavar="TEST", help="Labelled rows.")],
    text: Text = "text",
    label: Label = "label",
    label_separator: Separator = None,
    backbone: Moved = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    cache: Cache = None,
    no_cache: NoCache = False,
    as_json: Json = False,
) -> None:
    """Measure a saved classifier on labelled rows."""
    with session("evaluation", as_json) as result:
        from sonde.evaluation import evaluate as measure
        from sonde.loading import load

        classifier = load(model, backbones=backbone, dtype=dtype, device=device, cache=opened_cache(cache, no_cache))
        texts, labels = labelled(test, text, label, label_separator, {})
        result |= measure(classifier, texts, labels)


def report(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    test: Annotated[Path, typer.Argument(metavar="TEST", help="Labelled rows.")],
    out: Annotated[Path, typer.Option("--out", help="The page to write, .html.")],
    text: Text = "text",
    label: Label = "label",
    label_separator: Separator = None,
    backbone: Moved = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    cache: Cache = None,
    no_cache: NoCache = False,
    as_json: Json = False,
) -> None:
    """Measure a saved classifier on labelled rows; figures, mistakes and reasons on one page."""
    with session("report", as_json) as result:
        from sonde.loading import load
        from sonde.show.report import report as write

        classifier = load(model, backbones=backbone, dtype=dtype, device=device, cache=opened_cache(cache, no_cache))
        texts, labels = labelled(test, text, label, label_separator, {})
        result |= write(classifier, texts, labels, out, name=f"{model.resolve().name} on {test.name}")


def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="csv, tsv, jsonl (.gz) or parquet.")],
    out: Annotated[Path, typer.Option("--out", help="csv, tsv, jsonl (.gz) or parquet.")],
    text: Text = "text",
    abstain_below: Annotated[float | None, typer.Option("--abstain-below", help=ABSTAIN_HELP)] = None,
    target_error: Annotated[float | None, typer.Option("--target-error", help=TARGET_HELP)] = None,
    alpha: Annotated[float | None, typer.Option("--alpha", help="Add label sets that miss the truth so often.")] = None,
    probabilities: Annotated[bool, typer.Option("--probabilities", help="Add a column a label.")] = False,
    label_separator: Annotated[str | None, typer.Option("--label-separator", help="Joins labels of one cell.")] = None,
    backbone: Moved = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    cache: Cache = None,
    no_cache: NoCache = False,
    workers: WorkerCount = 1,
    engine: EngineOption = EngineName.local,
    address: Address = None,
    worker_timeout: WorkerTimeout = TIMEOUT_SECONDS,
    worker_cpus: WorkerCpus = None,
    worker_gpus: WorkerGpus = 0.0,
    as_json: Json = False,
) -> None:
    """Label every row of a file; its columns are kept, label and probability are added. Run again, it goes on."""
    with session("prediction", as_json) as result:
        from sonde.scale import predict_file

        who = Workers(workers, engine.value, address, worker_timeout, worker_cpus, worker_gpus)
        result |= predict_file(
            model,
            source,
            out,
            text=text,
            threshold=abstain_below,
            target_error=target_error,
            alpha=alpha,
            probabilities=probabilities,
            separator=label_separator,
            backbones=backbone,
            dtype=dtype,
            device=device,
            cache=opened_cache(cache, no_cache),
            workers=who,
        )


def explain(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    source: Annotated[Path | None, typer.Argument(metavar="INPUT", help="A file of texts, instead of --text.")] = None,
    text: Annotated[list[str] | None, typer.Option("--text", help="A text; repeat for several.")] = None,
    column: Annotated[str, typer.Option("--column", help="Column of INPUT that holds the texts.")] = "text",
    limit: Annotated[int, typer.Option("--limit", help="Rows of INPUT that are explained.", min=1)] = 10,
    label: Annotated[str | None, typer.Option("--label", help="Instead of the most probable label.")] = None,
    against: Annotated[str | None, typer.Option("--against", help="One other label, instead of all others.")] = None,
    top: Annotated[int, typer.Option("--top", help="Neurons and n-grams that are listed.", min=0)] = 10,
    backbone: Moved = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    cache: Cache = None,
    no_cache: NoCache = False,
    as_json: Json = False,
) -> None:
    """Say which layers, neurons, tokens and n-grams spoke for a label."""
    with session("explanation", as_json) as result:
        if not text and not source:
            raise ArgumentError("There is nothing to explain: give texts with --text, or a file of them.")
        if text and source:
            raise ArgumentError(f"Give texts with --text or the file {source}, not both.")
        if source and " " in str(source) and not str(source).lower().endswith(EXTENSIONS):
            shown = shorten(str(source), 60, placeholder=" ...")
            raise DataError(f"There is no file {shown!r}. If that is the text, give it with --text.")
        from sonde.explanation import explain as explained
        from sonde.loading import load

        texts = _telling(source, column, limit) if source else list(text or ())
        classifier = load(model, backbones=backbone, dtype=dtype, device=device, cache=opened_cache(cache, no_cache))
        found = explained(classifier, texts, label=label, against=against, top=top)
        result |= {
            "model": str(model), "multilabel": classifier.multilabel_, "texts": [asdict(one) for one in found],
        }  # fmt: skip


def _telling(source: Path, column: str, limit: int) -> list[str]:
    """The first texts of a file that say something."""
    first = list(islice(cells(source, column), limit))
    texts = [text for text in first if text.strip()]
    if not texts:
        raise DataError(f"The first {len(first)} texts of {source} are blank: there is nothing to explain.")
    if blank := len(first) - len(texts):
        warn(f"{blank} of the first {len(first)} texts are blank; they are not explained.", "blank_texts", blank)
    return texts


def inspect(
    path: Annotated[Path, typer.Argument(metavar="MODEL|STORE", help="A saved model, its hub id, or a store.")],
    svg: Annotated[Path | None, typer.Option("--svg", help="Draw a model's layers and neurons into this file.")] = None,
    as_json: Json = False,
) -> None:
    """Say what a saved model or a store holds, and which neurons of which layers a model uses."""
    with session("inspection", as_json) as result:
        if (path / "sonde-store.json").exists():
            from sonde.read.store import Store

            if svg:
                raise ArgumentError(f"{path} is a store, of which --svg draws nothing; give a saved model.")
            result |= {"kind": "store", "path": str(path), "blocks": Store(path).describe()}
        else:
            from sonde.explanation import map_layers
            from sonde.loading import located
            from sonde.saving import manifest

            folder = located(path)
            result |= {"kind": "model", "path": str(path), **manifest(folder), "layers": map_layers(folder)}
            if svg:
                _draw(result, svg)
                result["svg"] = str(svg)


def _draw(model: dict[str, Any], out: Path) -> None:
    """The neurons that a model uses, as SVG."""
    from sonde.show.layers import draw
    from sonde.tables import write_atomically

    if not model["layers"]:
        raise ArgumentError(
            f"{model['path']} has no picture: its recipe {model['recipe']!r} is not linear in a backbone's neurons. "
            "Leave out --svg."
        )
    if out.suffix.lower() != ".svg":
        raise ArgumentError(f"{out} is no name for a picture; give one that ends in .svg, such as {out.stem}.svg.")
    title = f"{Path(model['path']).name}: recipe {model['recipe']}, {len(model['classes'])} classes"
    with write_atomically(out) as file:
        file.write(draw(model["layers"], title))
