"""Files of the Hugging Face hub, or of a server that speaks as it does (HF_ENDPOINT), with the token of its own tools.

huggingface_hub knows addresses, tokens and what errors mean; the bytes come bounded, as from every other source.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from huggingface_hub import HfApi, get_token, hf_hub_url
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from service.errors import SourceFailed
from service.source_address import SourceAddress
from service.sources.fetching import FetchBounds, client, said, stream

SUFFIX = ".safetensors"
SHOWN = 5


def hub_file(source: SourceAddress, bounds: FetchBounds) -> Iterator[bytes]:
    """The bytes of the file at one commit. Raises SourceFailed or AdapterTooLarge."""
    endpoint = os.environ.get("HF_ENDPOINT", "").rstrip("/") or None
    name, _, file = source.path.partition("/")
    repository = f"{source.host}/{name}"
    with _words(repository, source.version):
        found = HfApi(endpoint=endpoint).model_info(
            repository, revision=source.version or None, timeout=bounds.word_s, files_metadata=True
        )
    files = {one.rfilename: one.size or 0 for one in found.siblings or ()}
    chosen = _chosen(repository, list(files), file)
    bounds.check_size(files[chosen])
    url = hf_hub_url(repository, chosen, revision=found.sha, endpoint=endpoint)
    with said("the hub"), client(bounds) as http:
        token = get_token()
        yield from stream(http, url, {"Authorization": f"Bearer {token}"} if token else {}, bounds)


def _chosen(repository: str, files: list[str], file: str) -> str:
    ours = [name for name in files if name.endswith(SUFFIX)]
    shown = ", ".join(ours[:SHOWN]) + (" and more" if len(ours) > SHOWN else "")
    if file:
        if file in files:
            return file
        raise SourceFailed(f"{repository} has no file {file}" + (f"; it has {shown}" if ours else ""))
    if len(ours) == 1:
        return ours[0]
    if not ours:
        raise SourceFailed(f"{repository} has no {SUFFIX} file")
    raise SourceFailed(f"{repository} has several {SUFFIX} files; name one of {shown}")


@contextmanager
def _words(repository: str, revision: str) -> Iterator[None]:
    """What the hub's library raises, as ours. Its own words go on for pages, with addresses and ids."""
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise SourceFailed("the hub is not asked while HF_HUB_OFFLINE is set") from error
    except GatedRepoError as error:
        raise SourceFailed(
            f"{repository} is gated; accept its terms, and set HF_TOKEN to a token that may read"
        ) from error
    except RevisionNotFoundError as error:
        raise SourceFailed(f"{repository} has no revision {revision}") from error
    except RepositoryNotFoundError as error:
        raise SourceFailed(
            f"the hub has no {repository} that this server may read; where it is private, set HF_TOKEN"
        ) from error
    except HfHubHTTPError as error:
        response: Any = getattr(error, "response", None)
        status = f" with status {response.status_code}" if response is not None else ""
        raise SourceFailed(f"the hub answers{status}") from error
    except Exception as error:  # of the network below it, whose library differs from release to release
        raise SourceFailed(f"the hub cannot be asked ({type(error).__name__})") from error
