"""Runs every golden vector against tollgate.py: whole, byte by byte, and all together.
Prints `ran N vectors` and exits 0, or names what failed and exits 1."""

import glob
import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import tollgate as t  # noqa: E402

VECTORS = os.path.join(HERE, "..", "..", "vectors")
failures = []


def expect(condition, name, what):
    if not condition:
        failures.append(f"{name}: {what}")


def receive(decoder):
    """All frames that are complete; the first error ends it."""
    outcomes = []
    try:
        while (frame := decoder.next()) is not None:
            header, payload = frame
            if header.name is None:
                outcomes.append(("error", {"code": "UNKNOWN_OPCODE", "fatal": False}))
                continue
            described = {"opcode": header.name, "flags": header.flags, "deadline": header.deadline,
                         "correlation": header.correlation}
            try:
                outcomes.append(("frame", described, t.decode_payload(header.name, payload)))
            except t.WireError as error:
                outcomes.append(("error", {"code": error.code, "fatal": error.fatal}))
    except t.WireError as error:
        outcomes.append(("error", {"code": error.code, "fatal": error.fatal}))
    return outcomes


def wanted(vector):
    if vector.get("incomplete"):
        return []
    if "error" in vector:
        return [("error", vector["error"])]
    return [("frame", vector["header"], vector["fields"])]


def run_frame(vector):
    name, data = vector["name"], bytes.fromhex(vector["hex"])
    limit = vector.get("frameBytesMax", t.FRAME_BYTES_MAX)
    whole = t.FrameDecoder(limit)
    whole.feed(data)
    expect(receive(whole) == wanted(vector), name, "whole")
    dripped, outcomes = t.FrameDecoder(limit), []
    for byte in data:
        dripped.feed(bytes([byte]))
        outcomes += receive(dripped)
        if outcomes and outcomes[-1][0] == "error" and outcomes[-1][1]["fatal"]:
            break
    expect(outcomes == wanted(vector), name, "byte by byte")
    if "fields" in vector and vector.get("canonical", True):
        header = vector["header"]
        again = t.encode_frame(header["opcode"], vector["fields"], header["correlation"],
                               header["deadline"], header["flags"])
        expect(again == data, name, "encoded again")


def run_body(vector):
    decode, encode = {"usage": (t.decode_usage_body, t.encode_usage_body),
                      "config": (t.decode_config_body, t.encode_config_body)}[vector["kind"]]
    data = bytes.fromhex(vector["hex"])
    try:
        outcome = ("fields", decode(data))
    except t.WireError as error:
        outcome = ("error", {"code": error.code, "fatal": error.fatal})
    key = "fields" if "fields" in vector else "error"
    expect(outcome == (key, vector[key]), vector["name"], f"decoded to {outcome}")
    if key == "fields" and vector.get("canonical", True):
        expect(encode(vector["fields"]) == data, vector["name"], "encoded again")


def main():
    frames, ran = [], 0
    for path in sorted(glob.glob(os.path.join(VECTORS, "*.json"))):
        with open(path, encoding="utf-8") as file:
            vectors = json.load(file)
        for vector in vectors:
            ran += 1
            try:
                if "kind" in vector:
                    run_body(vector)
                else:
                    run_frame(vector)
                    frames.append(vector)
            except Exception as error:  # a crash of the codec is a failure of this vector
                failures.append(f"{vector['name']}: {error!r}")
    together, expected = t.FrameDecoder(), []
    for vector in frames:
        if vector.get("incomplete") or vector.get("error", {}).get("fatal"):
            continue
        together.feed(bytes.fromhex(vector["hex"]))
        expected += wanted(vector)
    expect(receive(together) == expected, "all frames", "coalesced")
    for failure in failures:
        print("FAILED", failure)
    print(f"ran {ran} vectors")
    return 1 if failures or ran == 0 else 0


if __name__ == "__main__":
    sys.exit(main())
