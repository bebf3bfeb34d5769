"""Which version of the package runs. It knows nothing else."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def installed_version() -> str:
    """The version of the installed package; 0+unknown when it runs from a folder alone."""
    try:
        return version("adaptserve")
    except PackageNotFoundError:
        return "0+unknown"
