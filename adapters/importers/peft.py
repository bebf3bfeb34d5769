"""LoRA folders that PEFT saved, on Hugging Face's ViT (transformers 4 and 5) or on a timm model: read and convert.

The folder holds no backbone, so whether it is the right one cannot be checked here. It knows no command.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from adapters.backbone import Backbone
from adapters.config import MAX_RANK, Pool, SiteConfig, SiteName
from adapters.errors import ImportRefused
from adapters.importers.common import MAX_SOURCE_BYTES, Imported, ImportTerms, Residual, check_head, config_of, site_of

CONFIG, TENSORS, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
MAX_CONFIG_BYTES = 2**20
MAX_PATTERNS = 4096
_PREFIX = "base_model.model."
_POOLS: Mapping[str, Pool] = {"classifier": "cls", "head": "backbone"}
"""The classifier's name, and the pooling before it: Hugging Face takes the class token, timm what the model says."""
_MODULES: Mapping[str, Mapping[str, SiteName]] = {
    r"vit\.encoder\.layer\.(\d{1,4})\.(.+)": {
        "attention.attention.query": "q", "attention.attention.key": "k", "attention.attention.value": "v",
        "attention.output.dense": "proj", "intermediate.dense": "fc1", "output.dense": "fc2",
    },
    r"vit\.layers\.(\d{1,4})\.(.+)": {
        "attention.q_proj": "q", "attention.k_proj": "k", "attention.v_proj": "v",
        "attention.o_proj": "proj", "mlp.fc1": "fc1", "mlp.fc2": "fc2",
    },
    r"blocks\.(\d{1,4})\.(.+)": {
        "attn.qkv": "qkv", "attn.q_proj": "q", "attn.k_proj": "k", "attn.v_proj": "v",
        "attn.proj": "proj", "mlp.fc1": "fc1", "mlp.fc2": "fc2",
    },
}  # fmt: skip
_NOT_PLAIN = {
    "use_dora": "DoRA", "use_qalora": "QALoRA", "use_bdlora": "block-diagonal LoRA", "lora_bias": "a bias in LoRA",
    "layer_replication": "replicated layers", "alora_invocation_tokens": "activated LoRA",
    "arrow_config": "Arrow routing", "kasa_config": "KaSA", "monteclora_config": "MonteCLoRA",
    "velora_config": "VeLoRA", "megatron_config": "Megatron layers", "target_parameters": "LoRA on bare parameters",
    "trainable_token_indices": "trained tokens",
}  # fmt: skip
_KEEPS_BASE = (True, False, "gaussian", "eva", "orthogonal")
"""Ways to start LoRA that leave the backbone's weights as they were; PiSSA, OLoRA and others change them."""
Rank = Annotated[int, Field(ge=1, le=MAX_RANK)]
Alpha = Annotated[float, Field(allow_inf_nan=False)]


class LoraSettings(BaseModel):
    """What we read of ``adapter_config.json``; the defaults are PEFT's."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    peft_type: str
    base_model_name_or_path: str | None = None
    r: Rank = 8
    lora_alpha: Alpha = 8
    use_rslora: bool = False
    bias: str = "none"
    init_lora_weights: bool | str = True
    modules_to_save: list[str] | None = None
    rank_pattern: Annotated[dict[str, Rank], Field(max_length=MAX_PATTERNS)] = Field(default_factory=dict)
    alpha_pattern: Annotated[dict[str, Alpha], Field(max_length=MAX_PATTERNS)] = Field(default_factory=dict)

    def rank_and_scale(self, module: str) -> tuple[int, float]:
        """A module's rank and scale, its patterns looked up as PEFT does: the first that ends the name counts."""
        rank = _looked_up(self.rank_pattern, module, self.r)
        alpha = _looked_up(self.alpha_pattern, module, self.lora_alpha)
        return int(rank), alpha / (math.sqrt(rank) if self.use_rslora else rank)


@dataclass(frozen=True)
class LoraFolder:
    """A folder taken apart: residuals by site and block with their scale in ``up``, the head, and its pooling."""

    name: str
    trained_on: str | None
    residuals: Mapping[SiteName, Mapping[int, Residual]]
    head: tuple[Tensor, Tensor]
    pool: Pool

    @property
    def classes(self) -> int:
        return self.head[0].shape[0]


def read_folder(folder: Path) -> LoraFolder:
    """Read what ``save_pretrained`` wrote. Raises ImportRefused, OSError."""
    settings = _settings(folder / CONFIG)
    state = _tensors(folder)
    pairs: dict[str, dict[str, Tensor]] = {}
    heads: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        name = key.removeprefix(_PREFIX)
        lora = re.fullmatch(r"(.+)\.lora_([AB])(?:\.default)?\.weight", name)
        head = re.fullmatch(r"(classifier|head)(?:\.modules_to_save)?(?:\.default)?\.(weight|bias)", name)
        if lora:
            pairs.setdefault(lora[1], {})[lora[2]] = tensor.float()
        elif head:
            heads.setdefault(head[1], {})[head[2]] = tensor.float()
        else:
            raise ImportRefused(f"tensor {key[:200]} is neither LoRA on a layer that can be served nor the classifier",
                                tensor=key[:200])  # fmt: skip
    residuals: dict[SiteName, dict[int, Residual]] = {}
    for module, pair in pairs.items():
        site, block = _place(module)
        if block in residuals.get(site, {}):
            raise ImportRefused(f"{module[:200]} comes twice, under two naming schemes", tensor=module[:200])
        residuals.setdefault(site, {})[block] = _residual(module, pair, settings)
    if not residuals:
        raise ImportRefused(f"{TENSORS} holds no LoRA tensors", field=TENSORS)
    kind, trained = _only_head(heads)
    whole = (trained["weight"], trained["bias"])
    return LoraFolder(folder.name, settings.base_model_name_or_path, residuals, whole, _POOLS[kind])


