"""A trained model read back: evaluated again, and asked about one film or many."""
