"""Runs checks and prints their lines. A check is a function that raises when something does not hold."""

import os
import re
import secrets
import sys
import threading
import traceback

# Longest time that one check may take, seconds.
LIMIT = 180

# Longest time that one thing may take, seconds.
PATIENCE = 120


class Suite:
    def __init__(self, options):
        self.options = options
        self.failed = 0

    def run(self, check):
        name = check.__module__ + "_py_" + check.__name__
        if not re.search(self.options.only, name):
            return
        problem = []

        def body():
            try:
                check(self.options)
            except BaseException as error:  # whatever it was, the check failed
                traceback.print_exc()
                text = str(error) or type(error).__name__
                problem.append(f"{type(error).__name__}: {text}".replace("\n", " "))

        # A client that hangs must not hang the suite.
        thread = threading.Thread(target=body, daemon=True)
        thread.start()
        thread.join(LIMIT)
        if thread.is_alive():
            problem.append(f"does not end within {LIMIT} s")
        if problem:
            self.failed += 1
            print(f"FAILED {name}: {problem[0]}", flush=True)
        else:
            print(f"ok {name}", flush=True)


def survives(attempt):
    """Checks that a connection is kept while its client has nothing to say. A busy machine may stop all of us for
    longer than a short interval allows, so that longer ones, in seconds, are tried before it counts."""
    tried = []
    for interval in [1, 3, 9]:
        try:
            attempt(interval)
            return
        except Exception as error:
            tried.append(f"with {interval} s: {type(error).__name__} {error}")
    raise AssertionError(f"the connection ended: {tried}")


def ask(what):
    """Asks whoever runs this program for something, and waits for the answering line."""
    print(f"await {what}", flush=True)
    sys.stdin.readline()


def equal(got, want, what):
    if got != want:
        raise AssertionError(f"{what}: got {short(got)}, want {short(want)}")


def true(condition, what):
    if not condition:
        raise AssertionError(what)


def short(value):
    text = repr(value)
    return text if len(text) <= 300 else text[:300] + "..."


def unique(kind):
    return f"interop-{kind}-{secrets.token_hex(6)}"


def random_body(size):
    return os.urandom(size)


# None, one byte, one frame, more than 64 KiB, many frames.
BODY_SIZES = [0, 1, 256, 65_537, 1 << 20, 4 << 20]
