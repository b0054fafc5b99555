"""Recognise the action in each video: python recognise.py BUNDLE VIDEO..."""

import sys

import flowless

if len(sys.argv) < 3:
    sys.exit(__doc__)
try:
    for prediction in flowless.load(sys.argv[1]).predict_many(sys.argv[2:]):
        print(prediction.video, prediction.error or f"{prediction.top[0].label} {prediction.top[0].score:.3f}", sep="\t")
except flowless.FlowlessError as error:
    sys.exit(f"recognise: {error}")
