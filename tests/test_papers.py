"""`sonde bench llmembed` and `sonde bench stc`: figures beside the papers', cells that resume, reasons for gaps."""

import csv
import gzip
import json
import re
import shlex
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
import transformers
from loopback import Loopback, Reply
from safetensors import safe_open
from samples import Run, command, worded

from sonde.baselines import stepping
from sonde.bench import curves, datasets, depth, llmembed, llmembed_page, paper, reading, stc, stc_page, tuned
from sonde.bench.cells import write_json
from sonde.bench.datasets import DataSet
from sonde.bench.reading import read_all
from sonde.bench.tables import pack, unpack
from sonde.errors import ArgumentError, StoreError
from sonde.learn import mlp
from sonde.precision import choose_dtype
from sonde.read import backbone
from sonde.read.checkpoint import fingerprint
from sonde.read.location import find_checkpoint
from sonde.read.store import opened

run = pytest.fixture(command)
AUTO = str(choose_dtype("auto", torch.device("cpu"))).removeprefix("torch.")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with r8 alone: 44 training and 16 test rows, labels as numbers."""
    texts, labels = worded(60, noise=0.1)
    names = sorted(set(labels))
    folder = tmp_path / "data" / "r8"
    folder.mkdir(parents=True)
    for split, some in {"train": slice(0, 44), "test": slice(44, 60)}.items():
        with gzip.open(folder / f"{split}.csv.gz", "wt", encoding="utf-8", newline="") as file:
            rows = [(text, names.index(label)) for text, label in zip(texts[some], labels[some], strict=True)]
            csv.writer(file).writerows([("text", "label"), *rows])
    (folder / "label_names.json").write_text(json.dumps({"label_names": names}))
    return tmp_path / "data"


@pytest.fixture
def settings(data: Path, tmp_path: Path) -> dict[str, Any]:
    """Arguments of a run of either bench on tiny models."""
    return {
        **{"data": data, "models": None, "out": tmp_path / "out", "rows": None, "only": ["r8"]},
        "cache": tmp_path / "store",
    }


@pytest.fixture
def roles() -> dict[str, str]:
    return {"deep": str(tiny.build("llama")), "bert": str(tiny.build("bert")), "roberta": str(tiny.build("roberta"))}


def topical(prompt: str, number: int) -> Reply:
    """The answers of a model that knows the topics."""
    if prompt.rstrip().endswith("Reasoning:") or "one line" in prompt:
        return Reply("plain words")
    text = re.findall(r"^Text: (.*)$", prompt, re.MULTILINE)[-1]
    label = "rail" if "trains" in text or "platform" in text else "weather" if "wind" in text else "post"
    return Reply(f"words\nReasoning: clear\nLabel: {label}" if prompt.rstrip().endswith("Clues:") else label)


@pytest.fixture
def server() -> Iterator[Loopback]:
    with Loopback(topical) as one:
        yield one


def cells_of(folder: Path, bench: str) -> dict[str, Any]:
    content = json.loads((folder / f"{bench}.json").read_text())
    assert isinstance(content["cells"], dict)
    return dict(content["cells"])


# ------------------------------------------------------------ the paper's figures


def test_the_papers_stages_add_up_to_its_totals() -> None:
    for table, slack in ((paper.TABLE_3, 1), (paper.TABLE_4, 0.011)):
        for method in ("CARP", "LLMEmbed"):
            parts = [figures for (own, stage), figures in table.items() if own == method and stage != "all"]
            np.testing.assert_allclose(np.sum(parts, axis=0), table[method, "all"], atol=slack)
    tokens = [
        paper.TABLE_5["CARP", what] for what in ("tokens of clues and reasoning", "tokens of inference", "tokens")
    ]
    np.testing.assert_array_equal(np.add(*tokens[:2]), tokens[2])
    np.testing.assert_allclose(
        np.multiply(tokens[2], 0.002 / 1000), paper.TABLE_5["CARP", "dollars for tokens"], atol=0.01
    )


@pytest.mark.parametrize(
    ("number", "method", "what"),
    [(3, "CARP", "all"), (3, "LLMEmbed", "all"), (4, "CARP", "all"), (4, "LLMEmbed", "all"),
     (5, "CARP", "dollars for tokens"), (5, "LLMEmbed", "dollars for electricity")],
)  # fmt: skip
def test_the_papers_means_are_those_of_its_sets(number: int, method: str, what: str) -> None:
    table = {3: paper.TABLE_3, 4: paper.TABLE_4, 5: paper.TABLE_5}[number]
    assert np.mean(table[method, what]) == pytest.approx(paper.MEANS[number, method], rel=0.02)


def test_every_line_stands_beside_one_of_the_papers() -> None:
    assert set(llmembed_page.THEIRS.values()) == set(paper.TABLE_2)
    assert set(llmembed.LINES) == set(llmembed_page.THEIRS) - {"carp-175b"}
    assert set(stc.LINES) == set(stc_page.NAMES) | set(stc_page.DEPTHS) and set(stc.CHECKPOINTS) == set(stc_page.KINDS)


# ------------------------------------------------------------ llmembed


def test_a_cell_stands_beside_the_papers_and_is_made_once(
    settings: dict[str, Any], roles: dict[str, str], monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    out, lines = settings["out"], ["plm-bert", "llmembed-1"]
    figures, page, *_ = llmembed.run(**settings, **roles, recipes=lines)
    cells = cells_of(out, "llmembed")
    assert set(cells) == {f"r8|{line}" for line in lines} | {
        f"r8|reading {split}|{role}" for split in ("train", "test") for role in ("bert", "deep")
    }
    for line in lines:
        cell = cells[f"r8|{line}"]
        assert cell["accuracy"] == unpack(cell["correct"], 16).mean() and cell["n"] == 16
        assert cell["cost"]["parameters"]["trained"] > 0 and set(cell["cost"]["stages"]) == {"training", "inference"}
        assert cell["dtype"] == [AUTO] and cell["machine"]["date"] and f"--cache {settings['cache']}" in cell["command"]
    reading = cells["r8|reading train|deep"]
    assert "--recipe llmembed-1 " in reading["command"] and reading["dtype"] == AUTO
    assert (
        reading["rows"] == 44 and reading["stored_share"] == 0 < reading["cost"]["stages"]["reading_train"]["seconds"]
    )
    shown = f"{cells['r8|llmembed-1']['accuracy']:.4f}".removeprefix("0")
    row = next(line for line in page.read_text().splitlines() if line.startswith("| 1: last block"))
    theirs = (".9518", ".9522", ".9571", ".9794", ".9455", ".9572")
    ours = ("", "", "", f"{shown} (16)", "", "")
    figures_of_row = [figure for pair in zip(ours, theirs, strict=True) for figure in pair]
    assert row == f"| 1: last block of the deep backbone | {' | '.join(figures_of_row)} |"
    assert "--prompt-model ID, or --prompt-url URL" in page.read_text()

    monkeypatch.setattr(llmembed._Bench, "_fit", lambda *_: pytest.fail("a finished cell was fitted again"))
    monkeypatch.setattr("sonde.bench.reading.read_all", lambda *_: pytest.fail("texts were read again"))
    before = figures.read_text()
    llmembed.run(**settings, **roles, recipes=lines)
    assert figures.read_text() == before
    with pytest.raises(ArgumentError, match=r"holds cells of other backbones, rows or settings. Give --out another"):
        llmembed.run(**settings, **{**roles, "deep": roles["bert"]})
    assert figures.read_text() == before, "cells of another setting are not written over"


def test_the_command_of_a_cell_makes_it_again(
    settings: dict[str, Any], roles: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    llmembed.run(**{**settings, "rows": 30}, **roles, recipes=["plm-roberta"])
    first = cells_of(settings["out"], "llmembed")["r8|plm-roberta"]
    monkeypatch.chdir(tmp_path)
    words = shlex.split(first["command"])
    assert words[:3] == ["sonde", "bench", "llmembed"]
    done = run(*words[1:])
    assert done.code == 0, done.err
    again = cells_of(tmp_path / "again", "llmembed")
    assert {**again["r8|plm-roberta"], "cost": None} == {**first, "cost": None}
    assert again["r8|reading train|roberta"]["stored_share"] == 1.0, "the store knew these texts"


def test_the_papers_setting_bounds_tokens_by_the_positions_there_are(
    settings: dict[str, Any], roles: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = llmembed._Bench(settings["data"], llmembed.Backbones(**roles), True, None, None, None, None, Any)  # type: ignore[arg-type]
    assert bench.bounds("r8", ["deep", "bert"]) == (tiny.POSITIONS, tiny.POSITIONS)
    monkeypatch.setattr(llmembed, "MAX_TOKENS", {"r8": 12})
    assert bench.bounds("r8", ["deep", "bert"]) == (12, tiny.POSITIONS)
    assert llmembed._Bench(**{**vars(bench), "paper": False}).bounds("r8", ["deep"]) == (None,)
    own = llmembed._Bench(**{**vars(bench), "paper": False, "deep_tokens": 9})
    assert own.bounds("r8", ["deep", "bert"]) == (9, None)


def test_the_deep_backbone_sees_as_much_as_it_was_trained_for(
    settings: dict[str, Any], roles: dict[str, str], run: Run
) -> None:
    page = llmembed.run(**settings, **roles, recipes=["llmembed-1", "plm-bert"], deep_tokens=9)[1].read_text()
    cells = cells_of(settings["out"], "llmembed")
    assert cells["r8|reading test|deep"]["max_tokens"] == 9 < cells["r8|reading test|bert"]["max_tokens"]
    assert f"The deep one sees 9 tokens of a text. Read in {AUTO}." in page
    assert " --deep-tokens 9 " in cells["r8|llmembed-1"]["command"]
    options = (f"--{role}={name}" for role, name in roles.items())
    done = run("bench", "llmembed", "--data", settings["data"], *options, "--paper", "--deep-tokens", 9)
    assert done.code == 2 and "--paper has bounds on tokens of its own; leave out --deep-tokens." in done.err


@pytest.mark.parametrize("tokens", [0, 3])
def test_too_few_deep_tokens_are_refused(
    tokens: int, settings: dict[str, Any], roles: dict[str, str], run: Run
) -> None:
    options = (f"--{role}={name}" for role, name in roles.items())
    done = run("bench", "llmembed", "--data", settings["data"], *options, "--deep-tokens", tokens)
    assert done.code == 2 and f"--deep-tokens is {tokens}; it must be at least 4, or be left out." in done.err
    done = run("bench", "depth", "--data", settings["data"], "--deep-tokens", tokens)
    assert done.code == 2 and "`sonde bench depth` has no use for --deep-tokens" in done.err


def test_what_is_done_is_on_the_page_when_a_bench_is_stopped(
    settings: dict[str, Any], roles: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reading that is refused is a cell with a reason, not the end of all."""

    def read(*given: Any) -> dict[str, Any]:
        if given[-1] == "reading_test":
            raise ArgumentError("The disk is full.")
        return read_all(*given)

    with monkeypatch.context() as patch:
        patch.setattr(reading, "read_all", read)
        page = llmembed.run(**settings, **roles, recipes=["plm-bert"])[1].read_text()
    cells = cells_of(settings["out"], "llmembed")
    assert cells["r8|reading test|bert"]["failed"] == "The disk is full." and "accuracy" in cells["r8|plm-bert"]
    assert cells["r8|plm-bert"]["read_within"]
    assert "- R8, reading test by the backbone in the role of bert: The disk is full." in page
    assert f"{cells['r8|plm-bert']['accuracy']:.4f}".removeprefix("0") in page
    for bench, given in ((llmembed, roles), (stc, {"backbone": roles["bert"]})):
        monkeypatch.setattr(bench._Bench, "_fit" if bench is llmembed else "_measure", stopped)
        (settings["out"] / "llmembed.md").unlink(missing_ok=True)
        with pytest.raises(KeyboardInterrupt):
            bench.run(**settings, **given, recipes=["llmembed-1" if bench is llmembed else "linear"])
        page = (settings["out"] / f"{bench.__name__.rpartition('.')[2]}.md").read_text()
        assert "## Empty cells" in page and "not run yet" in page


