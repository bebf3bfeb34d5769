"""What an adapter is: file, operator, bank, media and training. It knows nothing of HTTP.

The front door: a backbone, adapter files, and a Predictor that asks them (docs/LIBRARY.md). Each name is imported when
it is first used, so that ``import adapters.config`` loads no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from adapters.backbone import Backbone, load_backbone
    from adapters.errors import AdaptError
    from adapters.file import Adapter
    from adapters.limits import MediaLimits
    from adapters.predictor import Predictor
    from adapters.result import Result
    from adapters.scores import Prediction

__all__ = ["AdaptError", "Adapter", "Backbone", "MediaLimits", "Prediction", "Predictor", "Result", "load_backbone"]
_HOMES = {
    "AdaptError": "errors", "Adapter": "file", "Backbone": "backbone", "MediaLimits": "limits",
    "Prediction": "scores", "Predictor": "predictor", "Result": "result", "load_backbone": "backbone",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'adapters' has no attribute '{name}'")
    return getattr(import_module(f"adapters.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
