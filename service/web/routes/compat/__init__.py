"""Other servers' protocols, one module each, on this server's own tasks: a client that people have works unchanged."""

from fastapi import FastAPI

from service.web.routes.common import problems
from service.web.routes.compat import huggingface, oip, oip_repository, tensorflow, torchserve


def install(app: FastAPI) -> None:
    """Add the endpoints of all of them."""
    for module in (oip, oip_repository, huggingface, torchserve, tensorflow):
        app.include_router(module.router, responses=problems(400, 401, 403, 421, 503))
