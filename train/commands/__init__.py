"""The subcommands `flowless train`, `evaluate`, `models`, `import` and `fuse`. PyTorch is imported only when one runs."""
