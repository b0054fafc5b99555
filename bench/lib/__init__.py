"""What several benchmarks share: goals, networks, runners, videos, trainings."""
