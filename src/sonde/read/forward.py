"""Forward passes: run a model once, only as deep as the deepest site, and pool on the way.

Forward      a traced model: its stacks, whether it is causal, `run` and `run_packed`
last_hidden  the final hidden state in a model's output
LEAK         how much other kernels may change, by floating type
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from sonde.errors import BackboneError
from sonde.read.packing import Packed, Span, apart, beside
from sonde.read.sites import DECODER, MAIN, Site
from sonde.read.taps import Place, Taps, Tokens
from sonde.read.tracing import Stack, Trace, find_stack, inner_widths
from sonde.read.truncation import cut, without_pooler

Source = tuple[Site, str | None]
"""A site and a pooling; None for the pooler, which has no token axis."""
_SAME = 1e-3  # relative: a truncated copy runs the same kernels, a wrong one differs in the first digit
LEAK = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Relative change by pads above which they leak; other kernels alone give 1e-6 and, in bfloat16, up to 1e-2."""


class Forward:
    """A traced model.

    Parameters
    ----------
    model : transformers model
        In evaluation mode, on its device.
    probe : (1, token)
        Token ids of a short text, at least three of them.
    name : str
        The backbone, for sentences.
    keeps_apart : bool
        Whether the model's attention is that of `sonde.read.attention`, which can keep to the spans of a packed row.

    Attributes
    ----------
    stacks : dict of stack to Stack
        Where the sites lie.
    causal : bool
        Whether the main stack reads from left to right only.
    bears_pads : bool
        Whether pads leave the other tokens as they are; where not (convolutions over tokens), `run` batches rows of
        one length at a time.
    packs : bool
        Whether texts may stand side by side in one row (`run_packed`).
    pooler_width : int or None
        Width of the pooler output; None if the model has none.
    """

    def __init__(self, model: Any, probe: Tensor, name: str, keeps_apart: bool = False) -> None:
        self.model = model
        self.has_decoder = bool(model.config.is_encoder_decoder)
        self.device = probe.device
        self.stacks: dict[str, Stack] = {}
        self.pooler_width: int | None = None
        self._shorter: dict[tuple[str, int], tuple[nn.Module, nn.Module]] = {}
        self.probe = probe
        with torch.inference_mode():
            last = self._trace(probe, name)
            self.causal = self._is_causal(probe)
            self.bears_pads = self._pads_change(probe, last) < LEAK.get(last.dtype, 1e-2)
            self._first_position = self._find_first_position(last) if keeps_apart and not self.has_decoder else None
            self._means = {stack: self._whole_means(stack) for stack in self.stacks}
        self.packs = self._first_position is not None

    def tensors(self) -> Iterator[Tensor]:
        """What copies may share: the parameters and buffers of the model."""
        yield from self.model.parameters()
        yield from self.model.buffers()

    def run(
        self, ids: Tensor, mask: Tensor | None, content: Tensor | None, sources: set[Source]
    ) -> dict[Source, Tensor]:
        """Read a batch; float32 (row, dim) on the model's device for every source."""
        if mask is None or self.bears_pads:
            return self._pass(ids, mask, content, sources)
        lengths = mask.sum(dim=1)
        taken: dict[Source, Tensor] = {}
        for length in sorted(set(lengths.tolist())):
            rows = lengths == length
            real = None if content is None else content[rows, :length]
            for source, vectors in self._pass(ids[rows, :length], None, real, sources).items():
                taken.setdefault(source, vectors.new_empty(len(ids), vectors.shape[1]))[rows] = vectors
        return taken

    def run_packed(self, packed: Packed, sources: set[Source]) -> dict[Source, Tensor]:
        """Read texts that stand side by side, where `packs`; as `run`, one row a text."""
        assert self.packs and not any(site.kind == "pooler" for site, _ in sources), (
            "a pooler sees the first token only"
        )
        tokens = {MAIN: Tokens(1, packed.ids.shape[1], None, packed.content, packed.spans)}
        return self._read(packed.ids, None, sources, tokens, packed.spans, **self.placed(packed))

    def _pass(
        self, ids: Tensor, mask: Tensor | None, content: Tensor | None, sources: set[Source]
    ) -> dict[Source, Tensor]:
        tokens = {
            MAIN: Tokens(ids.shape[0], ids.shape[1], mask, content),
            DECODER: Tokens(ids.shape[0], ids.shape[1], mask, None if content is None else _shifted(content, 0)),
        }
        return self._read(ids, mask, sources, tokens)

    def _read(
        self,
        ids: Tensor,
        mask: Tensor | None,
        sources: set[Source],
        tokens: Mapping[str, Tokens],
        spans: tuple[Span, ...] | None = None,
        **settings: Any,
    ) -> dict[Source, Tensor]:
        """One forward pass of the shortest model that reaches every source."""
        poolings: dict[Site, list[str]] = {}
        for site, how in sources:
            poolings.setdefault(site, []).extend([how] if how else [])
        stack, model, entry = self.shortest(poolings)
        inner = {site: self.place(site, stack, entry) for site in poolings if self._is_inside(site)}
        with Taps(inner, poolings, tokens) as taps, apart(spans):  # not around the trial of a shorter model
            output = self.call(model, ids, mask, stack, **settings)
        for site in poolings.keys() - inner.keys():
            if site.kind == "hidden":
                taps.keep(site, last_hidden(output, whole=stack == DECODER, of=site.stack))
        taken: dict[Source, Tensor] = {(site, how): vectors for (site, how), vectors in taps.taken.items()}
        if any(site.kind == "pooler" for site in poolings):
            taken[Site(MAIN, "pooler"), None] = output.pooler_output.float()
        return taken

    def _is_inside(self, site: Site) -> bool:
        """Whether a hook reads the site; the last hidden state and the pooler are outputs of the model."""
        return site.kind == "ffn" or (site.kind == "hidden" and site.layer != self.stacks[site.stack].layers)

    def place(self, site: Site, run: str, entry: nn.Module) -> Place:
        """Where a site lies in the model that runs the stack `run` and whose first block there is `entry`."""
        stack, layer = self.stacks[site.stack], site.layer
        assert layer is not None
        if site.kind == "ffn":
            return stack.downs[layer - 1]
        if layer == 0:
            return Place(entry if site.stack == run else stack.blocks[0].module, 0, "input")
        return stack.blocks[layer - 1]

    def shortest(self, sites: Collection[Site]) -> tuple[str, nn.Module, nn.Module]:
        """(the stack that runs last, the shortest model that reaches all sites, its first block there)."""
        stack = DECODER if any(site.stack == DECODER for site in sites) else MAIN
        return stack, *self._shortest(stack, sites)

    def _shortest(self, stack: str, sites: Collection[Site]) -> tuple[nn.Module, nn.Module]:
        own = [site for site in sites if site.stack == stack]
        n_layers = self.stacks[stack].layers
        pooler = any(site.kind == "pooler" for site in own)
        depth = n_layers if pooler else max(site.layer or 0 for site in own)
        if pooler:
            return self.model, self.stacks[stack].blocks[0].module
        if (stack, depth) not in self._shorter:
            self._shorter[stack, depth] = self._shorten(stack, depth)
        return self._shorter[stack, depth]

    def _shorten(self, stack: str, depth: int) -> tuple[nn.Module, nn.Module]:
        found = self.stacks[stack]
        if depth < found.layers:
            for root, entry in cut(self.model, found, depth):
                model = self.main_part(root) if stack == MAIN else root
                if self._runs_right(model, entry, stack, depth):
                    return model, entry
        return self._whole(stack), found.blocks[0].module

    def _whole(self, stack: str) -> nn.Module:
        """All blocks of a stack; without the main one's pooler."""
        whole = without_pooler(self.model)
        return self.main_part(whole) if stack == MAIN else whole

    def _runs_right(self, model: nn.Module, entry: nn.Module, stack: str, depth: int) -> bool:
        """Whether a truncated copy gives a short text the hidden state that the whole model gives it.

        Both are pooled alike: in bfloat16 a mean is rounded by more than a wrong copy may differ. The whole model ran
        when it was traced: its blocks may now bear the hooks of a reading that goes on.
        """
        expected = self._means[stack][depth]
        try:
            found = self._probed(model, entry, stack, [depth]).get(depth)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError):
            return False
        return found is not None and torch.allclose(
            found, expected, rtol=_SAME, atol=_SAME * float(expected.abs().max())
        )

    def _whole_means(self, stack: str) -> dict[int, Tensor]:
        """What `_probed` finds in the whole model at every depth below the last."""
        blocks = self.stacks[stack].blocks
        return self._probed(self._whole(stack), blocks[0].module, stack, range(len(blocks)))

    def _probed(self, model: nn.Module, entry: nn.Module, stack: str, depths: Iterable[int]) -> dict[int, Tensor]:
        """Hidden states of the short text in a model whose first block is `entry`: means over its tokens, by depth."""
        sites = {Site(stack, "hidden", depth): depth for depth in depths}
        tokens = {stack: Tokens(1, self.probe.shape[1], None, None)}
        places = {site: self.place(site, stack, entry) for site in sites}
        with Taps(places, {site: ["mean"] for site in sites}, tokens) as taps:
            self.call(model, self.probe, None, stack)
        return {sites[site]: vectors[0].cpu() for (site, _), vectors in taps.taken.items()}

    def main_part(self, model: Any) -> Any:
        """The part of a model that runs the main stack alone."""
        return model.get_encoder() if self.has_decoder else model

    def call(self, model: Any, ids: Tensor, mask: Tensor | None, stack: str, **settings: Any) -> Any:
        """Run a model without a cache; causal stacks need no mask for pads on the right."""
        inputs: dict[str, Any] = {"input_ids": ids, "return_dict": True, **settings}
        if mask is not None and self.causal and not self.has_decoder:
            inputs["input_ids"] = torch.where(mask, ids, ids[:, :1])  # any token will do, and needs no pad token
        elif mask is not None:
            inputs["attention_mask"] = mask.long()
        if "use_cache" in signature(model.forward).parameters:
            inputs["use_cache"] = False
        if stack == DECODER:
            inputs["decoder_input_ids"] = _shifted(ids, self._decoder_start())
        return model(**inputs)

    def _decoder_start(self) -> int:
        config = self.model.config
        names = ("decoder_start_token_id", "bos_token_id", "pad_token_id")
        return int(next((number for name in names if (number := getattr(config, name, None)) is not None), 0))

    def _trace(self, probe: Tensor, name: str) -> Tensor:
        """Find the stacks; return the last hidden state of the last one."""
        stack = DECODER if self.has_decoder else MAIN
        self.causal = False  # until it is known; the traced text has no pads
        with Trace(self.model) as trace:
            output = self.call(self.model, probe, None, stack, output_hidden_states=True)
        states = {MAIN: output.encoder_hidden_states, DECODER: output.decoder_hidden_states} if self.has_decoder else {
            MAIN: output.hidden_states
        }  # fmt: skip
        inner = inner_widths(self.model.config)
        for part, hidden_states in states.items():
            what = f"backbone {name!r}" if part == MAIN else f"the decoder of backbone {name!r}"
            if not hidden_states:
                raise BackboneError(f"hidden.* of {what} cannot be read: it returns no hidden states.")
            self.stacks[part] = find_stack(trace.calls, hidden_states, probe.shape[1], what, inner)
            if not torch.equal(last_hidden(output, whole=self.has_decoder, of=part), hidden_states[-1]):
                raise BackboneError(f"hidden.{len(hidden_states) - 1} of {what} is not its last output.")
        pooled = getattr(output, "pooler_output", None)
        self.pooler_width = None if pooled is None else pooled.shape[-1]
        return last_hidden(output, whole=self.has_decoder, of=stack)

    def _pads_change(self, probe: Tensor, last: Tensor) -> float:
        """By how much, relatively, pads on the right change the last hidden state of the real tokens."""
        padded = torch.cat([probe, probe.flip(1)], dim=1)
        mask = torch.arange(padded.shape[1], device=probe.device).unsqueeze(0) < probe.shape[1]
        stack = DECODER if self.has_decoder else MAIN
        output = self.call(without_pooler(self.model), padded, mask, stack)
        found = last_hidden(output, whole=self.has_decoder, of=stack)[:, : probe.shape[1]]
        return float((found.float() - last.float()).norm() / last.float().norm().clamp(min=1e-12))

    def placed(self, packed: Packed) -> dict[str, Tensor]:
        """What a model is told of a packed row beside its ids."""
        assert self._first_position is not None
        told = {"position_ids": packed.positions + self._first_position}
        if "token_type_ids" in signature(self.model.forward).parameters:
            told["token_type_ids"] = torch.zeros_like(packed.ids)
        return told

    def _find_first_position(self, last: Tensor) -> int | None:
        """The number of a text's first position if two texts side by side get what they get alone, else None.

        RoBERTa and its kin count from one above the index of the pad token.
        """
        model = without_pooler(self.model)
        if "position_ids" not in signature(model.forward).parameters:
            return None
        other = self.probe.flip(1)[:, : self.probe.shape[1] - 1]
        alone = [last, last_hidden(self.call(model, other, None, MAIN), whole=False, of=MAIN)]
        packed = beside([self.probe[0].tolist(), other[0].tolist()])
        pad = getattr(self.model.config, "pad_token_id", None)
        for first in dict.fromkeys([0, *([] if pad is None else [pad + 1])]):
            self._first_position = first
            try:
                with apart(packed.spans):
                    output = self.call(model, packed.ids, None, MAIN, **self.placed(packed))
            except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
                continue
            hidden = last_hidden(output, whole=False, of=MAIN)
            if all(_near(span.of(hidden[0]), each) for span, each in zip(packed.spans, alone, strict=True)):
                return int(first)
        return None

    def _is_causal(self, probe: Tensor) -> bool:
        """Whether a change of the last token leaves the main stack's earlier positions as they are."""
        changed = probe.clone()
        changed[0, -1] = probe[0, 0] if probe[0, 0] != probe[0, -1] else probe[0, 1]
        model = self.main_part(without_pooler(self.model))
        before, after = (
            self.call(model, ids, None, MAIN).last_hidden_state[:, :-1].float() for ids in (probe, changed)
        )
        return torch.allclose(before, after, rtol=1e-6, atol=1e-6 * float(before.abs().max()))


def last_hidden(output: Any, whole: bool, of: str) -> Tensor:
    """The final hidden state of a stack in the output of the whole model or of its main part alone."""
    hidden = output.encoder_last_hidden_state if whole and of == MAIN else output.last_hidden_state
    assert isinstance(hidden, Tensor)
    return hidden


def _near(found: Tensor, expected: Tensor) -> bool:
    """Whether every token's vector is the same, but for what other kernels change."""
    gap = (found.float() - expected.float()).norm(dim=-1) / expected.float().norm(dim=-1).clamp(min=1e-12)
    return bool(gap.max() < LEAK.get(expected.dtype, 1e-2))


def _shifted(tokens: Tensor, first: int) -> Tensor:
    """Tokens as the decoder sees them: one step to the right, behind a start token."""
    return torch.cat([torch.full_like(tokens[:, :1], first), tokens[:, :-1]], dim=1)
