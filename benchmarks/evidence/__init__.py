"""The laboratory: the paper's tables in miniature, with seeds, intervals and paired tests."""
