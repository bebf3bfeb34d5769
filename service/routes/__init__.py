"""Endpoints, thin: the wire on one side, ``service.serving`` on the other."""

from fastapi import FastAPI

from service.routes import health, predict, tasks, upload
from service.routes.common import problems


def install(app: FastAPI) -> None:
    """Add every endpoint."""
    for module in (predict, upload, tasks):
        app.include_router(module.router, responses=problems(401, 403, 503))
    app.include_router(health.router)
