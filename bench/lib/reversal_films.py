"""The name under which other benchmarks still import `videos_of`."""

from flowless.bench.lib.video_files import videos_of

__all__ = ["videos_of"]
