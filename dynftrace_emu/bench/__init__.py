"""``dynftrace-emu bench``: what tracing costs, measured against what people would use instead."""
