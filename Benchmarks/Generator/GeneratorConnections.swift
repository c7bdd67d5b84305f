// Connections: opened, greeted, flushed, lost and opened again. What was in flight on a lost
// connection is of unknown outcome, and is sent again under the same ids.

internal import Glibc

extension Generator {
  /// Opens every connection, or throws with the last reason why one could not be.
  func openAll() throws {
    now = Clocks.monotonic()
    wallMilliseconds = Clocks.wallMilliseconds()
    let limit = now + Int64(load.connectWithin * 1e9)
    while openCount < lanes.count {
      for lane in lanes {
        if case .down(let until) = lane.state, until <= now { connect(lane) }
      }
      try turn(until: now + 10_000_000)
      if now >= limit && openCount < lanes.count {
        throw BenchError(
          "\(lanes.count - openCount) of \(lanes.count) connections did not open: "
            + (lastError ?? "no answer"))
      }
    }
  }

  func connect(_ lane: Lane) {
    lane.state = .greeting
    downCount -= 1
    do {
      lane.descriptor = try targets[lane.target].connect(blocking: false)
      lane.input.clear()
      lane.output.clear()
      dialect.greet(into: lane.output)
      // The poller reports the socket writable once it is connected; the greeting goes then.
      lane.isBlocked = true
      try poller.add(lane.descriptor, token: lane.index)
    } catch {
      lastError = "\(error)"
      failed(lane)
    }
  }

  func writable(_ lane: Lane) {
    guard lane.descriptor >= 0 else { return }
    if lane.isBlocked {
      lane.isBlocked = false
      do {
        try poller.watch(lane.descriptor, token: lane.index, writable: false)
        // A protocol without a greeting is open as soon as it is connected.
        if lane.state == .greeting && lane.output.isEmpty, try dialect.greeted(lane.input) {
          opened(lane)
        }
      } catch {
        lastError = "\(error)"
        return lost(lane)
      }
    }
    flush(lane)
    if lane.descriptor >= 0 {
      fill(lane)
      flush(lane)
    }
  }

  @inline(__always)
  func flush(_ lane: Lane) {
    guard lane.descriptor >= 0, !lane.isBlocked else { return }
    while !lane.output.isEmpty {
      let n = lane.output.send(to: lane.descriptor)
      if n >= 0 { continue }
      if n == -Int(EINTR) { continue }
      guard n == -Int(EAGAIN) else {
        lastError = "\(targets[lane.target]): \(BenchError.system("send", Int32(-n)))"
        return lost(lane)
      }
      lane.isBlocked = true
      do {
        try poller.watch(lane.descriptor, token: lane.index, writable: true)
      } catch {
        lost(lane)
      }
      return
    }
  }

  /// The greeting was accepted: what was under way before is sent again first.
  func opened(_ lane: Lane) {
    lane.state = .open
    lane.failures = 0
    openCount += 1
    for slot in 0..<lane.places where unsafe lane.requests[slot].phase == .sent {
      counts.n.retries += 1
      resend(lane, slot)
    }
  }

  /// The server drains: its last answers are awaited, then the connection moves on.
  func leave(_ lane: Lane) {
    lane.state = .leaving
    openCount -= 1
  }

  func lost(_ lane: Lane) {
    if lane.state == .open { openCount -= 1 }
    if lane.state == .open || lane.state == .leaving {
      counts.n.connectionsLost += 1
    }
    failed(lane)
  }

  private func failed(_ lane: Lane) {
    drop(lane)
    downCount += 1
    for slot in 0..<lane.places where unsafe lane.requests[slot].phase == .sent {
      if D.isOrdered {
        counts.n.dropped += 1
        release(lane, slot)
      } else {
        unsafe lane.requests[slot].isUncertain = true
      }
    }
    lane.clearOrder()
    lane.failures += 1
    // The same server first, then the next one: it may be gone for good.
    if lane.failures > 1 { lane.target = (lane.target + 1) % targets.count }
    let pause = min(Int64(lane.failures) * 10_000_000, 200_000_000)
    lane.state = unsafe .down(until: now + pause + Int64(random.pointee.below(5_000_000)))
  }

  /// Closes the socket; the poller forgets it by itself.
  func drop(_ lane: Lane) {
    if lane.descriptor >= 0 { close(lane.descriptor) }
    lane.descriptor = -1
    lane.isBlocked = false
  }
}
