"""The command line: one command = one call into a room.

    fit evaluate report predict explain compare serve extract inspect recipes bench

Results go to standard output (`--json`: one JSON object), progress and warnings to standard error. Exit 0: done, with
warnings counted; 2: the user's input is wrong; 1: anything else.
"""

import json
import logging
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from sonde import __version__
from sonde.errors import ArgumentError, DataError, InputError, SondeError, SondeWarning, warn
from sonde.learn.recipes import SAMPLE_ROWS
from sonde.plan import BUNDLE

app = typer.Typer(
    help="sonde: text classification from the inside of frozen language models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

SAID_OF_A_KIND = 3
"""Warnings of one kind that are printed: a long file is judged stretch by stretch and would repeat them."""


class MetricName(StrEnum):
    """What settings are chosen for."""

    accuracy = "accuracy"
    macro_f1 = "macro_f1"


class LongText(StrEnum):
    """What happens to texts longer than the model reads."""

    cut = "cut"
    head_tail = "head_tail"
    windows = "windows"


BACKBONE_HELP = "Hub id or folder; repeat for several. Default: all-MiniLM-L6-v2."
NAMES_HELP = "JSON: a list of names for the labels 0, 1, ..., or an object label: name."
WEIGHT_HELP = "balanced: rare classes weigh as much as frequent ones."
ABSTAIN_HELP = "Leave the label empty where its probability is below this."
TARGET_HELP = "Leave labels empty so that at most this share of the others is wrong."
SAMPLE_HELP = "Most rows on which stc chooses neurons."
ETA_HELP = "With stc: share of a layer's importance that is kept, instead of the best out of fold."
LAYERS_HELP = "With stc: layers that are read, instead of the fewest that are as good as any."
EXIT_HELP = "With stc: texts leave at the layer that is sure, at this loss of accuracy (0.002)."
SITE_HELP = "Read these instead of the recipe's sites: hidden.*, ffn.3; repeatable."
POOLING_HELP = "Pool like this instead of as the recipe: mean, max, last; repeatable."
MODEL_HELP = "A saved model: a folder, or its id on the model hub."
SERVED_HELP = "Folders of saved models, or NAME=FOLDER; the first is asked by default."
TOKEN_HELP = "Ask for `Authorization: Bearer TOKEN`; better given as SONDE_TOKEN."
PROMPT_HELP = "`llmembed`: asked by IO and CARP; with --prompt-url, its name there."
CHECKPOINTS_HELP = "`stc`: folder of fine-tuned checkpoints, one sub-folder a set (sst2, imdb, ...)."
MODELS_HELP = "Folder of reviews-llama-8m and stories260K-llama; by default `models` beside --data."

Text = Annotated[str, typer.Option("--text", help="Column that holds the texts.")]
Label = Annotated[str, typer.Option("--label", help="Column that holds the labels.")]
Separator = Annotated[str | None, typer.Option("--label-separator", help="Splits a cell into several labels.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
Backbones = Annotated[
    list[str] | None,
    typer.Option("--backbone", help=BACKBONE_HELP),
]
Moved = Annotated[
    list[str] | None, typer.Option("--backbone", help="Where the model's backbone lies now; repeat for several.")
]
MaxTokens = Annotated[
    list[int] | None,
    typer.Option("--max-tokens", help="Most tokens of a text that are read; one for all, or one a backbone."),
]
Long = Annotated[LongText, typer.Option("--long-text", help="Read the beginning, head and tail, or all in windows.")]
Dtype = Annotated[str, typer.Option("--dtype", help="auto, float32 or bfloat16.")]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:1, mps.")]
Cache = Annotated[Path | None, typer.Option("--cache", help="Folder for activations instead of the shared cache.")]
NoCache = Annotated[bool, typer.Option("--no-cache", help="Keep no activations.")]


@app.command()
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
    recipe: Annotated[str, typer.Option("--recipe", help="See `sonde recipes`.")] = "auto",
    paper: Annotated[bool, typer.Option("--paper", help="The exact setting of the recipe's paper.")] = False,
    backbone: Backbones = None,
    site: Annotated[list[str] | None, typer.Option("--site", help=SITE_HELP)] = None,
    pooling: Annotated[list[str] | None, typer.Option("--pooling", help=POOLING_HELP)] = None,
    max_tokens: MaxTokens = None,
    long_text: Long = LongText.cut,
    class_weight: Annotated[str | None, typer.Option("--class-weight", help=WEIGHT_HELP)] = None,
    metric: Annotated[MetricName, typer.Option("--metric", help="What settings are chosen for.")] = MetricName.accuracy,
    seed: Annotated[int, typer.Option("--seed", help="Seed of folds and heads.")] = 0,
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
    with _session("fit", as_json) as result:
        from sonde.classifier import TextClassifier

        names = _read_names(label_names)
        texts, labels = _labelled(train, text, label, label_separator, names)
        held = _labelled(validation, text, label, label_separator, names) if validation else None
        _refuse_foreign(out)
        _warn_unread(recipe, bool(backbone or max_tokens))
        classifier = TextClassifier(
            recipe,
            tuple(backbone or [BUNDLE]),
            max_tokens=_bound(max_tokens),
            long_text=long_text.value,
            class_weight=class_weight,
            metric=metric.value,
            dtype=dtype,
            device=device,
            cache=_cache(cache, no_cache),
            random_state=seed,
            paper=paper,
            sample_rows=sample_rows,
            eta=eta,
            layers=layers,
            exit_loss=exit_loss,
            sites=tuple(site) if site else None,
            poolings=tuple(pooling) if pooling else None,
        )
        classifier.fit(texts, labels, validation=held)
        classifier.label_names_ = names
        classifier.save(out)
        result |= {"model": str(out), "classes": len(classifier.classes_), **classifier.summary_}


@app.command()
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
    with _session("evaluation", as_json) as result:
        from sonde.evaluation import evaluate as measure
        from sonde.loading import load

        classifier = load(model, backbones=backbone, dtype=dtype, device=device, cache=_cache(cache, no_cache))
        texts, labels = _labelled(test, text, label, label_separator, {})
        result |= measure(classifier, texts, labels)


@app.command()
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
    with _session("report", as_json) as result:
        from sonde.loading import load
        from sonde.show.report import report as write

        classifier = load(model, backbones=backbone, dtype=dtype, device=device, cache=_cache(cache, no_cache))
        texts, labels = _labelled(test, text, label, label_separator, {})
        result |= write(classifier, texts, labels, out, name=f"{model.resolve().name} on {test.name}")


@app.command()
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help=MODEL_HELP)],
    source: Annotated[Path, typer.Argument(metavar="INPUT", help="csv, tsv, jsonl (.gz) or parquet.")],
    out: Annotated[Path, typer.Option("--out", help="csv, tsv, jsonl (.gz) or parquet.")],
    text: Text = "text",
    abstain_below: Annotated[float | None, typer.Option("--abstain-below", help=ABSTAIN_HELP)] = None,
    target_error: Annotated[float | None, typer.Option("--target-error", help=TARGET_HELP)] = None,
    backbone: Moved = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    cache: Cache = None,
    no_cache: NoCache = False,
    as_json: Json = False,
) -> None:
    """Label every row of a file; its columns are kept, label and probability are added."""
    with _session("prediction", as_json) as result:
        from sonde.loading import load
        from sonde.tables import TableWriter, iter_tables, text_column

        classifier = load(model, backbones=backbone, dtype=dtype, device=device, cache=_cache(cache, no_cache))
        least = None
        if abstain_below is not None or target_error is not None:
            least = classifier.answer_threshold(threshold=abstain_below, target_error=target_error)
        counts: Counter[Any] = Counter()
        with TableWriter(out, like=source) as writer:
            for table in iter_tables(source):
                predicted = _predicted(classifier, text_column(table, text), list(table.columns), least)
                counts.update(None if one is None else str(one) for one in next(iter(predicted.values())))
                writer.write({**table.columns, **predicted})
        result |= {"out": str(out), "rows": sum(counts.values())}
        if least is not None:  # a threshold that nothing reaches is none
            result |= {"abstained": counts.pop(None, 0), "threshold": least if least <= 1 else None}
        result["labels"] = dict(counts.most_common())


