"""`serve`: read the settings, build the parts, say what is there, listen until told to stop.

It knows uvicorn and the terminal; everything else is ``service.web.app``'s.
"""

from __future__ import annotations

import gc
import ipaddress
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from adapters.limits import variable
from service.cli.console import CUT_OFF, DEVICE_LOST, FAILED, USAGE, complain, one_line_errors, out, settings_or_exit
from service.hosts import ANY, listed
from service.keys import Keys
from service.settings import Settings
from service.watch import logs

if TYPE_CHECKING:
    from service.web.parts import Parts

log = logging.getLogger(__name__)

OTHER_FILES = 128
"""Open files beside the connections: the store, uploads, libraries."""
STOP_S = 5.0
"""How long after the end of DRAIN_S, at most, a process that was told to stop has ended."""
LAST_WORDS_S = 1.0
SHOWN = 8
"""Names of one kind in the lines at the start."""


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.  [default: 8000]")] = None,
    keys_file: Annotated[
        str | None, typer.Option(help="File of keys, from `adaptserve keys create`; without, everything is open.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the tasks.  [default: data]")] = None,
    backbone: Annotated[
        str | None, typer.Option(help="demo, a timm model name, or a folder in timm's hub layout.  [default: demo]")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="A .safetensors or .pth file instead of the model's pretrained weights.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1.  [default: auto]")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16, float16.  [default: auto]")] = None,
    slots: Annotated[int | None, typer.Option(help="Adapters resident at once.  [default: 64]")] = None,
    threads: Annotated[int | None, typer.Option(help="CPU threads; 0 leaves torch's default.")] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="Listen beyond this machine without keys.")
    ] = None,
    log_format: Annotated[str | None, typer.Option(help="text or json.  [default: text]")] = None,
    env_file: Annotated[Path | None, typer.Option(help="File with ADAPTSERVE_ settings.")] = None,
) -> None:
    """Serve every task in the data folder on one frozen backbone.

    Without options it starts on the shipped demo. Every option is also a setting of the same name with the prefix
    ADAPTSERVE_ in the environment; docs/SETTINGS.md lists them all.

    Examples:

    adaptserve serve

    adaptserve serve --backbone vit_base_patch16_224 --weights vit_b.safetensors --data-dir /srv/tasks --port 9000
    """
    settings = settings_or_exit(
        env_file, host=host, port=port, keys_file=keys_file, data_dir=data_dir, backbone=backbone, weights=weights,
        device=device, dtype=dtype, slots=slots, threads=threads, insecure=insecure, log_format=log_format,
    )  # fmt: skip
    with one_line_errors():
        _refuse_open_door(settings, Keys.read(settings.keys, settings.keys_file))
        _make_room_for_files(settings)
        listener = _listen(settings)
        logs.configure(settings.log_level, settings.log_format)
        stop = _Stop(settings.drain_s)
        signal.signal(signal.SIGTERM, stop.before_serving)
        from service.engine.watchdog import watching
        from service.web.app import build, create_app  # torch takes seconds; the door is checked before

        said = one_line_errors(log.error if settings.log_format == "json" else complain)
        with said, build(settings) as parts, watching(parts.engine, parts.health, settings.device_lost_s, _end):
            _say(settings, parts, listener.getsockname()[1])
            _run(settings, create_app(parts), listener, stop)
    _leave(parts)


class _Stop:
    """The bound of a stop: whatever hangs, the process has ended ``drain_s`` + STOP_S seconds after it was told to."""

    def __init__(self, drain_s: float) -> None:
        self._within = drain_s + STOP_S
        # A signal handler may interrupt anything, so it must take no lock: it writes a byte, and a thread reads it.
        self._told, self._tell = os.pipe()
        threading.Thread(target=self._wait, name="stop", daemon=True).start()

    def begin(self) -> None:
        """From a signal handler; the time runs from the first call."""
        os.write(self._tell, b"x")

    def before_serving(self, *_: object) -> None:
        """A handler of SIGTERM: number 1 in a container has no default for it, and so far nothing need drain."""
        self.begin()
        sys.exit(128 + signal.SIGTERM)

    def _wait(self) -> None:
        os.read(self._told, 1)
        time.sleep(self._within)
        _end(f"the server was told to stop and has not after {self._within:g} s (drain_s and {STOP_S:g} s)", CUT_OFF)


def _leave(parts: Parts) -> None:
    """All is closed. Python would now take torch apart, for seconds in which nothing answers and nothing starts."""
    hanging = {
        "a batch on the device": parts.engine.alive,
        "a load": parts.bank.alive,
        "decoding": parts.decode_pool.alive,
        "an upload": parts.upload_pool.alive,
    }
    if any(hanging.values()):
        what = " and ".join(name for name, alive in hanging.items() if alive)
        _end(f"the server was told to stop, and {what} did not end", CUT_OFF)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _end(why: str, code: int = DEVICE_LOST) -> None:
    """End at once, so that whoever supervises this process starts it anew. Nothing can drain."""
    line = threading.Thread(
        target=log.critical, args=("%s; the process ends with exit code %d", why, code), daemon=True
    )
    line.start()
    line.join(LAST_WORDS_S)  # whoever should read the log may hang too
    os._exit(code)


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _door(settings: Settings) -> str:
    """The address that others come in by; around a container it is where the port is published."""
    return settings.published_host.strip("[]") or settings.host


