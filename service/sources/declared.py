"""The file of tasks: YAML that says of each task where its adapter comes from. Every mistake in it is told by its line.

    tasks:
      - name: cats
        source: hf://org/cats/cats.safetensors@v2
        sha256: 9b2e...
        pinned: true

It fetches nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import yaml

from adapters.config import is_task_name
from adapters.limits import variable
from service.errors import BadTasksFile, SourceFailed
from service.settings import Settings
from service.source_address import SourceAddress, allowed_of, is_allowed, source_of

MAX_BYTES: Final = 4 * 2**20
FIELDS: Final = ("name", "source", "version", "sha256", "pinned", "load")
SHOWN: Final = 20
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""In C where PyYAML has it, which bounds the depth too."""
Load = Literal["start", "first-use"]


@dataclass(frozen=True, slots=True)
class Declaration:
    """A task as the file has it. ``key`` is what it is known by again."""

    name: str
    source: SourceAddress
    sha256: str
    pinned: bool
    load: Load

    @property
    def key(self) -> str:
        return f"{self.source.text} {self.source.version} {self.sha256}"

    def check(self, digest: str) -> None:
        """Whether a file is the one that is pinned. Raises SourceFailed."""
        if self.sha256 not in ("", digest):
            raise SourceFailed(f"the file's sha256 is {digest}, and {self.sha256} is declared; correct one of them")


@dataclass(frozen=True, slots=True)
class TasksFile:
    """The tasks by name, in the file's order; ``put`` is when it was last changed, in seconds since 1970."""

    tasks: dict[str, Declaration]
    folder: Path
    put: float


def read_tasks_file(settings: Settings) -> TasksFile:
    """The file that the settings name. Raises BadTasksFile with every mistake that is in it."""
    path = Path(settings.tasks_file)
    try:
        with path.open("rb") as file:
            content, put = file.read(MAX_BYTES + 1), path.stat().st_mtime
    except OSError as error:
        raise BadTasksFile(f"the tasks file {path} cannot be read ({error.strerror})") from error
    if len(content) > MAX_BYTES:
        raise BadTasksFile(f"the tasks file {path} has more than {MAX_BYTES} bytes")
    mistakes: list[str] = []

    def wrong(node: yaml.Node | None, sentence: str) -> None:
        mistakes.append(f"{path}:{node.start_mark.line + 1 if node is not None else 1}: {sentence}")

    reader = _Reader(settings, wrong)
    try:
        tasks = reader.read(yaml.compose(content.decode(), Loader=_LOADER))
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise _bad([f"{path}:{line}: it is not YAML: {error.problem or error.context}"]) from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise _bad([f"{path}: it is not YAML: {str(error).partition(chr(10))[0][:200]}"]) from error
    if mistakes:
        raise _bad(mistakes)
    return TasksFile(tasks, path.absolute().parent, put)


def _bad(mistakes: Sequence[str]) -> BadTasksFile:
    more = f" (and {len(mistakes) - 1} more mistakes; `adaptserve sources check` tells them all)"
    return BadTasksFile(mistakes[0] + (more if len(mistakes) > 1 else ""), mistakes=list(mistakes))


