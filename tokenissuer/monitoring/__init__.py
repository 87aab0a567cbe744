"""What an operator sees: the log, metrics, and whether everything can be asked."""
