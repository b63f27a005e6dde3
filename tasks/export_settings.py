"""What a recipe says of an export."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from deepcompression.export import TARGETS
from tasks.execution.settings import Strict

Target = Literal[tuple(TARGETS)]  # type: ignore[valid-type]


class Export(Strict):
    """A file for another runtime, made of the decoded one."""

    to: Target = Field(description="the format")
    inputs: list[str] | None = Field(
        None, min_length=1, description="where samples are mappings: what the model takes, in its arguments' order"
    )

    io: Literal["float", "integer"] = Field(
        "float",
        description="of inputs and outputs: integer of targets onnx and openvino, where the model rounds what it takes",
    )

    def options(self) -> dict[str, str]:
        """What the target is told, by name: all that is not as it is by default."""
        return {
            name: str(one) for name, one in self.model_dump(exclude={"to", "inputs"}, exclude_defaults=True).items()
        }
