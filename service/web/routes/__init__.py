"""Endpoints, thin: the wire on one side, the rest of ``service.web`` on the other."""

from fastapi import FastAPI

from service.web.routes import batch, compat, docs, download, examples, feedback, health, predict, tasks, upload
from service.web.routes.common import problems


def install(app: FastAPI) -> None:
    """Add every endpoint."""
    for module in (predict, batch, upload, tasks, download, examples, feedback):
        app.include_router(module.router, responses=problems(400, 401, 403, 421, 503))
    app.include_router(health.router, responses=problems(400, 421))
    compat.install(app)
    docs.install(app)
