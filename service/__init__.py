"""The server: settings, engine, repository and HTTP around the adapters."""
