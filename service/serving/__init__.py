"""What the server does, without HTTP: resolve a version, decode, compute, score, take an upload, check health.

Routes call it; it knows the engine, the bank and the repository.
"""
