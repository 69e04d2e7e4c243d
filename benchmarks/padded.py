"""The way of LLMEmbed's released code as a process of its own, with transformers alone; a contender of `released.py`.

    python benchmarks/padded.py FOLDER DTYPE THREADS MAX_TOKENS BATCH    (the worker; requests from standard input)

Padded   fixed batches, every text padded to one length, all hidden states kept

Source: LLMEmbed (ACL 2024, arXiv 2406.03725), its released code, in our words.
"""

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer
from worker import answer

STATES = 5
"""phi(m, 1) to phi(m, 5) of the paper."""


class Padded:
    """Reads texts.

    Parameters
    ----------
    folder : str
        A decoder.
    dtype : str
    max_tokens : int
        Length that every text is cut or padded to.
    batch : int
        Texts in a batch.
    """

    def __init__(self, folder: str, dtype: str, max_tokens: int, batch: int) -> None:
        self.max_tokens, self.batch = max_tokens, batch
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token or self.tokenizer.unk_token
        self.tokenizer.padding_side = "right"
        self.model: Any = AutoModel.from_pretrained(folder, dtype=getattr(torch, dtype), local_files_only=True).eval()

    @torch.inference_mode()
    def read(self, texts: list[str], masked: bool = False) -> list[np.ndarray]:
        """Means over the tokens of the last hidden states, the last one last; pads count, unless `masked`."""
        found: list[list[Tensor]] = []
        for start in range(0, len(texts), self.batch):
            inputs = self.tokenizer(
                texts[start : start + self.batch], padding="max_length", truncation=True, max_length=self.max_tokens,
                return_tensors="pt",
            )  # fmt: skip
            ids, mask = inputs["input_ids"], inputs["attention_mask"]
            output = self.model(input_ids=ids, attention_mask=mask, output_hidden_states=True, use_cache=False)
            found.append([_mean(state, mask if masked else None) for state in output.hidden_states[-STATES:]])
        return [torch.cat(batches).float().numpy() for batches in zip(*found, strict=True)]


def _mean(state: Tensor, mask: Tensor | None) -> Tensor:
    if mask is None:
        return state.mean(dim=1)  # (row, token, dim) -> (row, dim)
    return (state.float() * mask[..., None]).sum(dim=1) / mask.sum(dim=1, keepdim=True)


def serve(folder: str, dtype: str, threads: int, max_tokens: int, batch: int) -> None:
    """Answer requests until there are no more; vectors that are asked for leave pads out, as they should."""
    torch.set_num_threads(threads)
    way = Padded(folder, dtype, max_tokens, batch)
    answer(way.read, lambda texts: way.read(texts, masked=True)[-1])


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6]))
