// One subscribed connection's protocol state. What is published is at most once and leaves no trace
// when it is missed, so the question this machine answers is not "what came?" but "until when is
// it sure that nothing was missed?": Redis handles the commands of one connection in order, so when
// the answer to a PING comes, everything published before that PING was *sent* has been delivered.
//
//   connecting ──opened──▶ authenticating ──OK──▶ subscribing ──last confirmed──▶ live
//       │                        │                     │                           │ silent
//       └────────────────────────┴─────────────────────┴───────────▶ closed ◀──────┘
//
// No clock, no channel: a test is a transcript.

private import DequeModule

package struct SubscriptionMachine {
  package enum State: Hashable, Sendable {
    case connecting
    case authenticating
    /// So many channels are not confirmed yet.
    case subscribing(left: Int)
    case live
    case closed
  }

  package enum Action: Hashable, Sendable {
    case none
    case sendAuthentication
    case sendSubscribe
    case sendPing
    /// All channels are confirmed: nothing published from now on is missed.
    case becameLive
    case message(channel: String, payload: [UInt8])
    /// Nothing that was published before this instant (nanoseconds) was missed.
    case fresh(asOf: Int64)
    case fatal(RedisCloseReason)
  }

  /// Nanoseconds without an answer after which the connection is given up.
  package static let silenceMax: Int64 = 2_000_000_000

  package private(set) var state: State = .connecting
  private let needsAuthentication: Bool
  private let channels: Int
  /// When those PINGs were sent that are not answered; at most `silenceMax` over the beat of them.
  private var pings: Deque<Int64> = []
  private var heardAt: Int64 = 0

  package init(needsAuthentication: Bool, channels: Int) {
    precondition(channels > 0, "a subscription has channels")
    self.needsAuthentication = needsAuthentication
    self.channels = channels
  }

  package mutating func opened(now: Int64) -> Action {
    precondition(state == .connecting, "a transport opens once")
    heardAt = now
    if needsAuthentication {
      state = .authenticating
      return .sendAuthentication
    }
    state = .subscribing(left: channels)
    return .sendSubscribe
  }

  package mutating func received(_ reply: RESPReply, now: Int64) -> Action {
    heardAt = now
    switch state {
    case .closed: return .none
    case .connecting: return .fatal(.unexpectedReply)
    case .authenticating:
      if let text = reply.error { return .fatal(.authenticationRejected(text)) }
      state = .subscribing(left: channels)
      return .sendSubscribe
    case .subscribing(let left):
      if let text = reply.error { return .fatal(.identificationRejected(text)) }
      // What is published on a channel confirmed already may come between the confirmations.
      if let message = Self.message(reply) { return message }
      guard Self.kind(reply) == "subscribe" else { return .fatal(.unexpectedReply) }
      state = left > 1 ? .subscribing(left: left - 1) : .live
      return left > 1 ? .none : .becameLive
    case .live:
      if let text = reply.error { return .fatal(.identificationRejected(text)) }
      if let message = Self.message(reply) { return message }
      guard Self.kind(reply) == "pong", let sent = pings.popFirst() else {
        return .fatal(.unexpectedReply)
      }
      return .fresh(asOf: sent)
    }
  }

  /// Called every beat.
  package mutating func beat(now: Int64) -> Action {
    switch state {
    case .closed: return .none
    case .connecting, .authenticating, .subscribing:
      return now - heardAt > Self.silenceMax && heardAt > 0 ? .fatal(.handshakeTimedOut) : .none
    case .live:
      guard now - (pings.first ?? now) <= Self.silenceMax else { return .fatal(.stalled) }
      pings.append(now)
      return .sendPing
    }
  }

  package mutating func closed() { state = .closed }

  private static func kind(_ reply: RESPReply) -> String? { reply.array?.first?.text }

  private static func message(_ reply: RESPReply) -> Action? {
    guard let parts = reply.array, parts.count == 3, parts[0].text == "message",
      let channel = parts[1].text, let payload = parts[2].bytes
    else { return nil }
    return .message(channel: channel, payload: payload)
  }
}
