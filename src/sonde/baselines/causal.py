"""Causal: a checkpoint -> a causal language model that writes text.

load_causal   loads it, and refuses what is none
first_line    what an exception says
"""

import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from sonde.errors import BackboneError
from sonde.precision import choose_device, choose_dtype
from sonde.read.backbone import quiet

_TABLE: dict[tuple[Path, torch.dtype, torch.device], Any] = {}
_TABLE_LOCK = threading.Lock()
_UNMOVED = 1e-4
"""Exactly 0 was found for seven architectures of decoders, 1e-3 and more for encoders with random weights."""
_PROBE = "The first trains left early, and nobody on the platform knew why."


def load_causal(name: str, path: Path, tokenizer: Any, dtype: str, device: str) -> Any:
    """Load a causal language model with its output head, or return it if this process has it already.

    Raises
    ------
    BackboneError
        If the checkpoint is of another kind, or lacks the head.
    """
    where = choose_device(device)
    precision = choose_dtype(dtype, where)
    with _TABLE_LOCK:
        key = (path, precision, where)
        if key not in _TABLE:
            _TABLE[key] = _load(name, path, tokenizer, precision, where)
        return _TABLE[key]


def _load(name: str, path: Path, tokenizer: Any, dtype: torch.dtype, where: torch.device) -> Any:
    try:
        with quiet():
            model, info = AutoModelForCausalLM.from_pretrained(
                str(path), dtype=dtype, output_loading_info=True, local_files_only=True
            )
    except Exception as error:  # nearly every kind; an unknown class of model is a ValueError
        raise BackboneError(f"{name!r} cannot write text: {first_line(error)} {_DUE}") from error
    lacking = sorted(info["missing_keys"])
    if lacking:
        raise BackboneError(f"{name!r} cannot write text: its checkpoint lacks weights such as {lacking[0]}. {_DUE}")
    model = model.eval().requires_grad_(False).to(where)
    if _sees_behind(model, tokenizer):
        raise BackboneError(f"{name!r} cannot write text: it is an encoder, whose tokens see what follows. {_DUE}")
    return model


_DUE = "Give a causal language model with its output head, such as a Llama, Qwen, Mistral or GPT checkpoint."


@torch.inference_mode()
def _sees_behind(model: Any, tokenizer: Any) -> bool:
    """Whether another last token changes what is said at the first."""
    ids = list(tokenizer(_PROBE)["input_ids"])[:8] or [0]
    ids = (ids * 3)[: max(3, len(ids))]
    other = [*ids[:-1], (ids[-1] + 1) % int(model.config.get_text_config().vocab_size)]
    both = torch.tensor([ids, other], device=model.device)  # (2, token)
    logits = model(input_ids=both, attention_mask=torch.ones_like(both)).logits.float()  # 2, token, vocabulary
    moved = (logits[0] - logits[1]).abs().amax(dim=1)  # token
    return bool(moved[0] > _UNMOVED * moved[-1])


def first_line(error: Exception) -> str:
    """What an exception says, on one line."""
    with suppress(IndexError):
        return str(error).splitlines()[0][:200]
    return type(error).__name__