@app.command()
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
    with _session("explanation", as_json) as result:
        if not text and not source:
            raise ArgumentError("There is nothing to explain: give texts with --text, or a file of them.")
        if text and source:
            raise ArgumentError(f"Give texts with --text or the file {source}, not both.")
        from sonde.explanation import explain as explained
        from sonde.loading import load

        texts = list(islice(_cells(source, column), limit)) if source else list(text or ())
        classifier = load(model, backbones=backbone, dtype=dtype, device=device, cache=_cache(cache, no_cache))
        found = explained(classifier, texts, label=label, against=against, top=top)
        result |= {"model": str(model), "texts": [asdict(one) for one in found]}


@app.command()
def compare(
    train: Annotated[Path, typer.Argument(metavar="TRAIN", help="csv, tsv, jsonl (.gz) or parquet.")],
    test: Annotated[Path, typer.Argument(metavar="TEST", help="Labelled rows that are not in TRAIN.")],
    out: Annotated[Path, typer.Option("--out", help="Keeps the figures; a .md page beside it.")] = Path(
        "comparison.json"
    ),
    only: Annotated[list[str] | None, typer.Option("--only", help="Only these candidates; repeat for several.")] = None,
    time_limit: Annotated[float | None, typer.Option("--time-limit", help="Seconds; what is done is kept.")] = None,
    text: Text = "text",
    label: Label = "label",
    label_separator: Separator = None,
    backbone: Backbones = None,
    metric: Annotated[
        MetricName, typer.Option("--metric", help="What the recommendation goes by.")
    ] = MetricName.accuracy,
    seed: Annotated[int, typer.Option("--seed", help="Of everything random.")] = 0,
    cache: Cache = None,
    no_cache: NoCache = False,
    as_json: Json = False,
) -> None:
    """Fit many recipes and baselines, best guesses first, and recommend one; run again, it goes on."""
    with _session("comparison", as_json) as result:
        from sonde.bench.candidates import Setting
        from sonde.bench.compare import Rows
        from sonde.bench.compare import compare as compared

        learned, asked = (Rows.of(*_labelled(path, text, label, label_separator, {})) for path in (train, test))
        setting = Setting(tuple(backbone or [BUNDLE]), _cache(cache, no_cache), metric.value, seed)
        result |= compared(learned, asked, setting, out, names=only, time_limit=time_limit)


