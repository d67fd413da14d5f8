# Hostile notebooks, a cell each: the machine is to be reached, or the grader stopped.
#
# `reached(...)` says that an attack has succeeded; capitals are names of what stands outside, see
# `Outside.told`.  Harmless ones may be run without a box, where they must succeed.
#
# ruff: noqa
raise ImportError("these cells are read, and run in a box; nothing imports them")

# %% read a secret file: open a file outside by its path -> FileNotFoundError, 4 of 4 points (harmless)
reached(open(SECRET_FILE).read())

# %% read /etc/passwd: list the users of the machine -> FileNotFoundError, 4 of 4 points (harmless)
reached(open("/etc/passwd").read(40))

# %% write outside: leave a file in a folder of the machine -> FileNotFoundError, 4 of 4 points (harmless)
reached(open(OUTSIDE + "/left", "w").write("x"))

# %% write into the submission: change the notebook after it was handed in -> FileNotFoundError, 4 of 4 points (harmless)
reached(open(SUBMISSION, "a").write("x"))

# %% write into /usr: change the system's programs -> OSError, 4 of 4 points
reached(open("/usr/bin/vaecourse-test", "w").write("x"))

# %% connect to this machine: talk to a server on 127.0.0.1 -> ConnectionRefusedError, 4 of 4 points (harmless)
import socket

socket.create_connection(("127.0.0.1", PORT), 2).sendall(b"x")
reached(PORT)

# %% connect to an abstract socket: talk to a server that has no file and no port -> ConnectionRefusedError, 4 of 4 points (harmless)
import socket

socket.socket(socket.AF_UNIX).connect(chr(0) + SOCKET)
reached(SOCKET)

# %% connect to the network: send something to another machine -> OSError, 4 of 4 points
import socket

socket.create_connection(("192.0.2.1", 80), 2)
reached("network")

# %% read the environment: find a token among the environment variables -> KeyError, 4 of 4 points (harmless)
reached(os.environ[SECRET_NAME])

# %% read the environment of other processes: find it in /proc/*/environ -> LookupError, 4 of 4 points (harmless)
for path in Path("/proc").glob("[0-9]*/environ"):
    with contextlib.suppress(OSError):
        if SECRET_NAME.encode() in path.read_bytes():
            reached(path)
raise LookupError("no process has it")

# %% kill the grader: send SIGKILL to the parent and to the grader -> ProcessLookupError, 4 of 4 points
os.kill(os.getppid(), 9)
os.kill(GRADER, 9)
reached("killed")


# %% kill everything: send SIGKILL to all processes from inside an answer -> error, 2 of 4 points
def learning_rate_for_sse(learning_rate, scale):
    os.kill(-1, 9)
    time.sleep(60)


# %% see other processes: list what runs on the machine -> LookupError, 4 of 4 points (harmless)
seen = [path.name for path in Path("/proc").glob("[0-9]*")]
if len(seen) > 4:
    reached(len(seen))
raise LookupError("only the box itself")

# %% loop for ever: catch the timer's exception and compute on -> timeout, 0 of 4 points
while True:
    try:
        while True:
            pass
    except BaseException:
        pass

# %% sleep for ever: wait until the grader gives up -> TimeIsUp, 4 of 4 points
time.sleep(1e6)

# %% ignore all signals: block what can be blocked, then sleep -> timeout, 0 of 4 points
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
time.sleep(1e6)

# %% leave a daemon behind: fork twice, start a session, keep the pipes open -> 4 of 4 points
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(600)
    os._exit(0)
os.wait()

# %% fork bomb: fork until nothing runs any more -> BlockingIOError, error, 0 of 4 points
while True:
    if os.fork() == 0:
        time.sleep(600)

# %% 50 GB in one process: take all memory at once -> MemoryError, 4 of 4 points
reached(len(bytearray(50_000_000_000)))

# %% memory of many processes: take it in pieces, each below the limit of a process -> memory, 0 of 4 points
signal.setitimer(signal.ITIMER_REAL, 0)
for _ in range(6):
    if os.fork() == 0:
        piece = b"x" * 200_000_000
        time.sleep(600)
time.sleep(600)

# %% memory that no process shows: write it to files in memory that have no name -> PermissionError, 4 of 4 points
kept, piece = [], bytes(50_000_000)
for _ in range(16):
    kept.append(os.memfd_create("x"))
    os.write(kept[-1], piece)
del piece
time.sleep(0.5)
reached("more than allowed")

# %% memory of a shared mapping: fill it, and let go of the pages without freeing them -> PermissionError, 4 of 4 points
import mmap

piece = bytes(50 * 2**20)
kept = mmap.mmap(-1, 16 * len(piece))
for start in range(0, len(kept), len(piece)):
    kept[start : start + len(piece)] = piece
    kept.madvise(mmap.MADV_DONTNEED)
del piece
time.sleep(0.5)
reached("more than allowed")

# %% processor time in small pieces: compute in children that end before anybody looks -> timeout, 0 of 4 points
end = time.monotonic() + 30
signal.setitimer(signal.ITIMER_REAL, 0)
while time.monotonic() < end:
    if os.fork() == 0:
        stop = time.process_time() + 0.1
        while time.process_time() < stop:
            pass
        os._exit(0)
    os.wait()

# %% fill the disk with one file: write until there is no room -> OSError, 4 of 4 points
with open("large", "wb") as file:
    while True:
        file.write(bytes(10**7))

# %% fill the disk with many files: write a hundred files of ten megabytes -> OSError, 4 of 4 points
for n in range(100):
    Path(f"large-{n}").write_bytes(bytes(10**7))
reached("1 GB")

# %% fill the shared memory: write into /dev/shm -> OSError, 4 of 4 points
for n in range(50):
    Path(f"/dev/shm/large-{n}").write_bytes(bytes(10**7))
reached("500 MB")

# %% write into /dev: fill a file system that is easily forgotten -> OSError, 4 of 4 points
reached(Path("/dev/large").write_bytes(bytes(10**7)))

# %% flood the output: print without end -> output, 0 of 4 points
while True:
    print("x" * 100_000)

# %% become root in a new namespace: unshare the user namespace -> PermissionError, 4 of 4 points
import ctypes

if ctypes.CDLL(None).unshare(0x10000000) == 0:
    reached(os.getuid())
raise PermissionError("no namespace")

# %% become root by a setuid program: call su -> PermissionError, 4 of 4 points
import subprocess

done = subprocess.run(["/usr/bin/su", "-c", "id -u"], capture_output=True, stdin=subprocess.DEVNULL)
if done.returncode == 0:
    reached(done.stdout)
raise PermissionError(done.stderr)

# %% trace another process: attach to the parent, and to the grader, with ptrace -> ProcessLookupError, 4 of 4 points
import ctypes

libc = ctypes.CDLL(None)
if libc.ptrace(0x4206, GRADER, 0, 0) == 0:  # PTRACE_SEIZE
    reached(GRADER)
libc.ptrace(0x4206, os.getppid(), 0, 0)
raise ProcessLookupError("no process of the machine")
