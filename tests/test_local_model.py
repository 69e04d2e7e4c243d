"""LocalModel: the same answers whatever else is in the batch; scores that are probabilities; refusals in sentences."""

import copy
import json
import pickle
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny import ARCHITECTURES, SENTENCES, build, tokenizer_of

from sonde.baselines import Endpoint, LocalModel, open_generator
from sonde.baselines.generation import Answer, Generator
from sonde.errors import ArgumentError, BackboneError

PROMPTS = [*SENTENCES, "the wind", "a", "why is the refund late and my account locked again ? " * 3]
DECODERS = ("gpt2", "gpt_neox", "opt", "llama", "mistral", "qwen3", "gemma")
TEMPLATE = "{% for message in messages %}<s> {{ message['content'] }} {% endfor %}again"


@cache
def writer(name: str, template: str = "") -> Path:
    """Folder of a tiny random model with its output head."""
    prefix, family, settings = ARCHITECTURES[name]
    tokenizer = copy.deepcopy(tokenizer_of(family))
    kind = {"GPT2": "GPT2LMHeadModel", "OPT": "OPTForCausalLM"}.get(prefix, f"{prefix}ForCausalLM")
    config = getattr(transformers, f"{prefix}Config")(vocab_size=len(tokenizer), **settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, kind)(config).eval()
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    folder = build("bert").parent / f"writer-{name}-{bool(template)}"
    model.save_pretrained(folder)
    tokenizer.chat_template = template or None
    tokenizer.save_pretrained(folder)
    return folder


def local(name: str = "llama", **settings: Any) -> LocalModel:
    return LocalModel(str(writer(name)), dtype="float32", device="cpu", **settings)


def write(model: LocalModel, prompts: list[str], seeds: list[int] | None = None, **more: Any) -> list[Answer]:
    settings = {"max_new_tokens": 8, "temperature": 0.0, "seeds": seeds or [0] * len(prompts), **more}
    return model.generate(prompts, **settings)


# ------------------------------------------------------------ generation


@pytest.mark.parametrize("name", DECODERS)
def test_greedy_answers_do_not_depend_on_the_batch(name: str) -> None:
    model = local(name)
    together = write(model, PROMPTS, logprobs=True)
    alone = [write(model, [prompt], logprobs=True)[0] for prompt in PROMPTS]
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4) and one.ends == other.ends
    assert len({answer.logprobs for answer in alone}) == len(PROMPTS), "a test of constant answers shows nothing"


def test_small_batches_give_the_same_answers() -> None:
    assert write(local(batch_tokens=40), PROMPTS) == write(local(), PROMPTS) == write(local(batch_tokens=1), PROMPTS)


def test_a_trained_model_gives_the_same_answers_in_batches(models_dir: Path) -> None:
    model = LocalModel(str(models_dir / "stories260K-llama"), dtype="float32", device="cpu")
    prompts = ["Once upon a time", "Tom", "Lily went to the park and saw a big red ball. She wanted", "The dog was"]
    together = write(model, prompts, max_new_tokens=30)
    assert together == [write(model, [prompt], max_new_tokens=30)[0] for prompt in prompts]
    assert "there was a little girl" in together[0].text


def test_greedy_answers_are_those_of_plain_greedy_search() -> None:
    model = local()
    ids = torch.tensor([model.tokenizer(PROMPTS[0])["input_ids"]])
    for _ in range(8):
        ids = torch.cat([ids, model.model(input_ids=ids).logits[:, -1].argmax(dim=1, keepdim=True)], dim=1)
        if ids[0, -1] in model._ends:
            break
    new = [
        token for token in ids[0].tolist()[len(model.tokenizer(PROMPTS[0])["input_ids"]) :] if token not in model._ends
    ]
    assert write(model, [PROMPTS[0]])[0].text == model.tokenizer.decode(new, skip_special_tokens=True)


def test_samples_depend_on_their_seed_alone() -> None:
    model = local()
    before = torch.get_rng_state()
    together = write(model, PROMPTS, list(range(len(PROMPTS))), temperature=0.7)
    alone = [write(model, [prompt], [seed], temperature=0.7)[0] for seed, prompt in enumerate(PROMPTS)]
    assert [answer.text for answer in together] == [answer.text for answer in alone]
    assert len({answer.text for answer in write(model, ["the"] * 6, list(range(6)), temperature=1.5)}) > 2
    assert torch.equal(before, torch.get_rng_state()), "the user's generator was drawn from"


