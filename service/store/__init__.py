"""Tasks and versions: publish, follow, read."""
