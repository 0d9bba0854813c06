"""What a worker asks of a model: to hold one stage of it, and to be ready to run that."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from ..algorithm.stage import StagedModel
from ..algorithm.stages import Stage


class StageModel(Protocol):
    """What a builder makes: a model of which one stage's weights can be loaded.

    A builder is ``function(spec, device) -> StageModel``; `spec` is plain data of its own format.
    """

    @property
    def staged(self) -> StagedModel:
        """The model, ready to run stages. Changes with every `load`."""

    def measure(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Sequence[float]:
        """What each unit costs for these inputs. Needs no weights and changes nothing."""

    def can_import(self, module: str, root: str, file: str) -> bool:
        """Whether a module of a node pack, whose root is in `file`, can be imported; it then is."""

    def load(self, stage: Stage, budget: int | None) -> tuple[int, int, int]:
        """Hold the units of `stage` and the shared parts.

        Args:
            stage: the units.
            budget: how many bytes may stay on the device; None: all.

        Returns:
            The weight bytes of the units, of the shared parts, and how many of both are not on the
            device: they are streamed to it when they are used.
        """

    def verify(self) -> None:
        """See that the weights that are held are those that were loaded."""

    def unload(self, waits: bool = False) -> int:
        """Give the memory of the weights back.

        Args:
            waits: they may wait in the host's memory, for the next `load` of the same.

        Returns:
            How many bytes do.
        """

    def patch(self, payload: Any) -> None:
        """Replace the weight patches in force by those of `payload`, which may be empty."""

    def compile(self, payload: Any) -> None:
        """Compile the units that are held as `payload` says, or undo that if it is None."""

    def keep(self, key: str, payload: Any) -> None:
        """Keep what the inputs of evaluations may refer to as `key`."""

    def forget_kept(self) -> None:
        """Drop what was kept."""
