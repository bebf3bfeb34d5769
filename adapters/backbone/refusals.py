"""Why a timm model cannot be adapted, in words: what it has in place of transformer blocks, and what to use instead.

It looks at the model's parts alone, so that the reason is the model's own and not that of a list of names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from timm.models import deepseek_vit, qwen3_vit, vision_transformer
from torch import nn

SHOWN = 3
"""Kinds of parts in a sentence."""
_ATTENTION = re.compile(r"(?!.*Block)(.*(Attention|Attn)(2d|Cl)?.*|LiteMLA|SHMA|SHSA|.*MHSA|GPSA|LambdaLayer)")
"""Names of the classes that let places of a picture look at each other."""
_CHANNELS = re.compile(
    r"timm\.layers\.(attention_pool|attention_pool2d|split_attn|selective_kernel|coord_attn|cbam|eca|squeeze_excite)"
)
"""Where timm keeps what is called attention and weighs channels, or pools."""
_SIDE_BY_SIDE = tuple(
    getattr(vision_transformer, name)
    for name in ("ParallelScalingBlock", "ParallelThingsBlock", "DiffParallelScalingBlock")
    if hasattr(vision_transformer, name)
)


def refusal_of(model: nn.Module, name: str, found: Sequence[nn.Module], known: bool) -> str:
    """The reason, to follow the model's name; empty where there is none.

    ``found``: what stands where blocks are looked for; ``known``: whether all of it can be adapted.
    """
    kind = shown(type(model))
    if isinstance(model, qwen3_vit.Qwen3VitEncoder | deepseek_vit.DeepseekVitEncoder):
        base, marked, tag = name.partition("_enc")
        pools = f"{base}{tag} has the same weights and pools them" if marked else _others()
        return f"({kind}) is a language model's encoder, whose features timm does not pool; {pools}"
    if found and known:
        lacking = next((part for part in ("forward_features", "forward_head") if not hasattr(model, part)), "")
        return f"({kind}) has no {lacking}, so that its features are not known here; {_others()}" if lacking else ""
    if any(isinstance(block, _SIDE_BY_SIDE) for block in found):
        blocks = ", ".join(sorted({shown(type(block)) for block in found}))
        return (
            f"is built of {blocks}, whose attention and MLP read the same tokens: there is no stream from one to the "
            f"other to adapt; {_others()}"
        )
    attention = sorted({shown(type(module)) for module in model.modules() if _attends(module)})
    if attention:
        more = f" and {len(attention) - SHOWN} more" if len(attention) > SHOWN else ""
        built = ", ".join((sorted({shown(type(block)) for block in found}) or [kind])[:SHOWN])
        return (
            f"has attention ({', '.join(attention[:SHOWN])}{more}), but not in blocks whose stream from attention to "
            f"MLP is known here: it is built of {built}; {_others(name, 'swin_tiny_patch4_window7_224')}"
        )
    return f"({kind}) has no attention, and so no transformer blocks to adapt; {_others(name)}"


def shown(kind: type) -> str:
    """A class with the file that it is from: several of timm's are called Block."""
    return f"{kind.__module__.rpartition('.')[2]}.{kind.__name__}"


def _attends(module: nn.Module) -> bool:
    kind = type(module)
    return bool(_ATTENTION.fullmatch(kind.__name__)) and not _CHANNELS.fullmatch(kind.__module__)


def _others(name: str = "", like: str = "vit_small_patch16_224") -> str:
    like = "vit_base_patch32_clip_224" if "clip" in name else like
    return f"docs/BACKBONES.md names the models that can be adapted, such as {like}"
