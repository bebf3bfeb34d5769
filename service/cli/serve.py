"""`serve`: read the settings, hold the door, run the supervisor, say what is there.

It knows the terminal; everything else is ``service.supervisor``'s.
"""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapters.config import size_text
from adapters.limits import variable
from service.cli.console import complain, one_line_errors, out, settings_or_exit
from service.exits import CUT_OFF, FAILED, USAGE
from service.hosts import ANY, is_loopback, listed
from service.keys import Keys
from service.settings import Settings
from service.watch import logs

if TYPE_CHECKING:
    from adapters.layout import Layout
    from service.engine.interface import Facts

log = logging.getLogger(__name__)

OTHER_FILES = 128
"""Open files beside the connections: the store, uploads, libraries."""
MOST_FRONT_ENDS = 16
STOP_S = 5.0
"""How long after the end of DRAIN_S, at most, a process that was told to stop has ended."""
SHOWN = 8
"""Names of one kind in the lines at the start."""


def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.  [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port; 0 takes a free one.  [default: 8000]")] = None,
    keys_file: Annotated[
        str | None, typer.Option(help="File of keys, from `adaptserve keys create`; without, everything is open.")
    ] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the tasks.  [default: data]")] = None,
    store: Annotated[
        str | None,
        typer.Option(help="Where tasks are, for several servers: s3://, gs://, az:// or file://; or a folder."),
    ] = None,
    watch: Annotated[
        str | None, typer.Option(metavar="DIR", help="Folder whose files <task>.safetensors are taken as they come.")
    ] = None,
    tasks_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="YAML file of tasks and where their adapters come from.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(help="demo, a timm model name, or a folder of timm or transformers.  [default: demo]")
    ] = None,
    weights: Annotated[
        str | None, typer.Option(help="A .safetensors or .pth file instead of the model's pretrained weights.")
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(help="Pixels that the backbone sees: 224, or height x width as 196x322.  [default: the model's]"),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="auto, cpu, cuda, cuda:1; cuda:0,cuda:1 for an engine each.  [default: auto]")
    ] = None,
    front_ends: Annotated[
        int | None, typer.Option(help="Processes that speak HTTP; 0 takes one, or with a GPU one a core.  [default: 0]")
    ] = None,
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

    adaptserve serve --store s3://bucket/tasks --data-dir /var/cache/adaptserve
    """
    settings = settings_or_exit(
        env_file, host=host, port=port, keys_file=keys_file, data_dir=data_dir, store=store, watch_folder=watch,
        tasks_file=tasks_file, backbone=backbone, weights=weights, image_size=image_size, device=device,
        front_ends=front_ends, dtype=dtype, slots=slots, threads=threads, insecure=insecure, log_format=log_format,
    )  # fmt: skip
    with one_line_errors():
        refuse_open_door(settings, Keys.read(settings.keys, settings.keys_file))
        if settings.tasks_file:
            from service.sources.declared import read_tasks_file

            read_tasks_file(settings)  # what is wrong with it is told now, not after the backbone is loaded
        _make_room_for_files(settings)
        listener = _listen(settings)
        logs.configure(settings.log_level, settings.log_format)
        stop = _Stop(settings.drain_s)
        signal.signal(signal.SIGTERM, stop.before_serving)
        from service.family import Ended
        from service.supervisor import Supervisor  # half a second; the door is checked before

        tell = one_line_errors(log.error if settings.log_format == "json" else complain)
        supervisor = Supervisor(settings, _devices(settings), _front_ends(settings), listener)
        with tell:
            try:
                code = asyncio.run(supervisor.run(partial(_say, settings, listener.getsockname()[1]), stop.begin))
            except Ended as error:
                log.critical("%s; the server ends with exit code %d", error.message, error.code)
                raise typer.Exit(error.code) from error
    if code == CUT_OFF:
        log.critical("not all could be ended in order; the server ends with exit code %d", code)
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)  # whatever thread may still wait


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
        from service import child

        os.read(self._told, 1)
        time.sleep(self._within)
        child.end(
            f"the server was told to stop and has not after {self._within:g} s (drain_s and {STOP_S:g} s)", CUT_OFF
        )


def _devices(settings: Settings) -> list[str]:
    return [name.strip() for name in settings.device.split(",") if name.strip()] or ["auto"]


def _front_ends(settings: Settings) -> int:
    """One where the engine needs the cores itself; with a GPU, whose engine needs one, all others."""
    if settings.front_ends:
        return settings.front_ends
    named = any(name.startswith("cuda") for name in _devices(settings))
    found = "auto" in _devices(settings) and any(Path("/dev").glob("nvidia[0-9]*"))
    return max(1, min(len(os.sched_getaffinity(0)) - 1, MOST_FRONT_ENDS)) if named or found else 1


def _door(settings: Settings) -> str:
    """The address that others come in by; around a container it is where the port is published."""
    return settings.published_host.strip("[]") or settings.host


def refuse_open_door(settings: Settings, keys: Keys) -> None:
    """One line and the exit where anybody may come in from other machines, and nobody has said so."""
    if not keys and not is_loopback(_door(settings)) and not settings.insecure:
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


def _say(settings: Settings, port: int, facts: Facts, names: Sequence[str]) -> None:
    from service.store.demo import samples

    layout, keys = facts.layout, Keys.read(settings.keys, settings.keys_file)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    url = f"http://{'127.0.0.1' if settings.host == '0.0.0.0' else host}:{port}"  # noqa: S104
    as_json = settings.log_format == "json"  # lines for people would break its reader
    for warning in _warnings(settings, layout, keys):
        log.warning(warning) if as_json else complain(warning, kind="warning")
    if as_json:
        log.info("serving %s: %s on %s, %d tasks", url, layout.model, facts.device, len(names))
        return
    console = out()
    auto = settings.dtype == "auto" and facts.dtype != "float32"
    clips = f" in clips of {layout.frames} frames" if layout.frames > 1 else ""
    console.print(
        f"backbone {layout.model} ({layout.parameters / 1e6:.1f} M parameters, fingerprint {layout.fingerprint[:12]}) "
        f"at {size_text(layout.input_size)} pixels{clips} on {facts.device}, {facts.dtype}"
        + (" (by --dtype auto; float32 rounds less)" if auto else "")
    )
    if keys:
        holders = [f"{key.name} ({key.scope})" for key in keys.all]
        console.print(f"keys     {_some(holders)}")
    console.print(f"bank     {facts.slots} slots of rank {facts.rank}, {facts.slot_bytes / 2**20:.0f} MiB")
    console.print(
        f"tasks    {_some(names) or 'none yet: adaptserve push FILE'}  (in {settings.store or settings.data_dir})"
    )
    sample = next((s for s in samples() if any(s.name.startswith(f"{n}-") for n in names)), None)
    task = next((n for n in sorted(names, key=len, reverse=True) if sample and sample.name.startswith(f"{n}-")), None)
    console.print(f"serving  {url}  (API: {url}/docs)")
    if sample and task:
        console.print(f"try      curl --data-binary @{_short(sample)} {url}/v1/tasks/{task}/predict")
    else:
        console.print(f"try      curl {url}/v1/tasks")


def _warnings(settings: Settings, layout: Layout, keys: Keys) -> Iterator[str]:
    if "+random:" in layout.model:
        yield "the weights are random; answers mean nothing, this is for tests and benchmarks only"
    if not keys and not is_loopback(_door(settings)):
        yield f"there are no keys: whoever reaches {_door(settings)} may upload and delete tasks"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def _short(path: Path) -> str:
    """Relative to here where that is possible and shorter."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
