"""`ray deploy`: the server as replicas on a Ray cluster.

It knows the terminal; ``service.ray`` does the work.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from service.cli.console import complain, one_line_errors, out, settings_or_exit
from service.cli.serve import refuse_open_door
from service.exits import FAILED, USAGE
from service.keys import Keys

app = typer.Typer(
    no_args_is_help=True,
    help="""Serve as replicas on a Ray cluster; needs `pip install 'adaptserve[ray]'` on all of its machines.

    `serve status` and `serve shutdown`, which come with Ray, say how they are and end them. docs/SCALE.md has more.
    """,
)


@app.callback()
def _frame() -> None:
    pass


@app.command()
def deploy(
    replicas: Annotated[
        int | None, typer.Option(help="Replicas; with --max-replicas, the fewest.  [default: 1]")
    ] = None,
    max_replicas: Annotated[
        int | None, typer.Option(help="The most that autoscaling may start; 0: as many always.  [default: 0]")
    ] = None,
    num_gpus: Annotated[float | None, typer.Option(help="GPUs of a replica, parts too.  [default: 0]")] = None,
    num_cpus: Annotated[float | None, typer.Option(help="Cores of a replica.  [default: 1]")] = None,
    store: Annotated[
        str | None, typer.Option(help="What all replicas share: s3://, gs://, az:// or file://; for more than one.")
    ] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Folder on each machine for what its replicas keep of the store.")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="As of `adaptserve serve`.  [default: demo]")] = None,
    weights: Annotated[str | None, typer.Option(help="Likewise; a file that all machines have.")] = None,
    keys_file: Annotated[str | None, typer.Option(help="Likewise; it is read here.")] = None,
    host: Annotated[str | None, typer.Option(help="Address that Ray listens on.  [default: 127.0.0.1]")] = None,
    port: Annotated[int | None, typer.Option(help="Port that Ray listens on.  [default: 8000]")] = None,
    insecure: Annotated[
        bool | None, typer.Option("--insecure", help="Listen beyond this machine without keys.")
    ] = None,
    address: Annotated[str, typer.Option(help="Of the cluster; `auto` is the one of this machine.")] = "auto",
    env_file: Annotated[Path | None, typer.Option(help="File with ADAPTSERVE_ settings.")] = None,
) -> None:
    """Deploy onto a cluster that runs, and return once all replicas serve.

    All other settings come from the environment here, as `adaptserve serve` reads them. Where Ray listens is decided by
    who deploys first onto a cluster.

    Examples:

    ray start --head && adaptserve ray deploy --replicas 2 --store file:///srv/store --data-dir /var/cache/adaptserve

    adaptserve ray deploy --replicas 1 --max-replicas 8 --num-gpus 1 --store s3://bucket/tasks --keys-file keys.json
    """
    settings = settings_or_exit(
        env_file, store=store, data_dir=data_dir, backbone=backbone, weights=weights, keys_file=keys_file, host=host,
        port=port, insecure=insecure,
    )  # fmt: skip
    own: dict[str, Any] = {
        "replicas": replicas,
        "max_replicas": max_replicas,
        "num_gpus": num_gpus,
        "num_cpus": num_cpus,
    }
    with one_line_errors():
        refuse_open_door(settings, Keys.read(settings.keys, settings.keys_file))
        try:
            import ray
            from ray import serve
        except ImportError as error:
            complain("Ray is not installed; `pip install 'adaptserve[ray]'` brings it")
            raise typer.Exit(FAILED) from error
        from service.ray import NAME, RaySettings, check_door, deployment, listening, of_replicas

        try:
            told = RaySettings(**{name: value for name, value in own.items() if value is not None})
        except ValidationError as error:
            first = error.errors()[0]
            complain(f"{first['loc'][0]}: {first['msg']}")
            raise typer.Exit(USAGE) from error
        made = deployment(told, settings)
        try:
            ray.init(address=address, log_to_driver=False)
        except ConnectionError as error:
            complain(f"there is no Ray cluster at {address}; start one with `ray start --head`, or name its --address")
            raise typer.Exit(FAILED) from error
        serve.start(http_options={"host": settings.host, "port": settings.port})
        check_door(of_replicas(settings), *listening())
        try:
            serve.run(made, name=NAME, route_prefix="/")
        except RuntimeError as error:
            complain(f"the replicas do not come up ({error}); `serve status` and Ray's logs of them say why")
            raise typer.Exit(FAILED) from error
    out().print(f"serving  {told.replicas} replicas on http://{settings.host}:{settings.port}  (`serve status`)")
