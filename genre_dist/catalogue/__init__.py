"""A catalogue of films: its files, and how they come from tables, posters and drawings."""
