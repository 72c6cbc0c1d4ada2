"""A script for a fresh process: the memory that the LiteRT interpreter takes for one file.

It imports nothing of kdtoolkit, whose memory would be counted, and prints one number of bytes.
"""

import contextlib
import sys

RUNS = 3


def peak():
    """The largest resident set of this process so far, in bytes.

    Not `resource.getrusage`: its number begins with that of the process that started this one.
    """
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("VmHWM:"))
    return 1024 * int(line.split()[1])


def main(path):
    """Load and run the file; return by how much the peak grew."""
    from ai_edge_litert.interpreter import Interpreter

    # Forget what importing took at most, so that the peak starts at what is taken now.
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = peak()
    interpreter = Interpreter(model_path=path, num_threads=1)
    interpreter.allocate_tensors()
    for _ in range(RUNS):
        interpreter.invoke()
    return peak() - before


if __name__ == "__main__":
    print(main(sys.argv[1]))
