"""Cost: what work takes, stage by stage: seconds, tokens, energy, money, parameters.

    Meter               measures stages; `cost()` is what it found
    Prices, Tariff      what tokens and kilowatt hours cost, and the watts of stages that no counter measures
    Cost, StageCost     what work took
    Energy              kilowatt hours, and whether they were measured
    Parameters          how many numbers the backbones and the trained part hold
    parameters_of       those of a fitted `TextClassifier`

Energy is measured where the hardware has counters: RAPL (processor and memory; Linux, often root alone) and NVML
(NVIDIA GPUs; needs the package nvidia-ml-py). They count everything that runs on the machine meanwhile. Without
counters it is seconds times stated watts, and says "estimated" wherever it is shown.
"""

from sonde.cost.meter import Meter
from sonde.cost.parameters import parameters_of, stored_parameters
from sonde.cost.records import WATTS, Cost, Energy, Parameters, Prices, StageCost, Tariff

__all__ = [
    "WATTS",
    "Cost",
    "Energy",
    "Meter",
    "Parameters",
    "Prices",
    "StageCost",
    "Tariff",
    "parameters_of",
    "stored_parameters",
]
