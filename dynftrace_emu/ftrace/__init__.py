"""The seed: records, recorder, patcher, ftraced."""
