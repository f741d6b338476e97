"""The whole chain by one command: stages from a YAML, run and stopped, each a process of its own."""