@app.command()
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
    bounds = (max_body_bytes, max_texts, queue_texts, queue_characters, body_seconds, answer_seconds, stop_seconds)
    with _session("listening", as_json) as result:
        from sonde.serve import Settings, named_folders, open_service

        settings = Settings(host, port, token or None, *bounds)
        service = open_service(named_folders(models), settings, backbones=backbone, dtype=dtype, device=device)
        result |= {"url": service.url, "models": service.models.names}
    from sonde.serve.logs import to_stderr

    to_stderr()
    warnings.simplefilter("ignore", SondeWarning)  # the log is all JSON from here on
    service.run()


@app.command()
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
    as_json: Json = False,
) -> None:
    """Read activations into a store; run again, it continues where it was stopped."""
    with _session("extraction", as_json) as result:
        from sonde.read.extract import extract as stream
        from sonde.read.sources import expand_blocks, open_sources, open_store, prepare
        from sonde.tables import iter_tables

        rows = sum(table.rows for table in iter_tables(source, columns=[text]))
        sources = open_sources(
            dict(enumerate(backbone or [BUNDLE])),
            max_tokens=_bound(max_tokens),
            long_text=long_text.value,
            dtype=dtype,
            device=device,
        )
        sites, poolings = site or ["hidden.*"], pooling or ["mean"]
        found = [
            b for i, s in sources.items() for one in sites for how in poolings for b in expand_blocks(i, s, one, how)
        ]
        blocks = list(dict.fromkeys(found))
        store = open_store(out)
        needed = prepare(rows, sources, blocks, store, texts=_cells(source, text))
        _note(f"{rows:,} rows x {len(blocks)} blocks: at most {needed / 1e6:,.1f} MB in {out}")
        truncated = lost = 0
        for window in stream(_cells(source, text), sources, blocks, store, total=rows):
            truncated += int((window.lost > 0).any(axis=0).sum())
            lost += int(window.lost.sum())
        result |= {
            "store": str(out),
            "rows": rows,
            "blocks": [block.name for block in blocks],
            "truncated_rows": truncated,
            "lost_tokens": lost,
            "bytes_estimated": needed,
        }


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(metavar="MODEL|STORE", help="A saved model or a store.")],
    svg: Annotated[Path | None, typer.Option("--svg", help="Draw a model's layers and neurons into this file.")] = None,
    as_json: Json = False,
) -> None:
    """Say what a saved model or a store holds, and which neurons of which layers a model uses."""
    with _session("inspection", as_json) as result:
        if (path / "sonde-store.json").exists():
            from sonde.read.store import Store

            if svg:
                raise ArgumentError(f"{path} is a store, of which --svg draws nothing; give a saved model.")
            result |= {"kind": "store", "path": str(path), "blocks": Store(path).describe()}
        else:
            from sonde.explanation import map_layers
            from sonde.saving import manifest

            result |= {"kind": "model", "path": str(path), **manifest(path), "layers": map_layers(path)}
            if svg:
                _draw(result, svg)
                result["svg"] = str(svg)


