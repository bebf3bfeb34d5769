"""The frozen timm model: load it, fingerprint it, and open the places where residuals are added."""

from adapters.backbone.checkpoint import fingerprint_of
from adapters.backbone.model import Backbone, load_backbone
from adapters.backbone.operator import Features, Operator
from adapters.backbone.placement import resolve_device, resolve_dtype

__all__ = [
    "Backbone", "Features", "Operator", "fingerprint_of", "load_backbone", "resolve_device",
    "resolve_dtype",
]  # fmt: skip
