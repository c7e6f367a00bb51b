"""What each strategy of Lightning does to a run, one file for each family of strategies."""
