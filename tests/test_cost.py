"""Cost: the paper's figures from its inputs, counters where there are any, and "estimated" where there are none."""

import sys
import threading
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from samples import make, worded
from test_local_model import writer

from sonde.baselines import LocalModel
from sonde.cost import (
    Cost,
    Energy,
    Meter,
    Parameters,
    Prices,
    StageCost,
    Tariff,
    meter,
    parameters_of,
    power,
    stored_parameters,
)
from sonde.errors import ArgumentError, BackboneError, MissingExtraError


def test_the_paper_s_tables_from_the_paper_s_inputs() -> None:
    """LLMEmbed, Tables 3 to 5, SST-2: 13.5 minutes and 10 seconds of reading, 8.5 of training; CARP's 28.7M tokens."""
    tariff, prices = Tariff(), Prices()
    reading, training = (
        (13 * 60 + 30 + 10) * tariff.watts_of("reading_train"),
        (8 * 60 + 30) * tariff.watts_of("training"),
    )
    kwh = (reading + training) / 3.6e6
    assert round(kwh, 2) == 0.06
    assert round(0.06 * tariff.usd_per_kwh, 4) == 0.0039
    assert round(prices.usd(28_700_000, 0), 1) == 57.4
    assert [tariff.watts_of(name) for name in ("generating_reasons", "retrieving", "reading_test")] == [180, 250, 240]


def test_stages_add_up_and_say_that_they_are_estimated() -> None:
    measured = Meter(Tariff(usd_per_kwh=0.5, watts={"training": 3.6e6}), Prices(1.0, 2.0), energy="stated")
    for _ in range(2):
        with measured.stage("training"):
            time.sleep(0.05)
    measured.add_tokens("training", 1000, 500)
    measured.add_tokens("training", 1000, 0)
    cost = measured.cost(Parameters(10, 2))
    stage = cost.stages["training"]
    assert 0.1 <= stage.seconds < 60 and (stage.prompt_tokens, stage.new_tokens) == (2000, 500)
    assert stage.energy == Energy(pytest.approx(stage.seconds), "3.6e+06 W stated", True)
    assert stage.usd_tokens == 3.0 and stage.usd_electricity == pytest.approx(stage.seconds * 0.5)
    assert cost.usd == pytest.approx(3.0 + stage.seconds * 0.5) and cost.seconds == stage.seconds
    assert "(estimated: 3.6e+06 W stated)" in str(cost.energy)
    plain = cost.to_dict()
    assert plain["stages"]["training"]["energy"]["estimated"] is True
    assert plain["total"]["energy"]["estimated"] is True and plain["parameters"] == {"backbone": 10, "trained": 2}


def test_a_stage_that_breaks_off_is_counted() -> None:
    measured = Meter(energy="stated")
    with pytest.raises(ZeroDivisionError), measured.stage("inference"):
        _ = 1 / 0
    assert set(measured.cost().stages) == {"inference"}


def test_what_a_server_draws_is_unknown() -> None:
    measured = Meter(energy="stated")
    with measured.stage("inference", elsewhere=True):
        pass
    with measured.stage("training", watts=10):
        pass
    cost = measured.cost()
    assert cost.stages["inference"].energy is None and cost.stages["inference"].usd_electricity is None
    assert cost.stages["training"].energy is not None and cost.energy is None
    assert cost.to_dict()["total"]["energy"] is None


def zone(root: Path, name: str, label: str, microjoules: int) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{label}\n")
    (folder / "max_energy_range_uj").write_text("1000000000\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    return folder / "energy_uj"


def test_rapl_counters_are_read_and_may_start_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = zone(tmp_path, "intel-rapl:0", "package-0", 990_000_000)
    memory = zone(tmp_path, "intel-rapl:0:1", "dram", 0)
    zone(tmp_path, "intel-rapl:0:0", "core", 0)  # a part of the package: would count twice
    zone(tmp_path, "intel-rapl:1", "psys", 0)
    monkeypatch.setattr(power, "POWERCAP", tmp_path)
    monkeypatch.setattr(power, "_nvml", list)
    measured = Meter()
    with measured.stage("training"):
        package.write_text("26000000\n")  # 36 J later, across the start at 0
        memory.write_text("36000000\n")
    energy = measured.cost().energy
    assert energy == Energy(pytest.approx(72 / 3.6e6), "RAPL package-0, RAPL dram", False)
    assert str(energy) == "2e-05 kWh (measured: RAPL package-0, RAPL dram)"


def test_a_counter_that_starts_again_twice_in_a_stage_is_polled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    monkeypatch.setattr(power, "POWERCAP", tmp_path)
    monkeypatch.setattr(power, "_nvml", list)
    monkeypatch.setattr(meter, "POLL_SECONDS", 0.02)
    begun = threading.Event()
    advance = meter._Running._advance
    monkeypatch.setattr(meter._Running, "_advance", lambda running: begun.set() or advance(running))
    measured = Meter()
    with measured.stage("training"):
        for microjoules in (900_000_000, 800_000_000, 700_000_000):  # 900 J, then 900 more each
            fresh = counter.with_name("fresh")  # a file that is being written is empty for a moment
            fresh.write_text(f"{microjoules}\n")
            fresh.replace(counter)
            for _ in range(2):  # when the second look begins, the first has seen it
                begun.clear()
                assert begun.wait(60)
    energy = measured.cost().energy
    assert energy is not None and energy.kwh * 3.6e6 == pytest.approx(2700)


def test_counters_that_may_not_be_read_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 0).write_text("")
    monkeypatch.setattr(power, "POWERCAP", tmp_path)
    monkeypatch.setattr(power, "_nvml", list)
    measured = Meter()
    with measured.stage("training"):
        pass
    energy = measured.cost().energy
    assert energy is not None and energy.estimated and energy.source == "45 W stated"
    with pytest.raises(ArgumentError, match="This machine shows no energy counter: no readable /sys/class/powercap"):
        Meter(energy="counters")


