"""What the kernel knows of a process, and a small pod to run one in."""
import os
import shutil
import signal
import subprocess
import threading
import time


def resident(pid, peak=False):
    """Megabytes of resident memory, now or at the most so far."""
    name = "VmHWM:" if peak else "VmRSS:"
    with open(f"/proc/{pid}/status", encoding="ascii") as status:
        for line in status:
            if line.startswith(name):
                return int(line.split()[1]) / 1024
    return 0.0


def work(pid):
    """Nanoseconds run and times switched to and away, over all threads."""
    ran = switches = 0
    for task in os.listdir(f"/proc/{pid}/task"):
        folder = f"/proc/{pid}/task/{task}"
        try:
            with open(folder + "/schedstat", encoding="ascii") as text:
                ran += int(text.read().split()[0])
            with open(folder + "/status", encoding="ascii") as text:
                switches += sum(int(line.split()[1]) for line in text
                                if "voluntary_ctxt_switches" in line)
        except FileNotFoundError:
            continue
    return ran, switches


def idle(pid, seconds):
    """Part of a core used, and wake-ups a second, while nobody asks."""
    (ran, switches), start = work(pid), time.monotonic()
    time.sleep(seconds)
    (ran2, switches2), took = work(pid), time.monotonic() - start
    return (ran2 - ran) / 1e9 / took, (switches2 - switches) / took


class Pod:
    """A quarter of a core and 64 MB for one process. By cgroup where that is allowed (the newer
    or the older interface), else by cpulimit, else by stopping it three quarters of the time:
    `kind` says which. Memory is bounded by a cgroup only."""

    def __init__(self, pid, share=0.25, megabytes=64):
        self.pid, self.share, self.folders, self.kind = pid, share, [], ""
        self.limiter, self.ending = None, threading.Event()
        name, period = f"tollgate-bench-{pid}", 100_000
        quota = int(period * share)
        try:
            if os.path.exists("/sys/fs/cgroup/cgroup.controllers"):
                self.group(f"/sys/fs/cgroup/{name}", {
                    "cpu.max": f"{quota} {period}", "memory.max": str(megabytes << 20)})
                self.kind = "cgroup v2"
            else:
                self.group(f"/sys/fs/cgroup/cpu/{name}", {
                    "cpu.cfs_period_us": str(period), "cpu.cfs_quota_us": str(quota)})
                self.kind = "cgroup v1"
                try:
                    self.group(f"/sys/fs/cgroup/memory/{name}", {
                        "memory.limit_in_bytes": str(megabytes << 20)})
                except OSError:
                    self.kind += ", memory not bounded"
        except OSError:
            self.by_hand()

    def group(self, folder, values):
        os.mkdir(folder)
        self.folders.append(folder)
        for key, value in {**values, "cgroup.procs": str(self.pid)}.items():
            with open(os.path.join(folder, key), "w", encoding="ascii") as out:
                out.write(value)

    def by_hand(self):
        self.leave()
        if shutil.which("cpulimit"):
            self.kind = "cpulimit, memory not bounded"
            self.limiter = subprocess.Popen(
                ["cpulimit", "-p", str(self.pid), "-l", str(int(self.share * 100))],
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            return
        self.kind = "stopped three quarters of the time, memory not bounded"
        threading.Thread(target=self.duty, daemon=True).start()

    def duty(self):
        turn = 0.02
        try:
            while not self.ending.is_set():
                os.kill(self.pid, signal.SIGCONT)
                time.sleep(turn * self.share)
                os.kill(self.pid, signal.SIGSTOP)
                time.sleep(turn * (1 - self.share))
            os.kill(self.pid, signal.SIGCONT)
        except ProcessLookupError:
            return

    def leave(self):
        """Everything as it was; the process must be gone, or moves back to the root group."""
        self.ending.set()
        if self.limiter:
            self.limiter.terminate()
            self.limiter.wait()
        for folder in self.folders:
            try:
                with open(os.path.join(os.path.dirname(folder), "cgroup.procs"), "w",
                          encoding="ascii") as out:
                    out.write(str(self.pid))
            except OSError:
                pass
            for _ in range(50):
                try:
                    os.rmdir(folder)
                    break
                except OSError:
                    time.sleep(0.02)
        self.folders = []
