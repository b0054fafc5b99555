"""The fixtures of tests/export/conftest.py, for the tests of other packages: what they make lies in one folder of the session."""

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location("flowless_export_fixtures", Path(__file__).parent / "export" / "conftest.py")
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
streaming_models = _module.streaming_models
streaming_bundles = _module.streaming_bundles
learnt = _module.learnt
calibration = _module.calibration
