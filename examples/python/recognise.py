"""Recognise the action in each video: python recognise.py BUNDLE VIDEO..."""

import sys

import flowless

bundle, *videos = sys.argv[1:] or sys.exit(__doc__)
try:
    predictions = list(flowless.load(bundle).predict_many(videos))
except flowless.FlowlessError as error:
    sys.exit(f"recognise: {error}")
for item in predictions:
    print(item.video, item.error or f"{item.top[0].label} {item.top[0].score:.3f}", sep="\t")
sys.exit(any(item.error for item in predictions))
