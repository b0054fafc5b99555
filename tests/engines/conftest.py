"""The bundles of the export tests."""

from export_fixtures import built, bundle, checkpoint, exported, film_bundles, film_model, streaming_bundles, streaming_models, videos

__all__ = ["built", "bundle", "checkpoint", "exported", "film_bundles", "film_model", "streaming_bundles", "streaming_models", "videos"]
