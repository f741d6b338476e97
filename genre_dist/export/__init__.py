"""A model taken out of a run, with a card that describes it."""
