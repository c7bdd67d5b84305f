// Replies, and what becomes of the operation they answer.

internal import Glibc
import TollgateCore

extension Generator {
  /// Takes everything off the socket and answers it; a broken stream ends the connection.
  @inline(__always)
  func read(_ lane: Lane) {
    // What arrives is read where the last connection's bytes were: they are still in the cache.
    let input = lane.input.isEmpty ? scratch : lane.input
    let n = input.receive(from: lane.descriptor)
    if n <= 0 {
      if n == -Int(EAGAIN) || n == -Int(EINTR) { return }
      return lost(lane)
    }
    now = Clocks.monotonic()
    do {
      if lane.state == .greeting { try greeting(lane, input) }
      if lane.state != .greeting { try take(input, lane) }
    } catch {
      scratch.clear()
      lastError = "\(error)"
      return lost(lane)
    }
    if !scratch.isEmpty { lane.input.take(scratch) }
    if lane.state == .leaving && lane.count(.sent) == 0 { return lost(lane) }
    fill(lane)
    flush(lane)
  }

  @inline(never)
  private func greeting(_ lane: Lane, _ input: Bytes) throws {
    if try dialect.greeted(input) { opened(lane) }
  }

  @inline(__always)
  private func take(_ input: Bytes, _ lane: Lane) throws {
    var cursor = Cursor()
    let dialect = self.dialect
    while let incoming = try dialect.next(input, &cursor) {
      if case .reply(let correlation, let record, let verdict) = incoming {
        if record >= 0 {
          answered(lane, try place(lane, correlation, record), verdict)
        } else {
          try answeredWhole(lane, correlation, verdict)
        }
      } else {
        handle(incoming, lane)
      }
    }
    input.consume(cursor.position)
  }

  private func handle(_ incoming: Incoming, _ lane: Lane) {
    switch incoming {
    case .goAway: if lane.state == .open { leave(lane) }
    case .ping(let correlation, let nonce):
      dialect.pong(correlation: correlation, nonce: nonce, into: lane.output)
    case .nothing, .reply: break
    }
  }

  /// Not by the counters: neither by Redis nor from what a sidecar has set aside there.
  @inline(__always)
  private static func isByPolicy(_ source: UInt8) -> Bool {
    source != Source.redis.rawValue && source != Source.lease.rawValue
  }

  /// The place that a record of an answer is for. Frames are numbered from 1 on; behind them each
  /// place has a number for when it is sent alone.
  @inline(__always)
  private func place(_ lane: Lane, _ correlation: UInt64, _ record: Int) throws -> Int {
    if D.isOrdered {
      guard let next = lane.popOrder() else { throw BenchError("a reply nobody waits for") }
      return next
    }
    guard correlation >= 1, correlation <= UInt64(lane.frames + lane.places) else {
      throw BenchError("a reply with an unknown correlation id")
    }
    let number = Int(correlation) - 1
    let slot: Int
    if number < lane.frames {
      guard record < lane.records else { throw BenchError("an answer with too many records") }
      slot = number * lane.records + record
    } else {
      guard record == 0 else { throw BenchError("an answer with too many records") }
      slot = number - lane.frames
    }
    guard unsafe lane.requests[slot].phase == .sent else {
      throw BenchError("a reply nobody waits for")
    }
    return slot
  }

  /// An error instead of an answer to each record.
  @inline(never)
  private func answeredWhole(
    _ lane: Lane, _ correlation: UInt64, _ verdict: Verdict
  ) throws {
    let first = try place(lane, correlation, 0)
    let isFrame = correlation <= UInt64(lane.frames)
    for slot in first..<(first + (isFrame ? lane.records : 1))
    where unsafe lane.requests[slot].phase == .sent {
      answered(lane, slot, verdict)
    }
  }

  @inline(__always)
  private func answered(_ lane: Lane, _ slot: Int, _ verdict: Verdict) {
    let isUncertain = unsafe lane.requests[slot].isUncertain
    switch verdict {
    case .allowed(let reason, let source, let replayed):
      // An earlier sending may have been decided in Redis; only Redis can then say how.
      if isUncertain && Self.isByPolicy(source) { return pause(lane, slot) }
      counts.decided(reason, source, replayed)
      unsafe counts.admit(
        subject: Int(lane.requests[slot].subject), amounts: lane.amounts + slot * features,
        byPolicy: Self.isByPolicy(source))
    case .denied(let reason, let source, let replayed):
      if isUncertain && Self.isByPolicy(source) { return pause(lane, slot) }
      counts.decided(reason, source, replayed)
      counts.n.denied += 1
    case .error(let number): return failed(lane, slot, number)
    }
    finish(lane, slot, settled: isUncertain)
  }

  @inline(never)
  private func failed(_ lane: Lane, _ slot: Int, _ number: UInt16) {
    let isUncertain = unsafe lane.requests[slot].isUncertain
    let effect = Effect(number)
    counts.failed(number)
    if !D.isOrdered && (effect == .unknown || (isUncertain && effect == .transient)) {
      unsafe lane.requests[slot].isUncertain = true
      return pause(lane, slot)
    }
    if isUncertain { counts.n.unresolved += 1 }
    finish(lane, slot, settled: false)
  }

  @inline(__always)
  private func finish(_ lane: Lane, _ slot: Int, settled: Bool) {
    counts.n.completed += 1
    if settled { counts.n.resolved += 1 }
    counts.record(nanoseconds: unsafe now - lane.requests[slot].intended)
    release(lane, slot)
  }

  @inline(__always)
  func release(_ lane: Lane, _ slot: Int) {
    if lane.release(slot) { framesBusy -= 1 }
  }

  /// The same operation again, after a pause that grows.
  @inline(never)
  private func pause(_ lane: Lane, _ slot: Int) {
    unsafe lane.requests[slot].phase = .waiting
    unsafe lane.requests[slot].attempts &+= 1
    let pause = unsafe min(Int64(lane.requests[slot].attempts) * 10_000_000, 250_000_000)
    unsafe lane.requests[slot].due = now + pause
    lane.waiting += 1
    waitingCount += 1
  }

  func resendDue(_ lane: Lane) {
    guard lane.state == .open else { return }
    for slot in 0..<lane.places
    where unsafe lane.requests[slot].phase == .waiting && lane.requests[slot].due <= now {
      unsafe lane.requests[slot].phase = .sent
      lane.waiting -= 1
      waitingCount -= 1
      counts.n.retries += 1
      resend(lane, slot)
    }
  }
}

/// What an error number says about the operation (PROTOCOL, registry of errors).
enum Effect {
  /// It may have been applied.
  case unknown
  /// Not applied by this sending; another one may be answered.
  case transient
  /// Not applied, and never will be.
  case refused

  init(_ number: UInt16) {
    switch ErrorCode(rawValue: number) {
    case .outcomeUnknown, .internalError: self = .unknown
    case .overloaded, .deadlineExceeded, .unavailable, .draining, .notReady, .idleTimeout:
      self = .transient
    default: self = .refused
    }
  }
}
