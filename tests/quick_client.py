"""What `python` and `jaxformer` of a `QuickPython` do: ask its server for what they were started with, and end so too.

They are this text behind a line that names the interpreter, with the values of the names below.
"""

import json
import os
import signal
import socket
import sys

ADDRESS, PYTHON, FLAGS, LOADED = "", "", None, {}

arguments = sys.argv[1:]
if os.path.basename(sys.argv[0]) == "jaxformer":
    arguments = ["-m", "jaxformer", *arguments]
while arguments and arguments[0] in ("-u", "-I", "-s"):
    del arguments[0]
is_python = bool(arguments) and (arguments[0] in ("-c", "-m") or arguments[0].endswith(".py"))
# JAX reads its variables while it is loaded.
if not is_python or {name: value for name, value in os.environ.items() if name.startswith("JAX_")} != LOADED:
    os.execv(PYTHON, [PYTHON, *arguments])

words = [word for word in arguments if word != "-m"]
is_run = words[:1] == ["jaxformer.train"] or words[:2] == ["jaxformer", "train"]
# A run on several devices has a process of its own.
is_run = is_run and "--mesh." not in " ".join(words) and os.environ.get("XLA_FLAGS") == FLAGS

numbers = []
for number in map(int, os.listdir("/dev/fd")):
    try:
        os.fstat(number)
        numbers.append(number)
    except OSError:  # That of the listing itself.
        pass
affinity = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
request = json.dumps([arguments, os.getcwd(), dict(os.environ), numbers, affinity]).encode()
other, early = 0, []
for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, lambda number, _: os.kill(other, number) if other else early.append(number))
with socket.socket(socket.AF_UNIX) as connection, connection.makefile() as answers:
    connection.connect(ADDRESS + ".runs" * is_run)
    socket.send_fds(connection, [len(request).to_bytes(8, "big")], numbers)
    connection.sendall(request)
    other = int(answers.readline() or 0)
    for number in early:
        os.kill(other, number)
    status = int(answers.readline() or 1)
if status < 0:
    if -status != signal.SIGKILL:  # What it does cannot be set.
        signal.signal(-status, signal.SIG_DFL)
    os.kill(os.getpid(), -status)
os._exit(status)
