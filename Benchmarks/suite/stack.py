"""The servers of a bench: Redis, ledger, sidecars, echo, delaying proxy. Each on private sockets or
loopback ports, in a temporary directory, ended by process id whatever happens."""
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.request

from . import catalog

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

# What is lifted so that no ceiling of a deployment is what is measured; README names each.
LIFTED = f"""
limits: {{deadline_default_ms: 5000, redis_slow_ms: 3000, retained_deltas: 10000000, connections: 20000}}
dedupe: {{money_bytes: {1 << 40}, volume_bytes: {1 << 40}}}
outbox: {{entries: 100000000}}
"""
# Of the sidecar whose speed is measured: at a million a second the default is full of what is not
# settled within a third of a second, and what is full is settled early. Takes 200 MB once so many
# came, so memory is measured without.
ROOM = "leases: {operations: 4194304}\n"


class BenchError(Exception):
    """Something did not start, or did not answer: there is no figure."""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Sidecar:
    def __init__(self, process, path, port, http):
        self.process, self.path, self.port, self.http = process, path, port, http
        self.pid = process.pid

    def target(self, transport):
        return f"unix:{self.path}" if transport == "unix" else f"127.0.0.1:{self.port}"

    def metric(self, name):
        """As `/metrics` has it now."""
        address = f"http://127.0.0.1:{self.http}/metrics"
        with urllib.request.urlopen(address, timeout=5) as reply:
            for line in reply.read().decode().splitlines():
                if line.startswith(name + " "):
                    return float(line.split()[1])
        raise BenchError(f"{address} has no {name}")


class Redis:
    def __init__(self, process, path, port):
        self.process, self.path, self.port, self.pid = process, path, port, process.pid

    def target(self, transport):
        return f"unix:{self.path}" if transport == "unix" else f"127.0.0.1:{self.port}"

    def cli(self, *words):
        done = subprocess.run(["redis-cli", "-s", self.path, *words], capture_output=True,
                              text=True)
        return done.stdout.strip()

    def forget(self, outbox):
        """Operation records (and outbox entries) of past runs: every run starts alike."""
        keys = self.cli("--scan", "--pattern", "tg1:*").split()
        old = [key for key in keys if ":op:" in key]
        for start in range(0, len(old), 500):
            self.cli("UNLINK", *old[start:start + 500])
        if outbox:
            for key in keys:
                if key.endswith("}:out"):
                    self.cli("XTRIM", key, "MAXLEN", "0")

    def commands(self):
        """All commands run so far, those inside scripts too; and those that came by a connection
        of a sidecar."""
        total = scripted = 0
        for line in self.cli("INFO", "stats").splitlines():
            if line.startswith("total_commands_processed:"):
                total = int(line.split(":")[1])
        for line in self.cli("INFO", "commandstats").splitlines():
            name = line.split(":")[0].removeprefix("cmdstat_").lower()
            if name in ("evalsha", "eval", "fcall"):
                scripted += int(line.split("calls=")[1].split(",")[0])
        return total, scripted


