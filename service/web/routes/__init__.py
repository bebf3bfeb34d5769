"""Endpoints, thin: the wire on one side, the rest of ``service.web`` on the other."""

from fastapi import FastAPI

from service.web.routes import (
    batch,
    compat,
    docs,
    download,
    examples,
    feedback,
    health,
    history,
    jobs,
    key,
    page,
    predict,
    tasks,
    traffic,
    upload,
)  # fmt: skip
from service.web.routes.common import problems


def install(app: FastAPI, root_path: str) -> None:
    """Add every endpoint; ``root_path`` is what a proxy puts before the addresses that the page writes."""
    page.install(app, root_path)
    for module in (predict, batch, upload, tasks, traffic, history, download, examples, feedback, jobs):
        app.include_router(module.router, responses=problems(400, 401, 403, 421, 503))
    for module in (health, key):
        app.include_router(module.router, responses=problems(400, 421))
    compat.install(app)
    docs.install(app)
