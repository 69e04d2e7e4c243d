"""Backbones: frozen transformers models with their tokenizers, read at sites.

load_backbone   name -> Backbone, one per (folder, dtype, device) and process
Backbone        a loaded model: what it has (layers, widths, positions; `describe`), `read`,
                `read_packed`, `read_in_stages`, `read_tokens` and `traceable`
max_positions   the most tokens that a model takes
quiet           transformers without its progress bars and reports
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from sonde.errors import BackboneError, choose
from sonde.precision import choose_device, choose_dtype
from sonde.read.attention import quicken_attention
from sonde.read.checkpoint import (
    Sentence,
    fingerprint,
    read_config,
    read_sentence,
    refuse_adapters,
    refuse_giants,
    stamp,
    unread_vocabulary,
)
from sonde.read.descent import Descent, GoesOn
from sonde.read.forward import Forward
from sonde.read.lanes import Lanes
from sonde.read.linear import quicken
from sonde.read.location import find_checkpoint
from sonde.read.packing import Packed
from sonde.read.pooling import EVERY, POOLINGS
from sonde.read.sites import DECODER, KINDS, MAIN, Site, expand
from sonde.read.traceable import Traceable
from sonde.read.tracing import refuse_experts
from sonde.read.truncation import POOLER

T = TypeVar("T")
U = TypeVar("U")

Wanted = tuple[Site, str | None]
"""A site and a pooling; the pooling of `pooler` and `sentence` is None."""

_TRACED_TEXT = "The first trains left early, and nobody on the platform knew why."
_TRACED_TOKENS = 16  # enough to tell tokens from rows and to see experts at work; cheap for the largest model
_POSITIONS = (
    *("max_position_embeddings", "n_positions", "max_sequence_length", "max_seq_len", "n_ctx"),
    "max_encoder_position_embeddings",
)
OWN_CODE = "transformers_modules"
"""The package into which transformers puts the code of a checkpoint."""
_TABLE: dict[tuple[Path, torch.dtype, torch.device, bool], tuple[object, "Backbone"]] = {}
"""With the stamp of the folder: one that is written anew is loaded anew."""
_TABLE_LOCK = threading.RLock()
_FOUND: dict[tuple[str, bool], Path] = {}
"""Hub ids that this process has resolved: neither the hub nor the bundle's hash is asked twice."""


def load_backbone(
    name: str, *, dtype: str = "auto", device: str = "auto", trust_remote_code: bool = False
) -> "Backbone":
    """Load a frozen model, or return it if this process has it already and its files are the same.

    Parameters
    ----------
    name : str
        Hub id or local folder of any transformers encoder, decoder or encoder-decoder.
    dtype : str
        "auto", "float32" or "bfloat16"; "auto" decides by the hardware.
    device : str
        "auto", "cpu", "cuda", "cuda:N" or "mps".
    trust_remote_code : bool
        Whether Python code of the checkpoint may run.

    Raises
    ------
    BackboneError
        If the checkpoint cannot be found or loaded, or is no chain of dense blocks.
    """
    where = choose_device(device)
    precision = choose_dtype(dtype, where)
    with _TABLE_LOCK:
        folder = _find(name, trust_remote_code)
        key = (folder, precision, where, trust_remote_code)
        now = stamp(folder)
        if key not in _TABLE or (now and _TABLE[key][0] != now):  # of a folder that is gone the model stays
            _TABLE.pop(key, None)  # two would need twice the memory
            _TABLE[key] = now, Backbone(name, folder, precision, where, trust_remote_code)
        return _TABLE[key][1]


def _find(name: str, trust: bool) -> Path:
    if Path(name).expanduser().exists():
        return find_checkpoint(name, trust)
    if (name, trust) not in _FOUND:
        _FOUND[name, trust] = find_checkpoint(name, trust)
    return _FOUND[name, trust]


