"""Commands that compare: recipes lists them, compare tries them on the user's rows, bench repeats the papers."""

from pathlib import Path
from typing import Annotated

import typer

from sonde.cli.files import labelled, opened_cache
from sonde.cli.options import (
    CHECKPOINTS_HELP,
    MODELS_HELP,
    PROMPT_HELP,
    Backbones,
    Cache,
    Json,
    Label,
    MetricName,
    NoCache,
    Separator,
    Text,
)
from sonde.cli.session import session
from sonde.plan import BUNDLE


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
    with session("comparison", as_json) as result:
        from sonde.bench.candidates import Setting
        from sonde.bench.compare import Rows
        from sonde.bench.compare import compare as compared

        learned, asked = (Rows.of(*labelled(path, text, label, label_separator, {})) for path in (train, test))
        setting = Setting(tuple(backbone or [BUNDLE]), opened_cache(cache, no_cache), metric.value, seed)
        result |= compared(learned, asked, setting, out, names=only, time_limit=time_limit)
    if result["interrupted"]:
        raise KeyboardInterrupt


def recipes(as_json: Json = False) -> None:
    """List the recipes."""
    with session("recipes", as_json) as result:
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
    prompt_url: Annotated[str | None, typer.Option("--prompt-url", help="The same: or this endpoint.")] = None,
    budget_tokens: Annotated[int | None, typer.Option("--budget-tokens", help="What --prompt-url may take.")] = None,
    paper: Annotated[bool, typer.Option("--paper", help="`llmembed`: heads and bounds exactly as in it.")] = False,
    deep_tokens: Annotated[
        int | None, typer.Option("--deep-tokens", help="`llmembed`: most tokens of a text for --deep, instead of 512.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option("--backbone", help="`stc`, `depth`: the pretrained checkpoint.")
    ] = None,
    finetuned: Annotated[Path | None, typer.Option("--finetuned", help=CHECKPOINTS_HELP)] = None,
    lora: Annotated[Path | None, typer.Option("--lora", help="`stc`: the same, with low-rank adapters.")] = None,
    tune: Annotated[int | None, typer.Option("--tune", help="`stc`: make those, on so many training rows.")] = None,
    cache: Cache = None,
    no_cache: NoCache = False,
    as_json: Json = False,
) -> None:
    """Make the tables of the papers, ours beside theirs."""
    with session("written", as_json) as result:
        from sonde.bench import BENCHES
        from sonde.errors import choose

        roles = {"deep": deep, "bert": bert, "roberta": roberta, "paper": paper}
        asked = {"prompt_model": prompt_model, "prompt_url": prompt_url}
        checkpoints = {"backbone": backbone, "finetuned": finetuned, "lora": lora}
        own = {name: given for name, given in {"recipes": recipe, **roles, **asked, **checkpoints}.items() if given}
        # 0 is a number too: no tokens, only what is kept
        numbers = {"budget_tokens": budget_tokens, "tune": tune, "deep_tokens": deep_tokens}
        bounds = {name: given for name, given in numbers.items() if given is not None}
        for name in names:
            run = BENCHES[choose("The benchmark", name, BENCHES)]
            written = run(
                data=data,
                models=models,
                out=out,
                rows=rows,
                only=only,
                cache=opened_cache(cache, no_cache),
                **own,
                **bounds,
            )
            result[name] = [str(path) for path in written]
