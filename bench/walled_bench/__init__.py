"""walled_bench: load, statistics and reports for the walled daemon. The daemon imports none of it."""
