"""The built-in loss components, one file each."""
