"""Bytes that are damaged at random, and a count of what that has broken."""

import contextlib
import random
import traceback
from collections import Counter
from collections.abc import Iterator
from pathlib import Path


def with_wrong_bytes(content: bytes, rng: random.Random, most: int) -> bytes:
    """Return content in which some bytes are others, at most so many."""
    wrong = bytearray(content)
    for _ in range(rng.randint(1, most)):
        wrong[rng.randrange(len(wrong))] = rng.randrange(256)
    return bytes(wrong)


@contextlib.contextmanager
def noting(failures: Counter) -> Iterator[None]:
    """Count errors by where they were raised, and go on."""
    try:
        yield
    except Exception as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        failures[f"{error!r:.80} in {Path(where.filename).name}:{where.name}"] += 1