class Servers:
    def __init__(self, binary, directory):
        self.binary, self.directory, self.started, self.tokens = binary, directory, [], {}
        self.paths = {}
        for name in ("check", "admin", "ledger"):
            self.tokens[name] = self.file(name + ".token")
            with open(self.tokens[name], "w", encoding="utf-8") as out:
                os.chmod(self.tokens[name], 0o600)
                out.write(secrets.token_hex(16) + "\n")

    def file(self, name):
        return os.path.join(self.directory, name)

    def start(self, name, words, **options):
        with open(self.file(name + ".log"), "ab") as log:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                       **options)
        self.started.append(process)
        return process

    def wait(self, name, process, ready, seconds=30, pause=0.05):
        end = time.monotonic() + seconds
        while not ready():
            if process.poll() is not None or time.monotonic() > end:
                with open(self.file(name + ".log"), encoding="utf-8", errors="replace") as log:
                    raise BenchError(f"{name} did not start:\n{log.read()[-2000:]}")
            time.sleep(pause)

    def stop(self, process):
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.started = [other for other in self.started if other is not process]

    def stop_all(self):
        for process in reversed(list(self.started)):
            self.stop(process)

    # ------------------------------------------------------------------------------- each kind

    def redis(self, name):
        path, port = self.file(name + ".sock"), free_port()
        process = self.start(name, [
            "redis-server", "--port", str(port), "--bind", "127.0.0.1", "--unixsocket", path,
            "--unixsocketperm", "700", "--dir", self.directory, "--save", "",
            "--appendonly", "no", "--daemonize", "no", "--maxmemory-policy", "noeviction",
            "--maxclients", "20000"])
        redis = Redis(process, path, port)
        self.wait(name, process, lambda: redis.cli("PING") == "PONG")
        return redis

    def echo(self):
        """The bare echo, compiled here, on both transports: two processes."""
        source, program = os.path.join(ROOT, "Benchmarks/Echo/echo.c"), self.file("echo")
        subprocess.run(["cc", "-O2", "-o", program, source], check=True)
        path, port = self.file("echo.sock"), free_port()
        unix = self.start("echo-unix", [program, "unix", path])
        tcp = self.start("echo-tcp", [program, "tcp", str(port)])
        self.wait("echo-unix", unix, lambda: os.path.exists(path))
        self.wait("echo-tcp", tcp, lambda: self.listens(port))
        return {"unix": (f"unix:{path}", unix.pid), "tcp": (f"127.0.0.1:{port}", tcp.pid)}

    @staticmethod
    def listens(port):
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    def ledger(self, deployment):
        path = self.file(deployment + "-l.sock")
        name = deployment + "-ledger"
        process = self.start(name, [
            self.binary, "ledger", "run", "--database", self.file(deployment + ".sqlite"),
            "--unix", path, "--token-file", self.tokens["ledger"]])
        self.wait(name, process, lambda: os.path.exists(path))
        return process, path

    def sidecar(self, deployment, redis_address, ledger_path, loops=1, number=1, extra="",
                until="ready", **options):
        """`until`: ready, listening (before there is a catalog it does no more), or started."""
        name = f"{deployment}-s{number}"
        path, port, http = self.file(name + ".sock"), free_port(), free_port()
        config = self.file(name + ".yaml")
        with open(config, "w", encoding="utf-8") as out:
            out.write(f"""
deployment: {{id: {deployment}, buckets: 16, mode: dev}}
sidecar_id: {name}
listen: {{unix: {path}, tcp: "127.0.0.1:{port}"}}
http: 127.0.0.1:{http}
event_loops: {loops}
credentials: {{check_file: {self.tokens['check']}, admin_file: {self.tokens['admin']}}}
redis: {{address: "{redis_address}"}}
ledger: {{address: "unix:{ledger_path}", token_file: {self.tokens['ledger']}}}
log_level: warning
""" + LIFTED + extra)
        process = self.start(name, [self.binary, "serve", "--config", config], **options)
        sidecar = Sidecar(process, path, port, http)
        if until == "ready":
            self.wait(name, process, lambda: ready(http), pause=0.01)
        elif until == "listening":
            self.wait(name, process, lambda: os.path.exists(path), pause=0.01)
        return sidecar

    def apply(self, sidecar):
        path = self.file("catalog.yaml")
        with open(path, "w", encoding="utf-8") as out:
            out.write(catalog.text())
        done = subprocess.run(
            [self.binary, "catalog", "apply", path, "--unix", sidecar.path, "--token-file",
             self.tokens["admin"], "--reason", "bench"], capture_output=True, text=True)
        if done.returncode:
            raise BenchError(f"the catalog was not applied: {done.stderr}")

    def delay(self, redis, milliseconds):
        """A proxy in front of a Redis: a round trip through it takes so much longer."""
        path = self.file(f"delay-{len(self.started)}.sock")
        process = self.start("delay", [
            sys.executable, os.path.join(os.path.dirname(os.path.abspath(__file__)), "delay.py"),
            path, redis.path, str(milliseconds / 2)])
        self.wait("delay", process, lambda: os.path.exists(path))
        return process, f"unix:{path}"


def ready(port):
    """Whether a sidecar says on its HTTP port that it is ready."""
    try:
        with socket.create_connection(("127.0.0.1", port), 1) as connection:
            connection.sendall(b"GET /readyz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
            return b" 200 " in connection.recv(64)
    except OSError:
        return False