def stopped(*_: Any) -> dict[str, Any]:
    raise KeyboardInterrupt


def test_a_refused_cell_says_why_and_is_tried_again(
    settings: dict[str, Any], roles: dict[str, str], server: Loopback
) -> None:
    asked = {**settings, **roles, "recipes": ["io"], "prompt_url": server.url, "prompt_model": "toy"}
    server.script = lambda prompt, number: Reply("no such model", status=404)
    page = llmembed.run(**asked)[1].read_text()
    refused = cells_of(settings["out"], "llmembed")["r8|io"]["failed"]
    assert "no such model" in refused and f"- R8, io: {refused}" in page
    server.script = topical
    page = llmembed.run(**asked)[1].read_text()
    assert "no such model" not in page
    cell = cells_of(settings["out"], "llmembed")["r8|io"]
    assert cell["accuracy"] == unpack(cell["correct"], 16).mean() > 0.5
    assert cell["failure_rate"] == 0 and cell["demonstrations"] == 16 and cell["answers"] == 16
    assert cell["cost"]["total"]["energy"] is None, "nobody knows what an endpoint draws"
    assert "an exercise of the machinery, not evidence" in page and "R8 IO 0%" in page
    questions = len(server.requests)
    llmembed.run(**asked)
    assert len(server.requests) == questions


