"""`flowless demo`: the whole way on generated videos, and its report."""
