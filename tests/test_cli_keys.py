"""`adaptserve keys`: a key is shown once, its hash is kept, no key is lost, and the door opens to holders alone."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from service import keys as store
from service.cli.keys import _append
from service.cli.main import app
from service.cli.serve import refuse_open_door
from service.keys import Keys
from service.settings import Settings
from tests.houses import Kit, house

runner = CliRunner()


def create(*given: str) -> str:
    """The key that the command prints; it must have worked."""
    made = runner.invoke(app, ["keys", "create", *given])
    assert made.exit_code == 0, made.output
    return made.stdout.splitlines()[0]


def test_without_a_file_the_second_line_is_for_the_environment() -> None:
    made = runner.invoke(app, ["keys", "create", "--name", "shop", "--scope", "predict", "--task", "pets"])
    secret, entries = made.stdout.splitlines()
    found = Keys.read(entries, "").find(secret)
    assert found is not None
    assert (found.name, found.scope, found.tasks) == ("shop", "predict", {"pets"})
    assert secret not in entries


def test_limits_are_kept_and_shown(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    given = ["--weight", "0.5", "--rate", "20", "--burst", "40", "--quota", "100000", "--max-priority", "3"]
    create("--name", "night", "--scope", "predict", *given, "--file", str(file))
    create("--name", "day", "--scope", "predict", "--file", str(file))
    night, day = store.load(file)
    assert (night.weight, night.rate, night.burst, night.quota, night.max_priority) == (0.5, 20, 40, 100_000, 3)
    assert (day.weight, day.rate, day.quota, day.max_priority) == (1, None, None, 9)
    assert set(json.loads(file.read_text())[1]) == {"name", "scope", "sha256"}  # as older servers read it
    listed = runner.invoke(app, ["keys", "list", "--file", str(file)], env={"COLUMNS": "150"})
    assert "20/s, 40 at once" in listed.stdout
    assert "100000/day" in listed.stdout


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--weight", "0"], "weight"), (["--weight", "nan"], "weight"), (["--rate", "-1"], "rate"),
        (["--quota", "0"], "quota"), (["--max-priority", "10"], "max_priority"), (["--burst", "3"], "give a rate too"),
    ],
)  # fmt: skip
def test_limits_that_are_none_are_one_sentence(given: list[str], words: str) -> None:
    made = runner.invoke(app, ["keys", "create", "--name", "x", "--scope", "predict", *given])
    assert made.exit_code != 0
    assert words in made.stderr
    assert len(made.stderr.strip().splitlines()) == 1


def test_a_file_grows_by_hashes_and_is_listed(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    first = create("--name", "boss", "--scope", "admin", "--file", str(file))
    file.chmod(0o640)
    link = tmp_path / "link.json"
    link.symlink_to(file)
    second = create("--name", "shop", "--scope", "predict", "--task", "b", "--task", "a", "--file", str(link))
    assert link.is_symlink()
    assert file.stat().st_mode & 0o777 == 0o640
    keys = Keys.read("", str(file))
    assert [key.name for key in keys.all] == ["boss", "shop"]
    assert keys.find(first) == keys.all[0]
    assert keys.find(second) == keys.all[1]
    assert first not in file.read_text()
    listed = runner.invoke(app, ["keys", "list", "--file", str(file)])
    assert listed.exit_code == 0
    assert "a, b" in listed.stdout
    assert keys.all[1].sha256[:12] in listed.stdout
    assert {path.name for path in tmp_path.iterdir()} == {"keys.json", "link.json"}


@pytest.mark.parametrize(
    "given",
    [
        ["--name", "boss", "--scope", "admin"],
        ["--name", "a b", "--scope", "admin"],
        ["--name", "new", "--scope", "root"],
        ["--name", "new", "--scope", "predict", "--task", "NO NAME"],
    ],
)
def test_a_key_that_cannot_be_made_is_one_line_and_changes_nothing(tmp_path: Path, given: list[str]) -> None:
    file = tmp_path / "keys.json"
    create("--name", "boss", "--scope", "admin", "--file", str(file))
    before = file.read_bytes()
    refused = runner.invoke(app, ["keys", "create", *given, "--file", str(file)])
    assert refused.exit_code == 1
    assert refused.stdout == ""
    assert len(refused.stderr.splitlines()) == 1
    assert file.read_bytes() == before


def test_a_broken_file_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text("[{")
    for command in (["create", "--name", "a", "--scope", "admin"], ["list"]):
        refused = runner.invoke(app, ["keys", *command, "--file", str(file)])
        assert refused.exit_code == 1
        assert "malformed" in refused.stderr
    assert file.read_text() == "[{"


def test_many_at_once_lose_no_key(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    made = [store.create(f"k{i}", "admin") for i in range(24)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda one: _append(file, one[1]), made))
    keys = Keys.read("", str(file))
    assert [keys.find(secret) for secret, _ in made] == [key for _, key in made]
    assert [path.name for path in tmp_path.iterdir()] == ["keys.json"]


def test_the_door(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys = Keys.read(
        runner.invoke(app, ["keys", "create", "--name", "a", "--scope", "admin"]).stdout.splitlines()[1], ""
    )
    for host in ("0.0.0.0", "::", "192.0.2.1", "example.org"):
        with pytest.raises(typer.Exit):
            refuse_open_door(Settings(host=host), Keys())
        assert "adaptserve keys create" in capsys.readouterr().err
        refuse_open_door(Settings(host=host), keys)
        refuse_open_door(Settings(host=host, insecure=True), Keys())
        with pytest.raises(typer.Exit):
            refuse_open_door(Settings(published_host=host), Keys())
        capsys.readouterr()
    for host in ("127.0.0.1", "127.8.8.8", "::1", "localhost"):
        refuse_open_door(Settings(host=host), Keys())
        refuse_open_door(Settings(host="0.0.0.0", published_host=host), Keys())
    refuse_open_door(Settings(host="0.0.0.0", published_host="[::1]"), Keys())


def test_malformed_keys_stop_the_start_with_one_line(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text(json.dumps([{"name": "a"}]))
    refused = runner.invoke(app, ["serve", "--keys-file", str(file), "--data-dir", str(tmp_path / "d")])
    assert refused.exit_code == 1
    assert str(file) in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert not (tmp_path / "d").exists()


def test_the_commands_with_a_key(kit: Kit, tmp_path: Path) -> None:
    file, adapter = tmp_path / "keys.json", tmp_path / "pets.safetensors"
    adapter.write_bytes(kit.file(1, task="pets")[0])
    boss = create("--name", "boss", "--scope", "admin", "--file", str(file))
    reader = create("--name", "reader", "--scope", "predict", "--file", str(file))
    with house(kit.settings(data_dir=tmp_path / "data", keys_file=str(file))) as home:
        push = ["push", str(adapter), "--to", home.url]
        for key, words in ((None, "401"), ("as_wrong", "401"), (reader, "scope 'admin'")):
            refused = runner.invoke(app, [*push, *(["--key", key] if key else [])])
            assert refused.exit_code == 1
            assert words in refused.stderr
        assert runner.invoke(app, push, env={"ADAPTSERVE_KEY": boss}).exit_code == 0
