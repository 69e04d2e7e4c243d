"""One store, many processes: eight write and read it at once, some are killed, and no row is ever wrong or lost."""

import random
from pathlib import Path

import pytest
from test_store import run_processes
from tiny import build

CROWD = """
import collections, json, warnings
import numpy as np
from sonde.read.store import Column, hash_texts

ROWS, WINDOW, WORKERS, SECONDS = 1280, 80, 8, 240  # runs of fewer rows are not kept in a store with a limit
extract_module.WINDOW_ROWS = WINDOW
blocks = [*expand_blocks(0, sources[0], "hidden.1", "mean"), *expand_blocks(0, sources[0], "hidden.3", "max")]
everything = list(texts(ROWS))
expected = extract_module.read(everything, sources, blocks).blocks
place = {text: row for row, text in enumerate(everything)}


def work(seed, limit=None):
    \"\"\"Read a random half of the texts, in an order of one's own, and compare every value.\"\"\"
    warnings.simplefilter("error")
    mine = random.Random(seed).sample(everything, ROWS // 2)
    start = 0
    for window in extract(mine, sources, blocks, Store(ROOT + ("/limited" if limit else "/store"), limit)):
        rows = [place[text] for text in mine[start : start + window.rows]]
        for name, values in window.blocks.items():
            assert np.allclose(values, expected[name][rows], rtol=1e-4, atol=1e-5), "a wrong row"
        start += window.rows
    assert start == len(mine)


def crowd(kills, limit=None):
    \"\"\"Eight at work until so many have been killed, then let the rest finish: (killed, finished).\"\"\"
    moments, seeds = random.Random(SEED), iter(range(10**6))
    alive = [start(lambda seed=next(seeds): work(seed, limit)) for _ in range(WORKERS)]
    killed = done = 0
    until = time.monotonic() + SECONDS
    while alive and time.monotonic() < until:
        time.sleep(moments.uniform(0, 0.2))
        for child in list(alive):
            if finished(child):
                alive.remove(child)
                done += 1
        if killed < kills and alive:
            child = moments.choice(alive)
            os.kill(child, signal.SIGKILL)
            killed += os.WIFSIGNALED(os.waitpid(child, 0)[1])
            alive.remove(child)
        while killed < kills and len(alive) < WORKERS:
            alive.append(start(lambda seed=next(seeds): work(seed, limit)))
    assert not alive, "some never came to an end"
    return killed, done


killed, done = crowd(16)
warnings.simplefilter("error")
wait(start(lambda: work(10**7)))
left = [str(path) for path in Path(ROOT).rglob(".tmp-*")]
whole = Store(ROOT + "/store")
column = next(c for r in [extract_module.Reader(0, sources[0], blocks, whole)] for c in r.columns)
rows = int(column.find(hash_texts(everything)).sum())
damaged = [str(p) for p in Path(ROOT).glob("store/blocks/*/*.safetensors") if not extract_module_intact(p)]
crowded = crowd(4, limit=150_000)
size = sum(path.stat().st_size for path in Path(ROOT).rglob("limited/**/*") if path.is_file())
print(json.dumps({"killed": killed, "done": done, "left": left, "rows": rows, "damaged": damaged, "limited": crowded,
                  "bytes": size}))
"""


@pytest.mark.slow
def test_eight_processes_share_a_store_and_some_are_killed(tmp_path: Path) -> None:
    script = "from sonde.read.shards import is_intact as extract_module_intact\n" + CROWD
    seen = run_processes(script, MODEL=str(build("bert")), ROOT=str(tmp_path), SEED=random.randrange(10**6))
    assert seen["killed"] == 16 and seen["done"] >= 7
    assert seen["left"] == [] and seen["damaged"] == []
    assert seen["rows"] >= 900, "what was read is kept"
    assert seen["limited"][0] == 4 and seen["limited"][1] >= 7
