"""Tables and pages made from a run's results."""
