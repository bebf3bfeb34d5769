"""Turn a folder of labelled pictures or clips into an adapter file."""
