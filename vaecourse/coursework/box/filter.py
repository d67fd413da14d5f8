"""A filter of system calls for the sandbox, as the bytes that bubblewrap takes.

It refuses memory that belongs to no process, which the watch over processes would miss (memfd,
System V segments, shared mappings without a file), and a few doors into the kernel that student
code does not need.  Everything else is allowed; the walls are the namespaces.
"""

import platform
import struct

ALLOW, REFUSE = 0x7FFF0000, 0x00050000 | 1  # the second: the error EPERM
LOAD_WORD, JUMP_IF_EQUAL, JUMP_IF_GREATER_OR_EQUAL, AND, RETURN = 0x20, 0x15, 0x35, 0x54, 0x06
NUMBER_AT, ARCHITECTURE_AT, FLAGS_OF_MMAP_AT = 0, 4, 16 + 3 * 8
SHARED_AND_ANONYMOUS = 0x21
X32 = 0x40000000  # a second table of calls, on x86-64 only

# name of the machine: code of its architecture, number of mmap, and numbers of what is refused:
# memfd_create, memfd_secret, shmget, ptrace, bpf, userfaultfd, perf_event_open, io_uring_setup,
# add_key, request_key, keyctl
MACHINES = {
    "x86_64": (0xC000003E, 9, (319, 447, 29, 101, 321, 323, 298, 425, 248, 249, 250)),
    "aarch64": (0xC00000B7, 222, (279, 447, 194, 117, 280, 282, 241, 425, 217, 218, 219)),
}


def seccomp_filter(machine: str | None = None) -> bytes:
    """Return the filter for a kind of machine, by default this one; it is empty for kinds not listed."""
    machine = machine or platform.machine()
    if machine not in MACHINES:
        return b""
    architecture, mmap, refused = MACHINES[machine]
    program = [  # what to do, with which number, and where to go if that is true or false: on, if left empty
        (LOAD_WORD, ARCHITECTURE_AT, "", ""),
        (JUMP_IF_EQUAL, architecture, "", "refuse"),
        (LOAD_WORD, NUMBER_AT, "", ""),
        (JUMP_IF_GREATER_OR_EQUAL, X32, "refuse", ""),
        *((JUMP_IF_EQUAL, number, "refuse", "") for number in refused),
        (JUMP_IF_EQUAL, mmap, "", "allow"),
        (LOAD_WORD, FLAGS_OF_MMAP_AT, "", ""),
        (AND, SHARED_AND_ANONYMOUS, "", ""),
        (JUMP_IF_EQUAL, SHARED_AND_ANONYMOUS, "refuse", "allow"),
    ]
    places = {"allow": len(program), "refuse": len(program) + 1}
    lines = [
        (code, *(places.get(target, place) - place for target in targets), value)
        for place, (code, value, *targets) in enumerate(program, 1)
    ]
    lines += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE)]
    return b"".join(struct.pack("=HBBI", *line) for line in lines)
