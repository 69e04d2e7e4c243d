"""The model in int8 under ONNX Runtime, in an environment of its own, as a contender of `reading.py`.

    python benchmarks/onnx_int8.py FOLDER MAX_TOKENS THREADS    (the worker; reads requests from standard input)

sentence-transformers' own ONNX and OpenVINO backends need packages that put transformers back to an older version, and
so do not install beside it. What they run is run here without them: the same export, dynamic int8 weights by channel,
and the loop of `encode` (longest texts first, batches of 32, padded to the longest, mean, unit length).

started   an environment, a worker in it
"""

import subprocess
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from worker import Unavailable, Worker, answer, working

PINS = ("onnxruntime==1.31.1", "onnx==1.23.2", "ml_dtypes", "protobuf", "flatbuffers")
"""Without their dependencies, which the environment of sonde holds: torch is never fetched."""
INSTALL_SECONDS = 300  # about 120 MB; a slower network is a reason to skip
BATCH = 32  # the default of `encode`


@contextmanager
def started(folder: str, max_tokens: int, threads: int) -> Iterator[Worker]:
    """Make the environment, start the worker, and end both.

    Raises
    ------
    Unavailable
        If the packages cannot be installed, or the model cannot be exported.
    """
    with tempfile.TemporaryDirectory() as temporary:
        python = environment(Path(temporary) / "venv")
        with working([str(python), __file__, folder, str(max_tokens), str(threads)]) as worker:
            yield worker


def environment(home: Path) -> Path:
    """A virtual environment that sees this one and holds ONNX Runtime; its interpreter."""
    try:
        venv.create(home, with_pip=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise Unavailable(f"no virtual environment can be made: {error}") from error
    python = home / "bin" / "python" if sys.platform != "win32" else home / "Scripts" / "python.exe"
    words = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", *PINS]
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=INSTALL_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise Unavailable(f"pip did not finish within {INSTALL_SECONDS} seconds") from None
    if done.returncode:
        raise Unavailable(f"pip failed: {' '.join(done.stderr.strip().splitlines()[-1:])}")
    site = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    (Path(site) / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


# ------------------------------------------------------------------- worker


def exported(folder: str, path: Path) -> None:
    """The model as ONNX, with int8 weights by channel."""
    import torch
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, dtype=torch.float32).eval().requires_grad_(False)

    class LastHidden(torch.nn.Module):
        def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
            hidden: torch.Tensor = model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
            return hidden

    plain = path.with_name("plain.onnx")
    axes = {name: {0: "row", 1: "token"} for name in ("input_ids", "attention_mask", "hidden")}
    example = torch.ones((2, 7), dtype=torch.int64)
    torch.onnx.export(
        LastHidden(), (example, example), str(plain), input_names=["input_ids", "attention_mask"],
        output_names=["hidden"], dynamic_axes=axes, opset_version=17, dynamo=False,
    )  # fmt: skip
    quantize_dynamic(plain, path, weight_type=QuantType.QInt8, per_channel=True)


def encoded(session: Any, tokenizer: Any, texts: Sequence[str], max_tokens: int) -> Any:
    """What `encode` does, over this session: unit vectors (row, dim)."""
    import numpy as np

    order = sorted(range(len(texts)), key=lambda row: -len(texts[row]))
    found: list[Any] = [None] * len(texts)
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        inputs = tokenizer([texts[row] for row in rows], padding=True, truncation=True, max_length=max_tokens,
                           return_tensors="np")  # fmt: skip
        mask = inputs["attention_mask"].astype(np.int64)
        (hidden,) = session.run(None, {"input_ids": inputs["input_ids"].astype(np.int64), "attention_mask": mask})
        pooled = (hidden * mask[..., None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)  # row token dim -> row dim
        pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
        for place, row in enumerate(rows):
            found[row] = pooled[place]
    return np.stack(found).astype(np.float32)


def serve(folder: str, max_tokens: int, threads: int) -> None:
    """Answer requests until there are no more."""
    import onnxruntime
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "int8.onnx"
        exported(folder, path)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        answer(lambda texts: encoded(session, tokenizer, texts, max_tokens))


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
