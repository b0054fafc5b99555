"""The folder's helper modules, and the bundles of the export tests."""

from __future__ import annotations

import sys
from pathlib import Path

from export_fixtures import built, bundle, checkpoint, exported, film_bundles, film_model, videos

__all__ = ["built", "bundle", "checkpoint", "exported", "film_bundles", "film_model", "videos"]

sys.path.insert(0, str(Path(__file__).parent))