def test_carp_is_counted_in_tokens_and_dollars(
    settings: dict[str, Any], roles: dict[str, str], server: Loopback
) -> None:
    page = llmembed.run(**settings, **roles, recipes=["carp"], prompt_url=server.url)[1].read_text()
    cell = cells_of(settings["out"], "llmembed")["r8|carp"]
    stages = cell["cost"]["stages"]
    tokens = {name: stages[name]["prompt_tokens"] + stages[name]["new_tokens"] for name in stages}
    assert set(tokens) == {"generating_reasons", "generating_answers"} and min(tokens.values()) > 0
    assert sum(stage["usd_tokens"] for stage in stages.values()) == pytest.approx(0.002 * sum(tokens.values()) / 1000)
    whole = stages["generating_answers"]["seconds"]
    assert 0 < cell["retrieving_seconds"] < whole
    rows = lines_of({"r8|carp": {**cell, "retrieving_seconds": 0.25 * whole}})
    retrieving, asking = (float(rows[f"CARP: {one}"][6]) for one in ("retrieval", "inference"))
    assert retrieving == pytest.approx(0.25 * whole, rel=0.01) and asking == pytest.approx(0.75 * whole, rel=0.01)
    row = next(line for line in page.splitlines() if line.startswith("| CARP: tokens |"))
    assert f"| {sum(tokens.values()):,} | 35,868,945 |" in row


def test_what_llmembed_needs_is_said(settings: dict[str, Any], roles: dict[str, str], run: Run, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"--deep, --bert and --roberta.*meta-llama/Llama-2-7b-hf"):
        llmembed.run(**settings, deep=roles["deep"])
    with pytest.raises(ArgumentError, match="needs a store, so that texts are read once; leave out --no-cache"):
        llmembed.run(**{**settings, "cache": None}, **roles)
    with pytest.raises(ArgumentError, match="The line 'llmembed-16' is unknown; it must be one of: plm-bert"):
        llmembed.run(**settings, **roles, recipes=["llmembed-16"])
    done = run("bench", "depth", "--data", tmp_path, "--deep", "x", "--prompt-url", "y")
    assert done.code == 2 and "`sonde bench depth` has no use for --deep and --prompt-url; leave it out." in done.err


def stage(seconds: float, kwh: float | None, estimated: bool = True) -> dict[str, Any]:
    energy = None if kwh is None else {"kwh": kwh, "source": "", "estimated": estimated}
    dollars = None if kwh is None else 0.065 * kwh
    return {"seconds": seconds, "energy": energy, "prompt_tokens": 0, "new_tokens": 0, "usd_electricity": dollars,
            "usd_tokens": 0.0}  # fmt: skip


def whole_table(stored: float = 0.0, measured: bool = False) -> dict[str, Any]:
    """Row 15 of every set, and its readings, in round figures."""
    cells: dict[str, Any] = {}
    for number, name in enumerate(paper.SETS, 1):
        for split in ("train", "test"):
            for role in llmembed.ROLES:
                stages = {f"reading_{split}": stage(10.0 * number, 0.5, not measured)}
                cells[f"{name}|reading {split}|{role}"] = {"stored_share": stored, "cost": {"stages": stages}}
        stages = {"training": stage(4.0, 0.25, not measured), "inference": stage(1.0, 0.25, not measured)}
        cost = {"stages": stages, "parameters": {"backbone": 7_000_000, "trained": 1000 * number}}
        cells[f"{name}|llmembed-15"] = {"accuracy": 0.9 + number / 100, "n": 10, "losses": [1.0, 0.5], "cost": cost}
    return cells


def lines_of(cells: dict[str, Any]) -> dict[str, list[str]]:
    """Rows of the page's tables by their first cell; of several, the first."""
    setting = {"deep": "d", "bert": "b", "roberta": "r", "paper": False, "limit": None, "seed": 0, "deep_tokens": None}
    rows: dict[str, list[str]] = {}
    for line in llmembed_page.to_markdown({"setting": setting, "cells": cells}).splitlines():
        if line.startswith("| "):
            first, *rest = line.strip("| ").split(" | ")
            rows.setdefault(first, rest)
    return rows