@app.command()
def recipes(as_json: Json = False) -> None:
    """List the recipes."""
    with _session("recipes", as_json) as result:
        from sonde.learn.recipes import RECIPES

        result["recipes"] = {
            name: {
                "title": f"the same as {recipe.name}" if name != recipe.name else recipe.title,
                "backbones": recipe.needed_backbones,
                "source": recipe.source,
                "paper_setting": recipe.has_paper_setting,
            }
            for name, recipe in RECIPES.items()
        }


@app.command()
def bench(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...",
            help="tables, collapse, long_text, trust, reasons, ablation, few, depth, sample, comparison, llmembed, stc",
        ),
    ],
    data: Annotated[Path, typer.Option("--data", help="Folder of data sets, one sub-folder each.")],
    models: Annotated[
        Path | None,
        typer.Option("--models", help=MODELS_HELP),
    ] = None,
    out: Annotated[Path, typer.Option("--out", help="Where results are written.")] = Path("docs/results"),
    rows: Annotated[
        int | None, typer.Option("--rows", help="At most this many rows of each split, for a trial.")
    ] = None,
    only: Annotated[list[str] | None, typer.Option("--only", help="Only these data sets.")] = None,
    recipe: Annotated[
        list[str] | None, typer.Option("--recipe", help="Only these; for `few`, `comparison`, `llmembed`, `stc`.")
    ] = None,
    deep: Annotated[str | None, typer.Option("--deep", help="`llmembed`: in the role of LLaMA2-7B.")] = None,
    bert: Annotated[str | None, typer.Option("--bert", help="`llmembed`: in the role of BERT-large.")] = None,
    roberta: Annotated[str | None, typer.Option("--roberta", help="`llmembed`: in the role of RoBERTa-large.")] = None,
    prompt_model: Annotated[str | None, typer.Option("--prompt-model", help=PROMPT_HELP)] = None,
    prompt_url: Annotated[str | None, typer.Option("--prompt-url", help="`llmembed`: or this endpoint.")] = None,
    paper: Annotated[bool, typer.Option("--paper", help="`llmembed`: heads and bounds exactly as in it.")] = False,
    backbone: Annotated[str | None, typer.Option("--backbone", help="`stc`: the pretrained checkpoint.")] = None,
    finetuned: Annotated[Path | None, typer.Option("--finetuned", help=CHECKPOINTS_HELP)] = None,
    lora: Annotated[Path | None, typer.Option("--lora", help="`stc`: the same, with low-rank adapters.")] = None,
    cache: Cache = None,
    no_cache: NoCache = False,
    as_json: Json = False,
) -> None:
    """Make the tables of the papers, ours beside theirs."""
    with _session("written", as_json) as result:
        from sonde.bench import BENCHES
        from sonde.errors import choose

        roles = {"deep": deep, "bert": bert, "roberta": roberta, "paper": paper}
        asked = {"prompt_model": prompt_model, "prompt_url": prompt_url}
        checkpoints = {"backbone": backbone, "finetuned": finetuned, "lora": lora}
        own = {name: given for name, given in {"recipes": recipe, **roles, **asked, **checkpoints}.items() if given}
        for name in names:
            run = BENCHES[choose("The benchmark", name, BENCHES)]
            written = run(data=data, models=models, out=out, rows=rows, only=only, cache=_cache(cache, no_cache), **own)
            result[name] = [str(path) for path in written]


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; every mistake of the user's becomes a sentence and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except InputError as error:
        _complain(str(error))
        sys.exit(2)
    except SondeError as error:
        _complain(str(error))
        sys.exit(1)
    except typer.Abort:
        _complain("interrupted.")
        sys.exit(1)
    except _USAGE_ERROR as error:
        if error.format_message():  # else the help was asked for, and shown
            _complain(_usage(error))
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)


