"""How estimators and losses are found, named, parsed and stored."""
