"""Keys: hashes alone are kept, every one is compared, and what is malformed ends in one sentence."""

from __future__ import annotations

import hashlib
import hmac
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import keys as keys_module
from service.errors import BadKeys
from service.keys import MAX_JSON_BYTES, MAX_KEYS, Key, Keys, create, dump, load, parse

HASH = "ab" * 32


def entry(**changes: Any) -> dict[str, Any]:
    return {"name": "ci", "scope": "admin", "sha256": HASH} | changes


def text(*entries: Any) -> str:
    return json.dumps(list(entries))


def test_a_key_is_found_by_its_secret_and_only_its_hash_is_kept() -> None:
    made = [create(f"k{i}", "predict", ["digits"] if i else []) for i in range(5)]
    keys = Keys.read(dump(key for _, key in made), "")
    assert [keys.find(secret) for secret, _ in made] == [key for _, key in made]
    assert all(secret.startswith("as_") and len(secret) == 46 for secret, _ in made)
    assert not any(secret in dump(keys.all) for secret, _ in made)
    assert made[0][1].sha256 == hashlib.sha256(made[0][0].encode()).hexdigest()
    for wrong in ("", "as_", made[0][0][:-1], made[0][0] + "=", made[0][1].sha256, "käse", "\udcff"):
        assert keys.find(wrong) is None


@pytest.mark.parametrize("which", [0, 2, None])
def test_every_hash_is_compared_whoever_asks(monkeypatch: pytest.MonkeyPatch, which: int | None) -> None:
    made = [create(f"k{i}", "admin") for i in range(3)]
    keys = Keys(key for _, key in made)
    seen: list[bytes] = []
    compare = hmac.compare_digest

    def spy(kept: bytes, given: bytes) -> bool:
        seen.append(kept)
        return compare(kept, given)

    monkeypatch.setattr(keys_module.hmac, "compare_digest", spy)
    found = keys.find("unknown" if which is None else made[which][0])
    assert found == (None if which is None else made[which][1])
    assert seen == [bytes.fromhex(key.sha256) for _, key in made]


def test_scopes_and_tasks() -> None:
    admin, reader = Key(**entry()), Key(**entry(scope="predict", tasks={"digits"}))
    assert admin.may("admin")
    assert admin.may("predict")
    assert reader.may("predict")
    assert not reader.may("admin")
    assert admin.sees("anything")
    assert reader.sees("digits")
    assert not reader.sees("anything")


def test_environment_and_file_are_joined(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text(dump([create("file", "admin")[1]]))
    both = Keys.read(text(entry(name="env")), str(file))
    assert [key.name for key in both.all] == ["env", "file"]
    assert not Keys.read(" ", "")
    with pytest.raises(BadKeys, match="another"):
        Keys.read(dump(load(file)), str(file))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("{", "invalid JSON"),
        ("[" * 9999, "recursion"),
        ("[]", "there is no key"),
        (text(1), "should be an object"),
        (text(entry(scope="root")), "'predict' or 'admin'"),
        (text(entry(name="a\nb")), "name"),
        (text(entry(sha256=HASH.upper())), "sha256"),
        (text(entry(tasks=[])), "at least 1 item"),
        (text(entry(tasks=["../x"])), "tasks.0"),
        (text(entry(key="as_x")), "not permitted"),
        (text(entry(), entry(sha256="cd" * 32)), "another"),
        (text(entry(), entry(name="b")), "another"),
        (text(*(entry(name=f"k{i}", sha256=f"{i:064x}") for i in range(MAX_KEYS + 1))), "the limit is 1000"),
        (" " * MAX_JSON_BYTES + "[]", "bytes"),
    ],
)
def test_malformed_keys_are_one_sentence(given: str, words: str) -> None:
    with pytest.raises(BadKeys) as raised:
        Keys.read(given, "")
    assert words in raised.value.message
    assert "ADAPTSERVE_KEYS" in raised.value.message
    assert len(raised.value.message) < 400
    assert "\n" not in raised.value.message


def test_a_secret_in_the_wrong_place_is_not_repeated() -> None:
    secret, _ = create("x", "admin")
    for wrong in (entry(sha256=secret), entry(name=secret + "="), entry(scope=secret), entry(tasks=[secret])):
        with pytest.raises(BadKeys) as raised:
            parse(text(wrong), "f")
        assert secret not in str(raised.value)


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(BadKeys, match="cannot be read"):
            load(path)


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just(HASH) | st.sampled_from(["admin", "ci"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["name", "scope", "tasks", "sha256", "more"]), inner, max_size=5)
    ),
    max_leaves=12,
)


@given(_JSON.map(json.dumps) | st.text() | st.binary())
def test_any_text_is_keys_or_one_sentence(given: str | bytes) -> None:
    try:
        found = parse(given, "f")
    except BadKeys:
        return
    assert parse(dump(found), "f") == found


@given(
    st.lists(
        st.tuples(
            st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
            st.sampled_from(["predict", "admin"]),
            st.sets(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True), max_size=3),
        ),
        min_size=1, max_size=5, unique_by=lambda made: made[0],
    )
)  # fmt: skip
def test_what_is_written_is_read_again(given: list[tuple[str, Any, set[str]]]) -> None:
    made = [create(*one) for one in given]
    found = Keys.read(dump(key for _, key in made), "")
    assert found.all == tuple(key for _, key in made)
    assert found.find(made[-1][0]) == made[-1][1]
