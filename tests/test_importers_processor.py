"""preprocessor_config.json becomes the preprocessing that makes the same pictures, or a refusal."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.backbone.processor import crop_share, read_processor
from adapters.errors import ImportRefused

CLIP = {"size": 224, "crop_size": 224, "do_center_crop": True, "feature_extractor_type": "CLIPFeatureExtractor"}


def read(folder: Path, **raw: Any) -> tuple[dict[str, object], tuple[int, int]]:
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(raw))
    found = read_processor(path)
    return dict(found.fields), found.size


@pytest.mark.parametrize(
    ("raw", "mode", "share", "size"),
    [
        ({"size": {"height": 224, "width": 224}}, "squash", 1.0, (224, 224)),
        ({"size": {"height": 196, "width": 322}}, "squash", 1.0, (196, 322)),
        ({"size": 384, "do_center_crop": False, "crop_size": 224}, "squash", 1.0, (384, 384)),
        ({"size": 256, "crop_size": 224, "do_center_crop": True}, "squash", 0.875, (224, 224)),  # DeiT's
        (CLIP, "center", 1.0, (224, 224)),
        ({"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "do_center_crop": True},
         "center", 0.875, (224, 224)),
    ],
)  # fmt: skip
def test_sizes_and_crops(
    tmp_path: Path, raw: dict[str, Any], mode: str, share: float, size: tuple[int, int]
) -> None:  # fmt: skip
    fields, found = read(tmp_path, **raw)
    assert (fields, found) == ({"crop_mode": mode, "crop_pct": share}, size)


def test_colours_and_filters(tmp_path: Path) -> None:
    size = {"size": 224, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3], "resample": 1}
    fields, _ = read(tmp_path, **size)
    assert (fields["mean"], fields["std"], fields["interpolation"]) == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3), "lanczos")
    # Values of 0 to 255, and of -1 to 1 before mean and std: ours are of 0 to 1.
    fields, _ = read(tmp_path, **size | {"do_rescale": False, "image_mean": [51, 102, 0], "image_std": [255, 255, 51]})
    assert fields["mean"] == pytest.approx((0.2, 0.4, 0.0))
    assert fields["std"] == pytest.approx((1.0, 1.0, 0.2))
    fields, _ = read(tmp_path, **size | {"do_normalize": False})
    assert (fields["mean"], fields["std"]) == ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@given(kept=st.integers(8, 600), more=st.integers(0, 200))
def test_a_share_resizes_to_the_size_that_it_stands_for(kept: int, more: int) -> None:
    assert math.floor(kept / crop_share(kept, kept + more)) == kept + more


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        ({}, "KeyError"),
        ({"size": "big"}, "size 'big'"),
        ({"size": 224, "do_resize": False}, "does not resize"),
        ({"size": {"shortest_edge": 224}}, "takes no crop"),
        ({"size": 224, "resample": 9}, "IndexError"),
        ({"size": 224, "resample": "x"}, "TypeError"),
        ({"size": 224, "image_mean": [1, 2]}, "image_std"),
        ({"size": 200, "crop_size": 224, "do_center_crop": True}, "same share"),
        ({"size": 0, "crop_size": 0, "do_center_crop": True}, "ZeroDivisionError"),
    ],
)
def test_what_cannot_be_said_is_refused(tmp_path: Path, raw: dict[str, Any], reason: str) -> None:
    with pytest.raises(ImportRefused, match=reason):
        read(tmp_path, **raw)
    (tmp_path / "preprocessor_config.json").write_text("[" * 9)
    with pytest.raises(ImportRefused, match="not JSON"):
        read_processor(tmp_path / "preprocessor_config.json")
