// Replies, and what becomes of the operation they answer.

internal import Glibc
import Histogram
import TollgateCore

extension Tally {
  /// Everything in the histogram: what was answered since the measured time started.
  package var answersInHistogram: Int { Int(latency.totalCount) }
}

extension Generator {
  /// Takes everything off the socket and answers it; a broken stream ends the connection.
  func read(_ lane: Lane<D>) {
    let n = lane.input.receive(from: lane.descriptor)
    if n <= 0 {
      if n == -Int(EAGAIN) || n == -Int(EINTR) { return }
      return lost(lane)
    }
    do {
      if lane.state == .greeting {
        guard try lane.dialect.greeted(lane.input) else { return }
        opened(lane)
      }
      while let incoming = try lane.dialect.next(lane.input) { try handle(incoming, lane) }
    } catch {
      lastError = "\(error)"
      return lost(lane)
    }
    if lane.state == .leaving && lane.outstanding - lane.waiting == 0 { return lost(lane) }
    fill(lane)
  }

  private func handle(_ incoming: Incoming, _ lane: Lane<D>) throws {
    switch incoming {
    case .reply(let correlation, let verdict):
      let slot: Int
      if D.isOrdered {
        guard let next = lane.popOrder() else { throw BenchError("a reply nobody waits for") }
        slot = next
      } else {
        guard correlation >= 1, correlation <= UInt64(lane.requests.count) else {
          throw BenchError("a reply with an unknown correlation id")
        }
        slot = Int(correlation) - 1
      }
      guard lane.requests[slot].phase == .sent else {
        throw BenchError("a reply nobody waits for")
      }
      answered(lane, slot, verdict)
    case .goAway: if lane.state == .open { leave(lane) }
    case .ping(let correlation, let nonce):
      lane.dialect.pong(correlation: correlation, nonce: nonce, into: lane.output)
      markDirty(lane)
    case .nothing: break
    }
  }

  private func answered(_ lane: Lane<D>, _ slot: Int, _ verdict: Verdict) {
    let request = lane.requests[slot]
    switch verdict {
    case .allowed(let reason, let source, let replayed):
      // An earlier sending may have been decided in Redis; only Redis can then say how.
      if request.isUncertain && source != Source.redis.rawValue {
        return pause(lane, slot)
      }
      count(reason, source, replayed)
      let at = Int(request.subject) * features
      for feature in 0..<features {
        let amount = lane.amounts[slot * features + feature]
        tally.admitted[at + feature] += amount
        if source != Source.redis.rawValue { tally.failOpen[feature] += amount }
      }
    case .denied(let reason, let source, let replayed):
      if request.isUncertain && source != Source.redis.rawValue {
        return pause(lane, slot)
      }
      count(reason, source, replayed)
    case .error(let number):
      let effect = Effect(number)
      if !D.isOrdered && (effect == .unknown || (request.isUncertain && effect == .transient)) {
        lane.requests[slot].isUncertain = true
        tally.errors[Int(number) % Tally.codes] += 1
        return pause(lane, slot)
      }
      tally.errors[Int(number) % Tally.codes] += 1
      if request.isUncertain { tally.unresolved += 1 }
      return finish(lane, slot, settled: false)
    }
    finish(lane, slot, settled: request.isUncertain)
  }

  private func count(_ reason: UInt16, _ source: UInt8, _ replayed: Bool) {
    tally.reasons[Int(reason) % Tally.codes] += 1
    tally.sources[Int(source) & 3] += 1
    if replayed { tally.replayed += 1 }
  }

  private func finish(_ lane: Lane<D>, _ slot: Int, settled: Bool) {
    tally.completed += 1
    if settled { tally.resolved += 1 }
    tally.record(nanoseconds: now - lane.requests[slot].intended)
    release(lane, slot)
  }

  func release(_ lane: Lane<D>, _ slot: Int) {
    lane.requests[slot].phase = .free
    lane.free.append(slot)
  }

  /// The same operation again, after a pause that grows.
  private func pause(_ lane: Lane<D>, _ slot: Int) {
    lane.requests[slot].phase = .waiting
    lane.requests[slot].attempts &+= 1
    let pause = min(Int64(lane.requests[slot].attempts) * 10_000_000, 250_000_000)
    lane.requests[slot].due = now + pause
    lane.waiting += 1
  }

  func resendDue(_ lane: Lane<D>) {
    guard lane.state == .open else { return }
    for slot in lane.requests.indices
    where lane.requests[slot].phase == .waiting && lane.requests[slot].due <= now {
      lane.requests[slot].phase = .sent
      lane.waiting -= 1
      tally.retries += 1
      send(lane, slot)
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
