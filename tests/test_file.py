"""The adapter file: what is written reads back; what is wrong is named, and nothing else is ever raised."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from adapters.config import AdapterConfig, SiteConfig, is_task_name
from adapters.errors import AdapterError, AdapterTooLarge, BrokenAdapter, NotAnAdapter, WrongBase
from adapters.file import Adapter, read_adapter, write_adapter
from adapters.header import METADATA_KEY, check_header, digest_of, read_header, refuse_pickle_name
from adapters.layout import Layout
from adapters.limits import FileLimits
from tests.models import Spec, random_adapter, small_backbone

LIMITS = FileLimits(max_rank=16, max_classes=50)
SPEC = Spec((SiteConfig(site="parallel", blocks=(0, 1, 2), rank=4),), classes=5)


class Sample:
    """A good adapter, its file, and ways to spoil it."""

    def __init__(self, folder: Path) -> None:
        backbone = small_backbone(folder / "vit")
        self.layout: Layout = backbone.layout
        self.adapter: Adapter = random_adapter(backbone, SPEC, 1)
        self.path = folder / "good.safetensors"
        self.digest = write_adapter(self.path, self.adapter.config, self.adapter.tensors)
        self.bytes = self.path.read_bytes()
        self.folder = folder

    def spoilt(self, config: dict[str, Any] | None = None, **tensors: torch.Tensor | None) -> Path:
        """The file with config fields replaced (dots reach inside) and tensors replaced or removed (None)."""
        raw = json.loads(self.adapter.config.model_dump_json(exclude_none=True))
        for dotted, value in (config or {}).items():
            *parents, last = dotted.split("/")
            target = raw
            for parent in parents:
                target = target[int(parent) if parent.isdigit() else parent]
            target[last] = value
        changed = {k: v for k, v in {**self.adapter.tensors, **tensors}.items() if v is not None}
        path = self.folder / "spoilt.safetensors"
        save_file(changed, path, metadata={METADATA_KEY: json.dumps(raw)})
        return path

    def written(self, content: bytes) -> Path:
        path = self.folder / "raw.safetensors"
        path.write_bytes(content)
        return path


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    return Sample(tmp_path_factory.mktemp("file"))


def test_what_is_written_reads_back(sample: Sample) -> None:
    read = read_adapter(sample.path, sample.layout, LIMITS)
    assert read.config == sample.adapter.config
    assert read.digest == sample.digest == digest_of(sample.path)
    assert read.tensors.keys() == sample.adapter.tensors.keys()
    assert all(torch.equal(t, read.tensors[n]) for n, t in sample.adapter.tensors.items())
    assert read_header(sample.path, LIMITS).parameters == read.parameters
    assert check_header(sample.path, sample.layout, LIMITS) == read_header(sample.path, LIMITS)
    assert read_adapter(sample.path, sample.layout, LIMITS, digest="0" * 64).digest == "0" * 64  # its caller knows it


def test_half_precision_is_accepted(sample: Sample) -> None:
    halves = {name: t.to(torch.bfloat16) for name, t in sample.adapter.tensors.items()}
    read = read_adapter(sample.spoilt(**halves), sample.layout, LIMITS)
    assert read.tensors["head.weight"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("config", "error", "words"),
    [
        ({"base/fingerprint": "0" * 64}, WrongBase, "fingerprint 000000000000, the backbone here is"),
        ({"base/fingerprint": "zz"}, BrokenAdapter, "base.fingerprint"),
        ({"sites/0/rank": 5}, BrokenAdapter, r"parallel\.0\.down\.weight has shape \[4, 48\], expected \[5, 48\]"),
        ({"sites/0/rank": 17}, AdapterTooLarge, "rank 17, this server takes at most 16"),
        ({"sites/0/blocks": [0, 1, 9]}, BrokenAdapter, "names block 9, .* has blocks 0 to 2"),
        ({"sites/0/blocks": [1, 0]}, BrokenAdapter, "ascending"),
        ({"sites/0/blocks": [0, 1]}, BrokenAdapter, r"parallel\.2\.\S+ belongs to no site"),
        ({"sites/0/scale": float("inf")}, BrokenAdapter, "sites.0.scale"),
        ({"sites/0/temporal": True}, BrokenAdapter, "modality 'video'"),
        ({"labels": ["a", "a", "b", "c", "d"]}, BrokenAdapter, "labels must be unique"),
        ({"labels": [str(i) for i in range(51)]}, AdapterTooLarge, "51 classes"),
        ({"task": "../../etc"}, BrokenAdapter, "'task'"),
        ({"format": 2}, BrokenAdapter, "'format'"),
        ({"surprise": 1}, BrokenAdapter, "'surprise'"),
        ({"input/size": 64}, BrokenAdapter, "input.size is 64, the backbone takes 32"),
        ({"pool": "avg", "norm": "trained"}, BrokenAdapter, r"norm\.weight is missing"),
        ({"norm": "trained"}, BrokenAdapter, "needs pool"),
        ({"modality": "video"}, BrokenAdapter, "'video' must be given"),
    ],
)
def test_a_wrong_config_is_named(sample: Sample, config: dict[str, Any], error: type[AdapterError], words: str) -> None:
    path = sample.spoilt(config)
    for check in (read_adapter, check_header):
        with pytest.raises(error, match=words):
            check(path, sample.layout, LIMITS)


def test_wrong_tensors_are_named(sample: Sample) -> None:
    good = sample.adapter.tensors
    cases: list[tuple[dict[str, torch.Tensor | None], str]] = [
        ({"head.bias": None}, "head.bias is missing"),
        ({"extra": torch.zeros(1)}, "extra belongs to no site"),
        ({"head.weight": good["head.weight"].double()}, "head.weight has dtype F64"),
        ({"head.weight": good["head.weight"].T.contiguous()}, "head.weight has shape"),
        ({"parallel.1.up.bias": torch.full((48,), float("nan"))}, r"parallel\.1\.up\.bias holds 48 values"),
        ({"head.bias": torch.tensor([0, 1, 2, float("inf"), 3])}, "head.bias holds 1 values"),
    ]
    for tensors, words in cases:
        with pytest.raises(BrokenAdapter, match=words):
            read_adapter(sample.spoilt(**tensors), sample.layout, LIMITS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_one_value_that_is_not_finite_is_found_wherever_it_is(sample: Sample, dtype: torch.dtype, value: float) -> None:
    for at in (0, 1, 95, 96, 191):
        weight = sample.adapter.tensors["parallel.1.down.weight"].to(dtype, copy=True)
        weight.view(-1)[at] = value
        path = sample.spoilt(**{"parallel.1.down.weight": weight})
        with pytest.raises(BrokenAdapter, match=r"parallel\.1\.down\.weight holds 1 values .* out of 192"):
            read_adapter(path, sample.layout, LIMITS)


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (b"", NotAnAdapter, "0 bytes"),
        (pickle.dumps({"a": 1}), NotAnAdapter, "a pickle"),
        (b"PK\x03\x04" + b"0" * 20, NotAnAdapter, "torch.save"),
        (b"\x89PNG\r\n\x1a\n" + b"0" * 20, NotAnAdapter, "PNG"),
        (b"hello, this is text", NotAnAdapter, "no JSON header"),
        (struct.pack("<Q", 2**40) + b"{", AdapterTooLarge, "claims 1099511627776 bytes"),
        (struct.pack("<Q", 100) + b"{}", BrokenAdapter, "cut short"),
        (struct.pack("<Q", 5) + b"{nope", BrokenAdapter, "not valid JSON"),
        (struct.pack("<Q", 2) + b"{}", BrokenAdapter, "no 'adaptserve' entry"),
        (struct.pack("<Q", 200_000) + b'{"a":' * 40_000, BrokenAdapter, "not valid JSON"),
    ],
)
def test_what_is_not_an_adapter_is_named(sample: Sample, content: bytes, error: type[AdapterError], words: str) -> None:
    path = sample.written(content)
    for check in (read_adapter, check_header):
        with pytest.raises(error, match=words):
            check(path, sample.layout, LIMITS)


@pytest.mark.parametrize("length", [0x0380, 0x0480, 0x0580, 0x1480, 0x8B1F])
def test_a_header_of_any_length_is_read(sample: Sample, length: int) -> None:
    """Also where its length begins with the bytes of a pickle or of a gzip archive."""
    (old,) = struct.unpack("<Q", sample.bytes[:8])
    header, data = sample.bytes[8 : 8 + old].rstrip(), sample.bytes[8 + old :]
    small = AdapterConfig.model_validate(sample.adapter.config.model_dump() | {"sites": ()})
    if length < len(header):
        tensors = {name: sample.adapter.tensors[name] for name in ("head.weight", "head.bias")}
        write_adapter(sample.folder / "small.safetensors", small, tensors)
        content = (sample.folder / "small.safetensors").read_bytes()
        (old,) = struct.unpack("<Q", content[:8])
        header, data = content[8 : 8 + old].rstrip(), content[8 + old :]
    padded = struct.pack("<Q", length) + header.ljust(length) + data
    assert read_adapter(sample.written(padded), sample.layout, LIMITS).config.labels == sample.adapter.config.labels


def test_a_header_of_a_hundred_thousand_entries_is_refused_by_size(sample: Sample) -> None:
    entry = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({f"tensor.{i}": entry for i in range(100_000)}).encode()
    with pytest.raises(AdapterTooLarge, match="header claims"):
        read_adapter(sample.written(struct.pack("<Q", len(header)) + header), sample.layout, LIMITS)


def test_a_file_cut_anywhere_is_an_error(sample: Sample) -> None:
    for end in range(0, len(sample.bytes), max(1, len(sample.bytes) // 150)):
        with pytest.raises(AdapterError):
            read_adapter(sample.written(sample.bytes[:end]), sample.layout, LIMITS)
    with pytest.raises(BrokenAdapter, match="followed by other bytes"):
        read_adapter(sample.written(sample.bytes + b"x"), sample.layout, LIMITS)


def test_too_many_bytes_are_not_read(sample: Sample) -> None:
    with pytest.raises(AdapterTooLarge, match="the limit is 100"):
        read_header(sample.path, FileLimits(max_file_bytes=100))


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_changed_bytes_give_our_errors_or_a_valid_adapter(sample: Sample, data: st.DataObject) -> None:
    """Flip bytes, mostly in the header: nothing but an AdapterError may come out."""
    content = bytearray(sample.bytes)
    (length,) = struct.unpack("<Q", content[:8])
    spot = st.one_of(st.integers(0, 8 + length), st.integers(0, len(content) - 1))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(spot)] = data.draw(st.integers(0, 255))
    try:
        read = read_adapter(sample.written(bytes(content)), sample.layout, LIMITS)
    except AdapterError:
        return
    assert isinstance(read.config, AdapterConfig)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=st.recursive(
        st.none() | st.integers() | st.text() | st.floats(),
        lambda c: (
            st.lists(c)
            | st.dictionaries(st.sampled_from(["__metadata__", METADATA_KEY, "a", "dtype", "shape", "data_offsets"]), c)
        ),
    ),
    tail=st.binary(max_size=32),
)
def test_any_json_in_the_header_gives_our_errors(sample: Sample, header: Any, tail: bytes) -> None:
    raw = json.dumps(header).encode()
    with pytest.raises(AdapterError):
        read_adapter(sample.written(struct.pack("<Q", len(raw)) + raw + tail), sample.layout, LIMITS)


def test_a_failed_write_leaves_nothing(sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_adapter(tmp_path / "a.safetensors", sample.adapter.config, sample.adapter.tensors)
    assert list(tmp_path.iterdir()) == []


def test_pickles_are_refused_by_name() -> None:
    for name in ("model.pth", "a.PT", "x.pkl", "pytorch_model.bin"):
        with pytest.raises(NotAnAdapter, match="adaptserve import"):
            refuse_pickle_name(name)
    refuse_pickle_name("fine.safetensors")
    refuse_pickle_name(None)


def test_task_names() -> None:
    assert all(is_task_name(n) for n in ("a", "dogs-and-cats", "v1.2_x", "0", "a" * 64))
    assert not any(is_task_name(n) for n in ("", "A", "../x", "a/b", ".a", "-a", "a" * 65, "a\n", "ä"))
