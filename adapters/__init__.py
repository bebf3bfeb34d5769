"""What an adapter is: file, operator, bank, media and training. It knows nothing of HTTP."""
