"""Anyone's WebDataset tars, listed with a schema and trained on as they are."""
