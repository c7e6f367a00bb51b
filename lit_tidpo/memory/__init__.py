"""How much memory a run takes, from a step that is run without numbers."""
