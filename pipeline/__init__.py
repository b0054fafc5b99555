"""The room `pipeline`: from video files and data sets to clips.

The light half needs numpy, PyAV and Pillow alone, and is what a runtime install uses: `spec` (what a clip is), `sampling`
(which frames), `probe` and `decode` (from a file, exactly), `preprocess` (the one resize rule), `scan` and `index` (data
sets). The heavy half adds DALI and PyTorch: batches for training and evaluation.
"""