def convert(source: LoraFolder, backbone: Backbone, terms: ImportTerms) -> Imported:
    """The adapter's config and tensors for ``backbone``. Raises ImportRefused."""
    sites: list[SiteConfig] = []
    tensors = {"head.weight": source.head[0], "head.bias": source.head[1]}
    for name, residuals in sorted(source.residuals.items()):
        site, more = site_of(name, residuals, act="none", scale=1.0)
        sites.append(site)
        tensors |= more
    told = {"imported_from": "PEFT LoRA", "source": source.name, "trained_on": source.trained_on or "not told"}
    config = config_of(
        terms, backbone.layout, backbone.input, tuple(sites), pool=source.pool, norm="frozen", training=told
    )
    return config, tensors


def _settings(path: Path) -> LoraSettings:
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ImportRefused(f"{CONFIG} has more than {MAX_CONFIG_BYTES} bytes", limit=MAX_CONFIG_BYTES)
    try:
        raw: Any = json.loads(path.read_bytes())
        settings = LoraSettings.model_validate(raw)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ImportRefused(f"{CONFIG}, field '{where}': {first['msg']}", field=where) from error
    except (ValueError, RecursionError) as error:
        raise ImportRefused(f"{CONFIG} is not JSON ({error})", field=CONFIG) from error
    _refuse_other_methods(settings, raw)
    return settings


def _refuse_other_methods(settings: LoraSettings, raw: Mapping[str, object]) -> None:
    if settings.peft_type != "LORA":
        raise ImportRefused(f"its method is {settings.peft_type[:40]}; of PEFT's methods only LORA can be imported",
                            field="peft_type", expected="LORA", got=settings.peft_type[:40])  # fmt: skip
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
    unknown = sorted(set(settings.modules_to_save or ()) - {*_POOLS, "score"})  # PEFT adds 'score' by itself
    if unknown:
        raise ImportRefused(f"it trained '{unknown[0][:80]}' whole (modules_to_save); beside LoRA only the "
                            "classifier can be imported", field="modules_to_save", got=unknown[0][:80])  # fmt: skip


def _tensors(folder: Path) -> dict[str, Tensor]:
    path = folder / TENSORS
    if not path.exists() and (folder / PICKLE).exists():
        raise ImportRefused(f"{PICKLE} is a pickle, which is not read; load it in PEFT and save it again with "
                            "save_pretrained(FOLDER, safe_serialization=True)", field=PICKLE)  # fmt: skip
    size = path.stat().st_size
    if size > MAX_SOURCE_BYTES:
        raise ImportRefused(f"{TENSORS} has {size} bytes, the limit is {MAX_SOURCE_BYTES}", limit=MAX_SOURCE_BYTES)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ImportRefused(f"{TENSORS} is not a whole safetensors file ({error})", field=TENSORS) from error


def _place(module: str) -> tuple[SiteName, int]:
    for pattern, sites in _MODULES.items():
        match = re.fullmatch(pattern, module)
        if match and match[2] in sites:
            return sites[match[2]], int(match[1])
    raise ImportRefused(
        f"LoRA on {module[:200]} cannot be served; known are the attention and MLP layers of Hugging Face's "
        "ViT and of timm's blocks",
        tensor=module[:200],
    )


def _residual(module: str, pair: Mapping[str, Tensor], settings: LoraSettings) -> Residual:
    if pair.keys() != {"A", "B"}:
        raise ImportRefused(f"{module[:200]} has only one of lora_A and lora_B", tensor=module[:200])
    rank, scale = settings.rank_and_scale(module)
    down, up = pair["A"], pair["B"] * scale
    if down.shape[:1] != (rank,):
        raise ImportRefused(
            f"{module[:200]} has lora_A of shape {list(down.shape)}, and {CONFIG} says rank {rank}",
            tensor=module[:200], expected=rank, got=list(down.shape),
        )  # fmt: skip
    return Residual(down, torch.zeros(rank), up, torch.zeros(up.shape[:1]))


def _only_head(heads: Mapping[str, Mapping[str, Tensor]]) -> tuple[str, Mapping[str, Tensor]]:
    if len(heads) != 1 or set(*heads.values()) != {"weight", "bias"}:
        raise ImportRefused(
            "it must hold one classifier with weight and bias, and without it there are no classes to answer with; "
            "train with modules_to_save=['classifier'] (Hugging Face) or ['head'] (timm)",
            field="modules_to_save", got=sorted(heads),
        )  # fmt: skip
    ((name, pair),) = heads.items()
    check_head(pair["weight"], pair["bias"])
    return name, pair


def _looked_up(patterns: Mapping[str, float], module: str, default: float) -> float:
    for pattern, value in patterns.items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
        except re.error as error:
            raise ImportRefused(f"{CONFIG} holds a pattern that is no regular expression: {pattern[:80]!r}",
                                field=CONFIG) from error  # fmt: skip
    return default
