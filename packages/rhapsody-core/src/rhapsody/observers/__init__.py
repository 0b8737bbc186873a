"""What watches a run for its user: ordinary plugins, on the same hooks as third parties'."""
