"""Opens, uses and closes a bundle fifteen times; prints resident bytes after the fifth and after the last time."""

from __future__ import annotations

import gc
import json
import resource
import sys
from pathlib import Path

from pocketdraft.runtime.engine import open_engine
from pocketdraft.runtime.session import open_session


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


sizes = []
for _ in range(15):
    engine = open_engine(Path(sys.argv[1]), 1)
    for _ in open_session(engine, "mtp").generate(list(range(10, 30)), 8):
        pass
    engine.close()
    del engine
    sizes.append(resident())
print(f"\n{json.dumps([sizes[4], sizes[-1]])}")
