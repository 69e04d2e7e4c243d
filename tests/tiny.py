"""Tiny random models of many architectures, with tokenizers, saved as folders: no network, no downloads.

ARCHITECTURES   name -> builder of a configuration; MIXTURES the same for mixtures of experts
build           name -> folder with config, weights and tokenizer, built once per process
tokenizer_of    a fast tokenizer with the special tokens of a family
count_blocks    how many blocks a function runs
SENTENCES       a few texts in the tokenizers' vocabulary
"""

import atexit
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

SENTENCES = [
    "the first trains left early and nobody on the platform knew why",
    "a cold wind came over the hills",
    "she wrote three letters , burned two , and kept the last one for a year",
    "good",
    "the parcel never arrived and the refund is late",
    "why is my account locked again ?",
]
HIDDEN, LAYERS, HEADS, FFN, POSITIONS = 32, 3, 4, 48, 64
_SPECIALS = {
    "bert": ("[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"),
    "roberta": ("<s>", "</s>", "<pad>", "<unk>", "<mask>"),
    "bos": ("<s>", "", "", "<unk>", ""),
    "eos": ("", "", "", "<|endoftext|>", ""),
    "t5": ("", "</s>", "<pad>", "<unk>", ""),
}


def _names(first: str, last: str, pad: str, unknown: str, mask: str) -> dict[str, str]:
    keys = ("cls_token", "sep_token", "pad_token", "unk_token", "mask_token")
    return {key: value for key, value in zip(keys, (first, last, pad, unknown, mask), strict=True) if value}


@cache
def tokenizer_of(family: str) -> PreTrainedTokenizerFast:
    """A word-level tokenizer; ids 0, 1, 2... are the family's special tokens (pad is 1 for roberta, 0 for bert)."""
    first, last, pad, unknown, mask = _SPECIALS[family]
    order = [first, pad, last, unknown, mask] if family == "roberta" else [pad, last, first, unknown, mask]
    specials = [token for token in order if token]
    tokenizer = Tokenizer(models.WordLevel(unk_token=unknown))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.train_from_iterator(SENTENCES, trainers.WordLevelTrainer(special_tokens=specials))
    single = " ".join(part for part in (first, "$A", last) if part)
    numbered = [(token, tokenizer.token_to_id(token)) for token in (first, last) if token]
    if numbered:
        tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=numbered)
    names = _names(first, last, pad, unknown, mask)
    if family in ("bos", "eos", "t5"):  # decoders name them begin and end of sequence
        names = {{"cls_token": "bos_token", "sep_token": "eos_token"}.get(key, key): v for key, v in names.items()}
    if family == "eos":
        names["eos_token"] = unknown
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, padding_side="right", **names)


def _plain(**more: Any) -> dict[str, Any]:
    return {
        "hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "intermediate_size": FFN,
        "max_position_embeddings": POSITIONS, **more,
    }  # fmt: skip


def _grouped(**more: Any) -> dict[str, Any]:
    return _plain(num_key_value_heads=2, head_dim=8, bos_token_id=0, eos_token_id=1, pad_token_id=None, **more)


_T5 = {"d_model": HIDDEN, "num_layers": LAYERS, "num_decoder_layers": 2, "num_heads": HEADS, "d_kv": 8, "d_ff": FFN,
       "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1}  # fmt: skip
_BART = {"d_model": HIDDEN, "encoder_layers": LAYERS, "decoder_layers": 2, "encoder_attention_heads": HEADS,
         "decoder_attention_heads": HEADS, "encoder_ffn_dim": FFN, "decoder_ffn_dim": FFN,
         "max_position_embeddings": POSITIONS, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2,
         "decoder_start_token_id": 2}  # fmt: skip
_GPT2 = {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": HEADS, "n_positions": POSITIONS, "bos_token_id": 0,
         "eos_token_id": 0}  # fmt: skip
_OPT = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "ffn_dim": FFN,
        "max_position_embeddings": POSITIONS, "word_embed_proj_dim": 16, "pad_token_id": 1, "bos_token_id": 2,
        "eos_token_id": 2}  # fmt: skip

ARCHITECTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "bert": ("Bert", "bert", _plain()),
    "roberta": ("Roberta", "roberta", _plain(pad_token_id=1)),
    "distilbert": ("DistilBert", "bert", {"dim": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": FFN,
                                          "max_position_embeddings": POSITIONS}),
    "electra": ("Electra", "bert", _plain(embedding_size=16)),
    "albert": ("Albert", "bert", _plain(embedding_size=16)),
    "modernbert": ("ModernBert", "bert", _plain(global_attn_every_n_layers=2, local_attention=8, pad_token_id=0,
                                                cls_token_id=2, sep_token_id=1, bos_token_id=2, eos_token_id=1)),
    "gpt2": ("GPT2", "eos", _GPT2),
    "gpt_neox": ("GPTNeoX", "eos", _plain(bos_token_id=0, eos_token_id=0)),
    "opt": ("OPT", "roberta", _OPT),
    "llama": ("Llama", "bos", _grouped()),
    "mistral": ("Mistral", "bos", _grouped(sliding_window=8)),
    "qwen3": ("Qwen3", "eos", _grouped()),
    "gemma": ("Gemma", "bos", _grouped()),
    "t5": ("T5", "t5", _T5),
    "bart": ("Bart", "roberta", _BART),
}  # fmt: skip
"""name -> (prefix of the transformers classes, tokenizer family, configuration)."""
MIXTURES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "mixtral": ("Mixtral", "bos", _grouped(num_local_experts=4, num_experts_per_tok=2)),
    "qwen3_moe": ("Qwen3Moe", "bos", _grouped(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)),
}
DECODERS = ("gpt2", "gpt_neox", "opt", "llama", "mistral", "qwen3", "gemma")
TWO_STACKS = ("t5", "bart")


@cache
def _root() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="sonde-tiny-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@cache
def build(name: str) -> Path:
    """Return the folder of a tiny random model; weights do not depend on the order of building."""
    prefix, family, settings = {**ARCHITECTURES, **MIXTURES}[name]
    return save(name, prefix, family, settings)


def save(
    folder: str, prefix: str, family: str, settings: dict[str, Any], edit: Callable[..., None] | None = None
) -> Path:
    """Build a model of these classes and settings, let `edit` change it, and save it with its tokenizer."""
    tokenizer = tokenizer_of(family)
    config = getattr(transformers, f"{prefix}Config")(vocab_size=len(tokenizer), **settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, f"{prefix}Model")(config).eval()
        for parameter in model.parameters():  # larger than the usual start, so that every part of a block matters
            parameter.data += 0.1 * torch.randn_like(parameter)
    if edit is not None:
        edit(model)
    path = _root() / folder
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


def count_blocks(backbone: Any, run: Callable[[], object]) -> dict[str, int]:
    """How many calls of block modules `run` makes, by stack."""
    calls, handles = dict.fromkeys(backbone.layers, 0), []
    for stack, places in backbone._forward.stacks.items():
        for module in {place.module for place in places.blocks}:

            def count(*_: object, stack: str = stack) -> None:
                calls[stack] += 1

            handles.append(module.register_forward_pre_hook(count))
    run()
    for handle in handles:
        handle.remove()
    return calls
