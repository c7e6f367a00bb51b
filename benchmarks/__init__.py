"""Measurements of this project. Not part of the package; run them from the repository's root."""
