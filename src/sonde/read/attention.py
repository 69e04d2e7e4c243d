"""Attention of short texts in bfloat16 on a CPU, as two batched products and one exponential.

quicken_attention   let a model use it, where that gives the same values

torch's fused kernel works head by head and tile by tile; a text of 11 tokens is no tile, and its softmax runs at a few
elements a microsecond where a row of scores is no multiple of the registers. Here all heads of all rows go through one
batched product, the exponential runs over the scores as one long vector, and the sum that softmax divides by comes out
of the second product: a column of ones stands beside the values, or of zeros where a token is a pad, so that no mask is
ever added. Softmax needs no maximum subtracted where its sums stay within the range of floats; the few texts whose sums
do not, long texts and all that is not plain attention go to torch's kernel.

What a text gets does not depend on its company, to the last bit: pads add zeros, rows do not meet. Scores are rounded
to bfloat16, which torch's kernel keeps in float32: of one layer's output .004 instead of .002, relative; of six layers
.0098 instead of .0096, for bfloat16 rounds everywhere.

One layer of all-MiniLM-L6-v2 at about 1,500 tokens a batch, padded by up to 3, one thread, milliseconds of torch's
kernel and of this one: 11 tokens a text 6.0 / 1.5, 24: 3.3 / 1.6, 53: 3.7 / 2.1, 100: 3.6 / 2.6, 200: 5.7 / 4.7; where
the length is a multiple of 16, at 80: 2.6 / 2.4, at 128: 2.8 / 3.0, at 256: 6.2 / 6.9.
`torch.backends.mkldnn.enabled = False` before a backbone is loaded switches this off; float32 never uses it.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, bidirectional_mask_function, sdpa_mask

from sonde.read.linear import is_allowed, is_bfloat16_on_cpu
from sonde.read.packing import Span, Tile, current, tiles

NAME = "sonde_short"
FUSED = "sdpa"
"""What transformers calls torch's kernel."""

LONGEST = 208
"""Tokens up to which this is as fast as torch's kernel or faster."""

LEAST_SUM = 1e-30
"""Of the exponentials of a token's scores: far above what bfloat16 rounds to 0, so that none that counts is lost."""

_BOUNDS = ("sliding_window", "softcap", "s_aux")
"""What limits or changes attention beyond which tokens see which; with these, texts are not packed."""

_SAME = 2e-2  # relative; kernels alone differ by up to 5e-3 after six layers
_PADS = 3


def quicken_attention(model: nn.Module, probe: Tensor) -> bool:
    """Let a model use this attention, in place; False, and the model as it was, where it cannot or other values come.

    Parameters
    ----------
    model : transformers model
        In evaluation mode.
    probe : (1, token)
        Token ids of a short text.
    """
    config: Any = model.config
    if config._attn_implementation != FUSED or not (is_allowed() and is_bfloat16_on_cpu(next(model.parameters()))):
        return False
    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, _mask)
    before = _outputs(model, probe)
    try:
        model.set_attn_implementation(NAME)  # type: ignore[operator]
        after = _outputs(model, probe)
        same = all(float((a - b).norm()) <= _SAME * float(b.norm()) for a, b in zip(after, before, strict=True))
    except (AttributeError, RuntimeError, TypeError, ValueError):
        same = False
    if not same:
        model.set_attn_implementation(FUSED)  # type: ignore[operator]
    return same and config._attn_implementation == NAME


def _outputs(model: Any, probe: Tensor) -> list[Tensor]:
    """Last hidden states of the probe alone and, of its own tokens, among pads; the encoder's, where there is one."""
    part = model.get_encoder() if model.config.is_encoder_decoder else model
    length = probe.shape[1]
    padded = torch.cat([probe, probe[:, :_PADS]], dim=1)
    mask = (torch.arange(padded.shape[1]) < length).long()[None]
    with torch.inference_mode():
        found = (part(input_ids=probe), part(input_ids=padded, attention_mask=mask))
    return [output.last_hidden_state[:, :length].float() for output in found]


