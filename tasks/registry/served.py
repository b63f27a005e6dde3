"""What MLflow runs where a promoted model is loaded: the ``.dcz`` decoded into the model that the factory builds.

MLflow copies this file into the logged model, beside the library: it imports nothing else of this repository.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext


class Compressed(PythonModel):
    """A network with the weights of a ``.dcz`` file, in evaluation mode.

    The model's configuration has ``factory`` and ``kwargs`` (what builds the network), ``inputs`` (names of the
    inputs in the order of the network's arguments; None where there is one), ``device``, ``sha256`` of the file,
    ``classes``, the names of what its outputs stand for, as far as the data has any: ``classes`` of this object, and
    ``names``: whether each sample is one of them, so that answers are names and probabilities.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Builds the network and decodes the file into it; its SHA-256, every length and checksum of it are checked.

        Raises:
            ChecksumMismatch: it is not the file that was registered.
            FactoryError: the network cannot be built here.
            FormatError, WeightsError: the file is damaged, or does not fit the network.
        """
        from deepcompression import factory
        from deepcompression.torch import load_into
        from deepcompression.training.device import Compute

        config = context.model_config
        check_file(context.artifacts["model"], config.get("sha256"))
        self.inputs, self.classes = config["inputs"], tuple(config.get("classes") or ())
        self.names = bool(config.get("names"))
        self.device = Compute(config["device"]).resolved()
        network = factory.build(config["factory"], config["kwargs"])
        self.network = load_into(network, context.artifacts["model"]).to(self.device).eval()

    # MLflow reads the annotation and knows arrays only; named inputs come as a mapping of arrays.
    def predict(
        self, context: PythonModelContext, model_input: np.ndarray, params: dict[str, Any] | None = None
    ) -> Any:
        """Of a classifier for each sample its ``class``, the ``probability`` of that, and ``probabilities`` by name;
        else, or where ``raw`` is asked for, what the network returns for the batch, its tensors as arrays.

        Args:
            context: not used; the file was decoded when the model was loaded.
            model_input: an array (n, ...), or name -> array where the inputs have names.
            params: ``raw``: true for the network's own outputs.
        """
        arrays = [model_input[name] for name in self.inputs] if self.inputs else [model_input]
        with torch.inference_mode():
            outputs = self.network(*(torch.tensor(array, device=self.device) for array in arrays))
        if self.names and not (params or {}).get("raw") and _of_classes(outputs, len(self.classes)):
            return named(outputs.float().softmax(1).cpu().numpy(), self.classes)
        return as_arrays(outputs)


def _of_classes(outputs: Any, classes: int) -> bool:
    return isinstance(outputs, torch.Tensor) and outputs.ndim == 2 and outputs.shape[1] == classes


def named(probabilities: np.ndarray, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Answers (n, classes) as ``class``, ``probability`` and ``probabilities``, the likeliest first."""
    order = np.argsort(-probabilities, axis=1, kind="stable")
    ranked = np.take_along_axis(probabilities, order, axis=1)
    rows = [
        {classes[place]: round(float(part), 6) for place, part in zip(places, parts, strict=True)}
        for places, parts in zip(order, ranked, strict=True)
    ]
    return [{"class": next(iter(row)), "probability": next(iter(row.values())), "probabilities": row} for row in rows]


def check_file(path: str, sha256: str | None) -> None:
    """Compares a file with its SHA-256; nothing to compare with (None) is a model of before these were stored.

    Raises:
        ChecksumMismatch: it is another file.
    """
    from deepcompression.errors import ChecksumMismatch

    with Path(path).open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if sha256 not in (None, found):
        raise ChecksumMismatch(
            f"{path}: its SHA-256 is {found}, the model was registered with {sha256}: the file was changed since; "
            "restore it, or register the run's file again"
        )


def as_arrays(value: Any) -> Any:
    """Tensors, and tuples and mappings of them, as numpy arrays; bfloat16 widens to float32, None is left out."""
    if isinstance(value, torch.Tensor):
        return (value.float() if value.dtype == torch.bfloat16 else value).detach().cpu().numpy()
    if isinstance(value, Mapping):
        return {str(name): as_arrays(one) for name, one in value.items() if one is not None}
    if isinstance(value, tuple | list):
        return tuple(as_arrays(one) for one in value if one is not None)
    return value


set_model(Compressed())
