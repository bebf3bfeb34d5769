"""The shipped demo: its data, the training of its tasks, and the score of the shipped files."""
