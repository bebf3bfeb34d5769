"""Endpoints, thin: the wire on one side, ``service.serving`` on the other."""

from fastapi import FastAPI

from service.routes import health, predict, tasks, upload


def install(app: FastAPI) -> None:
    """Add every endpoint."""
    for module in (predict, upload, tasks, health):
        app.include_router(module.router)
