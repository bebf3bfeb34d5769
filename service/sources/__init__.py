"""Where tasks come from beside uploads: a watched folder, and a file that declares them with their sources."""
