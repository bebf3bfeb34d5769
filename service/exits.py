"""Exit codes of the command and of the server's processes."""

FAILED = 1
"""What was asked did not work."""
USAGE = 2
"""The command line itself is wrong."""
DEVICE_LOST = 3
"""A server's device computes no more."""
INTERRUPTED = 130
"""Ctrl-C, as shells have it."""
CUT_OFF = 4
"""A server was told to stop and something in it hung, so that it was ended."""