def test_stages_are_summed_over_the_three_backbones_and_averaged_over_the_sets() -> None:
    rows = lines_of(whole_table())
    assert rows["LLMEmbed: reading train"][:4] == ["30.0", "810", "60.0", "20,625"]
    assert rows["LLMEmbed: training"][0] == "4" and rows["LLMEmbed: inference"][0] == "1"
    assert rows["LLMEmbed: all"][0] == "65.0" and rows["LLMEmbed: all"][-2:] == ["185.0", "6,076"]
    assert rows["LLMEmbed: reading"][:2] == ["~3", "0.05"] and rows["LLMEmbed: training and inference"][0] == "~0.5"
    bill, theirs = rows["LLMEmbed: dollars for electricity"][-2:]
    assert float(bill.removeprefix("$")) == pytest.approx(3.5 * 0.065, rel=0.01) and theirs == "$0.025"
    assert rows["15: co-occurrence of L, B, R beside Avg(L)"][-2:] == [".9300", ".9620"]
    assert rows["llmembed-15"] == ["7,000,000", "1,000 to 5,000"]
    assert lines_of(whole_table(measured=True))["LLMEmbed: reading"][0] == "3"
    assert lines_of(whole_table(stored=0.2))["LLMEmbed: reading train"][0] == "30.0*"


def test_a_mean_of_some_sets_is_none() -> None:
    cells = {key: cell for key, cell in whole_table().items() if not key.startswith("r52|")}
    rows = lines_of(cells)
    assert rows["LLMEmbed: all"][-2:] == ["", "6,076"] and rows["LLMEmbed: all"][-4] == ""
    page = llmembed_page.to_markdown({"setting": {**dict.fromkeys(("deep", "bert", "roberta", "limit")), "paper": True},
                                      "cells": cells})  # fmt: skip
    assert "- R52, not run yet (the same command goes on with them): llmembed-15" in page


def test_a_sum_that_lacks_a_part_is_none() -> None:
    cells = whole_table()
    cells["r8|reading test|bert"] = {"failed": "The disk is full."}
    cells["sst2|llmembed-15"]["read_within"] = True
    lines = {line: ours for line, ours in lines_of(cells).items() if line.startswith("LLMEmbed")}
    rows = {line: dict(zip(paper.SETS, ours[:10:2], strict=True)) for line, ours in lines.items()}
    assert rows["LLMEmbed: reading train"]["r8"] == "120.0" and rows["LLMEmbed: reading test"]["r8"] == ""
    assert rows["LLMEmbed: training"] == {"sst2": "", **dict.fromkeys(paper.SETS[1:], "4")}
    assert rows["LLMEmbed: reading"]["sst2"] == "~3" and rows["LLMEmbed: reading"]["r8"] == ""
    for line in ("LLMEmbed: all", "LLMEmbed: dollars for electricity"):
        assert [name for name in paper.SETS if not rows[line][name]] == ["sst2", "r8"], line
    setting = {"deep": "d", "bert": "b", "roberta": "r", "paper": False, "limit": None}
    page = llmembed_page.to_markdown({"setting": setting, "cells": cells})
    assert "- R8, reading test by the backbone in the role of bert: The disk is full." in page
    assert "- SST-2, Tables 3 to 5: the store lacked texts of row 15, so that its fit read them" in page


@pytest.mark.slow
def test_the_papers_setting_is_the_papers(settings: dict[str, Any], roles: dict[str, str]) -> None:
    page = llmembed.run(**settings, **roles, recipes=["llmembed-15"], paper=True)[1].read_text()
    cells = cells_of(settings["out"], "llmembed")
    cell = cells["r8|llmembed-15"]
    assert cell["learning_rate"] == 1e-4 and len(cell["losses"]) == 100
    assert cells["r8|reading test|roberta"]["max_tokens"] <= tiny.POSITIONS and " --paper " in cell["command"]
    assert "Heads in the paper's setting (--paper)" in page


# ------------------------------------------------------------ same shapes


SHAPES: dict[str, dict[str, Any]] = {
    "Llama": {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_key_value_heads": 32,
              "max_position_embeddings": 4096, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None},
    "Bert": {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
             "max_position_embeddings": 512, "pad_token_id": 0},
    "Roberta": {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16,
                "max_position_embeddings": 514, "type_vocab_size": 1, "pad_token_id": 1},
}  # fmt: skip
"""Of Llama-2-7b, bert-large-uncased and roberta-large; cut to two layers and the words of `tiny`."""
CLASSES = {"Llama": "LlamaForCausalLM", "Bert": "BertModel", "Roberta": "RobertaForMaskedLM"}
FAMILIES = {"Llama": "bos", "Bert": "bert", "Roberta": "roberta"}


