"""The built-in importance estimators, one file each."""