def test_gpus_are_counted_through_nvml(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    class NVMLError(Exception):
        pass

    readings = iter([0, 1_000_000, 4_600_000])  # found, started, stopped; millijoules
    fake: Any = ModuleType("pynvml")
    fake.NVMLError = NVMLError
    fake.nvmlInit = lambda: None
    fake.nvmlDeviceGetHandleByUUID = lambda uuid: uuid
    fake.nvmlDeviceGetTotalEnergyConsumption = lambda handle: next(readings)
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    monkeypatch.setattr(power, "POWERCAP", tmp_path)
    cuda = SimpleNamespace(
        is_available=lambda: True,
        device_count=lambda: 1,
        get_device_properties=lambda number: SimpleNamespace(uuid="ab"),
    )
    monkeypatch.setattr("torch.cuda", cuda)
    measured = Meter(energy="counters")
    with measured.stage("training"):
        pass
    assert measured.cost().energy == Energy(0.001, "NVML GPU 0", False)

    def silent() -> None:
        raise NVMLError("no driver")

    fake.nvmlInit = silent
    assert power.counters() == []


def test_codecarbon_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(
        ArgumentError, match="energy 'guess' is unknown; it must be one of: auto, counters, stated, code"
    ):
        Meter(energy="guess")
    monkeypatch.setitem(sys.modules, "codecarbon", None)
    with (
        pytest.raises(MissingExtraError, match="codecarbon is not installed: pip install codecarbon"),
        Meter(energy="codecarbon").stage("training"),
    ):
        pass


@pytest.mark.slow
def test_codecarbon_estimates() -> None:
    pytest.importorskip("codecarbon")
    measured = Meter(energy="codecarbon")
    with measured.stage("training"):
        time.sleep(1)
    energy = measured.cost().energy
    assert energy is not None and energy.estimated and energy.source == "codecarbon" and energy.kwh > 0


@pytest.mark.parametrize(
    "make_it",
    [
        lambda: Prices(-1.0),
        lambda: Prices(usd_per_1k_new_tokens=float("nan")),
        lambda: Tariff(usd_per_kwh=-0.1),
        lambda: Tariff(watts={"training": float("inf")}),
    ],
)
def test_prices_that_cannot_be(make_it: Any) -> None:
    with pytest.raises(ArgumentError, match="it must be a number, 0 or more"):
        make_it()


def test_a_stage_without_stated_watts() -> None:
    with (
        pytest.raises(
            ArgumentError, match="Stage 'dreaming' is unknown; it must be one of: reading, training, inference"
        ),
        Meter(energy="stated").stage("dreaming"),
    ):
        pass


def test_parameters_are_counted() -> None:
    texts, labels = worded(60)
    classifier = make("linear").fit(texts, labels)
    found = parameters_of(classifier)
    (source,) = classifier.sources().values()
    loaded = sum(one.numel() for one in source.backbone._forward.model.parameters())
    assert found.backbone == loaded
    assert found.trained == sum(
        array.size for name, array in classifier.arrays().items() if name.startswith("learner/")
    )
    assert 0 < found.trained < found.backbone


def test_parameters_of_a_language_model(tmp_path: Path) -> None:
    folder = writer("gpt2")
    model = LocalModel(str(folder), dtype="float32", device="cpu")
    assert stored_parameters(folder) == model.parameters
    with pytest.raises(BackboneError, match="holds no weights to count"):
        stored_parameters(tmp_path)


def test_costs_without_stages() -> None:
    assert Cost({}).energy is None and Cost({}).usd == 0 and Cost({}).seconds == 0
    assert Cost({"x": StageCost(1.0, None)}).to_dict()["parameters"] is None


def test_two_windows_on_one_counter_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zones = [zone(tmp_path, name, "package-0", 0) for name in ("intel-rapl-mmio:0", "intel-rapl:0")]
    monkeypatch.setattr(power, "POWERCAP", tmp_path)
    monkeypatch.setattr(power, "_nvml", list)
    measured = Meter()
    with measured.stage("training"):
        for one in zones:
            one.write_text("36000000\n")
    assert measured.cost().energy == Energy(pytest.approx(36 / 3.6e6), "RAPL package-0", False)


def test_the_processor_alone_does_not_pass_for_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", 0)
    monkeypatch.setattr(power, "POWERCAP", tmp_path)
    monkeypatch.setattr(power, "_nvml", list)
    assert len(power.counters()) == 1
    monkeypatch.setattr(power, "_uses_gpu", lambda: True)
    assert power.counters() == []


def test_a_counter_that_fails_loses_nobody_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counter = zone(tmp_path, "intel-rapl:0", "package-0", 0)
    monkeypatch.setattr(power, "POWERCAP", tmp_path)
    monkeypatch.setattr(power, "_nvml", list)
    measured = Meter()
    with measured.stage("training"):
        counter.write_text("")
    assert measured.cost().energy is None and measured.cost().seconds > 0