def shaped(prefix: str, folder: Path) -> Path:
    """A model of the true widths with random weights, in bfloat16."""
    tokenizer = tiny.tokenizer_of(FAMILIES[prefix])
    config = getattr(transformers, f"{prefix}Config")(vocab_size=len(tokenizer), num_hidden_layers=2, **SHAPES[prefix])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = getattr(transformers, CLASSES[prefix])._from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_the_command_runs_on_models_of_the_papers_shapes(
    data: Path, tmp_path: Path, server: Loopback, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mlp, "DEFAULT", replace(mlp.DEFAULT, epochs=2))  # nothing to learn: epochs would only take time
    monkeypatch.setattr(backbone, "_TABLE", {})  # a gigabyte is not kept for later tests
    folders = {prefix: shaped(prefix, tmp_path / prefix) for prefix in SHAPES}
    done = run(
        *("bench", "llmembed", "--data", data, "--deep", folders["Llama"], "--bert", folders["Bert"]),
        *("--roberta", folders["Roberta"], "--prompt-url", server.url, "--rows", 40, "--only", "r8"),
        *("--out", tmp_path / "out", "--cache", tmp_path / "store"),
    )
    for folder in folders.values():
        shutil.rmtree(folder)  # a gigabyte
    assert done.code == 0, done.err
    cells = cells_of(tmp_path / "out", "llmembed")
    assert not [cell["failed"] for cell in cells.values() if "failed" in cell]
    assert {f"r8|{line}" for line in llmembed.LINES} <= set(cells)
    backbones = {line: cells[f"r8|{line}"]["cost"]["parameters"]["backbone"] for line in llmembed.ROWS}
    assert backbones["llmembed-1"] > 2 * (4 * 4096**2 + 3 * 4096 * 11008) and backbones["llmembed-15"] > 1.05 * 4e8
    page = (tmp_path / "out" / "llmembed.md").read_text()
    assert "**A trial: at most 40 rows of each split.**" in page
    row = next(line for line in page.splitlines() if line.startswith("| LLMEmbed: reading train |"))
    assert re.fullmatch(r"\| LLMEmbed: reading train \|( +\| [\d,]+ \|){3} [\d.e-]+ \| 630 \| +\| 759 \| +\| +\|", row)
    picture = ElementTree.parse(tmp_path / "out" / "llmembed-losses.svg").getroot()
    names = [text.text for text in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert "R8" in names and "epoch" in names


# ------------------------------------------------------------ stc


@pytest.mark.slow
def test_the_last_layer_stands_beside_stc(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone, finetuned = str(tiny.build("bert")), tmp_path / "tuned"
    shutil.copytree(tiny.build("electra"), finetuned / "r8")
    given = {**settings, "backbone": backbone, "finetuned": finetuned, "recipes": ["linear", "stc-ffn", "depth-hidden"]}
    figures, page, picture = stc.run(**given, lora=tmp_path / "nowhere")
    cells = cells_of(settings["out"], "stc")
    for kind in ("pretrained", "finetuned"):
        for line in ("linear", "stc-ffn"):
            cell = cells[f"r8|{kind}|{line}"]
            assert cell["accuracy"] == unpack(cell["correct"], 16).mean() and 0 <= cell["macro_f1"] <= 1
            assert set(cell["cost"]["stages"]) == {"training", "inference_on_all_rows", "inference"}
        reading = cells[f"r8|{kind}|reading train"]
        assert reading["rows"] == 44 and reading["stored_share"] == 0 and reading["tokens"] > 0
        depths = cells[f"r8|{kind}|depth-hidden"]
        assert depths["depths"] == [0, 1, 2, 3] and len(depths["test"]) == 4
    assert cells["r8|finetuned|linear"]["checkpoint"] == str(finetuned / "r8")
    assert cells["r8|lora|linear"] == {"failed": f"{tmp_path / 'nowhere' / 'r8'} holds no checkpoint (config.json)"}
    shown = page.read_text()
    assert f"{tmp_path / 'nowhere' / 'r8'} holds no checkpoint (config.json): 3 cells" in shown
    assert "In 0 of 2 pairs" in shown or "- R8, " in shown
    assert "- R8: 44 training and 16 test rows\n" in shown
    assert picture.name == "stc-depth-r8.svg" and ElementTree.parse(picture).getroot() is not None

    monkeypatch.setattr(stc._Bench, "_measure", lambda *_: pytest.fail("a finished cell was fitted again"))
    (tmp_path / "tuned").rename(tmp_path / "moved")
    stc.run(**{**given, "finetuned": tmp_path / "moved"})  # the same checkpoint
    stc.run(**{**given, "finetuned": None})
    assert cells_of(settings["out"], "stc")["r8|finetuned|linear"] == cells["r8|finetuned|linear"]
    assert "--lora FOLDER, with one sub-folder a set" in figures.read_text()


@pytest.mark.slow
def test_checkpoints_are_made_once_and_judged_by_their_own_heads_too(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    backbone = str(tiny.build("bert"))
    asked = {**settings, "backbone": backbone, "recipes": ["own", "linear"], "finetuned": tmp_path / "tuned"}
    page = stc.run(**asked, tune=30)[1].read_text()
    cells = cells_of(settings["out"], "stc")
    own = cells["r8|finetuned|own"]
    assert own["tuning"]["rows"] == own["train_rows"] == 30 and own["tuning"]["of_rows"] == 44
    assert f" --finetuned {tmp_path / 'tuned'} --tune 30 " in own["command"]
    assert "r8|pretrained|own" not in cells and "R8, pretrained, own head" not in page
    assert "- R8: 44 training and 16 test rows; the fine-tuned checkpoint was trained on 30\n" in page
    told = own["tuning"]
    row = f"| R8 | fine-tuned | own head | 30 |  |  | {told['parameters']['trained']:,} | {told['seconds']:,.1f} | "
    assert row in page
    assert {one.name for one in (tmp_path / "tuned").iterdir()} == {"r8", "r8.json"}

    texts = datasets.read_split(settings["data"], "r8", "test").texts
    asked_of = transformers.pipeline("text-classification", str(tmp_path / "tuned" / "r8"), truncation=True)
    assert tuned.OwnHead(tmp_path / "tuned" / "r8").predict(texts).tolist() == [one["label"] for one in asked_of(texts)]
    monkeypatch.setattr(tuned, "FineTuning", lambda *_, **__: pytest.fail("a checkpoint was made twice"))
    stc.run(**asked, tune=30)
    with pytest.raises(ArgumentError, match="holds no classification head"):
        tuned.OwnHead(tiny.build("bert"))
    done = run("bench", "stc", "--data", settings["data"], "--tune", 30)
    assert done.code == 2 and "into the folders --finetuned and --lora; give one" in done.err


def measured(_: Any, found: Any, line: str, train: DataSet, test: DataSet) -> dict[str, Any]:
    """What `stc._Bench._measure` gives, in round figures: three of four rows are right."""
    right = np.arange(len(test.texts)) % 4 > 0
    stages = {"training": stage(2.0, 0.001), "inference_on_all_rows": stage(1.0, 0.001)}
    return {
        **{"n": len(right), "accuracy": float(right.mean()), "low": 0.5, "high": 0.9, "macro_f1": 0.7},
        **{"correct": pack(right), "ece": 0.125, "ece_95": 0.25, "texts_per_second": 70.0, "bytes": 2_000_000},
        **{"cost": {"stages": stages, "parameters": {"backbone": 7, "trained": 5}}, "train_rows": len(train.texts)},
        **({"tuning": {}} if line == "own" else {}),
    }


@pytest.fixture
def quick(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Arguments of `sonde bench stc`, whose fits take no time."""
    monkeypatch.setattr(stc._Bench, "_measure", measured)
    return {**settings, "backbone": str(tiny.build("bert"))}


def headed(folder: Path, labels: list[str]) -> Path:
    """A tiny checkpoint with a random head for these labels."""
    config = transformers.BertConfig.from_pretrained(tiny.build("bert"), id2label=dict(enumerate(labels)))
    transformers.BertForSequenceClassification(config).save_pretrained(folder)
    tiny.tokenizer_of("bert").save_pretrained(folder)
    return folder


def storied(folder: Path, **more: Any) -> Path:
    """A checkpoint with a head, and beside it what `tune` would have kept."""
    headed(folder, ["0", "1", "2"])
    story = {"backbone": str(tiny.build("bert")), "method": "full", "rows": 30, "of_rows": 44, "seconds": 5.0}
    told = {**story, "parameters": {"all": 9, "trained": 9}, "fingerprint": fingerprint(folder), **more}
    tuned.made_with(folder).write_text(json.dumps(told))
    return folder


def test_the_page_holds_what_its_description_promises(quick: dict[str, Any]) -> None:
    page = stc.run(**quick, recipes=["linear"])[1].read_text()
    cell = cells_of(quick["out"], "stc")["r8|pretrained|linear"]
    assert cell["used_rows"] == cell["of_rows"] == {"train": 44, "test": 16} and "read_within" not in cell
    lines = page.splitlines()
    assert "| pretrained | last layer |  |  |  |  |  |  | .7500 [.500, .900] (16) |  |  |  |" in lines
    assert "| pretrained | last layer |  |  |  | .125 (.250) |  |" in lines
    assert "| R8 | pretrained | last layer | 44 |  |  | 5 | 2.0 | ~1 | 1.0 | 70 | 2.0 |" in lines


def test_a_refused_reading_stands_on_the_page_and_fits_that_read_are_marked(
    quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []

    def refuse(*given: Any) -> dict[str, Any]:
        tried.append(given[-1])
        raise StoreError("The disk is full.")

    with monkeypatch.context() as patch:
        patch.setattr(reading, "read_all", refuse)
        page = stc.run(**quick, recipes=["linear", "stc"])[1].read_text()
    assert tried == ["reading_train", "reading_test"], "once for both lines"
    places = "R8, pretrained, reading of the training rows; R8, pretrained, reading of the test rows"
    assert f"- The disk is full.: 2 cells ({places})" in page
    fit = "| R8 | pretrained | last layer | 44 |  |  | 5 | 2.0* | ~1* | 1.0* | 70 | 2.0 |"
    assert fit in page and "- R8: 44 training and 16 test rows\n" in page
    assert "| set | checkpoint | rows | tokens |" not in page
    monkeypatch.setattr(stc._Bench, "_measure", lambda *_: pytest.fail("a finished cell was fitted again"))
    page = stc.run(**quick, recipes=["linear"])[1].read_text()
    assert "The disk is full." not in page and fit in page, "read by now, but not before it was fitted"
    assert "| set | checkpoint | rows | tokens |" in page


@pytest.mark.parametrize("bench", ["llmembed", "stc"])
def test_what_a_store_has_lost_is_read_before_the_next_fit(
    bench: str, settings: dict[str, Any], roles: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first run was with another cache."""
    ready: list[int] = []

    def fit(*_: Any) -> dict[str, Any]:
        ready.append(min((column["rows"] for column in opened(tmp_path / "other").describe()), default=0))
        return {"failed": "not measured here"}

    monkeypatch.setattr(stc._Bench, "_measure", measured)
    monkeypatch.setattr(llmembed._Bench, "_fit", lambda *_: {"accuracy": 0.5, "n": 16, "cost": {"parameters": None}})
    given: dict[str, Any] = roles if bench == "llmembed" else {"backbone": roles["bert"]}
    run_it, lines = (
        (llmembed.run, ["llmembed-1", "llmembed-2"]) if bench == "llmembed" else (stc.run, ["linear", "stc-ffn"])
    )
    run_it(**settings, **given, recipes=lines[:1])
    first = cells_of(settings["out"], bench)
    monkeypatch.setattr(stc._Bench, "_measure", fit)
    monkeypatch.setattr(llmembed._Bench, "_fit", fit)
    run_it(**{**settings, "cache": tmp_path / "other"}, **given, recipes=lines)
    cells = cells_of(settings["out"], bench)
    assert ready == [60], "one fit is due, and all texts are in the store by then"
    key = "r8|llmembed-2" if bench == "llmembed" else "r8|pretrained|stc-ffn"
    assert "read_within" not in cells[key] and {key: cells[key] for key in first} == first


def test_a_store_with_a_limit_may_lack_few_rows() -> None:
    """It never keeps so few."""
    sources, blocks = stc._wanted(str(tiny.build("bert")))
    texts, _ = worded(160, seed=5)
    read_all(texts[:80], sources, blocks, "auto")
    assert reading.holds(texts[:100], sources, blocks, "auto")
    assert not reading.holds(texts, sources, blocks, "auto") and not reading.holds(texts[:1], sources, blocks, None)


def test_cells_of_other_rows_are_made_again_and_never_compared(
    quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun without a GPU, and gone on with where there is one."""
    monkeypatch.setattr(datasets, "AFFORDABLE", {"r8": (30, 10)})
    monkeypatch.setattr(datasets, "choose_device", lambda _: torch.device("cpu"))
    page = stc.run(**quick, recipes=["linear", "stc"])[1].read_text()
    assert "- R8: 30 of 44 training and 10 of 16 test rows\n" in page and "] (10 of 16) |" in page
    assert "| R8 | pretrained | last layer | 30 of 44 |" in page and "In 0 of 1 pairs" in page
    monkeypatch.setattr(datasets, "choose_device", lambda _: torch.device("cuda"))
    page = stc.run(**quick, recipes=["linear"])[1].read_text()
    cells = cells_of(quick["out"], "stc")
    assert cells["r8|pretrained|linear"]["n"] == 16 and cells["r8|pretrained|stc"]["n"] == 10
    assert cells["r8|pretrained|reading test"]["rows"] == 16 and "Nothing to compare yet." in page
    assert "- R8: 44 or 30 of 44 training and 16 or 10 of 16 test rows\n" in page
    page = stc.run(**quick, recipes=["linear", "stc"])[1].read_text()
    assert "In 0 of 1 pairs" in page and "- R8: 44 training and 16 test rows\n" in page


def test_figures_of_an_older_version_are_refused_with_a_sentence(quick: dict[str, Any]) -> None:
    quick["out"].mkdir()
    setting = {"backbone": quick["backbone"], "limit": None, "loss": depth.LOSS}
    cells = {"r8|pretrained|linear": {"accuracy": 0.5, "n": 16}}
    (quick["out"] / "stc.json").write_text(json.dumps({"setting": setting, "cells": cells}))
    with pytest.raises(ArgumentError, match="holds cells of other backbones, rows or settings"):
        stc.run(**quick)


def test_a_checkpoint_that_cannot_be_read_is_a_reason_and_not_the_end(quick: dict[str, Any], tmp_path: Path) -> None:
    half = tmp_path / "tuned" / "r8"
    half.mkdir(parents=True)
    (half / "config.json").write_text("{}")
    cut = headed(tmp_path / "adapted" / "r8", ["0", "1", "2"]) / "model.safetensors"
    cut.write_bytes(cut.read_bytes()[:-7])
    given = {**quick, "finetuned": half.parent, "lora": cut.parent.parent, "recipes": ["own", "linear"]}
    for tune in (None, 30):
        page = stc.run(**given, tune=tune)[1].read_text()
        cells = cells_of(quick["out"], "stc")
        assert "is a folder without a tokenizer" in cells["r8|finetuned|linear"]["failed"]
        assert re.search(r"model.safetensors is cut or damaged \(.*\). Write or", cells["r8|lora|own"]["failed"])
        assert cells["r8|pretrained|linear"]["accuracy"] == 0.75
        assert f"- {cells['r8|lora|own']['failed']}: 2 cells (R8, LoRA, own head; R8, LoRA, last layer)" in page
    (half / "config.json").rename(half / "notes.txt")
    stc.run(**given, tune=30)
    assert "exists already; nothing was written" in cells_of(quick["out"], "stc")["r8|finetuned|own"]["failed"]


def test_a_backbone_is_looked_for_once(quick: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def find(name: str) -> Path:
        asked.append(name)
        return find_checkpoint(name)

    monkeypatch.setattr(stc, "find_checkpoint", find)
    shutil.copytree(quick["data"] / "r8", quick["data"] / "r52")
    stc.run(**{**quick, "only": ["r8", "r52"]}, recipes=["linear", "stc"])
    assert asked == [quick["backbone"]]


def test_own_heads_must_give_the_labels_of_the_rows(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their answers would all be wrong, and `stc` would win against them."""
    headed(tmp_path / "tuned" / "r8", ["post", "rail", "weather"])
    headed(tmp_path / "adapted" / "r8", ["0", "1", "2"])
    given = {**settings, "backbone": str(tiny.build("bert")), "recipes": ["own"]}
    stc.run(**given, finetuned=tmp_path / "tuned", lora=tmp_path / "adapted")
    cells = cells_of(settings["out"], "stc")
    said = "gives the labels post, rail, weather, but rows have the labels 0, 1, 2. Name them in its config.json"
    assert f"The head of {tmp_path / 'tuned' / 'r8'} {said}" in cells["r8|finetuned|own"]["failed"]
    assert cells["r8|lora|own"]["n"] == 16 and cells["r8|lora|own"]["tuning"] == {}


@pytest.mark.parametrize("labels", [["0", "1"], ["0", "1", "2", "3"]])
def test_a_head_whose_weights_are_not_there_is_refused(labels: list[str], tmp_path: Path) -> None:
    """Others are mismatched: their first values are random."""
    folder = headed(tmp_path / "r8", ["0", "1", "2"])
    config = json.loads((folder / "config.json").read_text())
    config["id2label"] = dict(enumerate(labels))
    (folder / "config.json").write_text(json.dumps({**config, "label2id": {label: int(label) for label in labels}}))
    with pytest.raises(ArgumentError, match=r"are not those of one: classifier\.bias is absent or of another shape"):
        tuned.OwnHead(folder)
    bare = tmp_path / "bare"
    shutil.copytree(tiny.build("bert"), bare)
    (bare / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(ArgumentError, match=r"its weights are not those of one: classifier\.bias is absent"):
        tuned.OwnHead(bare)


def test_what_tune_made_is_not_taken_for_something_else(
    quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = storied(tmp_path / "tuned" / "r8")
    train = DataSet(["a", "b"] * 22, np.array(["0", "1"] * 22))
    monkeypatch.setattr(tuned, "FineTuning", lambda *_, **__: pytest.fail("a checkpoint was made twice"))
    tuned.tune(folder, "full", quick["backbone"], train, 30)
    for method, other, rows, said in (
        ("lora", quick["backbone"], 30, r"\(method full, not lora\)"),
        ("full", "elsewhere", 30, r"\(backbone .*, not elsewhere\)"),
        ("full", quick["backbone"], 50, r"\(rows 30, not 44\)"),
    ):
        with pytest.raises(ArgumentError, match=f"was made with another setting {said}. Give --finetuned or --lora"):
            tuned.tune(folder, method, other, train, rows)
    with pytest.raises(ArgumentError, match=r"are both .*; checkpoints of the two kinds need a folder each"):
        stc.run(**quick, finetuned=folder.parent, lora=folder.parent, tune=30)
    stc.run(**quick, finetuned=folder.parent, tune=20, recipes=["linear"])
    assert "(rows 30, not 20)" in cells_of(quick["out"], "stc")["r8|finetuned|linear"]["failed"]
    identity = fingerprint(folder)
    assert tuned.story_of(folder, identity)["rows"] == 30
    headed(folder, ["0", "1", "2"])  # a model of one's own in its place, and the file beside it is still there
    assert fingerprint(folder) != identity and tuned.story_of(folder, fingerprint(folder)) == {}
    tuned.tune(folder, "lora", "elsewhere", train, 50)  # taken as it is
    tuned.made_with(folder).write_text("some notes")
    assert tuned.story_of(folder, identity) == {}


def test_checkpoints_are_made_where_a_cell_needs_them_and_once(
    quick: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def refuse(folder: Path, method: str, *_: Any) -> None:
        asked.append(method)
        raise ArgumentError("The weights do not fit.")

    monkeypatch.setattr(tuned, "tune", refuse)
    given = {**quick, "finetuned": tmp_path / "tuned", "lora": tmp_path / "adapted", "tune": 30}
    page = stc.run(**given, recipes=["own", "linear", "stc"])[1].read_text()
    assert asked == ["full", "lora"], "not for every line"
    assert "- The weights do not fit.: 6 cells (" in page
    for folder in ("tuned", "adapted"):
        headed(tmp_path / folder / "r8", ["0", "1", "2"])
    monkeypatch.setattr(tuned, "tune", lambda *_: None)
    stc.run(**given, recipes=["own", "linear"])
    cells = cells_of(quick["out"], "stc")
    assert cells["r8|lora|own"]["n"] == 16
    shutil.rmtree(tmp_path / "tuned")
    monkeypatch.setattr(tuned, "tune", refuse)
    stc.run(**given, recipes=["own", "linear"])
    assert asked == ["full", "lora"] and cells_of(quick["out"], "stc") == cells, "nothing is missing"


def test_a_checkpoint_whose_making_was_killed_has_the_seconds_of_all_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stepping, "LEAST_STEPS", 1)
    texts, labels = worded(44, noise=0.1)
    asked = (tmp_path / "r8", "full", str(tiny.build("bert")), DataSet(texts, np.array(labels)), 30)

    def attempt() -> None:
        with pytest.raises(KeyboardInterrupt):
            tuned.tune(*asked)

    with monkeypatch.context() as patch:
        patch.setattr(tuned.FineTuning, "export", stopped)
        attempt()
    with safe_open(tmp_path / "r8-state" / "state.safetensors", framework="np") as file:
        seconds = json.loads(file.metadata()["position"])["seconds"]

    def write(*given: Any) -> None:
        write_json(*given)
        stopped()

    with monkeypatch.context() as patch:
        patch.setattr(tuned, "write_json", write)
        attempt()
    assert {one.name for one in tmp_path.iterdir()} == {"r8.json", "r8-state"}
    assert json.loads((tmp_path / "r8.json").read_text())["seconds"] == seconds > 0
    with monkeypatch.context() as patch:
        patch.setattr(tuned.shutil, "rmtree", removed_but(tmp_path / "r8-state"))
        attempt()
    tuned.tune(*asked)
    assert {one.name for one in tmp_path.iterdir()} == {"r8.json", "r8"}
    assert tuned.story_of(tmp_path / "r8", fingerprint(tmp_path / "r8"))["seconds"] == seconds
    assert tuned.OwnHead(tmp_path / "r8").classes_.tolist() == ["post", "rail", "weather"]


def removed_but(folder: Path) -> Any:
    """`shutil.rmtree`, that is stopped at one folder."""
    remove = shutil.rmtree
    return lambda path, **options: stopped() if path == folder else remove(path, **options)


def test_the_page_says_first_where_stc_loses() -> None:
    def cell(right: np.ndarray) -> dict[str, Any]:
        return {"accuracy": float(right.mean()), "correct": pack(right), "n": len(right)}

    last, own = np.ones(40, dtype=bool), np.ones(40, dtype=bool)
    own[:6] = False
    cells = {"r8|pretrained|linear": cell(last), "r8|pretrained|stc": cell(own), "r8|pretrained|stc-ffn": cell(last)}
    said = stc_page._losses(cells)
    assert said.startswith("In 1 of 2 pairs by more than chance")
    assert said.endswith("- R8, pretrained, stc, both: .8500 against 1.0000 of the last layer (p 0.031)")
    tuned = {"r8|lora|own": cell(last), "r8|lora|stc": cell(own)}
    assert stc_page._losses(tuned).endswith("- R8, LoRA, stc, both: .8500 against 1.0000 of the own head (p 0.031)")
    assert stc_page._losses({}) == "Nothing to compare yet."
    cells["r8|pretrained|stc"] = {**cell(own), "fingerprint": "of a checkpoint that was there before"}
    cells["r8|pretrained|stc-ffn"] = cell(last[:20])
    assert stc_page._losses(cells) == "Nothing to compare yet."


# ------------------------------------------------------------ curves


def test_curves_are_xml_with_every_point_and_name() -> None:
    lines = [curves.Line("a < b", [(1, 0.5), (2, 0.75), (3, 0.25)]), curves.Line("flat", [(2, 0.5)])]
    root = ElementTree.fromstring(curves.draw("Loss & more", "epoch", "loss", lines))
    space = "{http://www.w3.org/2000/svg}"
    texts = [text.text for text in root.iter(f"{space}text")]
    assert {"Loss & more", "epoch", "loss", "a < b", "flat"} <= set(texts)
    dots = [(float(dot.attrib["cx"]), float(dot.attrib["cy"])) for dot in root.iter(f"{space}circle")]
    assert len(dots) == 4 and dots[0][0] < dots[1][0] < dots[2][0], "x grows to the right"
    assert dots[1][1] < dots[0][1] < dots[2][1], "what is higher stands higher"
    assert dots[3] == (dots[1][0], dots[0][1]), "all lines share both axes"


def test_a_single_point_can_be_drawn() -> None:
    root = ElementTree.fromstring(curves.draw("t", "x", "y", [curves.Line("one", [(3, 0.5)])]))
    dot = next(root.iter("{http://www.w3.org/2000/svg}circle"))
    assert all(np.isfinite(float(dot.attrib[name])) for name in ("cx", "cy"))