class Backbone:
    """A frozen model with its tokenizer. Made by `load_backbone`.

    Attributes
    ----------
    name, path : str, Path
        As first given, and the folder that it resolved to.
    dtype, device : torch.dtype, torch.device
        What it runs with.
    tokenizer : transformers tokenizer
    max_positions : int or None
        The most tokens that a text may have, special tokens included; None if the model sets no bound.
    layers : dict of stack to int
        Blocks of each stack: "main", and "decoder" in encoder-decoder models.
    multiplications : int
        Of all blocks, a token: their weights, each as often as it is used.
    causal : bool
        Whether the main stack reads from left to right only. Decoders of encoder-decoder models always do.
    fingerprint : str
        Identifies config, tokenizer and weights; the same for every dtype and device.
    """

    def __init__(self, name: str, path: Path, dtype: torch.dtype, device: torch.device, trust: bool) -> None:
        config = read_config(path)
        refuse_experts(config, f"Backbone {name!r}")
        refuse_giants(path, config)
        refuse_adapters(path)
        self.name, self.path, self.dtype, self.device = name, path, dtype, device
        model, self.tokenizer, missing = _load(name, path, dtype, trust)
        model.to(device)
        probe = _probe(self.tokenizer, device)
        quicken(model)
        keeps_apart = quicken_attention(model, probe)
        self._forward = Forward(model, probe, name, keeps_apart)
        self._lanes = Lanes(self._forward, self._forward.tensors)
        self._descent = Descent(self._forward, name)
        self.layers = {part: stack.layers for part, stack in self._forward.stacks.items()}
        self.multiplications = sum(stack.multiplications for stack in self._forward.stacks.values())
        self.causal = self._forward.causal
        self.max_positions = max_positions(model)
        self._has_pooler = self._forward.pooler_width is not None and not any(POOLER in key for key in missing)
        self._sentence = self._find_sentence()
        self.fingerprint = fingerprint(path, self._sentence)

    def __repr__(self) -> str:
        return f"Backbone({self.name!r}, layers={self.layers}, dtype={self.dtype}, device={str(self.device)!r})"

    @property
    def sentence(self) -> Sentence:
        """How this backbone embeds a sentence.

        Its sentence-transformers modules if the folder has them, else the pooler if the checkpoint holds its weights,
        else `first` for masked-language-model encoders and `mean` for the rest, on the last hidden state.

        Raises
        ------
        BackboneError
            If the folder's modules do something that sonde does not apply.
        """
        if self._sentence.refusal:
            raise BackboneError(
                f"Site sentence of backbone {self.name!r} cannot be read: {self._sentence.refusal}. "
                f"Read hidden.{self.layers[MAIN]} with a pooling instead."
            )
        return self._sentence

    def sites(self, spec: str) -> tuple[Site, ...]:
        """Expand a specification, such as "hidden.*", against this backbone's layers."""
        return expand(spec, self.layers)

    def describe(self) -> dict[str, Any]:
        """What can be read, in JSON values.

        Returns
        -------
        dict
            `backbone`, `path`, `dtype`, `device`, `max_tokens` (None: no bound), `reads` ("both ways" or "left to
            right"), `layers` (blocks of each stack), `sentence` (what that site is, or why it cannot be read), and
            `sites`, a list of objects: `first` and `last` (two sites of one kind and width, and all between), `width`
            (numbers a text and pooling), `poolings`.
        """
        sites = [site for stack in self.layers for kind in ("hidden", "ffn") for site in self._sites_of(stack, kind)]
        if self._has_pooler:
            sites.append(Site(MAIN, "pooler"))
        runs = [list(run) for _, run in groupby(sites, lambda site: (site.stack, site.kind, self.width(site)))]
        found = self._sentence
        how = f"{found.pooling} of {found.site}" if found.pooling else str(found.site)
        return {
            "backbone": self.name,
            "path": str(self.path),
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "max_tokens": self.max_positions,
            "reads": "left to right" if self.causal else "both ways",
            "layers": dict(self.layers),
            "sentence": found.refusal or (f"{how}, of length one" if found.normalise else how),
            "sites": [
                {
                    "first": str(run[0]),
                    "last": str(run[-1]),
                    "width": self.width(run[0]),
                    "poolings": [pooling for pooling in POOLINGS if self._takes(run[0], pooling)],
                }
                for run in runs
            ],
        }

    def _sites_of(self, stack: str, kind: str) -> tuple[Site, ...]:
        prefix = f"{DECODER}." if stack == DECODER else ""
        return self.sites(f"{prefix}{kind}.*")

    def _takes(self, site: Site, pooling: str) -> bool:
        try:
            self.check(site, pooling)
        except BackboneError:
            return False
        return True

    def width(self, site: Site) -> int:
        """Return how many values an activation at `site` has."""
        self._check_site(site)
        if site.kind == "sentence":
            return self.width(self.sentence.site)
        stack = self._forward.stacks[site.stack]
        if site.layer is None:
            assert self._forward.pooler_width is not None
            return self._forward.pooler_width
        return stack.hidden_widths[site.layer] if site.kind == "hidden" else stack.ffn_widths[site.layer - 1]

    def check(self, site: Site, pooling: str | None) -> None:
        """Raise a `BackboneError` if this backbone cannot be read at `site` with this pooling."""
        self._check_site(site)
        if site.layer is None:
            if pooling is not None:
                raise BackboneError(f"Site {site} is one vector a row and takes no pooling; {pooling!r} was given.")
            return
        choose("Pooling", pooling, POOLINGS, BackboneError)
        if pooling == "first" and (self.causal or site.stack == DECODER):
            raise BackboneError(
                f"Pooling 'first' at {site} of backbone {self.name!r} is refused: the model reads from left to right, "
                "so that its first token is constant after BOS. Use last, mean, mean_content or max."
            )

    def read(
        self,
        input_ids: Int[Tensor, "row token"],
        attention_mask: Bool[Tensor, "row token"] | None,
        content: Bool[Tensor, "row token"] | None,
        wanted: Sequence[Wanted],
    ) -> dict[Wanted, Float[Tensor, "row dim"]]:
        """Run a batch as deep as needed and return the pooled activations.

        Parameters
        ----------
        input_ids : (row, token)
            Token ids, padded on the right.
        attention_mask : (row, token) or None
            True on real tokens; None if no row has pads.
        content : (row, token) or None
            True on content tokens; `mean_content` needs it.
        wanted : sequence of (Site, pooling)
            What to read; the pooling of `pooler` and `sentence` is None.

        Returns
        -------
        dict of (Site, pooling) to (row, dim)
            float32 on the CPU. Not checked for finite values.

        Raises
        ------
        BackboneError
            If the backbone has no such site, or the pooling is unknown or senseless there.
        """
        ids, mask, real = self._on_device(input_ids, attention_mask, content)
        return self._read(wanted, lambda forward, sources: forward.run(ids, mask, real, sources))

    def most_lanes(self) -> int:
        """In how many lanes batches may be read: on a CPU as many as torch has threads, else 0.

        Nor are there any for a model that cannot be copied, or brings its own code: nobody knows whether a copy of it
        does the same.
        """
        has_own_code = type(self._forward.model).__module__.startswith(OWN_CODE)
        if self.device.type != "cpu" or has_own_code or not self._lanes.can_grow:
            return 0
        return torch.get_num_threads()

    def each(self, work: Callable[[T], U], items: Sequence[T], lanes: int) -> Iterator[U]:
        """`work`, which reads, of each item in their order, in so many lanes: each on one thread of its own.

        With fewer than two, and where the model cannot be copied, in this thread and on all threads that torch has.
        """
        return self._lanes.each(work, items, lanes)

    def packs(self, wanted: Sequence[Wanted]) -> bool:
        """Whether `read_packed` reads these: on a CPU in bfloat16, not poolers, and not every model."""
        return self._forward.packs and all(self._source(want)[0].kind != "pooler" for want in wanted)

    def read_packed(self, packed: Packed, wanted: Sequence[Wanted]) -> dict[Wanted, Float[Tensor, "row dim"]]:
        """As `read`, of texts that stand side by side in one row; one row of values a text.

        Raises
        ------
        BackboneError
            As `read` does.
        """
        assert self.packs(wanted)
        return self._read(wanted, lambda forward, sources: forward.run_packed(packed, sources))

    def _read(
        self, wanted: Sequence[Wanted], run: Callable[[Forward, set[Wanted]], Mapping[Wanted, Tensor]]
    ) -> dict[Wanted, Tensor]:
        for site, pooling in wanted:
            self.check(site, pooling)
        if not wanted:
            return {}
        sources = {want: self._source(want) for want in wanted}
        with self._lanes.one() as forward, torch.inference_mode():
            taken = run(forward, set(sources.values()))
            return {want: self._finish(want[0], taken[source]).cpu() for want, source in sources.items()}

    def read_in_stages(
        self,
        input_ids: Int[Tensor, "row token"],
        attention_mask: Bool[Tensor, "row token"] | None,
        content: Bool[Tensor, "row token"] | None,
        stages: Sequence[Sequence[Wanted]],
        goes_on: GoesOn,
    ) -> Int[Tensor, " row"]:
        """Run a batch whose rows leave on the way: later blocks run for the rows that go on, if any.

        Parameters
        ----------
        input_ids, attention_mask, content : (row, token)
            As `read` takes them.
        stages : sequence of sequence of (Site, pooling)
            What each stage reads; a stage is as deep as its deepest site, and no shallower than the stage before.
        goes_on : function
            Called after each stage that a row reaches with the number of the stage, the rows that are still in
            (int64, indices into the batch), and for each (Site, pooling) of this stage and those before it their
            values as `read` returns them. Returns bool (row,): which of these rows go on; ignored after the last stage.

        Returns
        -------
        (row,)
            The last stage that each row reached, int64.

        Raises
        ------
        BackboneError
            As `read` does.
        """
        for site, pooling in dict.fromkeys(want for stage in stages for want in stage):
            self.check(site, pooling)
        ids, mask, real = self._on_device(input_ids, attention_mask, content)
        sources = [[self._source(want) for want in stage] for stage in stages]

        def answer(stage: int, rows: Tensor, taken: Mapping[Wanted, Tensor]) -> Tensor:
            wanted = dict.fromkeys(want for before in stages[: stage + 1] for want in before)
            return goes_on(stage, rows, {want: self._finish(want[0], taken[self._source(want)]) for want in wanted})

        with self._lanes.first(), torch.inference_mode():
            return self._descent.run(ids, mask, real, sources, answer)

    def read_tokens(
        self, input_ids: Int[Tensor, "row token"], sites: Sequence[Site]
    ) -> dict[Site, Float[Tensor, "row position dim"]]:
        """Run texts of one length and return the activations of every token, as `read` pools them.

        Parameters
        ----------
        input_ids : (row, token)
            Token ids, without pads.
        sites : sequence of Site
            Not `sentence`, which stands for another site (`sentence.site`).

        Returns
        -------
        dict of Site to (row, position, dim)
            float32 on the CPU. As many positions as tokens; one for `pooler`. Position t of the decoder stack has
            seen the tokens before t.

        Raises
        ------
        BackboneError
            If the backbone has no such site.
        """
        for site in sites:
            self._check_site(site)
        wanted = {(site, None if site.layer is None else EVERY) for site in sites}
        with self._lanes.one() as forward, torch.inference_mode():
            taken = forward.run(input_ids.to(self.device), None, None, wanted) if wanted else {}
            return {site: (v if v.ndim == 3 else v[:, None]).cpu() for (site, _), v in taken.items()}

    def traceable(self, wanted: Sequence[Wanted]) -> Traceable:
        """What `read` does for these sites, as a module that tracers can follow.

        Raises
        ------
        BackboneError
            As `read` does; or if pads change what the model says of a text, so that texts of different lengths cannot
            go through one graph.
        """
        for site, pooling in wanted:
            self.check(site, pooling)
        if not self._forward.bears_pads:
            raise BackboneError(
                f"Backbone {self.name!r} cannot become a graph: pads change what it says of a text, so that sonde "
                "reads it a length at a time. Use a model that takes an attention mask."
            )
        return Traceable(self._forward, [(self._source(want), want[0]) for want in wanted], self._finish)

    def _on_device(
        self, ids: Tensor, mask: Tensor | None, content: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """A batch where the model is; without its mask where no row has pads."""
        if mask is not None:
            assert not bool((mask[:, 1:] & ~mask[:, :-1]).any()), "pads stand on the right"
            mask = None if bool(mask.all()) else mask.to(self.device)
        return ids.to(self.device), mask, None if content is None else content.to(self.device)

    def _check_site(self, site: Site) -> None:
        if site.kind not in KINDS:
            raise BackboneError(f"Site {site} is unknown; the kinds of site are {', '.join(KINDS)}.")
        if site.kind == "pooler" and not self._has_pooler:
            raise BackboneError(
                f"Site pooler of backbone {self.name!r} is refused: the checkpoint holds no pooler weights. "
                f"Use sentence, or hidden.{self.layers[MAIN]} with a pooling."
            )
        expand(str(site), self.layers)

    def _source(self, want: Wanted) -> Wanted:
        return (self.sentence.site, self.sentence.pooling) if want[0].kind == "sentence" else want

    def _finish(self, site: Site, vectors: Tensor) -> Tensor:
        if site.kind == "sentence" and self.sentence.normalise:
            return nn.functional.normalize(vectors, dim=-1)
        return vectors

    def _find_sentence(self) -> Sentence:
        last = Site(MAIN, "hidden", self.layers[MAIN])
        of_folder = read_sentence(self.path, last)
        if of_folder is not None:
            senseless = of_folder.pooling == "first" and self.causal
            return Sentence(last, "mean", refusal="its first token is constant") if senseless else of_folder
        if self._has_pooler:
            return Sentence(Site(MAIN, "pooler"), None)
        masked = getattr(self.tokenizer, "mask_token_id", None) is not None
        return Sentence(last, "first" if masked and not self.causal and DECODER not in self.layers else "mean")


def _load(name: str, path: Path, dtype: torch.dtype, trust: bool) -> tuple[Any, Any, set[str]]:
    """(model, tokenizer, names of weights that the checkpoint lacks), without progress bars and reports."""
    settings: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust}
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(str(path), **settings)
            model, info = AutoModel.from_pretrained(str(path), dtype=dtype, output_loading_info=True, **settings)
    except Exception as error:  # transformers raises nearly every kind; all mean that this folder is of no use
        if pieces := unread_vocabulary(path):
            raise BackboneError(
                f"Backbone {name!r} has its vocabulary in {pieces}, for which sentencepiece is not installed. It comes "
                "with an extra: pip install 'sonde[sentencepiece]'"
            ) from error
        first_line = next(iter(str(error).splitlines()), type(error).__name__)
        raise BackboneError(f"Backbone {name!r} cannot be loaded from {path}: {first_line}") from error
    missing = set(info["missing_keys"])
    if model.config.is_encoder_decoder and any(key.startswith("decoder.") for key in missing):
        model = model.get_encoder()  # the checkpoint is of the encoder alone
        model.config.is_encoder_decoder = False
        missing = {key for key in missing if key.startswith("encoder.")}
    lacking = sorted(key for key in missing if POOLER not in key)
    if lacking:
        raise BackboneError(
            f"Backbone {name!r} cannot be used: its checkpoint lacks {len(lacking)} weights, such as {lacking[0]}."
        )
    return model.eval().requires_grad_(False), tokenizer, missing


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the progress bars and loading reports of transformers."""
    level, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def _probe(tokenizer: Any, device: torch.device) -> Tensor:
    """Ids of a short text: at least three tokens, not all of them the same."""
    ids = list(tokenizer(_TRACED_TEXT)["input_ids"])[:_TRACED_TOKENS]
    other = 0 if not ids or ids[0] else 1
    while len(ids) < 3 or len(set(ids)) < 2:
        ids.append(other)
    return torch.tensor([ids], device=device)  # (1, token)


def max_positions(model: Any) -> int | None:
    """Positions of the configuration, less those that RoBERTa and its kin lose to the index of the pad token.

    Where positions are relative the number bounds nothing. Rotations that change at a length for all texts of a batch
    (LongRoPE) end there: beyond, what a text says would hang on the others.
    """
    if getattr(model.config, "relative_attention_num_buckets", None) or not getattr(
        model.config, "position_biased_input", True
    ):
        return None
    rotation = getattr(model.config, "rope_parameters", None) or {}
    if "longrope" in (rotation.get("rope_type"), rotation.get("type")):
        first = rotation.get("original_max_position_embeddings")
        first = first or getattr(model.config, "original_max_position_embeddings", None)
        if isinstance(first, int):
            return first
    bound = next((number for name in _POSITIONS if isinstance(number := getattr(model.config, name, None), int)), None)
    if bound is None or bound <= 0:
        return None
    words = model.get_input_embeddings()
    for module in model.modules():
        is_table = isinstance(module, nn.Embedding) and module is not words
        if is_table and module.num_embeddings == bound and module.padding_idx is not None:
            return bound - int(module.padding_idx) - 1
    return bound