_USAGE_ERROR: type[Any] = typer.BadParameter.__mro__[1]
"""What typer raises for an unknown command or option; some versions bring their own copy of it, under another path."""


def _usage(error: Any) -> str:
    """What was wrong on the command line, what is allowed, and where that is described."""
    context = getattr(error, "ctx", None)
    commands = ", ".join(getattr(getattr(context, "command", None), "commands", {}))
    allowed = f"\nThe commands are: {commands}." if commands else ""
    path = context.command_path if context else "sonde"
    return f"{error.format_message()}{allowed}\nTry: {path} --help"


def _complain(sentence: str) -> None:
    """At most three lines."""
    from sonde.show.terminal import say

    lines = [line for line in sentence.splitlines() if line.strip()]
    say("error: " + "\n".join([*lines[:2], " ".join(lines[2:])] if len(lines) > 3 else lines))


@contextmanager
def _session(shown: str, as_json: bool) -> Iterator[dict[str, Any]]:
    """Show progress and gather warnings; then print the result, by a function of `show.results` or as JSON."""
    from sonde.show import results, terminal

    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    result: dict[str, Any] = {}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SondeWarning)
        try:
            with terminal.progress():
                yield result
        finally:
            counts = _tell(caught)
    if as_json:
        sys.stdout.write(json.dumps({**result, "warnings": counts}, ensure_ascii=True, default=str) + "\n")
        sys.stdout.flush()  # a service is not done yet
        return
    getattr(results, shown)(result)
    if counts:
        terminal.say("warnings: " + ", ".join(f"{code} {count:,}" for code, count in counts.items()))


def _tell(caught: list[warnings.WarningMessage]) -> dict[str, int]:
    """Print each different warning once, at most three of a kind; count them by code."""
    from sonde.show import terminal

    counts: Counter[str] = Counter()
    said: dict[str, set[str]] = {}
    for entry in caught:
        message = entry.message
        if isinstance(message, SondeWarning):
            counts[message.code] += message.count
            known = said.setdefault(message.code, set())
            if str(message) not in known and len(known) < SAID_OF_A_KIND:
                terminal.say(f"warning: {message}")
                known.add(str(message))
        else:
            logging.getLogger("sonde").debug("%s", message)
    return dict(counts)


def _cells(source: Path, text: str) -> Iterator[str]:
    """The texts of a file, streamed."""
    from sonde.tables import iter_tables, text_column

    for table in iter_tables(source, columns=[text]):
        yield from text_column(table, text)