def _mask(**asked: Any) -> Tensor | None:
    """Which tokens may be attended to, (row, 1, 1, token), where that is the same for all; else as for torch's."""
    if current() is not None:
        return None
    real = asked.get("attention_mask")
    if asked.get("mask_function") is not bidirectional_mask_function or real is None or real.ndim != 2:
        by_token: Tensor | None = sdpa_mask(**asked)
        return by_token
    if asked.get("allow_is_bidirectional_skip") and bool(real.all()):
        return None
    real = real[:, None, None, : asked["kv_length"]]
    return cast(Tensor, real).bool()


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **asked: Any,
) -> tuple[Tensor, None]:
    """As transformers calls it: (row, head, token, dim) three times -> (row, token, head, dim)."""
    causal = bool(getattr(module, "is_causal", True) if is_causal is None else is_causal) and attention_mask is None
    plain = not dropout and scaling is not None and asked.get("position_bias") is None and asked.get("cache") is None
    spans = current()
    if spans is not None:
        if not plain or attention_mask is not None or any(asked.get(name) is not None for name in _BOUNDS):
            raise ValueError("this attention is more than one among the tokens of each text")
        return _apart(query, key, value, spans, float(scaling or 1), causal), None
    if plain and _fits(query, key, value, attention_mask):
        rows, heads, tokens, dim = query.shape
        out = query.new_empty(rows, tokens, heads, dim)
        return _short(query, key, value, attention_mask, float(scaling or 1), causal, out), None
    found, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, is_causal=is_causal, **asked
    )
    return found, None


def _fits(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> bool:
    tokens = query.shape[2]
    return (
        tokens <= LONGEST
        and is_bfloat16_on_cpu(query)
        and query.shape == key.shape == value.shape
        and not torch.is_grad_enabled()
        and (mask is None or (mask.dtype == torch.bool and mask.shape == (query.shape[0], 1, 1, tokens)))
    )


def _apart(query: Tensor, key: Tensor, value: Tensor, spans: Sequence[Span], scaling: float, causal: bool) -> Tensor:
    """Attention among the tokens of each text: (1, head, token, dim) three times -> (1, token, head, dim)."""
    _, heads, tokens, dim = query.shape
    key, value = (one if one.shape[1] == heads else repeat_kv(one, heads // one.shape[1]) for one in (key, value))
    found = query.new_empty(1, tokens, heads, dim)
    found[0, spans[-1].stop :] = 0  # pads
    by_token = [one[0].transpose(0, 1) for one in (query, key, value)]  # token head dim
    for span in spans:
        out = span.of(found[0])  # row token head dim
        if span.length > LONGEST:
            q, k, v = (span.of(one).transpose(1, 2) for one in by_token)  # row head token dim
            out.copy_(scaled_dot_product_attention(q, k, v, is_causal=causal, scale=scaling).transpose(1, 2))
            continue
        for tile in tiles(span, tokens):
            q, k, v = (tile.of(one).transpose(1, 2) for one in by_token)
            _short(q, k, v, None, scaling, causal, out[tile.first : tile.first + tile.kept], tile)
    return found


def _short(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    causal: bool,
    out: Tensor,
    tile: Tile | None = None,
) -> Tensor:
    """(row, head, token, dim) three times -> (row, token, head, dim), written into `out`.

    Of a tile, `out` holds the rows and tokens that count.
    """
    rows, heads, tokens, dim = query.shape
    flat = (rows * heads, tokens, dim)
    scores = torch.baddbmm(
        query.new_empty(1, 1, 1), query.reshape(flat), key.reshape(flat).transpose(1, 2), beta=0, alpha=scaling
    ).exp_()  # row*head token token
    if causal:
        scores.mul_(torch.ones(tokens, tokens, dtype=scores.dtype).tril_())
    real = tokens if tile is None else tile.length
    summed = torch.bmm(scores, _with_ones(value, mask, real))  # row*head token dim+1
    summed = summed.view(rows, heads, tokens, dim + 1).transpose(1, 2)  # row token head dim+1
    if tile is not None:
        query, key, value, summed = tile.count(query, key, value, summed)
    total = summed[..., dim:]
    found = torch.div(summed[..., :dim], total, out=out)
    lowest, highest = total.aminmax()
    if not (float(lowest) >= LEAST_SUM and float(highest) < torch.inf):
        bad = ~((total >= LEAST_SUM) & total.isfinite()).flatten(1).all(dim=1)  # row
        found[bad] = scaled_dot_product_attention(
            query[bad], key[bad], value[bad], None if mask is None else mask[bad], is_causal=causal, scale=scaling
        ).transpose(1, 2)
    return found


def _with_ones(value: Tensor, mask: Tensor | None, real: int) -> Tensor:
    """(row*head, token, dim+1): the values, a column of ones beside them; zeros at pads and from token `real` on."""
    rows, heads, tokens, dim = value.shape
    wide = value.new_empty(rows, heads, tokens, dim + 1)
    if mask is None:
        wide[..., :real, :dim] = value[..., :real, :]
        wide[..., :real, dim] = 1
        wide[..., real:, :] = 0
    else:
        is_real = mask.view(rows, 1, tokens, 1).to(value.dtype)
        torch.mul(value, is_real, out=wide[..., :dim])
        wide[..., dim:] = is_real
    return wide.view(rows * heads, tokens, dim + 1)
