// A round of looking things up that several may ask for at once: one is under way at a time, its
// result is good for a moment, and nobody waits for one that stands still. So whoever asks without
// end costs no more than ten rounds a second, and a loop that hangs is not handed one for each.

import NIOCore

actor SharedRound {
  private let work: @Sendable () async -> Void
  private var underWay: Task<Void, Never>?
  private var startedAt = NIODeadline.uptimeNanoseconds(0)
  private var endedAt = NIODeadline.uptimeNanoseconds(0)

  static let goodFor = TimeAmount.milliseconds(100)
  static let patience = TimeAmount.milliseconds(100)

  init(_ work: @escaping @Sendable () async -> Void) { self.work = work }

  /// Returns when it was done a moment ago, or when it takes too long.
  func done() async {
    let now = NIODeadline.now()
    if let underWay {
      guard now - startedAt < Self.patience else { return }
      _ = await Bounded.ended(by: startedAt + Self.patience) { await underWay.value }
    } else if now - endedAt >= Self.goodFor {
      startedAt = now
      let round = Task {
        await work()
        underWay = nil
        endedAt = .now()
      }
      underWay = round
      _ = await Bounded.ended(by: now + Self.patience) { await round.value }
    }
  }
}