def _refuse_open_door(settings: Settings, keys: Keys) -> None:
    if not keys and not _is_loopback(_door(settings)) and not settings.insecure:
        complain(
            f"{_door(settings)} can be reached from other machines and anybody there could upload and delete tasks; "
            "make a key with `adaptserve keys create --name NAME --scope admin --file keys.json` and "
            "serve with --keys-file keys.json, or add --insecure if the network is trusted"
        )
        raise typer.Exit(USAGE)
    for name in ("allowed_hosts", "allowed_origins"):
        if ANY in listed(getattr(settings, name)) and not keys and not settings.insecure:
            complain(
                f"with {name} * (ADAPTSERVE_{name.upper()}) and no keys, any page in a browser on this machine could "
                "upload and delete tasks; name those that may, make a key with `adaptserve keys create`, or add "
                "--insecure"
            )
            raise typer.Exit(USAGE)


def _make_room_for_files(settings: Settings) -> None:
    """A connection is an open file. Without one to spare, nobody could even be told that the server is full."""
    needed = settings.max_connections + 2 * settings.reserved_connections + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return
    if hard != resource.RLIM_INFINITY and hard < needed:
        complain(
            f"{settings.max_connections} connections (max_connections) need {needed} open files, and this process may "
            f"have {hard}; raise that limit (ulimit -n, LimitNOFILE), or set {variable('max_connections')} lower"
        )
        raise typer.Exit(USAGE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        complain(f"cannot listen on {settings.host} port {settings.port}: {error.strerror}; choose another --port")
        raise typer.Exit(FAILED) from error
    return listener


def _say(settings: Settings, parts: Parts, port: int) -> None:
    from service.store.demo import samples

    layout, slabs = parts.backbone.layout, parts.bank.slabs
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{'127.0.0.1' if settings.host == '0.0.0.0' else host}:{port}"  # noqa: S104
    as_json = settings.log_format == "json"  # lines for people would break its reader
    for warning in _warnings(settings, parts):
        log.warning(warning) if as_json else complain(warning, kind="warning")
    if as_json:
        log.info("serving %s: %s on %s, %d tasks", url, layout.model, slabs.device, len(parts.catalogue.names()))
        return
    console = out()
    dtype = str(slabs.dtype).removeprefix("torch.")
    auto = settings.dtype == "auto" and dtype != "float32"
    console.print(
        f"backbone {layout.model} ({layout.parameters / 1e6:.1f} M parameters, fingerprint {layout.fingerprint[:12]}) "
        f"on {slabs.device}, {dtype}" + (" (by --dtype auto; float32 rounds less)" if auto else "")
    )
    if parts.keys:
        holders = [f"{key.name} ({key.scope})" for key in parts.keys.all]
        console.print(f"keys     {_some(holders)}")
    console.print(f"bank     {slabs.slots} slots of rank {slabs.rank}, {slabs.nbytes / 2**20:.0f} MiB")
    names = parts.catalogue.names()
    console.print(f"tasks    {_some(names) or 'none yet: adaptserve push FILE'}  (in {settings.data_dir})")
    sample = next((s for s in samples() if any(s.name.startswith(f"{n}-") for n in names)), None)
    task = next((n for n in sorted(names, key=len, reverse=True) if sample and sample.name.startswith(f"{n}-")), None)
    console.print(f"serving  {url}  (API: {url}/docs)")
    if sample and task:
        console.print(f"try      curl --data-binary @{_short(sample)} {url}/v1/tasks/{task}/predict")
    else:
        console.print(f"try      curl {url}/v1/tasks")


def _warnings(settings: Settings, parts: Parts) -> Iterator[str]:
    if "+random:" in parts.backbone.layout.model:
        yield "the weights are random; answers mean nothing, this is for tests and benchmarks only"
    if not parts.keys and not _is_loopback(_door(settings)):
        yield f"there are no keys: whoever reaches {_door(settings)} may upload and delete tasks"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _short(path: Path) -> str:
    """Relative to here where that is possible and shorter."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def _run(settings: Settings, app: object, listener: socket.socket, stop: _Stop) -> None:
    from service.web.server import Server, server_config

    class Told(Server):
        def handle_exit(self, sig: int, frame: FrameType | None) -> None:
            stop.begin()
            super().handle_exit(sig, frame)

    # uvicorn raises the signal again once it has stopped; the parts must still be closed then.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    # What the start made stays. Left to the collector, half a million objects of torch and the tasks' hold up the event
    # loop whenever it looks through all of them: for 0.3 s, whatever runs.
    gc.collect()
    gc.freeze()
    Told(server_config(settings, app)).run(sockets=[listener])