class _Reader:
    """Goes through the nodes of the YAML, which have their lines; what is wrong is told and passed over."""

    def __init__(self, settings: Settings, wrong: Callable[[yaml.Node | None, str], None]) -> None:
        self._settings, self._wrong = settings, wrong
        self._allowed = allowed_of(settings.sources_allowed)

    def read(self, root: yaml.Node | None) -> dict[str, Declaration]:
        found: dict[str, Declaration] = {}
        lines: dict[str, int] = {}
        for node in self._items(root):
            one = self._task(node)
            if one is None:
                continue
            if one.name in found:
                self._wrong(node, f"task '{one.name}' is declared on line {lines[one.name]} already; keep one")
            elif len(found) == self._settings.max_tasks:
                self._wrong(node, f"the server takes {len(found)} tasks (max_tasks); raise it, or declare fewer")
                break
            found[one.name], lines[one.name] = one, node.start_mark.line + 1
        pins = sum(one.pinned for one in found.values())
        if pins >= self._settings.slots:
            self._wrong(root, f"{pins} tasks are pinned, and the device has {self._settings.slots} slots (slots), one "
                        "of which all others need; pin fewer, or raise slots")  # fmt: skip
        return found

    def _items(self, root: yaml.Node | None) -> Iterator[yaml.Node]:
        if root is None:
            return
        shape = "the file begins with 'tasks:', then a list of '- name: ...' with 'source: ...'"
        if not isinstance(root, yaml.MappingNode):
            self._wrong(root, shape)
            return
        for key, value in self._pairs(root):
            if key != "tasks" or not isinstance(value, yaml.SequenceNode):
                if not _is_null(value):
                    self._wrong(value, shape)
                continue
            yield from value.value

    def _pairs(self, node: yaml.MappingNode) -> Iterator[tuple[str, yaml.Node]]:
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value) if isinstance(key, yaml.ScalarNode) else "?"
            if name in seen:
                self._wrong(key, f"'{name[:40]}' stands there twice; keep one")
            else:
                yield name, value
            seen.add(name)

    def _task(self, node: yaml.Node) -> Declaration | None:
        if not isinstance(node, yaml.MappingNode):
            self._wrong(node, "a task is a list item like '- name: cats' with 'source: ...' below the name")
            return None
        given: dict[str, yaml.ScalarNode] = {}
        whole = True
        for name, value in self._pairs(node):
            if name not in FIELDS:
                self._wrong(value, f"'{name[:40]}' is not known here; a task has {', '.join(FIELDS)}")
                whole = False
            elif not isinstance(value, yaml.ScalarNode):
                self._wrong(value, f"'{name}' is one word, not a list or a mapping")
                whole = False
            else:
                given[name] = value
        return self._made(node, given) if whole else None

    def _made(self, node: yaml.Node, given: dict[str, yaml.ScalarNode]) -> Declaration | None:
        name, sha256 = self._name(node, given), self._sha256(given)
        pinned, load = self._pinned(given), self._load(given)
        source = self._source(node, given)
        if name is None or sha256 is None or pinned is None or load is None or source is None:
            return None
        if pinned and load == "first-use":
            self._wrong(given["load"], "a pinned task is brought in at the start; leave out 'load' or 'pinned'")
            return None
        return Declaration(name, source, sha256, pinned, load)

    def _name(self, node: yaml.Node, given: dict[str, yaml.ScalarNode]) -> str | None:
        name = given["name"].value if "name" in given else ""
        if is_task_name(name):
            return str(name)
        what = f"'{name[:80]}' is no task's name" if name else "the task has no name"
        self._wrong(given.get("name", node), f"{what}: 1 to 64 of a-z, 0-9, '.', '_' and '-', first a letter or digit")
        return None

    def _source(self, node: yaml.Node, given: dict[str, yaml.ScalarNode]) -> SourceAddress | None:
        if "source" not in given:
            self._wrong(node, "the task has no 'source'; say where its adapter is, like hf://org/repo or a path")
            return None
        at, version = given["source"], given.get("version")
        try:
            source = source_of(at.value, version.value if version is not None and not _is_null(version) else "")
        except ValueError as error:
            self._wrong(at, str(error))
            return None
        if not is_allowed(source, self._allowed):
            self._wrong(at, f"{source.text[:200]} is not among the sources that this server may ask; name how it "
                        f"begins in {variable('sources_allowed')} (sources_allowed)")  # fmt: skip
            return None
        return source

    def _sha256(self, given: dict[str, yaml.ScalarNode]) -> str | None:
        node = given.get("sha256")
        if node is None or _is_null(node):
            return ""
        digest = node.value.removeprefix("sha256:").lower()
        if re.fullmatch("[0-9a-f]{64}", digest):
            return str(digest)
        self._wrong(node, "'sha256' is the file's, of 64 hexadecimal digits; `sha256sum FILE` prints it")
        return None

    def _pinned(self, given: dict[str, yaml.ScalarNode]) -> bool | None:
        node = given.get("pinned")
        word = node.value.lower() if node is not None else "false"
        if word in ("true", "false"):
            return bool(word == "true")
        self._wrong(node, "'pinned' is true or false")
        return None

    def _load(self, given: dict[str, yaml.ScalarNode]) -> Load | None:
        node = given.get("load")
        word: Any = node.value if node is not None else "start"
        if word in ("start", "first-use"):
            return "start" if word == "start" else "first-use"
        self._wrong(node, "'load' is start or first-use")
        return None


def _is_null(node: yaml.Node) -> bool:
    return isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null"
