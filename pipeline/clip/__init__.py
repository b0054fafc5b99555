"""What a clip is: which frames, how they are resized and cropped, and the protocols of evaluation."""
