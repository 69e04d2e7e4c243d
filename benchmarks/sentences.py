"""sentence-transformers as a process of its own, as a contender of `reading.py`.

    python benchmarks/sentences.py FOLDER DTYPE THREADS    (the worker; reads requests from standard input)

Its users run it without sonde, which has the C library keep freed memory for the whole of its own process.
"""

import sys
from typing import Any

from worker import answer


def serve(folder: str, dtype: str, threads: int) -> None:
    """`encode` with its defaults; a dtype other than float32 is asked of the model."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    settings: dict[str, Any] = {} if dtype == "float32" else {"model_kwargs": {"dtype": getattr(torch, dtype)}}
    model = SentenceTransformer(folder, device="cpu", **settings)
    answer(lambda texts: model.encode(texts, show_progress_bar=False))


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
