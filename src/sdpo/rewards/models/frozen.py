"""Frozen models from files of weights: reading the tensors, and building a model that holds exactly these."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from sdpo.errors import UserError, cause
from sdpo.system.loaded_weights import first


def read_tensors(path: Path) -> dict[str, Any]:
    """Read a `.safetensors` file, or a pickle that holds only tensors and plain containers.

    Raises:
        UserError: if the file is damaged, or a pickle names objects that could run code.
    """
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damage has many names; a forbidden global is one of them
        raise UserError(
            f"{path} cannot be loaded as tensors alone: {cause(error)}. A pickle that names other objects can run code "
            "and is refused; download a damaged file again."
        ) from error


def frozen_model(factory: Callable[[], nn.Module], state: Mapping[str, Tensor], where: str) -> nn.Module:
    """Build a frozen float32 model with exactly these weights, without the time and memory of a random initialisation.

    Args:
        factory: creates the model.
        state: the model's state dict.
        where: the file of the weights, for messages.

    Raises:
        UserError: if a key is missing, unexpected, or has another shape.
    """
    # Parameters alone: buffers, such as position ids, stay real. torch's annotation leaves out that a hook may return.
    with register_module_parameter_registration_hook(_on_meta):  # type: ignore[arg-type]
        model = factory()
    expected = model.state_dict()
    wrong = {
        "missing": expected.keys() - state.keys(),
        "unexpected": state.keys() - expected.keys(),
        "of another shape": {n for n in expected.keys() & state.keys() if expected[n].shape != state[n].shape},
    }
    if any(wrong.values()):
        found = "; ".join(f"{len(names)} tensors are {how} ({first(names)})" for how, names in wrong.items() if names)
        raise UserError(
            f"{where} does not hold the weights of a {type(model).__name__}: {found}. Download the file again; if that "
            "does not help, the installed transformers knows the model by other names: use another version."
        )
    model.load_state_dict({name: value.float() for name, value in state.items()}, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def _on_meta(module: nn.Module, name: str, parameter: nn.Parameter) -> nn.Parameter:
    """Replace a new parameter by one on the meta device, which has a shape and no memory."""
    return nn.Parameter(parameter.to("meta"), requires_grad=parameter.requires_grad)
