"""The whole study by one command: a chain of stages, each a process that can be stopped and continued."""
