"""Pages that show what estimators and models say of each token of a pair."""
