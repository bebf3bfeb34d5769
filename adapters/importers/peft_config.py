"""adapter_config.json of a PEFT folder: the methods that are LoRA once trained, and why others are not.

It does not know tensors or backbones.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from adapters.config import MAX_RANK
from adapters.errors import ImportRefused

CONFIG = "adapter_config.json"
MAX_CONFIG_BYTES = 2**20
MAX_PATTERNS = 4096
_NOT_PLAIN = {
    "use_dora": "DoRA", "use_qalora": "QALoRA", "use_bdlora": "block-diagonal LoRA", "lora_bias": "a bias in LoRA",
    "layer_replication": "replicated layers", "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing", "kasa_config": "KaSA", "monteclora_config": "MonteCLoRA",
    "velora_config": "VeLoRA", "megatron_config": "Megatron layers", "target_parameters": "LoRA on bare parameters",
    "trainable_token_indices": "trained tokens",
}  # fmt: skip
_KEEPS_BASE = (True, False, "gaussian", "eva", "orthogonal")
"""Ways to start LoRA that leave the backbone's weights as they were; PiSSA, OLoRA and others change them."""
_OTHERS = {
    "OFT": "it turns the backbone's own weights, by rotations", "BOFT": "it turns the backbone's own weights",
    "HRA": "it reflects the backbone's own weights", "IA3": "it scales layers and adds nothing of a low rank",
    "LOHA": "its products have a full rank", "LOKR": "its products have a full rank",
    "FOURIERFT": "its change has a full rank", "VERA": "it shares random matrices that it need not store",
    "LN_TUNING": "it trains the norms between the layers", "PREFIX_TUNING": "it adds tokens",
    "PROMPT_TUNING": "it adds tokens", "P_TUNING": "it adds tokens",
}  # fmt: skip
Rank = Annotated[int, Field(ge=1, le=MAX_RANK)]
Alpha = Annotated[float, Field(allow_inf_nan=False)]


class PeftSettings(BaseModel):
    """What we read of every method's file; the defaults are PEFT's."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    base_model_name_or_path: str | None = None
    lora_alpha: Alpha = 8
    bias: str = "none"
    init_lora_weights: bool | str = True
    modules_to_save: list[str] | None = None
    auto_mapping: dict[str, Any] | None = None

    @property
    def model_class(self) -> str | None:
        """The class of the model that it was trained on, such as ViTForImageClassification; None if not told."""
        told = (self.auto_mapping or {}).get("base_model_class")
        return told if isinstance(told, str) else None

    def rank_and_scale(self, module: str) -> tuple[int | None, float]:
        """A module's rank, None where its tensors alone tell it, and its scale."""
        raise NotImplementedError


class LoraSettings(PeftSettings):
    """LoRA."""

    r: Rank = 8
    use_rslora: bool = False
    rank_pattern: Annotated[dict[str, Rank], Field(max_length=MAX_PATTERNS)] = Field(default_factory=dict)
    alpha_pattern: Annotated[dict[str, Alpha], Field(max_length=MAX_PATTERNS)] = Field(default_factory=dict)

    def rank_and_scale(self, module: str) -> tuple[int | None, float]:
        """Its patterns looked up as PEFT does: the first that ends the name counts."""
        rank = _looked_up(self.rank_pattern, module, self.r)
        alpha = _looked_up(self.alpha_pattern, module, self.lora_alpha)
        return int(rank), alpha / (math.sqrt(rank) if self.use_rslora else rank)


class AdaLoraSettings(PeftSettings):
    """AdaLoRA: LoRA whose ranks were pruned; every one of them is scaled as before that."""

    init_r: Rank = 12

    def rank_and_scale(self, module: str) -> tuple[int | None, float]:  # noqa: ARG002
        alpha = self.lora_alpha if self.lora_alpha > 0 else float(self.init_r)
        return None, alpha / (self.init_r + 1e-5)


_METHODS: Mapping[str, type[PeftSettings]] = {"LORA": LoraSettings, "ADALORA": AdaLoraSettings}


def read_settings(path: Path) -> PeftSettings:
    """Raises ImportRefused for another method, or what is more than adding B @ A to layers; OSError."""
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ImportRefused(f"{CONFIG} has more than {MAX_CONFIG_BYTES} bytes", limit=MAX_CONFIG_BYTES)
    try:
        raw: Any = json.loads(path.read_bytes())
        settings = _method(raw).model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ImportRefused(f"{CONFIG}, field '{where}': {first['msg']}", field=where) from error
    except (ValueError, RecursionError) as error:
        raise ImportRefused(f"{CONFIG} is not JSON ({error})", field=CONFIG) from error
    _refuse_variants(settings, raw)
    return settings


def _method(raw: object) -> type[PeftSettings]:
    """By ``peft_type``, before any field is looked at: other methods have other fields."""
    told = raw.get("peft_type") if isinstance(raw, dict) else None
    if not isinstance(told, str):
        raise ImportRefused(f"{CONFIG} has no field 'peft_type'; expected what PEFT's save_pretrained writes",
                            field="peft_type")  # fmt: skip
    if told not in _METHODS:
        why = f": {_OTHERS[told]}" if told in _OTHERS else ""
        raise ImportRefused(f"its method is {told[:40]}{why}; of PEFT's methods only LORA and ADALORA can be imported",
                            field="peft_type", expected=sorted(_METHODS), got=told[:40])  # fmt: skip
    return _METHODS[told]


def _refuse_variants(settings: PeftSettings, raw: Mapping[str, object]) -> None:
    for field, method in _NOT_PLAIN.items():
        if raw.get(field):
            raise ImportRefused(f"it uses {method} ({field}), which is more than adding B @ A to a layer; "
                                "only plain LoRA can be imported", field=field)  # fmt: skip
    if settings.bias != "none":
        raise ImportRefused(f"it trained biases of the backbone (bias '{settings.bias[:40]}'); only 'none' can be "
                            "imported", field="bias", expected="none", got=settings.bias[:40])  # fmt: skip
    if settings.init_lora_weights not in _KEEPS_BASE:
        raise ImportRefused(
            f"init_lora_weights '{str(settings.init_lora_weights)[:40]}' changes the backbone's own weights; "
            "convert it to plain LoRA first (PEFT's path_initial_model_for_weight_conversion)",
            field="init_lora_weights",
        )  # fmt: skip


def _looked_up(patterns: Mapping[str, float], module: str, default: float) -> float:
    for pattern, value in patterns.items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise ImportRefused(f"{CONFIG} holds a pattern that is no regular expression: {pattern[:80]!r}",
                                field=CONFIG) from error  # fmt: skip
    return default
