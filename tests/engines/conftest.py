"""The bundles of the export tests, by the same fixtures (they lie in one folder of the session, so each is made once)."""

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location("flowless_export_fixtures", Path(__file__).parents[1] / "export" / "conftest.py")
assert _spec is not None
assert _spec.loader is not None
_module = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_module)

checkpoint = _module.checkpoint
exported = _module.exported
built = _module.built
bundle = _module.bundle
videos = _module.videos
film_model = _module.film_model
film_bundles = _module.film_bundles
