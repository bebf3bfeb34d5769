"""The settings of where tasks are: a folder, or a store that several servers share; and of who balances several.

``service.settings`` has all others. It knows nothing of what the values are used for.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, model_validator

GIB = 2**30


class StoreSettings(BaseModel):
    """Names, defaults, bounds and help."""

    data_dir: Path = Field(
        Path("data"), description="Folder of the tasks and their versions; with a store, of what is kept of it here."
    )
    store: str = Field(
        "",
        description="Store that several servers share: `s3://`, `gs://` or `az://` with bucket and path, `file://` for "
        "a folder on a shared disk; empty, or a folder's path, for a folder of this server alone. docs/SCALE.md.",
    )
    store_poll_s: float = Field(
        0.3, gt=0, le=60, description="How often the store is asked for what other servers changed, in seconds."
    )
    store_timeout_s: float = Field(5.0, gt=0, description="Time for one request to the store, in seconds.")
    store_cache_bytes: int = Field(
        10 * GIB, ge=0, description="Files of a store's versions kept on this server's disk, in bytes."
    )

    max_store_waiting: int = Field(
        64, ge=0, description="Requests of one front end that wait to ask the store; beyond it, 429."
    )

    gateway_metrics: bool = Field(
        False,
        description="Show in /metrics, under vLLM's names, what the endpoint picker of the Gateway API Inference "
        "Extension reads; docs/DEPLOY.md.",
    )

    @property
    def folder(self) -> Path:
        """Where tasks, or what is kept of them here, and staging are, within the data folder."""
        return self.data_dir / "mirror" if self.store else self.data_dir

    @model_validator(mode="before")
    @classmethod
    def _store_in_a_folder(cls, given: Any) -> Any:
        """A path as store is the data folder."""
        store = given.get("store") if isinstance(given, dict) else None
        if isinstance(store, str) and store and "://" not in store:
            if given.get("data_dir") not in (None, store, Path(store)):
                raise ValueError(f"store and data_dir name two folders: {store} and {given['data_dir']}; name one")
            return {**given, "store": "", "data_dir": store}
        return given

    server_name: str = Field("", max_length=64, description="This server's name in the history; empty: the machine's.")
    history_file_bytes: int = Field(
        4 * 2**20, ge=4096, description="A file of the history that has so many bytes is followed by the next one."
    )
    max_history_bytes: int = Field(
        2**30, ge=4096,
        description="Bytes of a data folder's history, some three million changes; beyond it, the oldest file goes.",
    )  # fmt: skip
