"""AdaptServe against what one would use instead: the same model, tasks, pictures and load."""
