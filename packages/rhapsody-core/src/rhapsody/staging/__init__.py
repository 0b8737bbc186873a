"""Files between tasks: where an input comes from, how long a sandbox lives, what is fetched."""
