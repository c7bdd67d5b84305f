// What the ledger pushes, between its link and the healer. Bounded (promise 8): a healer that
// cannot keep up must not let it grow for ever.
//
// Nothing is lost by a full queue, because a link that ends loses no more than it does anyway: when
// it is full, everything in it is void, the link is given up, and the next one says all of it anew.
// LINKED names every bucket's epoch and cursor, and a bucket that is being gathered asks a link
// that comes. So the healer hears "disconnected" in place of what was dropped, then "connected".

import NIOConcurrencyHelpers
import NIOCore

final class PushQueue: Sendable {
  private struct State {
    var pushes = CircularBuffer<LedgerPush>()
    /// The link is given up; what it still says is void.
    var isVoid = false
  }

  let pushesMax: Int
  /// One element whenever there may be something to take.
  let signals: AsyncStream<Void>
  private let signal: AsyncStream<Void>.Continuation
  private let state = NIOLockedValueBox(State())

  /// - Parameter streams: a recovery of all of them is two pushes each, and several of those fit.
  init(streams: Int) {
    pushesMax = max(1024, streams * 8)
    (signals, signal) = AsyncStream.makeStream(of: Void.self, bufferingPolicy: .bufferingNewest(1))
  }

  var count: Int { state.withLockedValue { $0.pushes.count } }

  /// False: the link that it came from has to be given up.
  func put(_ push: LedgerPush) -> Bool {
    let isKept = state.withLockedValue { state in
      let isOfALink = push.isOfALink
      if !isOfALink { state.isVoid = false }
      guard !state.isVoid else { return false }
      guard state.pushes.count >= pushesMax else {
        state.pushes.append(push)
        return true
      }
      state.pushes = [.disconnected]
      state.isVoid = isOfALink
      if !isOfALink { state.pushes.append(push) }
      return !isOfALink
    }
    signal.yield()
    return isKept
  }

  /// The oldest; nil: there is none now.
  func take() -> LedgerPush? { state.withLockedValue { $0.pushes.popFirst() } }
}

extension LedgerPush {
  /// Said by the ledger, and not of the link as such.
  fileprivate var isOfALink: Bool {
    switch self {
    case .presentRequest, .epoch: true
    case .connected, .disconnected, .refused: false
    }
  }
}