def test_samples_follow_the_model() -> None:
    model = local()
    draws = write(model, ["the cold wind"] * 2000, list(range(2000)), max_new_tokens=1, temperature=1.0, logprobs=True)
    logits = model.model(input_ids=torch.tensor([model.tokenizer("the cold wind")["input_ids"]])).logits[0, -1]
    chances = logits.float().softmax(dim=0)
    words = [answer.text for answer in draws]
    likely = chances.topk(5)
    for chance, token in zip(likely.values.tolist(), likely.indices.tolist(), strict=True):
        word = model.tokenizer.decode([token], skip_special_tokens=True)
        if word:
            assert words.count(word) / 2000 == pytest.approx(chance, abs=4 * (chance * (1 - chance) / 2000) ** 0.5)


def test_probabilities_are_those_of_a_pass_over_the_whole() -> None:
    model = local("gpt2")
    (answer,) = write(model, ["a cold wind"], [3], temperature=0.7, logprobs=True)
    assert answer.logprobs is not None and answer.ends is not None
    head = model.tokenizer("a cold wind")["input_ids"]
    new = model.tokenizer(answer.text)["input_ids"]
    assert len(new) == len(answer.logprobs), "choose another seed: this answer is not written as it is read"
    logits = model.model(input_ids=torch.tensor([head + new])).logits[0].float().log_softmax(dim=-1)
    expected = [float(logits[len(head) - 1 + i, token]) for i, token in enumerate(new)]
    assert answer.logprobs == pytest.approx(expected, abs=1e-4)
    assert answer.ends[-1] == len(answer.text)
    assert answer.probability(0, len(answer.text)) == pytest.approx(np.exp(sum(expected)), rel=1e-3)


def test_answers_are_handed_over_as_they_come() -> None:
    came: list[int] = []
    write(local(batch_tokens=40), PROMPTS, keep=lambda row, answer: came.append(row))
    assert sorted(came) == list(range(len(PROMPTS)))
    assert write(local(), []) == []


# --------------------------------------------------------------- scoring


@pytest.mark.parametrize("name", DECODERS)
def test_scores_are_those_of_a_pass_over_the_whole(name: str) -> None:
    model, options = local(name), ["cold", "late and locked", "refund late"]
    scores = model.score(PROMPTS, options)
    for row, prompt in enumerate(PROMPTS):
        head = plain_ids(model, prompt)
        for column, option in enumerate(options):
            whole = plain_ids(model, f"{prompt} {option}")
            assert whole[: len(head)] == head
            logits = model.model(input_ids=torch.tensor([whole])).logits[0].float().log_softmax(dim=-1)
            expected = sum(float(logits[i - 1, whole[i]]) for i in range(len(head), len(whole)))
            assert scores.logprobs[row, column] == pytest.approx(expected, abs=1e-3)
    assert scores.tokens == (1, 3, 2)
    alone = np.concatenate([model.score([one], options).logprobs for one in PROMPTS])
    assert np.allclose(scores.logprobs, alone, atol=1e-4)
    assert model.score([], options).logprobs.shape == (0, 3)


def plain_ids(model: LocalModel, text: str) -> list[int]:
    """Ids of a text, without a token that closes it."""
    ids: list[int] = model.tokenizer(text)["input_ids"]
    closing = model.tokenizer.convert_tokens_to_ids("</s>") if ids[-1] != ids[0] else None
    return ids[:-1] if ids[-1] == closing else ids


def test_a_beginning_of_another_label_is_no_likelier_for_that(models_dir: Path) -> None:
    """Without an end behind it, the probability of a beginning holds those of all its continuations."""
    model = LocalModel(str(models_dir / "stories260K-llama"), dtype="float32", device="cpu")
    story = ["Tom has a pet. It barks. Tom has a big red", "Lily likes her"]
    alone = model.score(story, ["ball", "car"])
    nested = model.score(story, ["ball", "ball game"])
    assert nested.tokens[0] == alone.tokens[0] + 1 and (nested.logprobs[:, 0] < alone.logprobs[:, 0]).all()


# --------------------------------------------------------- chat templates


