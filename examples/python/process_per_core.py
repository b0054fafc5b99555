"""Recognise many videos with a process per core.

python process_per_core.py BUNDLE VIDEO... [--processes N]

It prints one line of JSON a video, in the order of the arguments. Each process has an engine of one thread, and decodes and scores whole
videos alone; a process that is free takes the next video.

Beside one engine with all threads (flowless.load(bundle).predict_many(videos)):
- It can be faster where many videos wait already and the network is small or there are many cores: threads that share one small network
  wait for each other, and so do Python's own threads; processes do not.
- It is not where one video must be done soon, or where the network is large and the cores few: then all threads work on one clip well,
  and several networks at once compete for the caches.
- It takes the memory of the weights and of a decoder once per process.
Measure it with your bundle and videos: flowless bench processes --bundle BUNDLE --videos VIDEO...
"""

import argparse
import json
import signal
import sys
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

import flowless
from flowless.engines import Engine, Prediction
from flowless.machine import usable_cores

engines: list[Engine] = []  # this process's one engine


def start(bundle: Path) -> None:
    """Load the engine of a new process."""
    engines.append(flowless.load(bundle, threads=1, warm_up=True))


def recognise(video: str) -> Prediction:
    """Predict a video in the process that is free."""
    try:
        return engines[0].predict(video)
    except flowless.FlowlessError as error:
        return Prediction(video=video, error=str(error))


def main() -> int:
    """Print a line for each video; return 1 where one could not be read, 130 after Ctrl-C or SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("videos", nargs="+")
    parser.add_argument("--processes", type=int, default=usable_cores(), help="one per usable core by default")
    args = parser.parse_args()
    if args.processes < 1:
        parser.error("--processes must be at least 1")
    try:
        print(flowless.load(args.bundle, threads=1).why, file=sys.stderr)  # a bundle that does not load ends here, with its reason
    except flowless.FlowlessError as error:
        sys.exit(f"process_per_core: {error}")
    failed = 0
    # Spawned, not forked: a fork would copy the engine library's threads in the middle of what they do.
    with ProcessPoolExecutor(args.processes, get_context("spawn"), start, (args.bundle,)) as pool:
        try:
            signal.signal(signal.SIGINT, signal.SIG_IGN)  # the processes that start now inherit it: after Ctrl-C this one ends them
            predictions = pool.map(recognise, args.videos)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.default_int_handler)
            for prediction in predictions:
                failed += prediction.error is not None
                print(json.dumps(prediction.to_dict()), flush=True)
        except KeyboardInterrupt:
            pool.shutdown(cancel_futures=True)  # waits for the videos that were begun
            return 130
        except BrokenProcessPool:
            sys.exit("process_per_core: a process was killed, as happens when memory runs out. Free some, or give fewer --processes.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
