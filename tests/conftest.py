"""What all tests share: shapes checked at every call, a store of their own, real data if any, a small text set."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from beartype import beartype
from hypothesis import settings
from jaxtyping import AbstractArray, install_import_hook

# as in `make test`: two tests at a time share two cores. Before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("sonde", deadline=None)  # a slow machine is no defect
settings.load_profile("sonde")


def check_arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check the arguments and results of `function` that are annotated with a shape, and no others.

    No others, because what a user may get wrong is answered by a sentence that the tests assert, and beartype would
    speak first. It also refuses what mypy accepts: Self in a method, protocols that cannot be checked at run time.
    """
    whole = getattr(function, "__annotations__", {})
    shaped = {name: hint for name, hint in whole.items() if has_shape(hint)}
    if not shaped:
        return function
    function.__annotations__ = shaped
    try:
        return beartype(function)
    finally:
        function.__annotations__ = whole


def has_shape(hint: object) -> bool:
    if isinstance(hint, type) and issubclass(hint, AbstractArray):
        return True
    return any(has_shape(part) for part in get_args(hint))


CHECKOUT = Path(__file__).resolve().parent.parent


def shaped_modules() -> list[str]:
    """The modules of sonde that write shapes; in others the hook would only cost microseconds at every call."""
    source = CHECKOUT / "src"
    paths = [path for path in (source / "sonde").rglob("*.py") if "jaxtyping" in path.read_text(encoding="utf-8")]
    return [".".join(path.relative_to(source).with_suffix("").parts) for path in paths]


# Shapes are checked under pytest, and only there. This must come before the first import of sonde.
install_import_hook(shaped_modules(), "conftest.check_arrays")

TEXTS = {
    "garden": [
        "The tomatoes have black spots on their lower leaves.",
        "Prune the roses before the sap rises in March.",
        "Slugs ate every lettuce seedling overnight!",
        "how deep should i plant tulip bulbs",
        "Our compost heap smells of ammonia, too much grass I guess.",
        "Water the hydrangeas twice a week in a dry summer.",
        "The hedge grew forty centimetres since May.",
        "Moss is taking over the lawn under the old beech.",
        "Sow the radishes in rows and thin them early.",
        "A frost last night killed the blossom on the pear tree.",
        "Which soil do blueberries need? Mine turn yellow.",
        "The greenhouse is full of aphids again.",
        "Split the peonies in autumn, never in spring.",
        "We mulched the beds with straw against weeds.",
        "My basil on the balcony wilts by noon.",
        "Moles have dug up half the flower bed :(",
        "Tie the climbing beans to a pole with soft string.",
        "The apple tree needs a second variety nearby to set fruit.",
        "Dandelions everywhere, and their roots break off when I pull.",
        "The sunflowers are taller than the shed by now.",
    ],
    "kitchen": [
        "Whisk the egg whites until they hold a peak.",
        "The bread did not rise, was the yeast too old?",
        "Simmer the lentils with a bay leaf for half an hour.",
        "Too much salt in the soup, can a potato save it",
        "Fry the onions slowly until they are golden.",
        "This oven burns everything on the left side.",
        "Rest the dough in the fridge overnight, then roll it thin.",
        "My caramel crystallised again. What a mess!",
        "Grate some nutmeg over the mashed potatoes.",
        "The knife is blunt and tears the tomatoes.",
        "Add the pasta once the water boils hard.",
        "A spoonful of vinegar keeps poached eggs together.",
        "The pancakes stick to the new pan.",
        "Marinate the chicken in yoghurt, garlic and lemon.",
        "Is rice from yesterday still good to fry?",
        "Beat butter and sugar till fluffy, then fold in flour.",
        "The stew tastes better on the second day.",
        "Blanch the beans and drop them in ice water.",
        "who invented the garlic press, it is impossible to clean",
        "Glaze the ham with honey and mustard before roasting.",
    ],
    "travel": [
        "Our flight to Lisbon was cancelled at the gate.",
        "The night train from Vienna arrives before breakfast.",
        "Is there a bus from the airport to the old town?",
        "They lost my suitcase between Oslo and Rome.",
        "The hotel gave our room to somebody else!",
        "You need a visa if you stay longer than ninety days.",
        "We missed the last ferry and slept in the harbour.",
        "window seat or aisle on a ten hour flight?",
        "The hostel had bunk beds and a view of the cathedral.",
        "Customs opened every bag on the coach.",
        "Take the tram to the terminus and walk up to the castle.",
        "My passport expires two weeks before the trip.",
        "The guide showed us the ruins at dawn, before the crowds.",
        "Rental cars here come with an empty tank.",
        "A day ticket for the metro costs less than three rides.",
        "The border was closed so we drove around the lake.",
        "Jet lag hit me on the third day in Tokyo.",
        "Check-in opens online a day before departure.",
        "The mountain pass is shut until June, plan a detour.",
        "Our cabin on the ship had no window at all.",
    ],
}


@pytest.fixture
def texts() -> list[str]:
    """Sixty short texts, the three classes in turn."""
    return [text for row in zip(*TEXTS.values(), strict=True) for text in row]


@pytest.fixture
def labels() -> list[str]:
    """The class of each of the sixty texts: garden, kitchen or travel."""
    return list(TEXTS) * 20


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of real data sets, SONDE_DATA; a checkout of its own has none."""
    return _folder("SONDE_DATA", "data")


@pytest.fixture(scope="session")
def models_dir() -> Path:
    """The folder of small real models, SONDE_MODELS; a checkout of its own has none."""
    return _folder("SONDE_MODELS", "models")


def _folder(variable: str, name: str) -> Path:
    folder = Path(os.environ.get(variable) or CHECKOUT.parent / "shared" / name).resolve()
    if not folder.is_dir():
        pytest.skip(f"there is no folder ../shared/{name} beside the checkout; {variable} may name another")
    return folder


@pytest.fixture(scope="session", autouse=True)
def _own_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep activations of the tests out of the user's store, and the user's out of the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SONDE_CACHE", str(tmp_path_factory.mktemp("store")))
        yield


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """The command line, called in this process: `samples.Run`."""
    from samples import command  # it imports sonde, which the hook above must come before

    return command(monkeypatch, capsys)
