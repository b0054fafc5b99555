"""The four systems trained alike: accuracy beside cost."""
