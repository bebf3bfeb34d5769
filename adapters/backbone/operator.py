"""What the hooks of a backbone call, and what comes of a pass through it.

It knows sites by name; it knows no model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, get_args

from torch import Tensor

from adapters.config import SiteName


class Operator(Protocol):
    """What the hooks call: ``add`` returns ``out`` plus this site's residual of ``tap``.

    ``tap`` is (rows, tokens, width in), ``out`` (rows, tokens, width out); ``out`` may be written.
    """

    @property
    def active(self) -> frozenset[str]:
        """The sites that have something to add; hooks of other sites return at once."""
        ...

    def enter(self, block: int, tokens: Tensor) -> Tensor:
        """The tokens of all rows right before a block, or before the last norm, which counts as one more.

        What comes back goes in; rows may have been put behind the others.
        """
        ...

    def add(self, site: SiteName, block: int, tap: Tensor, out: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Features:
    """Tokens of every row before (``raw``) and after (``normed``) the backbone's last norm.

    (rows, tokens, width) for plain transformers, (rows, height, width, channels) where they lie on a grid, and as
    timm's ``forward_features`` gives them where it gives something else.
    """

    raw: Tensor
    normed: Tensor


class Probe:
    """Adds nothing; being called is the point."""

    active = frozenset[str](get_args(SiteName))

    def enter(self, block: int, tokens: Tensor) -> Tensor:  # noqa: ARG002
        return tokens

    def add(self, site: SiteName, block: int, tap: Tensor, out: Tensor) -> Tensor:  # noqa: ARG002
        return out
