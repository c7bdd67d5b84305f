// NIO runs what is handed to a loop until nothing more is, and only then looks at its sockets. Who
// hands work over from other threads as fast as it is done, or hands the rest of it to the next
// turn, would keep a loop from ever reading what Redis answered: a store that is well would be
// taken for one that is silent. All such work of a loop goes through its breather, which lets the
// loop come round to its sockets after every few milliseconds of it.
//
// Why a timer: one that is not due yet is the one thing for which NIO ends its turn.

import NIOCore

final class Breather {
  /// Work between two looks at the sockets.
  static let breath = TimeAmount.milliseconds(2)
  /// Long enough not to be due when the turn asks for more to do.
  static let pause = TimeAmount.microseconds(200)

  private let eventLoop: any EventLoop
  private var worked = TimeAmount.nanoseconds(0)
  private var isResting = false
  private var waiting: [() -> Void] = []

  init(eventLoop: any EventLoop) { self.eventLoop = eventLoop }

  /// Now, or after a look at the sockets; always in order. On the loop.
  func run(_ work: @escaping () -> Void) {
    if isResting { return waiting.append(work) }
    guard worked < Self.breath else {
      isResting = true
      waiting.append(work)
      // Behind what this turn still has to do, which may take longer than the pause.
      eventLoop.assumeIsolated().execute {
        self.eventLoop.assumeIsolated().scheduleTask(in: Self.pause) { self.resume() }
      }
      return
    }
    let now = NIODeadline.now()
    work()
    worked = worked + (.now() - now)
  }

  /// Something was read from a socket: the loop has come round.
  func cameRound() { worked = .nanoseconds(0) }

  private func resume() {
    let ready = waiting
    waiting = []
    isResting = false
    worked = .nanoseconds(0)
    for work in ready { run(work) }
  }
}
