// A rest that others can end. Quiet tasks rest until instants that they share (`Nap.end`), so that
// the process wakes once for all of them: what a sidecar costs while nobody asks it for anything is
// the number of its wakings.

import NIOConcurrencyHelpers

/// One task at a time rests on it.
final class Nap: Sendable {
  private let sleep = NIOLockedValueBox<Task<Void, Never>?>(nil)

  /// Rests until then, until `wake`, or until its task is cancelled; not at all where there turns
  /// out to be no reason to, which is asked once `wake` would be heard.
  func rest(
    until end: ContinuousClock.Instant, while isRestful: () -> Bool = { true }
  ) async {
    let sleeping = Task { _ = try? await Task.sleep(until: end) }
    sleep.withLockedValue { $0 = sleeping }
    if !isRestful() { sleeping.cancel() }
    await withTaskCancellationHandler {
      await sleeping.value
    } onCancel: {
      sleeping.cancel()
    }
    sleep.withLockedValue { $0 = nil }
  }

  /// From any thread; nothing where nobody rests.
  func wake() { sleep.withLockedValue { $0 }?.cancel() }

  private static let origin = ContinuousClock.now

  /// The next multiple of `milliseconds` (after the process looked first) that is at least half of
  /// it away. Who rests again and again rests that long, beside all others who do.
  static func end(after milliseconds: Int64) -> ContinuousClock.Instant {
    let length = Duration.milliseconds(max(1, milliseconds))
    let earliest = origin.duration(to: .now) + length / 2
    let turns = (earliest / length).rounded(.up)
    return origin + length * Int(turns)
  }
}
