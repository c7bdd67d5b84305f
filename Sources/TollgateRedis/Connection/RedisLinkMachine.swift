// When a link connects, waits and stops. A value: events in, one action out.
//
//   idle ──started──▶ connecting ──ready──▶ connected
//                        ▲   │ lost            │ lost
//                        │   ▼                 ▼
//                        └─ waiting ◀──────────┘        stopped: final, from anywhere

package struct RedisLinkMachine {
  package enum State: Hashable, Sendable {
    case idle
    /// A connection is being opened or shakes hands.
    case connecting
    case connected
    /// Until the next attempt.
    case waiting
    case stopped
  }

  package enum Action: Hashable, Sendable {
    case connect
    /// Call `waited` after this many nanoseconds.
    case wait(Int64)
    /// Close the connection gracefully, bounded by the drain time.
    case drain
    /// Drop the timer of the last `wait`.
    case cancelWait
    case none
  }

  package private(set) var state: State = .idle
  private var backoff: Backoff
  private var jitter: JitterSource

  package init(backoff: Backoff, seed: UInt64) {
    self.backoff = backoff
    jitter = JitterSource(seed: seed)
  }

  package mutating func started() -> Action {
    switch state {
    case .idle:
      state = .connecting
      return .connect
    case .connecting, .connected, .waiting, .stopped:
      return .none
    }
  }

  package mutating func becameReady() {
    switch state {
    case .connecting:
      state = .connected
      backoff.reset()
    case .idle, .connected, .waiting, .stopped:
      break
    }
  }

  /// The connection failed to open, or ended.
  package mutating func lost() -> Action {
    switch state {
    case .connecting, .connected:
      state = .waiting
      return .wait(backoff.next(using: &jitter))
    case .idle, .waiting, .stopped:
      return .none
    }
  }

  package mutating func waited() -> Action {
    switch state {
    case .waiting:
      state = .connecting
      return .connect
    case .idle, .connecting, .connected, .stopped:
      return .none
    }
  }

  package mutating func stopRequested() -> Action {
    defer { state = .stopped }
    switch state {
    case .idle, .stopped: return .none
    case .waiting: return .cancelWait
    case .connecting, .connected: return .drain
    }
  }
}
