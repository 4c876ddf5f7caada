"""The experiment: from a specification to steps with content keys, run in child processes."""
