"""A short, fixed run of the fuzzers' targets: ``python -m tests.fuzz`` is the long one."""

import random

import pytest

from tests.fuzz.choices import Choices, edited
from tests.fuzz.targets import TARGETS

pytestmark = pytest.mark.usefixtures("one_thread")

RUNS = {"export": 6, "resume": 15}  # slower than the others


@pytest.mark.parametrize("name", TARGETS)
def test_readers_take_damaged_files_or_say_what_is_wrong(name, tmp_path):
    target, generator = TARGETS[name], random.Random(name)
    seeds = target.seeds()
    accepted = 0
    for i in range(RUNS.get(name, 60)):
        data = bytearray(seeds[i % len(seeds)])
        if i >= len(seeds):
            for _ in range(generator.randint(1, 8)):
                data[generator.randrange(len(data))] = generator.randrange(256)
            if generator.random() < 0.3:
                del data[generator.randrange(len(data)) :]
        accepted += target(bytes(data), tmp_path)
    assert accepted  # or what the target reads is no file of ours


def test_a_finding_is_seen():
    from tests.fuzz.targets import Target

    def run(data, folder):
        raise KeyError(data)

    with pytest.raises(KeyError):
        Target(list, run, (ValueError,))(b"", None)


def test_choices_change_documents():
    document = {"a": [1, 2, {"b": 0.5}], "c": "d"}
    generator = random.Random(0)
    changed = [edited(document, Choices(generator.randbytes(40))) for _ in range(100)]
    assert document == {"a": [1, 2, {"b": 0.5}], "c": "d"}
    assert sum(repr(c) != repr(document) for c in changed) > 90
