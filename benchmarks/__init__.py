"""Training steps measured side by side: `python -m benchmarks.run`."""

import os

os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # the profiler announces every start and stop
