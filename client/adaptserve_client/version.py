"""The version, for the package, its wheel and the User-Agent."""

__version__ = "0.1.0"
