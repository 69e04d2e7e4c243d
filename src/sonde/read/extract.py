"""The one reading path: texts -> pooled blocks, through the store.

extract   texts -> windows, streamed
read      texts -> whole arrays
estimate  bytes that texts take on disk
outstanding  bytes that reading still adds to a store
windows, window_rows  texts -> runs that are read together, and how long these are
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np

from sonde.progress import track
from sonde.read.blocks import Block, Source, Window
from sonde.read.reader import FEW_ROWS, Kind, Reader
from sonde.read.store import Store, hash_texts
from sonde.read.view import clean

WINDOW_ROWS = 4096
WINDOW_CHARACTERS = 4 * 2**20
WINDOW_BYTES = 2**29
"""Texts are read in windows of at most this many rows, characters or bytes of values: enough that sorting by length
leaves hardly any padding (under 2% on IMDb), little enough that a killed run repeats at most a few minutes and memory
stays flat. All sites of a small encoder take a quarter of the bytes, those of a 7B decoder are read by 256 texts."""


def extract(
    texts: Iterable[str],
    sources: Mapping[int, Source],
    blocks: Sequence[Block],
    store: Store | None = None,
    *,
    token_budget: int | None = None,
    total: int | None = None,
    numbers: Sequence[int] | None = None,
) -> Iterator[Window]:
    """Read texts in windows; memory does not grow with their number.

    Parameters
    ----------
    texts : iterable of str
        Read lazily, a window at a time. Equal texts within a window are read once; across windows the store serves
        them.
    sources : mapping of int to Source
        The backbones, each with its view, under the index that blocks name them by.
    blocks : sequence of Block
        What to read.
    store : Store, optional
        Rows that it holds are not read again; new rows are added, a whole shard at a time.
    token_budget : int, optional
        Padded tokens in one batch; by default what suits the device. Results agree for any value within 1e-5 relative
        in float32 and 2e-2 in bfloat16.
    total : int, optional
        Number of texts, for the progress bar.
    numbers : sequence of int, optional
        The row, from 0, by which an error names each text; by default its place among `texts`.

    Yields
    ------
    Window

    Raises
    ------
    ReadingError
        If a value is not finite; names the row and the site.
    StoreError
        If the store's disk cannot be written.
    """
    readers = [Reader(index, source, blocks, store, token_budget) for index, source in sources.items()]
    columns = [column for reader in readers for column in reader.columns]
    for reader in readers:
        reader.in_use = columns
    if store is not None:
        store.write_header()
    start = 0
    with track("reading", total, "rows") as advance:
        for window in windows(texts, window_rows(sources, blocks)):
            unique = list(dict.fromkeys(window))
            place = {text: row for row, text in enumerate(unique)}
            rows = np.array([place[text] for text in window])
            first = {row: start + i for i, row in reversed(list(enumerate(rows.tolist())))}
            if numbers is not None:
                first = {row: numbers[place] for row, place in first.items()}
            keys = hash_texts(unique)
            wanted = None if len(unique) == len(window) else rows
            parts = [reader.read(unique, keys, first, wanted) for reader in readers]
            values = {name: array for part in parts for name, array in part.blocks.items()}  # row dim
            counts = np.stack([part.counts for part in parts]) if parts else np.zeros((0, len(rows), 2), np.int64)
            yield Window(start, values, counts[:, :, 0], counts[:, :, 1])
            start += len(window)
            advance(len(window))


def read(
    texts: Sequence[str],
    sources: Mapping[int, Source],
    blocks: Sequence[Block],
    store: Store | None = None,
    *,
    token_budget: int | None = None,
) -> Window:
    """Read all texts into one window: each distinct text once, in any order, with or without a store."""
    if 0 < len(texts) <= window_rows(sources, blocks) and sum(map(len, texts)) <= WINDOW_CHARACTERS:
        [only] = extract(texts, sources, blocks, store, token_budget=token_budget, total=len(texts))
        return only
    unique = list(dict.fromkeys(texts))
    place = {text: row for row, text in enumerate(unique)}
    rows = np.array([place[text] for text in texts], dtype=np.int64)
    _, first = np.unique(rows, return_index=True)
    whole: dict[str, np.ndarray] = {}
    counts = np.zeros((2, len(sources), len(unique)), dtype=np.int64)
    stream = extract(
        unique, sources, blocks, store, token_budget=token_budget, total=len(unique), numbers=first.tolist()
    )
    for window in stream:
        stop = window.start + window.rows
        counts[0, :, window.start : stop] = window.tokens
        counts[1, :, window.start : stop] = window.lost
        for name, values in window.blocks.items():
            if window.rows == len(unique):
                whole[name] = values
                continue
            if name not in whole:
                whole[name] = np.empty((len(unique), values.shape[1]), dtype=np.float32)
            whole[name][window.start : stop] = values
    if len(unique) == len(texts):
        return Window(0, whole, counts[0], counts[1])
    for name in whole:  # one at a time: each then takes the memory of the one before
        whole[name] = whole[name][rows]
    return Window(0, whole, counts[0][:, rows], counts[1][:, rows])


def window_rows(sources: Mapping[int, Source], blocks: Sequence[Block]) -> int:
    """Most texts that are read together: fewer than `WINDOW_ROWS` where their values are large."""
    row_bytes = sum(4 * kind.width(source) for _, source, kind in _kinds(sources, blocks))
    return min(WINDOW_ROWS, max(FEW_ROWS, WINDOW_BYTES // max(row_bytes, 1)))


def estimate(rows: int, sources: Mapping[int, Source], blocks: Sequence[Block]) -> int:
    """Bytes that `rows` texts take in an empty store at most."""
    together = window_rows(sources, blocks)
    return sum(reader.bytes_of(kind, rows, together) for reader, _, kind in _kinds(sources, blocks))


def outstanding(
    rows: int, sources: Mapping[int, Source], blocks: Sequence[Block], store: Store, texts: Iterable[str] | None = None
) -> int:
    """Bytes that reading still adds to a store at most.

    Exact with `texts`, which are then gone through once; without, what the store holds of these blocks is taken to be
    of the same texts, so that a command that was stopped is never refused the room it has already filled.
    """
    together = window_rows(sources, blocks)
    places = [(reader, kind) for reader, _, kind in _kinds(sources, blocks, store)]
    if texts is None:
        return sum(max(r.bytes_of(kind, rows, together) - r.stored_bytes(kind), 0) for r, kind in places)
    missing = [0] * len(places)
    for window in windows(texts, together):
        keys = hash_texts(dict.fromkeys(window))
        missing = [n + reader.lacks(kind, keys) for n, (reader, kind) in zip(missing, places, strict=True)]
    return sum(r.bytes_of(kind, n, together) for n, (r, kind) in zip(missing, places, strict=True) if n)


def _kinds(
    sources: Mapping[int, Source], blocks: Sequence[Block], store: Store | None = None
) -> Iterator[tuple[Reader, Source, Kind]]:
    """Everything that is read, the numbers of tokens included."""
    for index, source in sources.items():
        reader = Reader(index, source, blocks, store)
        yield from ((reader, source, kind) for kind in reader.wanted)


def windows(texts: Iterable[str], rows: int) -> Iterator[list[str]]:
    """Cleaned texts in runs of at most `rows`, and of a bounded number of characters."""
    window: list[str] = []
    characters = 0
    for text in texts:
        if window and (len(window) >= rows or characters + len(text) > WINDOW_CHARACTERS):
            yield window
            window, characters = [], 0
        window.append(clean(text))
        characters += len(text)
    if window:
        yield window
