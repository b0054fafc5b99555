"""From a video file to the frames of a clip: files, codecs, data sets, which frames to take, batches."""
