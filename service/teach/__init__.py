"""Trainings asked over HTTP: their records on disk, and the process that carries them out."""
