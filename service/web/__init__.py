"""The front end: HTTP, bodies, decoding, lookups, scores; it knows no device."""