def test_a_chat_template_is_applied_where_there_is_one() -> None:
    chatty = LocalModel(str(writer("llama", TEMPLATE)), dtype="float32", device="cpu")
    plain = LocalModel(str(writer("llama", TEMPLATE)), chat=False, dtype="float32", device="cpu")
    assert chatty.count_tokens("good") == plain.count_tokens("good") + 1  # "again"
    assert write(chatty, ["good"])[0].text == write(plain, ["good again"])[0].text
    assert chatty.identity != plain.identity
    assert chatty.score(["good"], ["cold"]).logprobs == pytest.approx(plain.score(["good again"], ["cold"]).logprobs)


def test_a_chat_without_a_template() -> None:
    with pytest.raises(ArgumentError, match="has no chat template, so chat=True cannot be had"):
        write(local(chat=True), ["good"])


# ------------------------------------------------------------- bad input


def test_a_prompt_longer_than_the_context() -> None:
    model = local()
    assert model.context_tokens == 64
    with pytest.raises(
        ArgumentError,
        match=r"Prompt 2 of 3 has 101 tokens, and up to 8 are to be written, but .* has a context of 64\.",
    ):
        write(model, ["a", "good " * 100, "b"])
    with pytest.raises(ArgumentError, match=r"has a context of 64"):
        model.score(["good " * 100], ["cold"])
    write(model, ["good " * 55])  # with BOS 56: just fits


@pytest.mark.parametrize("name", ["bert", "t5", "llama"])
def test_a_model_without_an_output_head_writes_nothing(name: str) -> None:
    with pytest.raises(BackboneError, match=r"cannot write text: .* Give a causal language model with its output head"):
        write(LocalModel(str(build(name)), dtype="float32"), ["good"])


def test_an_encoder_with_an_output_head_writes_nothing() -> None:
    tokenizer = tokenizer_of("bert")
    config = transformers.BertConfig(vocab_size=len(tokenizer), **ARCHITECTURES["bert"][2])
    folder = build("bert").parent / "masked-bert"
    transformers.BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    with pytest.raises(BackboneError, match="cannot write text: it is an encoder, whose tokens see what follows"):
        write(LocalModel(str(folder), dtype="float32"), ["good"])


def test_folders_that_hold_no_model(tmp_path: Path) -> None:
    with pytest.raises(BackboneError, match=r"is a folder without config\.json"):
        LocalModel(str(tmp_path)).count_tokens("good")
    with pytest.raises(ArgumentError, match="batch_tokens is 0"):
        LocalModel("x", batch_tokens=0)


# ------------------------------------------------------------ generators


def test_open_generator() -> None:
    model = local()
    assert open_generator(model) is model and isinstance(model, Generator)
    assert isinstance(open_generator(str(writer("llama")), dtype="float32"), LocalModel)
    for endpoint in (open_generator("http://127.0.0.1:9/v1"), open_generator("toy", "http://127.0.0.1:9/v1")):
        assert isinstance(endpoint, Endpoint) and endpoint.url == "http://127.0.0.1:9/v1"
    for nothing in (None, "", 5, LocalModel):
        with pytest.raises(ArgumentError, match="give the hub id or folder of a causal language model, the URL of an"):
            open_generator(nothing)


def test_copies_share_the_weights_and_pickles_carry_none() -> None:
    model = local()
    write(model, ["good"])
    assert copy.deepcopy(model) is model and local().model is model.model
    packed = pickle.dumps(model)
    assert len(packed) < 1000
    again = pickle.loads(packed)  # noqa: S301 - our own bytes
    assert write(again, ["good"]) == write(model, ["good"])
    assert model.parameters == sum(one.numel() for one in model.model.parameters())


def test_what_a_checkpoint_advises_for_chats_bends_no_answer(tmp_path: Path) -> None:
    plain = local()
    advised = tmp_path / "advised"
    shutil.copytree(writer("llama"), advised)
    settings = {"repetition_penalty": 1.8, "no_repeat_ngram_size": 1, "temperature": 0.1, "do_sample": True}
    (advised / "generation_config.json").write_text(json.dumps(settings))
    bent = LocalModel(str(advised), dtype="float32", device="cpu")
    assert write(bent, PROMPTS, logprobs=True) == write(plain, PROMPTS, logprobs=True)
