"""One run of the generator, and what it printed."""
import json
import subprocess

from .stack import BenchError

ACCOUNTS = 1000


class Rig:
    """The servers of a bench and the options that every run has."""

    def __init__(self, servers, options):
        self.servers, self.options = servers, options
        self.ours_redis = self.peer_redis = self.sidecar = self.echo = None
        self.ledger = self.ledger_path = None
        self.failed, self.audits = [], 0

    def run(self, words, label):
        command = [self.servers.binary, "bench", "run", "--quiet", "--json", *words]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode not in (0, 1, 3) or '"throughput"' not in done.stdout:
            raise BenchError(f"{' '.join(command)} ended {done.returncode}:\n"
                             f"{done.stderr[-2000:]}{done.stdout[-2000:]}")
        result = json.loads(done.stdout)
        audit = result.get("audit")
        if audit is not None:
            self.audits += 1
            if done.returncode:
                found = (audit["problems"] + audit["limitsExceeded"] + audit["unreachable"])[:3]
                self.failed.append(f"audit of {label}: difference {audit['difference']}, {found}")
        return result

    def shape(self, connections=50, depth=1, records=1, feature="bench.units", seconds=None,
              subjects=ACCOUNTS, extra=(), warmup=0.5):
        seconds = self.options.seconds if seconds is None else seconds
        warmup = min(warmup, seconds) if self.options.quick else warmup
        return ["--connections", str(connections), "--in-flight", str(depth),
                "--records", str(records), "--feature", f"{feature}=1",
                "--subjects", str(subjects), "--seconds", str(seconds),
                "--warmup", str(warmup), *extra]

    def ours(self, shape, label, transport="unix", sidecars=None, redis=None, may_deny=False,
             audit_at=None):
        """A run against sidecars, with its audit. CPU: of the sidecars and of their Redis."""
        sidecars = sidecars or [self.sidecar]
        words = ["--token-file", self.servers.tokens["check"],
                 "--admin-token-file", self.servers.tokens["admin"],
                 "--server-pid", str((redis or self.ours_redis).pid)]
        if audit_at:
            words += ["--audit-target", audit_at.target("unix")]
        for sidecar in sidecars:
            words += ["--target", sidecar.target(transport), "--server-pid", str(sidecar.pid)]
        result = self.run(words + shape, label)
        # What was not decided is no decision: it may not make the figure better.
        if result["allowed"] != result["completed"] and not may_deny:
            self.failed.append(
                f"{label}: only {result['allowed']} of {result['completed']} allowed: "
                f"{result['reasons']} {result['errors']}")
            result["throughput"] *= result["allowed"] / max(1, result["completed"])
        return result

    def resp(self, command, shape, label, transport="unix"):
        words = ["--resp", self.peer_redis.target(transport), "--command", command,
                 "--server-pid", str(self.peer_redis.pid)]
        if command == "decide":
            words += ["--deployment", "peer"]
        result = self.run(words + shape, label)
        if result["errors"]:
            raise BenchError(f"the peer refused {label}: {result['errors']}")
        return result

    def echoed(self, shape, label, transport="unix"):
        address, pid = self.echo[transport]
        return self.run(["--echo", address, "--server-pid", str(pid)] + shape, label)


def latency(result, name):
    return result["latencyMicroseconds"][name]


def server_cpu(result, pid=None):
    """Microseconds of CPU per answer: of all servers, or of one."""
    spent = sum(s["cpuNanoseconds"] for s in result["servers"] if pid in (None, s["pid"]))
    return spent / 1000 / max(1, result["measured"])
