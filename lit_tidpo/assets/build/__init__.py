"""How the shipped data and models were made: nothing here is needed to use them."""
