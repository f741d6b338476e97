"""A whole study by one command: a chain of stages from a YAML file, each in its own process."""
