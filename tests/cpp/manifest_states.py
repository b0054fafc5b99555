"""A streaming bundle's state in the manifest, and changes of it, for test_manifest.py."""

from __future__ import annotations

from typing import Any

OK, DAMAGED = 0, 3


def state_of(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Return a streaming graph's state, as a manifest has it, for a clip's record of several frames a segment."""
    segments, frames = spec["segments"], spec["frames_per_segment"]
    picture = [spec["height"], spec["width"], 3]
    return [
        {"name": "frames", "shape": [frames - 1, *picture], "dtype": "uint8"},
        {"name": "shift_00", "shape": [8, 12, 12], "dtype": "float32"},
        {"name": "features", "shape": [segments - 1, 128], "dtype": "float32"},
        {"name": "started", "shape": [2], "dtype": "float32"},
    ]


#: A change of a document that has this state -> the status that C++ ends with.
STATES: dict[str, tuple[str, int]] = {
    "nothing": ("document", OK),
    "a state in another order": ("document.update(state=state[::-1])", OK),
    "a state of segments of one frame": ("(document['spec'].update(frames_per_segment=1), document.update(state=state[1:]))", OK),
    "a state of one segment": ("(document['spec'].update(segments=1), document.update(state=[state[0], state[3]]))", OK),
    "a state that is a table": ("document.update(state={'started': state[3]})", DAMAGED),
    "a state that is null": ("document.update(state=None)", DAMAGED),
    "a state of texts": ("document.update(state=['started'])", DAMAGED),
    "a memory beside it": ("(document['spec'].update(frames_per_segment=1), document.update(memory=3, state=state[1:]))", DAMAGED),
    "a tensor without shape": ("state[1].pop('shape')", DAMAGED),
    "a tensor's unknown field": ("state[1].update(layout='NCHW')", DAMAGED),
    "a tensor's type float16": ("state[1].update(dtype='float16')", DAMAGED),
    "a tensor without sizes": ("state[1].update(shape=[])", DAMAGED),
    "a tensor of size 0": ("state[1].update(shape=[8, 0])", DAMAGED),
    "a tensor of size -1": ("state[1].update(shape=[-1])", DAMAGED),
    "a tensor of size true": ("state[1].update(shape=[True])", DAMAGED),
    "a tensor of size 8.0": ("state[1].update(shape=[8.0])", DAMAGED),
    "a tensor of size 2^31": ("state[1].update(shape=[2**31])", DAMAGED),
    "a tensor of 2^31 elements": ("state[1].update(shape=[2**16, 1, 2**15])", DAMAGED),
    "a tensor of 2^31 - 1 elements": ("state[1].update(shape=[1, 2**31 - 1, 1])", OK),
    "a tensor of more elements than 64 bits count": ("state[1].update(shape=[2**31 - 1] * 9)", DAMAGED),
    "a tensor of an empty name": ("state[1].update(name='')", DAMAGED),
    "a tensor of 40 characters": ("state[1].update(name='s' * 40)", OK),
    "a tensor of 41 characters": ("state[1].update(name='s' * 41)", DAMAGED),
    "a tensor of two lines": ("state[1].update(name='shift\\n')", DAMAGED),
    "a tensor with a zero byte": ("state[1].update(name='shift\\0')", DAMAGED),
    "a tensor in upper case": ("state[1].update(name='Shift')", DAMAGED),
    "a tensor of another script": ("state[1].update(name='é')", DAMAGED),
    "a tensor named frame": ("state[1].update(name='frame')", DAMAGED),
    "a tensor named scores": ("state[1].update(name='scores')", DAMAGED),
    "a tensor named frame_0": ("state[1].update(name='frame_0')", OK),
    "a tensor named as an output": ("state[1].update(name='next_shift')", DAMAGED),
    "a tensor named next": ("state[1].update(name='next')", OK),
    "two tensors of a name": ("state[1].update(name='started')", DAMAGED),
    "a state without started": ("document.update(state=state[:3])", DAMAGED),
    "a state without features": ("document.update(state=[*state[:2], state[3]])", DAMAGED),
    "a state without frames": ("document.update(state=state[1:])", DAMAGED),
    "a state with frames of segments of one": ("document['spec'].update(frames_per_segment=1)", DAMAGED),
    "a state with features of one segment": ("document['spec'].update(segments=1)", DAMAGED),
    "started as bytes": ("state[3].update(dtype='uint8')", DAMAGED),
    "features of another clip": ("state[2].update(shape=[4, 128])", DAMAGED),
    "features of three axes": ("state[2].update(shape=[3, 1, 128])", DAMAGED),
    "frames of another size": ("state[0]['shape'].insert(1, 7)", DAMAGED),
}