def _draw(model: dict[str, Any], out: Path) -> None:
    """The neurons that a model uses, as SVG."""
    from sonde.show.layers import draw
    from sonde.tables import write_atomically

    if not model["layers"]:
        raise ArgumentError(
            f"{model['path']} has no picture: its recipe {model['recipe']!r} is not linear in a backbone's neurons. "
            "Leave out --svg."
        )
    title = f"{Path(model['path']).name}: recipe {model['recipe']}, {len(model['classes'])} classes"
    with write_atomically(out) as file:
        file.write(draw(model["layers"], title))


def _note(line: str) -> None:
    from sonde.show.terminal import say

    say(line)


def _bound(max_tokens: list[int] | None) -> int | tuple[int, ...] | None:
    """One number for all backbones, or one for each."""
    return None if not max_tokens else max_tokens[0] if len(max_tokens) == 1 else tuple(max_tokens)


def _cache(cache: Path | None, no_cache: bool) -> Any:
    if cache and no_cache:
        raise ArgumentError("--cache and --no-cache contradict each other; give one.")
    return None if no_cache else cache or "auto"


def _refuse_foreign(out: Path) -> None:
    """A folder that cannot take the model is refused before hours of work, not after."""
    from sonde.saving import check_target

    check_target(out)


def _warn_unread(recipe: str, given: bool) -> None:
    """Options that a recipe has no use for are not swallowed in silence."""
    from sonde.learn.recipes import find

    if given and not find(recipe).reads:
        warn(
            f"The recipe {recipe!r} reads no backbone: --backbone and --max-tokens say nothing to it.",
            "unused_options",
            1,
        )


def _labelled(
    path: Path, text: str, label: str, separator: str | None, names: dict[str, str]
) -> tuple[list[str], list[Any]]:
    from sonde.tables import label_column, read_table, text_column

    table = read_table(path, [text, label])
    labels: list[Any] = label_column(table, label, separator)
    return text_column(table, text), [_rename(value, names) for value in labels] if names else labels


def _rename(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, list):
        return [_rename(one, names) for one in value]
    if value is None:
        return None
    if str(value) not in names:
        raise DataError(f"The label {value!r} has no name in --label-names; it names {', '.join(list(names)[:12])}.")
    return names[str(value)]


def _read_names(path: Path | None) -> dict[str, str]:
    """A JSON list of names, an object label -> name, or an object with such a list under `label_names`."""
    if path is None:
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"--label-names {path} cannot be read: {error}.") from error
    content = content.get("label_names", content) if isinstance(content, dict) else content
    pairs = content.items() if isinstance(content, dict) else enumerate(content) if isinstance(content, list) else ()
    names = {str(label): str(name) for label, name in pairs}
    if not names or len(set(names.values())) < len(names):
        raise DataError(f"--label-names {path} must hold distinct names: a JSON list, or an object from label to name.")
    return names


def _predicted(classifier: Any, texts: list[str], taken: list[str], least: float | None) -> dict[str, list[Any]]:
    """The columns that predict adds, under names that the input does not use; `least` = where answers begin."""
    probabilities = classifier.predict_proba(texts)
    decided = classifier.decide(probabilities)
    if classifier.multilabel_:
        labels = [classifier.classes_[row].tolist() for row in decided]
        shown = probabilities.astype(float).round(6).tolist()
    else:
        labels = classifier.name_labels(decided).tolist()
        sure = probabilities.max(axis=1)
        shown = sure.astype(float).round(6).tolist()
        if least is not None:
            from sonde.learn.abstention import withhold

            labels = withhold(classifier.name_labels(decided), sure, least).tolist()
    columns: dict[str, list[Any]] = {"label": labels, "probability": shown}
    return {_free(name, taken): values for name, values in columns.items()}


def _free(name: str, taken: list[str]) -> str:
    """`name`, or `predicted_name` where the input has such a column already."""
    while name in taken:
        name = f"predicted_{name}"
    return name


if __name__ == "__main__":
    main()
