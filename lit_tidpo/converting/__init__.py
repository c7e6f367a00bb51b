"""Configurations of other trainers, turned into ones of this package."""
