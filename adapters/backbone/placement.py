"""Where a backbone runs and in which precision: the names that a person gives, for torch's."""

from __future__ import annotations

import torch

from adapters.errors import BackboneError


def resolve_device(device: str) -> torch.device:
    """``auto``, or any of torch's device names that exists here."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
        return torch.device(device)
    except (RuntimeError, AssertionError) as error:
        raise BackboneError(f"device '{device}' is not usable here: {error}", device=device) from error


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """``float32``, ``bfloat16``, ``float16``, or ``auto``: bfloat16 where the device multiplies in it, else float32."""
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    names["auto"] = torch.bfloat16 if device.type == "cuda" or multiplies_bfloat16() else torch.float32
    if dtype not in names:
        raise BackboneError(f"dtype '{dtype}' is not one of {', '.join(names)}", dtype=dtype)
    return names[dtype]


def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for it (AVX-512 BF16, AMX): twice as fast or more; else it is slower."""
    told: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(told.get("avx512_bf16") or told.get("amx_bf16"))
