"""Pure decisions: no sockets, files, clocks, threads or randomness; `now` is an argument."""
