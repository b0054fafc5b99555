"""What `flowless watch` makes of a watcher's results: lines, a table, an overlay on a page and in recordings, metrics."""
