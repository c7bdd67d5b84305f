"""python_client.py SOCKET TOKEN_FILE FEATURE SECONDS ACCOUNT: one connection, one consume after another.
Prints one JSON document."""
import json
import os
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
sys.path.insert(0, os.path.join(ROOT, "proto/clients/python"))
import tollgate  # noqa: E402

path, token_file, feature, seconds, account = *sys.argv[1:4], float(sys.argv[4]), sys.argv[5]
with open(token_file, encoding="utf-8") as text:
    client = tollgate.Client.unix(path, token=text.read().strip())
times = []
end = time.perf_counter() + seconds
while (start := time.perf_counter()) < end:
    decision = client.consume(f"{account}/m{len(times) % 100}", {feature: 1})
    times.append(time.perf_counter() - start)
    if not decision.allowed:
        raise SystemExit(f"denied: {decision}")
client.close()
times.sort()
print(json.dumps({"throughput": len(times) / sum(times), "units": len(times),
                  "p50": times[len(times) // 2] * 1e6,
                  "p99": times[len(times) * 99 // 100] * 1e6}))
