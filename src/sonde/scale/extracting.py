"""Extracting: a file -> a store, by one process, several, or a cluster.

extract_file   read the activations of every row of a file of any length

The store itself says what is done: a second run reads what is missing.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sonde.progress import announce, track
from sonde.scale.crews import done, open_crew
from sonde.scale.outcome import Failure
from sonde.scale.parts import cut
from sonde.scale.predicting import repeat, report
from sonde.scale.work import Extracting
from sonde.scale.workers import Workers, as_workers
from sonde.tables import iter_tables, text_column


def extract_file(
    source: Path | str,
    out: Path | str,
    *,
    text: str = "text",
    backbones: Sequence[str],
    sites: Sequence[str] = ("hidden.*",),
    poolings: Sequence[str] = ("mean",),
    max_tokens: int | tuple[int, ...] | None = None,
    long_text: str = "cut",
    dtype: str = "auto",
    device: str = "auto",
    workers: int | Workers = 1,
) -> dict[str, Any]:
    """Read the activations of every row of a file into a store.

    Parameters
    ----------
    source : path or str
        A .csv, .tsv, .jsonl (.gz) or .parquet file.
    out : path or str
        Folder of the store; with `ray`, all machines of the cluster must find it under this path.
    backbones : sequence of str
        Hub ids or folders.
    sites, poolings : sequence of str
        What is read: each site with each pooling.
    text, max_tokens, long_text, dtype, device
        As in `TextClassifier`.
    workers
        As in `predict_file`. Rows that several workers meet at the same time are read by each of them.

    Returns
    -------
    dict
        `store`, `rows`, `blocks`, `truncated_rows`, `lost_tokens`, `bytes_estimated`; where rows failed, `failed_rows`
        and `failed`, the file that names them.
    """
    from sonde.read.extract import window_rows
    from sonde.read.sources import open_store, prepare

    source, out = Path(source), Path(out)
    names, places, hows = tuple(backbones), tuple(sites), tuple(poolings)
    work = Extracting(out.resolve(), names, places, hows, max_tokens, long_text, dtype, device)
    store = open_store(out)
    assert store is not None
    who = as_workers(workers)
    alone = who.engine == "local" and who.count == 1
    sources = (work if alone else replace(work, device="cpu")).sources()  # GPUs are left to the workers
    blocks = work.blocks(sources)
    parts = cut(source, text, window_rows(sources, blocks))  # the windows that one process would read
    rows = sum(part.rows for part in parts)
    texts = (cell for table in iter_tables(source, columns=[text]) for cell in text_column(table, text))
    needed = prepare(rows, sources, blocks, store, texts=texts)
    announce(f"{rows:,} rows x {len(blocks)} blocks: at most {needed / 1e6:,.1f} MB in {out}")
    counts: Counter[str] = Counter(truncated_rows=0, lost_tokens=0)
    failed: list[Failure] = []
    with (
        open_crew(work, who) as crew,
        track("reading", rows, "rows") as advance,
    ):
        for _, outcome in done(crew, source, text, parts, advance):
            counts.update(outcome.counts)
            failed += outcome.failed
            repeat(outcome)
    return {
        "store": str(out),
        "rows": rows,
        "blocks": [block.name for block in blocks],
        **counts,
        "bytes_estimated": needed,
        **report(sorted(failed, key=lambda one: one.row), out),
    }
