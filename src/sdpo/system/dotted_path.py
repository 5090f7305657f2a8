"""Objects by name: registered ones, and the user's own by a dotted path `package.module:Name`."""

from __future__ import annotations

import functools
import importlib
import os
import sys
from collections.abc import Mapping
from typing import Any

from sdpo.errors import UserError, nearest

IN_PYTHON = "(in Python)"
"""The beginning of the name of an object that was given in Python and that no path leads to."""


def is_dotted(name: str) -> bool:
    """Whether a name can be a dotted path: it has a colon or a dot."""
    return ":" in name or "." in name


def resolve(name: str, registry: Mapping[str, Any], what: str, example: str) -> Any:
    """Find the object of a registered name, or import the user's own object by its dotted path.

    Modules in the working directory can be imported too: the console script, in contrast to `python -m`, does not look
    there by itself.

    Args:
        name: a name in the registry, or `package.module:Name`.
        registry: objects by name; a text among them is the dotted path of the object.
        what: the kind of object, for messages: "reward".
        example: a dotted path, for messages: "my_module:my_reward".

    Raises:
        UserError: if the name is neither registered nor a dotted path, or the path cannot be imported.
    """
    target = registry.get(name, name)
    if not isinstance(target, str):
        return target
    if name not in registry and not is_dotted(name):
        hint = f"{nearest(name, registry)}. Correct the name, or give" if registry else ". Give"
        raise UserError(f"there is no {what} {name!r}{hint} a dotted path to your own, such as {example}.")
    if name not in registry and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return _import(target)
    except Exception as error:  # the module is the user's: importing it can raise anything
        raise UserError(
            f"{name!r} cannot be imported ({type(error).__name__}: {error}). A dotted path names a module on the "
            f"Python path or in the working directory, and an object in it: {example}."
        ) from error


def path_to(found: Any) -> str | None:
    """The dotted path that leads to a function or class in a module; None where there is none.

    None stands for what other processes cannot import by a path: functions inside functions, methods of instances,
    and all of `__main__`, which has another name there.
    """
    module, name = getattr(found, "__module__", None), getattr(found, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or module == "__main__" or module not in sys.modules:
        return None
    try:
        same = functools.reduce(getattr, name.split("."), sys.modules[module]) is found
    except AttributeError:  # `<locals>` and `<lambda>` are no names
        return None
    return f"{module}:{name}" if same else None


def _import(path: str) -> Any:
    module, _, attributes = path.partition(":") if ":" in path else path.rpartition(".")
    return functools.reduce(getattr, attributes.split("."), importlib.import_module(module))
