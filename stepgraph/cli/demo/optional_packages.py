"""Import scikit-learn and matplotlib, which only the demo needs."""

from __future__ import annotations

import importlib
from typing import Any

from stepgraph.errors import ConfigurationError

_PACKAGE = {"sklearn.datasets": "scikit-learn", "matplotlib.figure": "matplotlib"}


def optional_module(name: str) -> Any:
    """Import a module of an optional package.

    Raises:
        ConfigurationError: The package is not installed; the message gives the command.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        package = _PACKAGE[name]
        raise ConfigurationError(
            f"{package} is not installed; `pip install {package}` gets it."
        ) from error
