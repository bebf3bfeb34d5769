"""docs/BACKBONES.md: every pretrained model of timm stands there once, with what the code makes of it."""

from __future__ import annotations

import re

import pytest
import timm

from benchmarks.backbones import FAMILIES, PAGE, ROW, clips, examine, page, pretrained, rows_of

REFUSED = ("resnet18", "mvitv2_tiny", "qwen3_vit_88m_enc", "vit_pwee_patch16_reg1_gap_256", "tnt_s_patch16_224")
TAKEN = (
    "vit_tiny_patch16_224", "eva02_tiny_patch14_224", "beit_base_patch16_224", "swin_tiny_patch4_window7_224",
    "xcit_tiny_12_p16_224", "hiera_tiny_224", "samvit_base_patch16", "qwen3_vit_88m",
)  # fmt: skip


@pytest.fixture(scope="module")
def text() -> str:
    return PAGE.read_text()


def test_every_pretrained_name_stands_there_once(text: str) -> None:
    assert f"with timm {timm.__version__}:" in text, "another timm; run python -m benchmarks.backbones"
    found = [(row["model"], row["tags"].split(", ")) for row in ROW.finditer(text)]
    assert len(found) == len(dict(found))
    assert dict(found) == pretrained()


def test_the_counts_are_those_of_the_lists(text: str) -> None:
    taken, _, refused = text.partition("\n## Those that cannot\n")
    (told,) = re.findall(r"([\d,]+) of its ([\d,]+) pretrained", taken)
    names, total = (int(number.replace(",", "")) for number in told)
    assert names == _names(taken) >= 580
    assert total == names + _names(refused) == sum(map(len, pretrained().values()))
    families = dict(re.findall(r"^\| ([^|]+) \| (\d+) \|$", taken, flags=re.MULTILINE))
    assert set(families) <= set(FAMILIES)
    assert sum(map(int, families.values())) == names


@pytest.mark.parametrize("model", [*TAKEN, *REFUSED])
def test_the_page_says_what_the_code_does(text: str, model: str) -> None:
    found = examine(model)
    assert bool(found.why) == (model in REFUSED)
    assert rows_of(text)[model] == found.row(pretrained()[model])


def test_the_models_of_clips_stand_there_too(text: str) -> None:
    assert f"\n\n{clips()}\n\n## Those that cannot" in text


@pytest.mark.torture
@pytest.mark.timeout(3600)
def test_the_page_is_what_the_command_writes(text: str) -> None:
    assert page((examine(model), tags) for model, tags in pretrained().items()) == text


def _names(part: str) -> int:
    return sum(len(row["tags"].split(", ")) for row in ROW.finditer(part))
