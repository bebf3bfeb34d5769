"""Names of hosts and origins: what is read, what is refused, and lists with wildcards."""

from __future__ import annotations

import socket
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from service.hosts import Hosts, Place, of_this_machine, origin, place
from service.settings import Settings, read_settings


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("localhost", "localhost", None), ("LocalHost.:8000", "localhost", 8000), ("[::1]:80", "[::1]", 80),
        ("[::1]", "[::1]", None), ("10.0.0.1:1", "10.0.0.1", 1), ("a.example.org.", "a.example.org", None),
        ("my_service:8000", "my_service", 8000), ("xn--mnchen-3ya.de", "xn--mnchen-3ya.de", None),
        ("example.org:", "example.org", None), (" example.org ", "example.org", None),
        ("[fe80::1%25eth0]:8000", "[fe80::1%25eth0]", 8000),
    ],
)  # fmt: skip
def test_a_host_is_read(text: str, host: str, port: int | None) -> None:
    assert place(text) == Place(host, port)


@pytest.mark.parametrize(
    "text",
    [
        "", ".", "a b", "a@b", "http://a", "a/b", "[::1", "::1", "[zz]", "[]", "a:b", "a:99999", "a:1:2", "münchen.de",
        "a%2e", "a,b", "a\x00", "-a", "a..:", "localhost:8000@evil.example", "evil.example#localhost",
    ],
)  # fmt: skip
def test_what_is_no_host(text: str) -> None:
    with pytest.raises(ValueError, match="is no"):
        place(text)


@given(st.text(max_size=30))
def test_any_text_is_a_host_or_a_value_error(text: str) -> None:
    for read in (place, origin):
        with suppress(ValueError):
            read(text)


@pytest.mark.parametrize(
    "text", ["127.0.0.1", "127.1", "0.0.0.0:8000", "192.168.1.5", "[::1]", "[2001:db8::1]:8000", "2130706433", "0x7f.1"]
)
def test_an_address_is_nobodys_name(text: str) -> None:
    assert place(text).is_address
    assert place(text) in Hosts([])


@pytest.mark.parametrize(
    "text", ["localhost", "evil.example", "127.0.0.1.evil.example", "abc", "1.fe", "0xyz", "a1.2c"]
)
def test_a_name_is_no_address(text: str) -> None:
    assert not place(text).is_address
    assert place(text) not in Hosts([])


def test_a_wildcard_is_of_what_is_below_it() -> None:
    hosts = Hosts(["one.org", "*.two.org"])
    inside = ["one.org", "ONE.ORG.:80", "a.two.org", "a.b.two.org"]
    outside = ["a.one.org", "two.org", "xtwo.org", "one.org.evil.example", "two.org.evil.example", "oneXorg"]
    assert [name for name in inside + outside if place(name) in hosts] == inside
    assert place("anything.example") in Hosts(["*"])


def test_this_machine_goes_by_its_names() -> None:
    hosts = Hosts(of_this_machine("0.0.0.0", "[::]", "Vision.Example.Org"))
    own = ["localhost", "app.localhost", "host.docker.internal", socket.gethostname(), "vision.example.org"]
    assert [name for name in own if place(name) not in hosts] == []
    assert place("localhost.evil.example") not in hosts
    assert place("notlocalhost") not in hosts


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("https://Example.org", "https://example.org"), ("https://example.org:443", "https://example.org"),
        ("http://example.org:443", "http://example.org:443"), ("http://[::1]:3000", "http://[::1]:3000"),
        ("chrome-extension://abcdef", "chrome-extension://abcdef"),
    ],
)  # fmt: skip
def test_an_origin_is_written_as_browsers_write_it(text: str, written: str) -> None:
    assert str(origin(text)) == written


@pytest.mark.parametrize("text", ["null", "", "example.org", "https://", "https://a/b", "https://a?x", "https://a@b"])
def test_what_is_no_origin(text: str) -> None:
    with pytest.raises(ValueError, match="is no"):
        origin(text)


def test_an_origin_is_at_its_host() -> None:
    assert origin("https://a.org").is_at(place("a.org"))
    assert origin("https://a.org").is_at(place("A.org:443"))
    assert not origin("https://a.org").is_at(place("a.org:80"))
    assert not origin("http://a.org:8000").is_at(place("a.org:8001"))
    assert not origin("http://localhost:8000").is_at(place("127.0.0.1:8000"))


def test_settings_hold_what_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTSERVE_ALLOWED_HOSTS", "One.org, *.two.org,")
    monkeypatch.setenv("ADAPTSERVE_ALLOWED_ORIGINS", "https://one.org/ http://localhost:3000,HTTPS://Two.org:443")
    monkeypatch.setenv("ADAPTSERVE_TRUSTED_PROXIES", "10.0.0.1, 172.16.0.0/12 ::1")
    monkeypatch.setenv("ADAPTSERVE_ROOT_PATH", "/vision/")
    settings = read_settings()
    assert settings.allowed_origins == "https://one.org,http://localhost:3000,https://two.org"
    assert settings.allowed_hosts == "one.org, *.two.org,"
    assert settings.trusted_proxies == "10.0.0.1,172.16.0.0/12,::1"
    assert settings.root_path == "/vision"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("allowed_hosts", "one.org:8000"), ("allowed_hosts", "https://one.org"), ("allowed_hosts", "*.*"),
        ("allowed_hosts", "*org"), ("allowed_origins", "one.org"), ("allowed_origins", "null"),
        ("allowed_origins", "https://one.org/path"), ("allowed_origins", "https://*.one.org"),
        ("trusted_proxies", "proxy.example"), ("trusted_proxies", "10.0.0.0/99"), ("root_path", "vision"),
        ("root_path", "/a//b"), ("root_path", '/a"b'), ("root_path", "/a?b"),
    ],
)  # fmt: skip
def test_a_setting_that_means_nothing_is_named(name: str, value: str) -> None:
    with pytest.raises(ValidationError) as error:
        Settings(**{name: value})
    assert error.value.errors()[0]["loc"] == (name,)
