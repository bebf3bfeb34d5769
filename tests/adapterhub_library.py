"""Makes AdapterHub's adapters with its own library: `PYTHON adapterhub_library.py FOLDER`, in its own environment.

That library is called `adapters` too, so this file imports nothing of ours. FOLDER has pictures (*.png); it gets a base
(base/) and a folder for each adapter, with the library's own scores of each picture in scores.json.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from PIL import Image

import adapters

LABELS = ("cat", "dog", "a/b", "été", "[x")
SIZES = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 3, "intermediate_size": 192,
         "image_size": 32, "patch_size": 8, "attn_implementation": "eager"}  # fmt: skip
CONFIGS: dict[str, Any] = {
    "par_bn": adapters.ParBnConfig(reduction_factor=4),
    "scaled_par_bn": adapters.ParBnConfig(reduction_factor=4, scaling="learned"),
    "seq_bn": adapters.SeqBnConfig(reduction_factor=8),
    "sequential": adapters.SeqBnConfig(reduction_factor=8, original_ln_before=False),
    "double_seq_bn": adapters.DoubleSeqBnConfig(reduction_factor=8),
    "compacter": adapters.CompacterPlusPlusConfig(reduction_factor=4, phm_dim=4),
    "adapter_plus": adapters.AdapterPlusConfig(reduction_factor=8),
    "lora": adapters.LoRAConfig(r=4, alpha=8, attn_matrices=["q", "v"], intermediate_lora=True, output_lora=True),
}  # fmt: skip


def main(folder: Path) -> None:
    torch.manual_seed(0)
    config = transformers.ViTConfig(**SIZES)
    base = transformers.ViTModel(config, add_pooling_layer=False)
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    base.save_pretrained(folder / "base")
    processor = transformers.ViTImageProcessor(size={"height": 32, "width": 32})
    processor.save_pretrained(folder / "base")
    pictures = [Image.open(path).convert("RGB") for path in sorted(folder.glob("*.png"))]
    seen = processor(pictures, return_tensors="pt")
    for number, (name, told) in enumerate(CONFIGS.items()):
        model = adapters.ViTAdapterModel.from_pretrained(str(folder / "base"))
        model.add_adapter(name, config=told)
        model.add_image_classification_head(
            name, num_labels=len(LABELS), layers=1, multilabel=name == "seq_bn",
            id2label=dict(enumerate(LABELS)),
        )  # fmt: skip
        model.set_active_adapters(name)
        with torch.no_grad():
            for key, parameter in model.named_parameters():
                if name in key:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        model.eval()
        with torch.no_grad():
            logits = model(**seen).logits
        model.save_adapter(str(folder / name), name, with_head=True, use_safetensors=number % 2 == 0)
        scores = logits.sigmoid() if name == "seq_bn" else logits.softmax(1)
        (folder / name / "scores.json").write_text(json.dumps(scores.tolist()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
