// What passes through one event loop, for those who watch (`tollgate tail`).
//
// Why this shape: while nobody listens the enforcer holds nil here, and an answer costs one
// comparison with it. A listener has a ring of its own with its own filter, so that a rare account
// is seen beside a busy one; what does not fit the ring is counted, and the listener is told. One
// that does not come back is forgotten. On the loop only.

import DequeModule
import NIOCore
import TollgateCore

struct DecisionTail {
  struct Filter: Sendable, Hashable {
    /// Account path; nil: all.
    var account: String?
    var deniedOnly: Bool
  }

  private struct Listener {
    var filter: Filter
    var ring: Deque<TailReply.Event> = []
    var dropped: Int64 = 0
    var heard: NIODeadline
  }

  /// At once on one sidecar; one more is refused.
  static let listenersMax = 8
  /// Per listener and event loop.
  static let eventsMax = 2_048
  /// A listener that was not heard of for this long is gone.
  static let silenceMax = TimeAmount.seconds(15)

  private var listeners: [UInt64: Listener] = [:]

  var isEmpty: Bool { listeners.isEmpty }

  /// False: there are too many.
  mutating func listen(_ id: UInt64, _ filter: Filter, now: NIODeadline) -> Bool {
    if listeners[id] != nil {
      listeners[id]?.heard = now
      return true
    }
    guard listeners.count < Self.listenersMax else { return false }
    listeners[id] = Listener(filter: filter, heard: now)
    return true
  }

  mutating func forgetSilent(now: NIODeadline) {
    listeners = listeners.filter { now - $0.value.heard < Self.silenceMax }
  }

  mutating func take(_ id: UInt64, limit: Int) -> (events: [TailReply.Event], dropped: Int64) {
    guard var listener = listeners[id] else { return ([], 0) }
    let events = Array(listener.ring.prefix(limit))
    listener.ring.removeFirst(events.count)
    defer { listeners[id] = listener }
    let dropped = listener.dropped
    listener.dropped = 0
    return (events, dropped)
  }

  /// Where nobody wants it, nothing is made of it.
  mutating func note(
    account: String, isAllowed: Bool, _ event: () -> TailReply.Event
  ) {
    var made: TailReply.Event?
    for id in listeners.keys {
      guard let filter = listeners[id]?.filter, !filter.deniedOnly || !isAllowed,
        filter.account == nil || filter.account == account
      else { continue }
      let event = made ?? event()
      made = event
      if listeners[id]?.ring.count ?? 0 >= Self.eventsMax {
        listeners[id]?.ring.removeFirst()
        listeners[id]?.dropped += 1
      }
      listeners[id]?.ring.append(event)
    }
  }
}

extension Enforcer {
  /// Of an answer that is given now.
  func noteTail(_ request: Request, _ outcome: Outcome, at now: NIODeadline) {
    let (isAllowed, reason, source, limit, replayed): (Bool, String, String, Name?, Bool) =
      switch outcome {
      case .decision(let decision):
        (
          decision.isAllowed, decision.reason.name, decision.source.name, decision.binding,
          decision.replayed
        )
      case .error(let code, _): (false, code.name, "", nil, false)
      }
    tail?.note(account: request.account, isAllowed: isAllowed) {
      TailReply.Event(
        time: redisNow, subject: request.subject, operation: request.id,
        kind: request.mode.word,
        items: request.items.map { .init(feature: $0.feature, amount: $0.amount) },
        allowed: isAllowed, reason: reason, source: source, limit: limit, replayed: replayed,
        microseconds: (now - request.arrived).nanoseconds / 1_000)
    }
  }

  /// What a listener has not been given yet; nil: it is a new one, and there are too many.
  func tailed(
    _ id: UInt64, _ filter: DecisionTail.Filter, limit: Int
  ) -> (events: [TailReply.Event], dropped: Int64)? {
    var tail = tail ?? DecisionTail()
    tail.forgetSilent(now: now)
    guard tail.listen(id, filter, now: now) else { return nil }
    let taken = tail.take(id, limit: limit)
    self.tail = tail
    return taken
  }

  /// Where the last listener has gone, answers cost nothing again.
  func forgetSilentListeners() {
    guard tail != nil else { return }
    tail?.forgetSilent(now: now)
    if tail?.isEmpty == true { tail = nil }
  }
}

extension RequestMode {
  /// For people.
  var word: String {
    switch self {
    case .check: "check"
    case .consume: "consume"
    case .post: "post"
    case .cancel: "cancel"
    case .reserve: "reserve"
    case .settle: "settle"
    case .release: "release"
    case .extend: "extend"
    case .refund: "refund"
    }
  }
}
