// The way from any thread to the event loop: commands gather under a lock, and one wake-up of the
// loop takes them all, so a burst of calls costs one hop and leaves in one flush. Also what callers
// read without asking the loop: the statistics, and how far the sidecar's clock is from ours.
//
// Bounded: at most `outstandingMax` calls are accepted and not completed.

internal import NIOConcurrencyHelpers
internal import NIOCore
internal import TollgateWire

final class Inbox: Sendable {
  enum Command: Sendable {
    case start
    case submit(
      ClientMachine.Call, CheckedContinuation<Result<Decision, TollgateError>, Never>)
    case submitBatch(
      [ClientMachine.Call], group: UInt64,
      CheckedContinuation<[Result<Decision, TollgateError>], Never>)
    case cancel([ClientMachine.Token])
    case adopt(posts: [Record], cancels: [Record], settles: [SettleRecord])
    case awaitReady(
      UInt64, nanoseconds: Int64, CheckedContinuation<Result<Void, TollgateError>, Never>)
    case cancelReady(UInt64)
    case stop(grace: Int64, CheckedContinuation<UnfinishedWork, Never>)
    case abandon
  }

  private struct State {
    var commands: [Command] = []
    var isWakeScheduled = false
    var outstanding = 0
    var lastNumber: UInt64 = 0
    var clockOffset: Int64 = 0
    var statistics = ClientStatistics()
    /// Refused here, before the machine: added to its counts.
    var refused: Int64 = 0
  }

  private let state = NIOLockedValueBox(State())
  private let outstandingMax: Int

  init(outstandingMax: Int) { self.outstandingMax = max(1, outstandingMax) }

  /// Room for `count` calls, and their numbers; nil where there is none.
  func reserve(_ count: Int) -> UInt64? {
    state.withLockedValue { state in
      guard state.outstanding + count <= outstandingMax else {
        state.refused += Int64(count)
        return nil
      }
      state.outstanding += count
      let first = state.lastNumber + 1
      state.lastNumber += UInt64(count)
      return first
    }
  }

  /// A number that is not a call's.
  func number() -> UInt64 {
    state.withLockedValue { state in
      state.lastNumber += 1
      return state.lastNumber
    }
  }

  /// True where the loop must be woken.
  func put(_ command: Command) -> Bool {
    state.withLockedValue { state in
      state.commands.append(command)
      defer { state.isWakeScheduled = true }
      return !state.isWakeScheduled
    }
  }

  func take() -> [Command] {
    state.withLockedValue { state in
      state.isWakeScheduled = false
      let commands = state.commands
      state.commands = []
      return commands
    }
  }

  func publish(_ statistics: ClientStatistics, completed: Int) {
    state.withLockedValue { state in
      state.statistics = statistics
      state.outstanding -= completed
    }
  }

  func setClockOffset(_ offset: Int64) { state.withLockedValue { $0.clockOffset = offset } }

  var clockOffset: Int64 { state.withLockedValue { $0.clockOffset } }

  var statistics: ClientStatistics {
    state.withLockedValue { state in
      var statistics = state.statistics
      statistics.requests += state.refused
      statistics.notSent += state.refused
      statistics.outstanding = state.outstanding
      return statistics
    }
  }
}
