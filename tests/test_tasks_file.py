"""The file of tasks: every mistake by its line, addresses read as they are written, and nothing but our errors."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from service.errors import BadTasksFile
from service.settings import Settings, read_settings
from service.source_address import SourceAddress, allowed_of, is_allowed, source_of
from service.sources.declared import Declaration, read_tasks_file

DIGEST = "ab" * 32
FILE = f"""
tasks:
  - name: cats
    source: hf://org/cats/cats.safetensors
    version: v2
    sha256: sha256:{DIGEST}
    pinned: true
  - name: dogs
    source: oci://ghcr.io/org/dogs:1.0
    load: first-use
  - {{name: birds, source: adapters/birds.safetensors}}
"""


def read(folder: Path, text: str | bytes, **changes: Any) -> dict[str, Declaration]:
    path = folder / "tasks.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_tasks_file(Settings(tasks_file=str(path), **changes)).tasks


def mistakes(folder: Path, text: str, **changes: Any) -> list[str]:
    with pytest.raises(BadTasksFile) as caught:
        read(folder, text, **changes)
    found = caught.value.facts["mistakes"]
    assert isinstance(found, list)
    return [line.removeprefix(f"{folder}/tasks.yaml:") for line in found]


def test_what_is_declared(tmp_path: Path) -> None:
    cats, dogs, birds = read(tmp_path, FILE).values()
    assert (cats.source.path, cats.source.version, cats.sha256, cats.pinned) == (
        "cats/cats.safetensors", "v2", DIGEST, True,
    )  # fmt: skip
    assert (dogs.load, dogs.source.host, dogs.source.version) == ("first-use", "ghcr.io", "1.0")
    assert (birds.load, birds.pinned, birds.source.scheme) == ("start", False, "")
    for nothing in ("", "tasks:\n", "tasks: []\n", "# all later\n"):
        assert read(tmp_path, nothing) == {}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("- name: a\n", "1: the file begins with 'tasks:'"),
        ("task:\n  - name: a\n    source: b\n", "2: the file begins with 'tasks:'"),
        ("tasks:\n  - name: Cats\n    source: b\n", "2: 'Cats' is no task's name"),
        ("tasks:\n  - source: b\n", "2: the task has no name"),
        ("tasks:\n  - name: a\n", "2: the task has no 'source'"),
        ("tasks:\n  - a\n", "2: a task is a list item"),
        ("tasks:\n  - name: a\n    source: [b]\n", "3: 'source' is one word"),
        ("tasks:\n  - name: a\n    sorce: b\n", "3: 'sorce' is not known here"),
        ("tasks:\n  - name: a\n    name: b\n    source: c\n", "3: 'name' stands there twice"),
        ("tasks:\n  - name: a\n    source: b\n  - name: a\n    source: c\n", "4: task 'a' is declared on line 2"),
        ("tasks:\n  - name: a\n    source: b\n    pinned: maybe\n", "4: 'pinned' is true or false"),
        ("tasks:\n  - name: a\n    source: b\n    load: later\n", "4: 'load' is start or first-use"),
        ("tasks:\n  - {name: a, source: b, pinned: true, load: first-use}\n", "2: a pinned task is brought in at"),
        ("tasks:\n  - name: a\n    source: b\n    sha256: abc\n", "4: 'sha256' is the file's"),
        ("tasks:\n  - name: a\n    source: ftp://host/x\n", "3: 'ftp://' is no kind of source"),
        ("tasks:\n  - name: a\n    source: https://host/x\n", "3: https://host/x is not among the sources"),
        ("tasks:\n  - name: a\n    source: ../x\n", "3: a path is within the folder"),
        ("tasks:\n  - name: a\n    source: /etc/x\n", "3: a path is within the folder"),
        ("tasks:\n  - name: a\n   source: b\n", "3: it is not YAML"),
        ("tasks:\n\t- name: a\n", "2: it is not YAML"),
        ("tasks: !!python/object/apply:os.system [x]\n- a: b", "2: it is not YAML"),
    ],
)
def test_each_mistake_has_its_line(text: str, said: str, tmp_path: Path) -> None:
    assert any(line.startswith(said) for line in mistakes(tmp_path, text)), mistakes(tmp_path, text)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    text = "tasks:\n  - name: A\n    source: ftp://x\n  - name: b\n    source: c\n    load: x\n"
    assert [line.partition(":")[0] for line in mistakes(tmp_path, text)] == ["2", "3", "6"]
    with pytest.raises(BadTasksFile, match=r"and 2 more mistakes; `adaptserve sources check` tells them all"):
        read(tmp_path, text)


def test_bounds(tmp_path: Path) -> None:
    many = "tasks:\n" + "".join(f"  - {{name: t{n}, source: x, pinned: true}}\n" for n in range(4))
    assert any("(max_tasks)" in line for line in mistakes(tmp_path, many, max_tasks=3))
    assert any("3 slots (slots)" in line for line in mistakes(tmp_path, many, slots=3))
    with pytest.raises(BadTasksFile, match="more than"):
        read(tmp_path, b"#" * (5 * 2**20))
    with pytest.raises(BadTasksFile, match="not YAML"):
        read(tmp_path, b"\xff\xfe\xfa")
    with pytest.raises(BadTasksFile):
        read(tmp_path, "[" * 5000)
    bomb = "a: &a [x, x]\nb: &b [*a, *a, *a]\nc: &c [*b, *b, *b]\ntasks: [*c, *c]\n"
    assert len(mistakes(tmp_path, bomb)) < 10
    with pytest.raises(BadTasksFile, match="cannot be read"):
        read_tasks_file(Settings(tasks_file=str(tmp_path / "nothing.yaml")))


@settings(max_examples=40, deadline=None)
@given(st.text(alphabet="abtsk:-[]{}&*!|> \n\t#'\"%@`x/", max_size=60))
def test_whatever_the_file_holds_the_error_is_ours(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    folder = tmp_path_factory.getbasetemp()
    for content in (text, f"tasks:\n  - name: a\n    source: {text}\n", f"tasks: {text}"):
        with suppress(BadTasksFile):
            read(folder, content)


@pytest.mark.parametrize(
    ("text", "version", "host", "path", "found"),
    [
        ("hf://org/repo", "", "org", "repo", ""),
        ("hf://org/repo@v1", "", "org", "repo", "v1"),
        ("hf://org/repo/a/b.safetensors@refs/pr/3", "", "org", "repo/a/b.safetensors", "refs/pr/3"),
        ("hf://org/repo@v1/b.safetensors", "v1", "org", "repo/b.safetensors", "v1"),
        ("s3://bucket/a b/c.safetensors", "", "bucket", "a b/c.safetensors", ""),
        ("az://container/x", "", "container", "x", ""),
        ("oci://GHCR.io/org/cats", "", "ghcr.io", "org/cats", "latest"),
        ("oci://localhost:5000/cats:v1", "", "localhost:5000", "cats", "v1"),
        (f"oci://r.example/cats:v1@sha256:{DIGEST}", "", "r.example", "cats", f"sha256:{DIGEST}"),
        ("oci://[::1]:5000/a/b", "1.0", "[::1]:5000", "a/b", "1.0"),
        ("https://Example.org/a/b.safetensors", "", "example.org", "a/b.safetensors", ""),
        ("adapters/a.safetensors", "", "", "adapters/a.safetensors", ""),
    ],
)
def test_addresses(text: str, version: str, host: str, path: str, found: str) -> None:
    source = source_of(text, version)
    assert (source.host, source.path, source.version) == (host, path, found)


@pytest.mark.parametrize(
    "text",
    [
        "", "hf://org", "hf://org/", "hf://org/repo/../x", "hf://a b/c", "hf://org/repo@v1/x@v2", "s3://", "s3://bucket",
        "s3://bucket/", "s3://key:secret@bucket/x", "gs://b/../x", "oci://host", "oci://host/Name:v1", "oci://host/a:",
        "oci://host/a@sha256:12", "oci://host/a:b c", "https://host", "https://host/", "https://user:pw@host/x",
        "https://host/x?token=1", "https://host/x#y", "http://host/x", "file:///etc/passwd", "a\nb", "~/x", "a/../b",
        "x" * 2000, "oci://host:port/a", "hf://org/repo//x",
    ],
)  # fmt: skip
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match=r"^.{15,}"):
        source_of(text)


@settings(max_examples=40, deadline=None)
@given(st.text(max_size=40), st.sampled_from(["", "hf://", "oci://", "s3://", "https://"]), st.text(max_size=5))
def test_an_address_is_read_or_refused(text: str, scheme: str, version: str) -> None:
    with suppress(ValueError):
        assert isinstance(source_of(scheme + text, version), SourceAddress)


def test_the_allow_list() -> None:
    allowed = allowed_of("hf://org/, oci://ghcr.io/team, https://models.example.org/public")
    for text, may in {
        "hf://org/x": True, "hf://organisation/x": False, "oci://ghcr.io/team/cats": True,
        "oci://ghcr.io/teams/x": False,
        "oci://ghcr.io.evil.org/team/x": False, "https://models.example.org/public/x": True,
        "https://models.example.org/private/x": False, "https://models.example.org:444/public/x": False,
        "s3://bucket/x": False, "local.safetensors": True,
    }.items():  # fmt: skip
        assert is_allowed(source_of(text), allowed) == may, text
    assert not is_allowed(source_of("https://any.org/x"), allowed_of(Settings().sources_allowed))
    for wrong in ("ftp://", "https://", "org"):
        with pytest.raises(ValidationError, match="sources_allowed"):
            read_settings(sources_allowed=wrong)
