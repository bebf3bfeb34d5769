"""Other people's files -> ours. Each module reads one kind of file and refuses, with a reason, what we cannot serve.

It does not know HTTP or the command line.
"""

from adapters.importers.common import MAX_SOURCE_BYTES, Imported, ImportTerms, read_labels, save

__all__ = ["MAX_SOURCE_BYTES", "ImportTerms", "Imported", "read_labels", "save"]
