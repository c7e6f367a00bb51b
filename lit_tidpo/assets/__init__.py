"""Data and models that the package ships, each in a folder with a README."""
