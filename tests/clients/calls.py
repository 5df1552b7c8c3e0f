"""The list of scripted calls: each is a function, marked with the points that it holds."""

import importlib
import time
from dataclasses import dataclass, field

CALLS = []


@dataclass
class Place:
    """Where the server is. Clients are made once."""

    url: str
    made: dict = field(default_factory=dict)

    def client(self, make, *arguments):
        if make not in self.made:
            self.made[make] = make(self.url, *arguments)
        return self.made[make]


def call(*points):
    """Marks a scripted call with its numbers in the list of API conventions."""
    assert points and all(point.startswith("A-") for point in points)

    def listed(function):
        CALLS.append((points, function))
        return function

    return listed


def run(url, modules):
    """Runs all calls of the modules against a server, each on its own."""
    for module in modules:
        importlib.import_module(module)
    place, failed = Place(url), []
    for points, function in CALLS:
        name = f"{function.__module__}.{function.__name__}"
        began = time.monotonic()
        try:
            function(place)
        except Exception as error:  # the list goes on, so that one run shows all that fails
            failed.append(name)
            print(f"FAILED {name}: {type(error).__name__}: {error}", flush=True)
            continue
        took = time.monotonic() - began
        print(f"ok {' '.join(points)} {name} ({took:.1f} s)", flush=True)
    assert not failed, f"{len(failed)} of {len(CALLS)} calls failed: {', '.join(failed)}"
    return len(CALLS)


def refused(kind, function, *arguments, **options):
    """The error of a call that must be refused."""
    try:
        function(*arguments, **options)
    except kind as error:
        return error
    raise AssertionError("the call was accepted")
