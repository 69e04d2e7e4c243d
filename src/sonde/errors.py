"""Every error and warning that sonde raises on purpose, as a tree.

SondeError
├── InputError (ValueError)        the user's input is wrong; the command line exits with 2
│   ├── DataError                  a file, column, text or label
│   ├── ArgumentError              an option or parameter
│   ├── BackboneError              a model id, folder, site or pooling
│   ├── RecipeError                a recipe name, or a role that a recipe needs and was not given
│   ├── ModelError                 a saved model that cannot be trusted or understood
│   ├── StoreError                 the activation store, its folder or its disk
│   └── EndpointError              a language model behind HTTP that is not reached, refuses, or answers nonsense
│       └── BudgetError            what it may cost is spent
├── ReadingError (RuntimeError)    a backbone produced NaN or infinity, or memory did not suffice for one text
└── MissingExtraError (ImportError)  an optional dependency is not installed

SondeWarning (UserWarning)         work goes on; carries a code and a count for summaries
"""

import importlib
import warnings
from collections.abc import Iterable
from types import ModuleType


class SondeError(Exception):
    """Base of all errors that sonde raises on purpose."""


class InputError(SondeError, ValueError):
    """The user's input is wrong: the sentence says what, where, what is allowed, what to do."""


class DataError(InputError):
    """A file, column, text or label is wrong."""


class ArgumentError(InputError):
    """An option or parameter is wrong."""


class BackboneError(InputError):
    """A model id, folder, site or pooling is wrong."""


class RecipeError(InputError):
    """A recipe is unknown, or needs a role that was not given."""


class ModelError(InputError):
    """A saved model is damaged, foreign, or of a newer protocol."""


class StoreError(InputError):
    """The activation store cannot be used: its folder, its disk, or a damaged file."""


class EndpointError(InputError):
    """A language model behind HTTP is not reached, refuses, or does not answer in the form that was agreed."""


class BudgetError(EndpointError):
    """What the answers of an endpoint may cost, in tokens or money, is spent."""


class ReadingError(SondeError, RuntimeError):
    """A backbone produced values that are not finite, or memory did not suffice for one text."""


class MissingExtraError(SondeError, ImportError):
    """An optional dependency is missing; the sentence gives the command that installs it."""


class SondeWarning(UserWarning):
    """Something that the user should know and that does not stop the work.

    Parameters
    ----------
    sentence : str
        What was found and what was done about it.
    code : str
        A stable snake_case name, the key under which summaries count it.
    count : int
        How many rows, classes or tokens are concerned.
    """

    def __init__(self, sentence: str, code: str = "note", count: int = 1) -> None:
        super().__init__(sentence)
        self.code = code
        self.count = count


def warn(sentence: str, code: str, count: int = 1) -> None:
    """Issue a `SondeWarning` at the caller's caller."""
    warnings.warn(SondeWarning(sentence, code, count), stacklevel=3)


def choose(what: str, given: object, allowed: Iterable[str], error: type[InputError] = ArgumentError) -> str:
    """Return `given` if it is one of `allowed`, else raise `error` with a sentence listing them."""
    options = list(allowed)
    if isinstance(given, str) and given in options:
        return given
    raise error(f"{what} {given!r} is unknown; it must be one of: {', '.join(options)}.")


def need(module: str, extra: str) -> ModuleType:
    """Import an optional dependency, or say which extra brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module} is not installed. It comes with the extra {extra!r}: pip install 'sonde[{extra}]'"
        ) from error
