"""The options that several commands share.

Text Label ... NoCache   annotated types of arguments
MetricName LongText      what they may say
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


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
GROUP_HELP = "Column whose rows are held out together: document, author, patient."
ABSTAIN_HELP = "Leave the label empty where its probability is below this."
TARGET_HELP = "Leave labels empty so that at most this share of the others is wrong."
ROWS_HELP = "Train on so many rows, drawn while the file streams by: for files larger than memory."
SAMPLE_HELP = "Most rows on which stc chooses neurons."
ETA_HELP = "With stc: share of a layer's importance that is kept, instead of the best out of fold."
LAYERS_HELP = "With stc: layers that are read, instead of the fewest that are as good as any."
EXIT_HELP = "With stc: texts leave at the layer that is sure, at this loss of accuracy (0.002)."
SITE_HELP = "Read these instead of the recipe's sites: hidden.*, ffn.3; repeatable."
POOLING_HELP = "Pool like this instead of as the recipe: mean, max, last; repeatable."
MODEL_HELP = "A saved model: a folder, or its id on the model hub."
SERVED_HELP = "Folders of saved models, or NAME=FOLDER; the first is asked by default."
CHECK_HELP = "Compare file and model on the first 2,000 texts of this file, instead of on a few sentences."
TOKEN_HELP = "Ask for `Authorization: Bearer TOKEN`; better given as SONDE_TOKEN."
PROMPT_HELP = "`llmembed`, `comparison`: asked by IO and CARP; with --prompt-url, its name there."
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

WORKERS_HELP = "So many processes, each with its model and its share of the cores or GPUs; with --engine ray, actors."
TIMEOUT_HELP = "Seconds of silence after which a process counts as hanging; its rows are done by another."


class EngineName(StrEnum):
    """Where workers run."""

    local = "local"
    ray = "ray"


WorkerCount = Annotated[int, typer.Option("--workers", help=WORKERS_HELP)]
EngineOption = Annotated[EngineName, typer.Option("--engine", help="Where workers run; ray needs the extra `ray`.")]
Address = Annotated[
    str | None, typer.Option("--address", help="A Ray cluster, or auto; by default one is started here.")
]
WorkerTimeout = Annotated[float, typer.Option("--worker-timeout", help=TIMEOUT_HELP)]
WorkerCpus = Annotated[float | None, typer.Option("--worker-cpus", help="With ray: processors reserved for each.")]
WorkerGpus = Annotated[float, typer.Option("--worker-gpus", help="With ray: GPUs reserved for each, such as 0.5.")]
